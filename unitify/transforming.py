"""``transform``: the pipeline, in one line of arrows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from unitify.capture.copy_on_write import release, take_own_memory
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
from unitify.cast.casting import Evidence, cast_parts
from unitify.diagnostics import (
    CaptureDiffers,
    Diagnostic,
    NotExact,
    NothingTransformed,
    UnitifyError,
    UnknownOption,
    warn_of_losses,
)
from unitify.estimates import Estimates
from unitify.estimating import Estimated, check_scales, estimated
from unitify.module.about import About
from unitify.module.adopted import adopt_parameters
from unitify.module.assembly import assemble
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part, parts_of, value_name
from unitify.plan.bands import tolerance_of
from unitify.plan.scale_plan import PLACEMENTS, WEIGHTS, Placement, Weights
from unitify.planning import carrier_of, placement_of, planned, uniformly_planned
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import Recipe
from unitify.rewrite import rewrite
from unitify.rulebook.rule_table import RuleTable, load_rules
from unitify.scheme.options import UnitScheme, read_scheme
from unitify.scheme.reparametrize import reparametrize
from unitify.verification import Verification
from unitify.verifying.running import is_faithful, lost_by_recording, notes_on, verify_module
from unitify.verifying.with_casts import lost_to_casts

#: Called after each stage with its name and its result.
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

    - ``example_inputs``, ``example_kwargs``: a call of the model, for capture and to measure
      scales. Left out, they are inferred from the model where possible, and drawn at random.
    - ``loss_fn(output)``: the start of the backward pass; else a scalar in the output, else a unit
      gradient at every output.
    - ``scheme``: "preserve" keeps the model's function and weights. "unit" and "u-mup" make another
      model, for training from scratch: new unit weights, and constants in the graph by which every
      operation's result has unit RMS (``UnitScheme`` and ``UMuP`` have options). Gradients are the
      true ones of that model, ``module.capture.model``.
    - ``scales``: "measured" takes RMS from a forward and backward run on each of ``batches`` (by
      default the example inputs); "analysis" predicts it. "auto" measures where weights hold data,
      and predicts on the meta device and for a scheme, which draws new weights. ``module.scales``
      is the source. A batch for which the recording does not hold (on the other side of a branch
      on a size, say) is always recorded, too. The module runs the recording that holds for a call.
    - ``recipe``: the casts, in any form of ``recipe.read_recipe``: a name ("fp8"), a name with
      changes ("fp8,exclude=lm_head"), a table, a TOML file, a ``Recipe``; None casts nothing.
    - ``dynamic_shapes``: "auto" keeps every size free that is free in the model; else that of
      ``torch.export.export``.
    - ``weights``: "true" keeps parameters and their gradients as in the original, and so state
      dicts, optimizers, clipping and schedules. "stored" divides each parameter by a scale of its
      own, for weights in a narrow format without master weights; ``unitify.optim`` then converts
      the optimizer's options.
    - ``placement``: "everywhere" brings every value near unit RMS. Where a recipe (FP16) casts all
      values, that is within a factor of two, for gradients, too. Otherwise it is within six
      octaves, because float32 and bfloat16 hold any scale, and gradients follow their values.
      "casts" leaves values true, and scales them within casts. Then values between submodules are
      true, and each submodule can be called, wrapped or replaced. None: "casts" for recipes that
      cast contractions by scales of the plan (FP8), else "everywhere".
    - ``recording_seconds``: the most time of a recording with free sizes. A longer one is repeated
      with fewer free sizes. None: no limit.
    - ``verify``: compare bitwise with the original, before any cast. With casts, say where the
      module is infinite or NaN on the example and the model is not (U411).
    - ``inplace``: the module gets the model's own ``Parameter`` objects. With true weights and
      without a scheme, they keep their values, and the model still works. Otherwise they get stored
      weights, or those of the scheme, and the model is no longer valid.
    - ``rules``: rule files or mappings in addition to the shipped ones.
    - ``on_stage(name, made)`` is called after each stage with its result: "capture" and
      "reparametrize" with a ``Recording``, "estimate" with an ``Estimated``, "plan" with a
      ``Planned``, "rewrite" and "cast" with the parts, "verify" with a ``Verification``,
      "assemble" with the module.

    Warns (``UnitifyWarning``) of what is not kept: submodules that are not transformed, a graph for
    one mode, checkpointing, a pattern of the recipe that matches nothing.

    Raises ``UnitifyError``: U001 for an invalid option; U002 without inputs; U101 to U109 from
    capture; U401 to U404 from the recipe; U110, U501 or U502 where the result is not the model;
    U701 for a scheme without the whole graph.
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
    batches = None if batches is None else as_batches(batches)
    where = placement or placement_of(casts, has_scheme=asked is not None)
    carrier = carrier_of(model, casts, weights)
    further = [as_inputs(model, batch) for batch in batches or ()]

    def scaled(captured: Recording) -> Scaled:
        """capture ─► reparametrize ─► estimate ─► plan ─► rewrite."""
        captured = with_true_parameters(captured) if weights == "true" else captured
        done("capture", captured)
        recorded = reparametrize(captured, asked, table)
        done("reparametrize", recorded)
        if casts is None or casts.scaling == "unit":
            calls = [(args, kwargs)] if batches is None else further
            known = estimated(recorded, scales, calls, loss_fn, table, drawn=not has_data)
            done("estimate", known)
            # Drawn inputs are about as good an estimate of data as analysis.
            tolerance = tolerance_of(known.scales == "measured" and has_data)
            plans = planned(known.parts, table, tolerance, where, carrier)
        else:
            known = Estimated(parts_of(recorded.parts), "")
            plans = uniformly_planned(known.parts, casts.loss_scale)
        done("plan", plans)
        parts = tuple(replace(p, graph=rewrite(p.capture, p.plan, table)) for p in plans.parts)
        done("rewrite", parts)
        notes = (*recorded.notes, *known.diagnostics, *plans.diagnostics)
        return Scaled(recorded, known, parts, notes)

    def again(model: nn.Module, args: Any, kwargs: Any) -> UnitScaledModule:
        return transform(
            model, args, kwargs, loss_fn=loss_fn, scales=scales, recipe=casts,
            dynamic_shapes=dynamic_shapes, recording_seconds=recording_seconds, placement=where,
            verify=verify, rules=rules,
        )  # fmt: skip

    made = scaled(record(model, args, kwargs, dynamic_shapes, further, recording_seconds))
    result: Verification | None = None
    if verify:
        others = _of_further_recordings(made.recorded, further)
        result, is_lost = _verified(made, table, args, kwargs, loss_fn, others)
        if is_lost:
            # The recordings of submodules may be exact where that of the whole is not.
            apart = record(
                model, args, kwargs, dynamic_shapes, further, recording_seconds, is_faithful
            )
            made = scaled(apart)
            result, is_lost = _verified(made, table, args, kwargs, loss_fn)
        done("verify", result)
        _raise_where_it_differs(result, type(model).__name__, is_lost=is_lost)
        made = made.noting(*notes_on(result, type(model).__name__))
    warn_of_losses(made.notes)
    if casts is not None:
        flat = made.flat_inputs(further or list(made.known.calls))
        parts, notes = cast_parts(made.parts, casts, table, Evidence(flat, loss_fn))
        warn_of_losses(notes)
        made = replace(made, parts=parts).noting(*notes)
        done("cast", parts)
    can_repeat = weights == "true" and asked is None and list(made.recorded.parts) == [""]
    if casts is not None and verify:
        lost = _not_finite(made, args, kwargs, loss_fn)
        warn_of_losses(lost)
        made = made.noting(*lost)
    about = About(made.notes, casts, made.known.scales, result, again if can_repeat else None)
    module = assemble(made.recorded, made.parts, about)
    take_own_memory(module, made.recorded.model)
    if inplace:
        adopt_parameters(model, module)
    done("assemble", module)
    return module


@dataclass(frozen=True)
class Scaled:
    """A recording, its estimates, its rewritten parts, and what the user should know."""

    recorded: Recording
    known: Estimated
    parts: tuple[Part, ...]
    notes: tuple[Diagnostic, ...]

    def noting(self, *notes: Diagnostic) -> Scaled:
        """The same, with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def flat_inputs(self, calls: list[Inputs]) -> dict[str, list[list[Any]]]:
        """Flat inputs of each part for ``calls``; an island has those of its recording."""
        held = self.recorded.parts
        return {
            name: [list(held[name].example)] if path_of(name) else flat_calls(held, name, calls)
            for name in (held if calls else ())
        }


