"""``rebase_``: new scales for a module in training.

Scales are chosen before training, but weights change. A rebase measures the present values of the
module and plans again. It replaces constants of the graph, and nothing else. In float32 the next
step is bitwise the one without a rebase.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from unitify.analysis.analyze import analyze
from unitify.capture.execution import LossFunction
from unitify.capture.inputs import as_batches
from unitify.capture.whole import Capture
from unitify.cast.casting import with_casts
from unitify.diagnostics import NothingTransformed, UnitifyError
from unitify.drift.measuring import measure_running, true_capture
from unitify.estimates import Estimates
from unitify.estimating import check_scales
from unitify.measure.captured import measure
from unitify.measure.tally import Tally
from unitify.module.assembly import AssembledModule, joined, parts_in
from unitify.module.gathered import check_not_gathered
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part
from unitify.plan.fixed import parameter_of
from unitify.plan.planner import plan
from unitify.plan.scale_plan import ScalePlan
from unitify.planning import agreed
from unitify.rewrite import rewrite
from unitify.rulebook.rule_table import RuleTable, load_rules


@dataclass(frozen=True)
class Rebase:
    """The result of a rebase. ``values``: the number of values with a new scale."""

    values: int


def rebase_(
    module: nn.Module,
    batches: Iterable[Any] = (),
    *,
    scales: str = "auto",
    loss_fn: LossFunction | None = None,
    rules: Iterable[Any] = (),
) -> Rebase:
    """Choose new scales from the present values of ``module``, in place. Training does not change.

    - ``module``: a transformed module, or a module around one. Call this between two steps.
    - ``batches``: inputs of calls, as for ``transform``. Each runs forward and backward. Buffers,
      ``.grad`` and random state are restored afterwards.
    - ``scales``: "measured" on the batches, or "analysis" of the weights, without batches. "auto"
      measures on the batches, else on the recorded inputs.
    - ``loss_fn``, ``rules``: those passed to ``transform``

    Parameters, gradients, optimizers and checkpoints do not change: stored weights keep their
    scales. Casts are inserted again by the module's recipe.

    Raises ``UnitifyError``, without any change: U001 for a single batch; U003 without batches;
    U009 where no module that can train is transformed; U021 after ``gather_codes_``.
    """
    check_scales(scales)
    batches = as_batches(batches)
    wholes = [whole for whole in transformed(module) if not whole.is_inference]
    if not wholes:
        raise UnitifyError(NothingTransformed(module="a module for inference only"))
    for whole in wholes:
        check_not_gathered(whole)
    table = load_rules(rules)
    modules = [part for whole in wholes for part in whole.parts.values()]
    captures = [true_capture(part) for part in modules]
    if scales == "analysis":
        found = [analyze(captured, table, loss_fn).estimates for captured in captures]
    elif scales == "auto" and not batches:
        found = [measure(captured, None, loss_fn) for captured in captures]
    else:
        found = _measured(module, modules, captures, batches, loss_fn)
    chosen: list[_Chosen] = []
    known = iter(zip(captures, found, strict=True))
    for whole in wholes:
        own = [
            replace(part, capture=captured, estimates=estimates)
            for part, (captured, estimates) in zip(parts_in(whole), known, strict=False)
        ]
        chosen += [_Chosen.of(whole, part, table) for part in _planned(own, whole, table)]
    source = "analysis" if scales == "analysis" else "measured"
    for whole in wholes:
        whole.about = replace(whole.about, scales=source)
    return Rebase(sum(one.adopt() for one in chosen))


def transformed(module: nn.Module) -> list[UnitScaledModule]:
    """The transformed modules in ``module``, within any wrappers.

    Raises ``UnitifyError`` (U009) where there is none.
    """
    found = [m for m in module.modules() if isinstance(m, UnitScaledModule)]
    if not found:
        raise UnitifyError(NothingTransformed(module=type(module).__name__))
    return found


def _measured(
    module: nn.Module,
    parts: list[UnitScaledModule],
    captures: list[Capture],
    batches: Iterable[Any],
    loss_fn: LossFunction | None,
) -> list[Estimates]:
    """True RMS of every value of every part, from runs of ``module`` without its casts."""
    tallies = [Tally() for _ in parts]
    measure_running(module, parts, captures, tallies, batches, loss_fn)
    return [t.estimates(captured) for t, captured in zip(tallies, captures, strict=True)]


def _planned(parts: list[Part], whole: UnitScaledModule, rules: RuleTable) -> list[Part]:
    """``parts`` with new plans.

    A part that did not run keeps its scales, except those of parameters that it shares. A part with
    a baseline recipe has no scales to choose.
    """

    def is_kept(part: Part) -> bool:
        recipe = whole.parts[part.name].recipe
        is_baseline = recipe is not None and recipe.scaling != "unit"
        return is_baseline or all(rms.forward is None for rms in part.estimates.values())

    chosen: list[Part] = []
    for part in sorted(parts, key=is_kept):
        if not is_kept(part):
            held = part.plan
            new = plan(
                part.capture, part.estimates, rules, placement=held.placement, carrier=held.carrier
            )
            part = replace(part, plan=_as_held(new, held, part.capture))
        chosen.append(agreed(part, chosen))
    return chosen


def _as_held(chosen: ScalePlan, held: ScalePlan, captured: Capture) -> ScalePlan:
    """``chosen``, with parameters stored at their old scales and cast at the new ones."""
    scales = {
        node.name: held.parameters[parameter]
        for node in captured.graph.nodes
        if (parameter := parameter_of(captured, node)) and node.name in chosen.values
    }
    units = {name: chosen.unit(name) for name in {*chosen.units, *scales}}
    return replace(
        chosen,
        values={**chosen.values, **scales},
        parameters=held.parameters,
        units={name: unit for name, unit in units.items() if unit != scales.get(name)},
    )


@dataclass(frozen=True)
class _Chosen:
    """A part with its new plan, and its new graph with the recipe's casts."""

    whole: UnitScaledModule
    module: UnitScaledModule
    part: Part

    @staticmethod
    def of(whole: UnitScaledModule, part: Part, rules: RuleTable) -> _Chosen:
        module = whole.parts[part.name]
        # On the module's stored weights, not on the true ones of the capture.
        made = replace(
            part, capture=module.capture, graph=rewrite(module.capture, part.plan, rules)
        )
        if module.recipe is not None:
            made = with_casts(made, module.recipe, rules)
        return _Chosen(whole, module, made)

    def adopt(self) -> int:
        """Let the part run by the new plan. Returns the number of values with a new scale."""
        held, new = self.module.plan, self.part.plan
        changed = sum(new.wanted(name) != held.wanted(name) for name in held.values)
        self.module.take(self.part)
        if isinstance(self.whole, AssembledModule):
            plans = {name: part.plan for name, part in self.whole.parts.items()}
            self.whole.plan = joined(plans, self.whole.host)
        return changed
