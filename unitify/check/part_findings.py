"""The findings in one graph, each with its line of source and its cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx

from unitify.analysis.analyze import Analysis
from unitify.capture.islands import path_of
from unitify.capture.source import Frame, module_of
from unitify.check.causes import Key, causes
from unitify.check.finding import Finding
from unitify.check.judged import Judged
from unitify.check.lost_gradients import lost_gradients
from unitify.check.outcome import Case
from unitify.check.plan_faults import Comparison, differing, drifted
from unitify.check.rounding import rounding_gradients
from unitify.check.scale_faults import Fault, Known, faults
from unitify.check.settings import Settings
from unitify.check.source_lines import SourceLines
from unitify.diagnostics import Diagnostic, GradientStops, NoRule
from unitify.estimates import Estimates, Rms
from unitify.explain import step_text
from unitify.measure.tally import Tally
from unitify.naming import joined, stable_names
from unitify.part import Part
from unitify.plan.bands import tolerance_of
from unitify.plan.planner import plan
from unitify.rule_trials.listing import rule_texts
from unitify.rule_trials.missing import nodes_without_rule
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name

DIRECTIONS = ("forward", "backward")


class PartChecker:
    """One part, with everything that is known of it. ``tally``: its measurements; None for none."""

    def __init__(
        self,
        part: Part,
        scoped: list[Judged],
        analysis: Analysis,
        tally: Tally | None,
        settings: Settings,
        rules: RuleTable,
        lines: SourceLines,
        is_transformed: bool,
    ) -> None:
        self.part, self.analysis, self.tally = part, analysis, tally
        self.settings, self.rules, self.lines = settings, rules, lines
        self.is_transformed = is_transformed
        self.names = stable_names(part.name, part.capture)
        self.nodes = {node.name: node for node in part.capture.graph.nodes}
        self.estimates: Estimates = (
            analysis.estimates if tally is None else tally.estimates(part.capture)
        )
        self.magnitudes = {} if tally is None else tally.magnitudes()
        self.rounding = rounding_gradients(analysis, self.estimates)
        self.scoped = [one for one in scoped if not self._is_rounding(one.node, one.direction)]

    def cases(self) -> Iterator[Case]:
        """The judged tensors."""
        for one in self.scoped:
            yield Case(self.names[one.node.name], self._module(one.node), one.direction)

    def findings(self, comparison: Comparison) -> Iterator[Finding]:
        """Everything that is wrong, in no particular order."""
        yield from self._of_scale()
        yield from self._of_gradients()
        for node in nodes_without_rule(self.part.capture, self.rules):
            no_rule = NoRule(operation=operation_name(node), count=1)
            yield self._finding(node, "", no_rule, "note")
        yield from self._of_plans(comparison)

    def unjudged(self) -> list[str]:
        """The names of gradients that are not judged because they are rounding alone."""
        return sorted(self.names[name] for name in self.rounding)

    def _is_rounding(self, node: fx.Node, direction: str) -> bool:
        return direction == "backward" and node.name in self.rounding

    # -- scale ----------------------------------------------------------------------------

    def _of_scale(self) -> Iterator[Finding]:
        found: list[Fault] = []
        for one in (*self.scoped, *self._infinite_numbers()):
            limits = self.settings.limits_for(self._names(one.node))
            found += faults(one, self._known(one), limits, self.is_transformed)
        outside: dict[Key, float] = {}
        for fault in found:
            outside.setdefault(fault.judged.key, fault.octaves)
        fine = {one.key for one in self.scoped} - outside.keys()
        starts = causes(self.part.capture.graph, outside, fine)
        for fault in found:
            judged = fault.judged
            finding = replace(
                self._finding(judged.node, judged.direction, fault.diagnostic, fault.severity),
                level=fault.level,
                derivation=tuple(self._derivation(judged)),
            )
            name, direction = starts[judged.key]
            if (name, direction) != judged.key:
                source = self._source(self.nodes[name], DIRECTIONS[direction])
                finding = replace(finding, cause=self.names[name], cause_source=source)
            yield finding

    def _infinite_numbers(self) -> Iterator[Judged]:
        """Losses that are not finite. Of other single numbers only the gradient is judged."""
        known = {one.key for one in self.scoped}
        for (name, direction), held in self.magnitudes.items():
            if held.special and (name, direction) not in known and (name, 1) in known:
                yield Judged(self.nodes[name], DIRECTIONS[direction], 0, None, False)

    def _known(self, one: Judged) -> Known:
        """The true RMS, and the distribution of magnitudes if it was measured."""
        rms = getattr(self.estimates.get(one.node.name, Rms()), one.direction)
        return rms, self.magnitudes.get(one.key)

    def _derivation(self, one: Judged) -> Iterator[str]:
        name = one.node.name
        if one.exponent:
            yield f"{one.because}, divided by 2^{one.exponent}"
        else:
            yield one.because
        if self.tally is not None:
            rms = getattr(self.estimates[name], one.direction)
            yield f"measured rms {rms:.4g}; predicted:"
        if one.direction == "forward":
            if name in self.analysis.forward:
                yield step_text(name, self.analysis.forward[name])
            if one.node.op == "call_function":
                yield from rule_texts(self.rules.get(operation_name(one.node)))
        else:
            for step in self.analysis.backward.get(name, ()):
                yield step_text("gradient", step)

    # -- gradients and plans --------------------------------------------------------------

    def _of_gradients(self) -> Iterator[Finding]:
        measured = None if self.tally is None else self.estimates
        lost = lost_gradients(self.part.capture, self.analysis.estimates, measured)
        for node, losing in lost.items():
            first = joined(path_of(self.part.name), losing[0].parameter)
            part = "part of " * losing[0].is_part
            more = f" and {len(losing) - 1} more" if len(losing) > 1 else ""
            operation = operation_name(node)
            stops = GradientStops(operation=operation, parameters=part + first + more)
            severity = "warning" if all(one.is_part for one in losing) else "error"
            finding = self._finding(node, "backward", stops, severity)
            yield replace(finding, source=self._source(node, "forward"))

    def _of_plans(self, comparison: Comparison) -> Iterator[Finding]:
        part = self.part
        if comparison.drift:
            for node, direction, found, level in drifted(part, self.estimates, self.rules):
                limit = self.settings.limits_for(self._names(node)).drift
                if level > limit and not self._is_rounding(node, direction):
                    finding = self._finding(node, direction, found, "warning")
                    yield replace(finding, level=level)
        if comparison.committed is not None:
            tolerance = tolerance_of(comparison.is_sure)
            held = comparison.committed
            is_true = held.weights == "true"
            capture = part.capture.with_true_parameters() if is_true else part.capture
            known = comparison.begun.get(part.name, self.estimates)
            planned = plan(capture, known, self.rules, tolerance, held.placement, held.carrier)
            committed = comparison.of_part(part.name)
            for node, direction, differs in differing(part, planned, committed, comparison.path):
                yield self._finding(node, direction, differs, "error")

    # -- all ------------------------------------------------------------------------------

    def _finding(
        self, node: fx.Node, direction: str, diagnostic: Diagnostic, severity: str
    ) -> Finding:
        return Finding(
            diagnostic=diagnostic,
            name=self.names[node.name],
            module=self._module(node),
            source=self._source(node, direction),
            direction=direction,
            value=node.name,
            severity=severity,
        )

    def _source(self, node: fx.Node, direction: str) -> Frame:
        if direction != "backward":
            return self.lines.of_node(self.part.name, node)
        steps = self.analysis.backward.get(node.name, ())
        largest = max(steps, key=lambda step: step.rms, default=None)
        makers = list(largest.inputs) if largest is not None else []
        consumer = self.nodes.get(makers[0]) if makers else None
        return self.lines.of_gradient(self.part.name, node, consumer)

    def _module(self, node: fx.Node) -> str:
        path = module_of(node)[0]
        if node.op == "get_attr":
            path = str(node.target).rpartition(".")[0]
        return joined(path_of(self.part.name), path)

    def _names(self, node: fx.Node) -> tuple[str, ...]:
        return self.names[node.name], self._module(node), node.name