def _verified(
    made: Scaled,
    rules: RuleTable,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss_fn: LossFunction | None,
    further: Sequence[Inputs] = (),
) -> tuple[Verification, bool]:
    """Is the module of ``made`` its model? And is what differs lost by the recording already?"""
    model, module = made.recorded.model, assemble(made.recorded, made.parts)
    try:
        result = verify_module(model, module, rules, args, kwargs, loss_fn, further=further)
        is_lost = not result.is_accepted and lost_by_recording(model, module, args, kwargs)
    finally:
        release(module, model)
    return result, is_lost


def _not_finite(
    made: Scaled, args: tuple[Any, ...], kwargs: dict[str, Any], loss_fn: LossFunction | None
) -> tuple[Diagnostic, ...]:
    """What is infinite or NaN on the example by the casts of ``made`` alone."""
    model, module = made.recorded.model, assemble(made.recorded, made.parts)
    try:
        return lost_to_casts(model, module, args, kwargs, loss_fn)
    finally:
        release(module, model)


def _raise_where_it_differs(result: Verification, name: str, *, is_lost: bool) -> None:
    if result.findings:
        raise UnitifyError(*result.findings)
    if result.differences:
        kind = CaptureDiffers if is_lost else NotExact
        shown = "; ".join(map(str, result.differences[:3]))
        raise UnitifyError(kind(where=name, differences=shown))


