"""``rebuild``: makes a module again from a model of its class, its weights and its plan.

It is the pipeline without estimates: capture, check the plan, rewrite. The pair
``(module.state_dict(), module.plan)`` can be pickled. The result is bitwise the same module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unitify.capture.copy_on_write import take_own_memory
from unitify.capture.inputs import as_batches, as_inputs, given_or_inferred
from unitify.capture.islands import record, with_true_parameters
from unitify.capture.sizes import RECORDING_SECONDS
from unitify.cast.casting import cast_parts
from unitify.checkpoint.state_dict import check_fitting
from unitify.diagnostics import KeysDiffer, UnitifyError, UnknownOption
from unitify.module.about import About
from unitify.module.assembly import assemble, plan_of
from unitify.module.fingerprint import KEY
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part, parts_of
from unitify.plan.scale_plan import ScalePlan, check_plan
from unitify.recipe.choices import Choice
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import Recipe
from unitify.reparametrization import Reparametrization
from unitify.rewrite import rewrite
from unitify.rulebook.rule_table import RuleTable, load_rules
from unitify.scheme.reparametrize import reparametrize
from unitify.verifying.running import is_faithful


def rebuild(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    plan: ScalePlan,
    example_inputs: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    recipe: str | Mapping[str, Any] | Recipe | None = None,
    casts: Iterable[Choice] | None = None,
    scheme: Mapping[str, Reparametrization] | None = None,
    batches: Iterable[Any] = (),
    dynamic_shapes: Any = "auto",
    recording_seconds: float | None = RECORDING_SECONDS,
    rules: Iterable[Any] = (),
) -> UnitScaledModule:
    """The module with this ``state_dict`` and ``plan``.

    ``model``: a model of the transformed class; its weights do not matter, and do not change.
    ``state_dict``: true weights, or stored ones of the plan. ``example_inputs``, ``batches`` and
    the options are those of ``transform``. A ``recipe`` inserts its casts again.
    ``casts``: ``module.casts``, needed for recipes that choose by data (``fp8-auto``).
    ``scheme``: ``module.scheme``, for the module of a scheme.

    Raises ``UnitifyError``: U001 for a plan of another type, or a single
    batch; U401 or U402 for an invalid recipe;
    U301 or U302 where the plan does not fit the model; U603 where the weights do not; U017 or U018
    for weights that were stored under another plan.
    """
    if not isinstance(plan, ScalePlan):
        choices = "module.plan, unitify.ScalePlan.from_json(…)"
        raise UnitifyError(UnknownOption(option="plan", value=type(plan).__name__, choices=choices))
    rounding = read_recipe(recipe)
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    table = load_rules(rules)
    further = [as_inputs(model, batch) for batch in as_batches(batches)]
    seconds = recording_seconds
    recorded = record(model, args, kwargs, dynamic_shapes, further, seconds)
    if recorded.whole is not None and all("/" in value for value in plan.values):
        # The recording of the whole model was not exact, unlike those of its submodules.
        recorded = record(model, args, kwargs, dynamic_shapes, further, seconds, is_faithful)
    if plan.weights == "true":
        recorded = with_true_parameters(recorded)
    recorded = reparametrize(recorded, scheme, table)
    parts = tuple(_planned(part, plan, table) for part in parts_of(recorded.parts))
    if rounding is not None:
        parts, _ = cast_parts(parts, rounding, table, made=casts)
    module = assemble(recorded, parts, About(recorded.notes, rounding))
    take_over(module, state_dict)
    take_own_memory(module, recorded.model)
    return module


def _planned(part: Part, plan: ScalePlan, rules: RuleTable) -> Part:
    own = plan_of(plan, part.name, part.capture)
    check_plan(part.capture, own)
    return replace(part, plan=own, graph=rewrite(part.capture, own, rules))


def take_over(module: UnitScaledModule, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights. A module on the meta device gets memory first.

    Raises ``UnitifyError`` (U603) where names, shapes or types differ, and for a buffer on the meta
    device that state dicts do not contain.
    """
    held = {name: tensor for name, tensor in state_dict.items() if name != KEY}
    check_fitting(module._tree, held, same_types=True)
    check_held(module)
    materialize(module)
    # Tied names may be missing.
    module.load_state_dict(state_dict, strict=False)


def check_held(module: nn.Module, missing: Iterable[str] = ()) -> None:
    """Check that a state dict without ``missing`` has all tensors of ``module`` on the meta device.

    Raises ``UnitifyError`` (U603) where one is missing.
    """
    loaded = module.state_dict().keys() - set(missing)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta and name not in loaded:
            problem = f"{name} is on the meta device, and state dicts do not contain it"
            raise UnitifyError(KeysDiffer(problem=problem))


def materialize(module: nn.Module) -> None:
    """Replace meta tensors by empty ones; tied tensors stay tied."""
    made: dict[int, Tensor] = {}
    for child in module.modules():
        for held in (child._parameters, child._buffers):
            for name, tensor in held.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_like(tensor, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = empty
                held[name] = made[id(tensor)]  # type: ignore[assignment]
