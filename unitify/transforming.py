"""``transform``: the pipeline, in one line of arrows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from unitify.capture.execution import LossFunction
from unitify.capture.inputs import Inputs, as_batches, as_inputs, given_or_inferred, is_given
from unitify.capture.islands import (
    Recording,
    flat_calls,
    path_of,
    record,
    with_true_parameters,
)
from unitify.capture.sizes import RECORDING_SECONDS
from unitify.cast.casting import Evidence, cast_module
from unitify.diagnostics import (
    CaptureDiffers,
    NotExact,
    NothingTransformed,
    UnitifyError,
    UnknownOption,
    warn_of_losses,
)
from unitify.estimates import Estimates
from unitify.estimating import Estimated, check_scales, estimated
from unitify.module.adopted import adopt_parameters
from unitify.module.assembly import module_of
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part, parts_of, value_name
from unitify.plan.bands import tolerance_of
from unitify.plan.scale_plan import PLACEMENTS, WEIGHTS, Placement, Weights
from unitify.planning import carrier_of, placement_of, planned, uniformly_planned
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import Recipe
from unitify.rewrite import rewrite
from unitify.rulebook.rule_table import load_rules
from unitify.scheme.options import UnitScheme, read_scheme
from unitify.scheme.reparametrize import reparametrize
from unitify.verification import Difference, Verification
from unitify.verifying.running import is_faithful, lost_by_recording, notes_on, verify_module

#: Called after each stage with its name and what it made.
StageObserver = Callable[[str, Any], None]


def transform(
    model: nn.Module,
    example_inputs: Any = (),
    example_kwargs: dict[str, Any] | None = None,
    *,
    loss_fn: LossFunction | None = None,
    scheme: str | UnitScheme = "preserve",
    scales: str = "auto",
    batches: Iterable[Any] | None = None,
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None = None,
    dynamic_shapes: Any = "auto",
    weights: Weights = "true",
    placement: Placement | None = None,
    recording_seconds: float | None = RECORDING_SECONDS,
    verify: bool = True,
    inplace: bool = False,
    rules: Iterable[Any] = (),
    on_stage: StageObserver | None = None,
) -> UnitScaledModule:
    """The same function as ``model``, with tensors of both passes near unit RMS where it matters.

    - ``example_inputs``, ``example_kwargs``: what the model is called with, for capture; inferred
      where the model tells, and drawn. Scales are measured on them.
    - ``loss_fn(output)``: where gradients start; else at a scalar in the output, else at a unit
      gradient of every output.
    - ``scheme``: "preserve" keeps the model's function and weights. "unit" and "u-mup" make another
      model of it, for training from scratch: new unit weights, and constants in the graph by which
      every operation's result has unit RMS (``UnitScheme`` and ``UMuP`` have options). Gradients
      are true ones of that model, which is ``module.capture.model``.
    - ``scales``: "measured" takes RMS from one forward and backward run on each of ``batches`` (the
      example inputs where there are none); "analysis" predicts it. "auto" measures where weights
      hold data, and predicts on the meta device and for a scheme, which draws new weights;
      ``module.scales`` says which it was. A batch for which the recording of the example does not
      hold (it lies on the other side of a branch on a size, say) is recorded, too, whatever
      ``scales`` is, and the module runs the recording that holds for a call.
    - ``recipe``: what to cast, as ``recipe.read_recipe`` takes it: a name ("fp8"), a name
      with changes ("fp8,exclude=lm_head"), a table, a TOML file, a ``Recipe``; None casts nothing.
    - ``dynamic_shapes``: "auto" leaves every size free that the model leaves free; else as for
      ``torch.export.export``.
    - ``weights``: "true" leaves parameters and their gradients as the original has them: state
      dicts, optimizers, clipping and schedules are the original's, whatever the plan. "stored"
      divides each parameter by a scale of its own, for weights that are kept in a narrow format
      without masters; ``unitify.optim`` then has the optimizer's options.
    - ``placement``: "everywhere" holds every value near unit RMS: within a factor of two, and every
      gradient, where a recipe (FP16) casts all values; within six octaves otherwise, since float32
      and bfloat16 hold any scale, and gradients follow their values.
      "casts" leaves values true and brings them there where they are cast; what passes between
      submodules is true then, and each can be called, wrapped or replaced. None: "casts" for
      recipes that cast contractions by scales of the plan (FP8), else "everywhere".
    - ``recording_seconds``: how long a recording with free sizes may take; one that takes longer is
      made again with fewer free sizes. None: as long as it takes.
    - ``verify``: compare bitwise with the original, before any cast.
    - ``inplace``: the module takes over the model's own ``Parameter`` objects. With true weights of
      the model itself they keep their values, and the two share them; else they hold stored
      weights, or those of the scheme, and the model itself is used up.
    - ``rules``: rule files or mappings beside the shipped ones.
    - ``on_stage(name, made)`` is called after each stage, with what the stage made: "capture" and
      "reparametrize" with a ``Recording``, "estimate" with an ``Estimated``, "plan" with a
      ``Planned``, the others with the module or its ``Verification``.

    Warns (``UnitifyWarning``) of what is not kept: submodules left alone, one mode, checkpointing,
    a pattern of the recipe that matches nothing.

    Raises ``UnitifyError``: U001 for an option that is not known, U002 without inputs, U101 to U109
    from capture, U401 to U404 from the recipe, U110, U501 or U502 where the result is not the
    model, U701 for a scheme without the whole graph.
    """
    done = _observer(on_stage)
    casts, asked = read_recipe(recipe), read_scheme(scheme)
    if weights not in WEIGHTS:
        choices = ", ".join(WEIGHTS)
        raise UnitifyError(UnknownOption(option="weights", value=weights, choices=choices))
    if placement not in (None, *PLACEMENTS):
        choices = ", ".join(PLACEMENTS)
        raise UnitifyError(UnknownOption(option="placement", value=str(placement), choices=choices))
    check_scales(scales)
    has_data = batches is not None or is_given(example_inputs, example_kwargs)
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    table = load_rules(rules)
    batches = as_batches(batches)
    where = placement or placement_of(casts, has_scheme=asked is not None)
    carrier = carrier_of(model, casts, weights)
    further = [as_inputs(model, batch) for batch in batches or ()]

    def scaled(captured: Recording) -> tuple[Recording, list[Part], UnitScaledModule]:
        """capture ─► reparametrize ─► estimate ─► plan ─► rewrite ─► module."""
        captured = with_true_parameters(captured) if weights == "true" else captured
        done("capture", captured)
        recorded = reparametrize(captured, asked, table)
        done("reparametrize", recorded)
        if casts is None or casts.scaling == "unit":
            calls = [(args, kwargs)] if batches is None else further
            known = estimated(recorded, scales, calls, loss_fn, table)
            done("estimate", known)
            # Drawn inputs tell of data about as well as analysis does.
            tolerance = tolerance_of(known.scales == "measured" and has_data)
            plans = planned(known.parts, table, tolerance, where, carrier)
        else:
            known = Estimated(parts_of(recorded.parts), "")
            plans = uniformly_planned(known.parts, casts.loss_scale)
        done("plan", plans)
        parts = [replace(p, graph=rewrite(p.capture, p.plan, table)) for p in plans.parts]
        notes = (*known.diagnostics, *plans.diagnostics)
        module = module_of(recorded, parts, known.scales, notes)
        done("rewrite", module)
        return recorded, parts, module

    recorded, parts, module = scaled(
        record(model, args, kwargs, dynamic_shapes, further, recording_seconds)
    )
    if verify:
        others = _of_further_recordings(recorded, further)
        result = verify_module(recorded.model, module, table, args, kwargs, loss_fn, further=others)
        if not result.is_accepted and lost_by_recording(recorded.model, module, args, kwargs):
            # What the whole recording lost, those of submodules may have kept.
            apart = record(
                model, args, kwargs, dynamic_shapes, further, recording_seconds, is_faithful
            )
            recorded, parts, module = scaled(apart)
            result = verify_module(recorded.model, module, table, args, kwargs, loss_fn)
            if result.differences:
                differences = _named(result.differences)
                raise UnitifyError(
                    CaptureDiffers(where=type(model).__name__, differences=differences)
                )
        done("verify", result)
        if result.findings:
            raise UnitifyError(*result.findings)
        if result.differences:
            differences = _named(result.differences)
            raise UnitifyError(NotExact(where=type(model).__name__, differences=differences))
        module.diagnostics += notes_on(result, type(model).__name__)
        module.verification = result
    warn_of_losses(module.diagnostics)
    if casts is not None:
        flat = {n: _flat(n, recorded, further) for n in recorded.parts} if further else {}
        notes = cast_module(module, parts, casts, table, Evidence(flat, loss_fn))
        module.diagnostics = (*module.diagnostics, *notes)
        warn_of_losses(notes)
        done("cast", module)
    if inplace:
        adopt_parameters(model, module)
    if weights == "true" and not module.scheme and list(module.parts) == [""]:

        def again(model: nn.Module, args: Any, kwargs: Any) -> UnitScaledModule:
            return transform(
                model, args, kwargs, loss_fn=loss_fn, scales=scales, recipe=casts,
                dynamic_shapes=dynamic_shapes, recording_seconds=recording_seconds, placement=where,
                verify=verify, rules=rules,
            )  # fmt: skip

        module._again = again
    return module


def _observer(on_stage: StageObserver | None) -> StageObserver:
    if on_stage is not None and not callable(on_stage):
        option = UnknownOption(option="on_stage", value=repr(on_stage), choices="functions, None")
        raise UnitifyError(option)
    return on_stage or (lambda _name, _made: None)


def _of_further_recordings(recorded: Recording, calls: list[Inputs]) -> list[Inputs]:
    """For each further recording of the whole model a call that it was made of."""
    found: list[Inputs] = []
    for name, captured in recorded.parts.items():
        if name and not path_of(name):
            fitting = (c for c in calls if isinstance(captured.call.fitted(*c), list))
            found += [call for call in (next(fitting, None),) if call is not None]
    return found


def _named(differences: tuple[Difference, ...]) -> str:
    return "; ".join(str(d) for d in differences[:3])


def _flat(name: str, recorded: Recording, calls: list[Inputs]) -> list[list[Any]]:
    """Flat inputs of a part; an island has the inputs that it received."""
    if path_of(name):
        return [list(recorded.parts[name].example)]
    return flat_calls(recorded.parts, name, calls)


def estimate(
    model: nn.Module,
    example_inputs: Any = (),
    example_kwargs: dict[str, Any] | None = None,
    *,
    scales: str = "auto",
    loss_fn: LossFunction | None = None,
    batches: Iterable[Any] | None = None,
    rules: Iterable[Any] = (),
) -> Estimates:
    """RMS of every value of the graph and of its gradient: name → ``Rms(forward, backward)``."""
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    recorded, table = record(model, args, kwargs), load_rules(rules)
    batches = as_batches(batches)
    calls = [(args, kwargs)] if batches is None else [as_inputs(model, b) for b in batches]
    found = estimated(recorded, scales, calls, loss_fn, table)
    return {
        value_name(part.name, value): rms
        for part in found.parts
        for value, rms in part.estimates.items()
    }


def verify(
    model: nn.Module,
    module: nn.Module,
    example_inputs: Any = (),
    example_kwargs: dict[str, Any] | None = None,
    *,
    loss_fn: LossFunction | None = None,
    rules: Iterable[Any] = (),
    seed: int = 0,
) -> Verification:
    """Is ``module`` bitwise ``model``? Derives every factor again, then runs both under ``seed``.

    ``module``: what ``transform`` made, or a module around it; its graphs are run as they are, not
    as they were compiled. ``rules``: those that it was transformed with. What differs is in the
    ``Verification``.

    Raises ``UnitifyError``: U009 where ``module`` is no transformed one, U002 and U102 for inputs.
    """
    transformed = next((m for m in module.modules() if isinstance(m, UnitScaledModule)), None)
    if transformed is None:
        raise UnitifyError(NothingTransformed(module=type(module).__name__))
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    return verify_module(model, transformed, load_rules(rules), args, kwargs, loss_fn, seed)