def _observer(on_stage: StageObserver | None) -> StageObserver:
    if on_stage is not None and not callable(on_stage):
        option = UnknownOption(option="on_stage", value=repr(on_stage), choices="functions, None")
        raise UnitifyError(option)
    return on_stage or (lambda _name, _made: None)


def _of_further_recordings(recorded: Recording, calls: list[Inputs]) -> list[Inputs]:
    """For each further recording of the whole model, a call for which it holds."""
    found: list[Inputs] = []
    for name, captured in recorded.parts.items():
        if name and not path_of(name):
            fitting = (c for c in calls if isinstance(captured.call.fitted_apart(*c), list))
            found += [call for call in (next(fitting, None),) if call is not None]
    return found


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
    batches = None if batches is None else as_batches(batches)
    calls = [(args, kwargs)] if batches is None else [as_inputs(model, b) for b in batches]
    has_data = batches is not None or is_given(example_inputs, example_kwargs)
    found = estimated(recorded, scales, calls, loss_fn, table, drawn=not has_data)
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

    ``module``: a transformed module, or a module around one. Its graphs run eagerly, not compiled.
    ``rules``: those passed to ``transform``. The ``Verification`` has every difference.

    Raises ``UnitifyError``: U009 where ``module`` contains no transformed one; U002 and U102 for
    inputs.
    """
    transformed = next((m for m in module.modules() if isinstance(m, UnitScaledModule)), None)
    if transformed is None:
        raise UnitifyError(NothingTransformed(module=type(module).__name__))
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    return verify_module(model, transformed, load_rules(rules), args, kwargs, loss_fn, seed)
