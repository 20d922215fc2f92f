"""The numbers of a conversion.

Takes the module and its measured estimates; gives ``Report``: frozen, plain, for ``report.json``.
``table`` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import fx

from unitify.diagnostics import Diagnostic, EstimateFellBack, NoRule
from unitify.estimates import Estimates
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import value_name
from unitify.plan.fixed import true_weights
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice, flop_share
from unitify.rule_trials.missing import without_rule
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name
from unitify.verification import Difference

#: The unit band: an RMS in it counts as unit scale.
UNIT = (0.5, 2.0)


@dataclass(frozen=True)
class Share:
    """How many of ``total`` values have an RMS in the unit band, true (before) and stored (after).

    Values that are zero or have no gradient are not counted. Nor are ``weights``, the number of
    weights (and values from these alone) that stay true on purpose. ``outside``: the stored RMS of
    values outside the band, by name.
    """

    total: int
    before: int
    after: int
    outside: Mapping[str, float] = field(default_factory=dict)
    weights: int = 0


@dataclass(frozen=True)
class Report:
    """One conversion.

    ``exact``: bitwise the captured original before casts; None where it was not verified.
    ``restored``: operations without a rule. ``fell_back``: those whose moments do not follow their
    rules. ``left_out``: other diagnostics of capture and transform.
    ``casts``: the choice of the recipe for every value. ``seconds``: the time of each stage.
    """

    model: str
    parameters: int
    values: int
    operations: int
    rescales: int
    forward: Share
    backward: Share
    exact: bool | None
    compared: int
    differences: tuple[Difference, ...]
    rounding: tuple[Difference, ...]
    restored: tuple[NoRule, ...]
    fell_back: tuple[EstimateFellBack, ...]
    left_out: tuple[Diagnostic, ...]
    scales: str
    recipe: str | None
    casts: tuple[Choice, ...]
    seconds: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``report.json``."""
        held = {
            name: getattr(self, name)
            for name in (
                "model", "parameters", "values", "operations", "rescales", "scales", "recipe",
            )
        }  # fmt: skip
        return {
            **held,
            "unit_forward": asdict(self.forward),
            "unit_backward": asdict(self.backward),
            "verification": {
                "exact_before_casts": self.exact,
                "compared": self.compared,
                "differences": [asdict(d) for d in self.differences],
                "rounding": [asdict(d) for d in self.rounding],
            },
            "restored": [d.as_json() for d in self.restored],
            "fell_back": [d.as_json() for d in self.fell_back],
            "left_out": [d.as_json() for d in self.left_out],
            "casts": [_row(c) for c in self.casts if c.is_cast],
            "kept_contractions": [
                _row(c) for c in self.casts if c.is_contraction and not c.is_cast
            ],
            "cast_share_of_flops": self.flop_shares(),
            "seconds": {stage: round(time, 3) for stage, time in self.seconds.items()},
        }

    def flop_shares(self) -> dict[str, float]:
        """Shares of FLOPs with operands of at most eight bits; empty without contractions.

        They are those of all "contractions", of contractions with "weights", and of the latter in
        real FP8 matmuls ("weights_on_fp8").
        """
        if self.recipe is None or not any(c.flops for c in self.casts):
            return {}
        return {
            "contractions": flop_share(self.casts),
            "weights": flop_share(self.casts, weights_only=True),
            "weights_on_fp8": flop_share(self.casts, weights_only=True, runs="fp8"),
        }


def _row(choice: Choice) -> dict[str, Any]:
    return {**asdict(choice), "forward": choice.forward, "backward": choice.backward}


def make_report(
    module: UnitScaledModule,
    measured: Mapping[str, Estimates],
    rules: RuleTable,
    *,
    seconds: Mapping[str, float] | None = None,
) -> Report:
    """Sum up a conversion. ``measured``: true RMS, by ``measure_recorded``.

    An operation counts once for every graph that contains it.
    """
    verification = module.verification
    parts = module.parts.values()
    estimates = {
        value_name(part, value): rms
        for part, found in measured.items()
        for value, rms in found.items()
    }
    true = frozenset(
        value_name(name, node.name)
        for name, part in module.parts.items()
        for node in true_weights(part.capture)
    )
    return Report(
        model=type(module.original).__name__,
        parameters=sum(p.numel() for p in module.parameters()),
        values=len(module.plan.values),
        operations=sum(n.op == "call_function" for part in parts for n in part.capture.graph.nodes),
        rescales=sum(_rescales(part.graph) for part in parts),
        forward=unit_share(estimates, module.plan, "forward", true),
        backward=unit_share(estimates, module.plan, "backward", true),
        exact=None if verification is None else verification.exact,
        compared=0 if verification is None else verification.compared,
        differences=() if verification is None else verification.differences,
        rounding=() if verification is None else verification.rounded_otherwise,
        restored=tuple(note for part in parts for note in without_rule(part.capture, rules)),
        fell_back=tuple(d for d in module.diagnostics if isinstance(d, EstimateFellBack)),
        left_out=tuple(d for d in module.diagnostics if not isinstance(d, EstimateFellBack)),
        scales=module.scales,
        recipe=module.recipe.name if module.recipe is not None else None,
        casts=module.casts,
        seconds=dict(seconds or {}),
    )


def unit_share(
    estimates: Estimates,
    plan: ScalePlan,
    direction: str,
    weights: frozenset[str] = frozenset(),
) -> Share:
    """The share of values (``direction`` "forward") or gradients ("backward") in the unit band.

    ``weights``: the names of values that stay true on purpose.
    """
    before = after = total = true = 0
    outside: dict[str, float] = {}
    for name, estimate in estimates.items():
        rms = estimate.forward if direction == "forward" else estimate.backward
        if not rms:
            continue
        if name in weights:
            true += 1
            continue
        scale = plan.wanted(name)
        stored = rms / (scale.fwd if direction == "forward" else scale.bwd)
        total += 1
        before += is_unit(rms)
        if is_unit(stored):
            after += 1
        else:
            outside[name] = stored
    return Share(total, before, after, outside, true)


def _rescales(graph: fx.Graph) -> int:
    return sum(operation_name(n).startswith("unitify.rescale") for n in graph.nodes)


def apart(weights: int) -> str:
    """The end of a share that does not count so many ``weights``."""
    stay = "weight or view of one stays" if weights == 1 else "weights and views of them stay"
    return f"; {weights:,} {stay} true, on purpose" if weights else ""


def is_unit(rms: float) -> bool:
    """Does an RMS lie in the unit band?"""
    return UNIT[0] <= rms <= UNIT[1]
