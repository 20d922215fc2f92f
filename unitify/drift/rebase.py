"""``rebase_``: a module in training, and its optimiser, moved to scales chosen anew.

Scales are chosen before training, and weights move. A rebase measures every value of the
module as it is now and plans again: the constants of its graph are others then, and nothing else.
Of stored weights it also multiplies by powers of two what is stored: weights, gradients, what the
optimiser keeps and the hyperparameters of its groups. In float32 the next step is bitwise the one
that would have been taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.optim import Optimizer

from unitify.analysis.analyse import analyse
from unitify.capture.execution import LossFunction
from unitify.capture.islands import path_of
from unitify.capture.whole import Capture
from unitify.cast.casting import Casts, with_casts
from unitify.diagnostics import NothingTransformed, UnitifyError, UnknownOption
from unitify.drift.measuring import measure_running, true_capture
from unitify.estimates import Estimates
from unitify.measure.tally import Tally
from unitify.module.assembly import AssembledModule, Part, agreed, joined
from unitify.module.unit_scaled import UnitScaledModule
from unitify.operations.rule_table import RuleTable, load_rules
from unitify.optim.groups import has_stored_weights, scales_of
from unitify.optim.optimizers import OptimizerUnits, units_of
from unitify.optim.state import change_of, check_movable, move_state, multiply_, regroup
from unitify.plan.planner import plan
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.rewrite import rewrite

SCALES = ("measured", "analysis")


@dataclass(frozen=True)
class Rebase:
    """What a rebase moved.

    ``parameters``: name → scale before and after, where it is another. ``values``: how many values
    of the graphs have another scale. ``underflows``: elements of weights, gradients and optimiser
    state that lost digits because they left the normal range of their number format.
    """

    parameters: Mapping[str, tuple[Scale, Scale]]
    values: int
    underflows: int


def rebase_(
    module: nn.Module,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    batches: Iterable[Any] = (),
    *,
    scheduler: Any = None,
    scales: str = "measured",
    loss_fn: LossFunction | None = None,
    units: OptimizerUnits | None = None,
    rules: Iterable[Any] = (),
) -> Rebase:
    """Plan ``module`` anew from what its values are now, in place, without changing its training.

    - ``module``: what ``transform`` made, or a module around it; called between two steps.
    - ``optimizer``: every optimiser that holds stored parameters of it; true ones need none. Groups
      are replaced in ``optimizer.param_groups``, parameters stay the same objects.
    - ``batches``: inputs of calls, as for ``transform``; each is run forward and backward. Buffers,
      ``.grad`` and random state are as before afterwards.
    - ``scheduler``: the learning-rate scheduler or schedulers of the optimisers; () where one was
      there and is not used any more.
    - ``scales``: "measured" on the batches, or "analysis" of the weights, which takes none.
    - ``loss_fn``, ``rules``: as ``transform`` was given. ``units``: as for ``param_groups``.

    Gradients that were accumulated before stay valid: they are moved, too. What other code derived
    from weights or gradients (a moving average of weights) is not known here; multiply it by the
    old over the new scale, which the result names. Casts are placed anew by the module's recipe.

    Raises ``UnitifyError``, having changed nothing: U003 without batches, U009 where nothing that
    can be trained is transformed; of stored weights U007 and U008 for an optimiser or a state whose
    units are not known, U010 where a scheduler is missing, U019 for parameters that were renamed.
    """
    if scales not in SCALES:
        choices = ", ".join(SCALES)
        raise UnitifyError(UnknownOption(option="scales", value=scales, choices=choices))
    wholes = [whole for whole in transformed(module) if not whole.is_inference]
    if not wholes:
        raise UnitifyError(NothingTransformed(module="a module for inference alone"))
    # The scales of true weights do not change, and so nothing that was derived from them does.
    optimizers = _many(optimizer) if has_stored_weights(module) else []
    rows = [units if units is not None else units_of(type(o)) for o in optimizers]
    for one, row in zip(optimizers, rows, strict=True):
        check_movable(one, row, needs_scheduler=scheduler is None)
    table = load_rules(rules)
    parts = [(whole, name, part) for whole in wholes for name, part in whole.parts.items()]
    captures = [true_capture(part) for _, _, part in parts]
    if scales == "analysis":
        found = [analyse(captured, table, loss_fn).estimates for captured in captures]
    else:
        modules = [part for _, _, part in parts]
        found = _measured(module, modules, captures, batches, loss_fn)
    chosen: list[_Chosen] = []
    for whole in wholes:
        own = [i for i, part in enumerate(parts) if part[0] is whole]
        plans = _plans({parts[i][1]: (captures[i], found[i]) for i in own}, whole, table)
        chosen += [_Chosen.of(whole, name, new, table) for name, new in plans.items()]
    before = scales_of(module)
    values = sum(one.adopt() for one in chosen)
    with torch.no_grad():
        return _move(module, before, values, optimizers, rows, _many(scheduler))


def transformed(module: nn.Module) -> list[UnitScaledModule]:
    """The transformed modules in ``module``, whatever wraps them.

    Raises ``UnitifyError`` (U009) where there is none.
    """
    found = [m for m in module.modules() if isinstance(m, UnitScaledModule)]
    if not found:
        raise UnitifyError(NothingTransformed(module=type(module).__name__))
    return found


def _many(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _measured(
    module: nn.Module,
    parts: list[UnitScaledModule],
    captures: list[Capture],
    batches: Iterable[Any],
    loss_fn: LossFunction | None,
) -> list[Estimates]:
    """True RMS of every value of every part, as ``module`` runs without its casts."""
    tallies = [Tally() for _ in parts]
    measure_running(module, parts, captures, tallies, batches, loss_fn)
    return [t.estimates(captured) for t, captured in zip(tallies, captures, strict=True)]


def _plans(
    found: Mapping[str, tuple[Capture, Estimates]], whole: UnitScaledModule, rules: RuleTable
) -> dict[str, ScalePlan]:
    """A plan for each part.

    One that was not run keeps its scales, its twin's parameters aside; one with the recipe of a
    baseline has none to choose.
    """
    chosen: dict[str, Part] = {}
    plans: dict[str, ScalePlan] = {}

    def is_kept(name: str) -> bool:
        recipe = whole.parts[name].recipe
        is_baseline = recipe is not None and recipe.scaling != "unit"
        return is_baseline or all(rms.forward is None for rms in found[name][1].values())

    for name in sorted(found, key=is_kept):
        captured, estimates = found[name]
        part = whole.parts[name]
        own = (
            part.plan
            if is_kept(name)
            else plan(captured, estimates, rules, placement=part.plan.placement)
        )
        plans[name] = agreed(own, name, captured, chosen)
        chosen.setdefault(path_of(name), (captured, part.graph, plans[name]))
    return plans


@dataclass(frozen=True)
class _Chosen:
    """A part's new plan and graphs, ready to be taken."""

    whole: UnitScaledModule
    part: UnitScaledModule
    plan: ScalePlan
    graph: fx.Graph
    #: The same graph with the casts of the part's recipe.
    casts: Casts | None

    @staticmethod
    def of(whole: UnitScaledModule, name: str, new: ScalePlan, rules: RuleTable) -> _Chosen:
        part = whole.parts[name]
        graph = rewrite(part.capture, new, rules)
        casts = None
        if part.recipe is not None:
            casts = with_casts(graph, part.casts, part.recipe, part.capture, new, rules)
        return _Chosen(whole, part, new, graph, casts)

    def adopt(self) -> int:
        """Let the part run by the new plan. Returns how many of its values have a new scale."""
        changed = sum(self.plan.values[n] != scale for n, scale in self.part.plan.values.items())
        self.part.plan = self.plan
        self.part.graph = self.graph
        if self.casts is not None:
            cast = self.casts
            self.part.take_casts(cast.graph, cast.recipe, cast.choices, cast.constants)
        if isinstance(self.whole, AssembledModule):
            plans = {name: part.plan for name, part in self.whole.parts.items()}
            self.whole.plan = joined(plans, self.whole.host)
        return changed


def _move(
    module: nn.Module,
    before: Mapping[str, Scale],
    values: int,
    optimizers: list[Optimizer],
    rows: list[OptimizerUnits],
    schedulers: list[Any],
) -> Rebase:
    after = scales_of(module)
    moved = {n: (before[n], after[n]) for n in after if before[n] != after[n]}
    changes = {}
    underflows = 0
    for name, parameter in module.named_parameters():
        if name not in moved:
            continue
        change = changes[id(parameter)] = change_of(*moved[name])
        underflows += multiply_(parameter, 1.0 / change.fwd)
        if parameter.grad is not None:
            underflows += multiply_(parameter.grad, 1.0 / change.bwd)
    order = {id(p): index for index, p in enumerate(module.parameters())}
    for optimizer, row in zip(optimizers, rows, strict=True):
        underflows += move_state(optimizer, row, changes)
        own = [s for s in schedulers if getattr(s, "optimizer", optimizer) is optimizer]
        regroup(optimizer, row, changes, order, own)
    return Rebase(moved, values, underflows)
