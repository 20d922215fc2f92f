"""``unitify explain``: what a diagnostic means, and how a value came by its scale.

The derivation of a value is the analysis read backwards: its RMS, the rule and the formula that
gave it, the values that it was made from, and so on towards inputs and parameters.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx, nn

from unitify.analysis.analyze import Analysis, analyze
from unitify.analysis.forward import Step
from unitify.capture.inputs import given_or_inferred, is_given
from unitify.capture.islands import path_of, record, with_true_parameters
from unitify.capture.source import frames_of, module_of, without_torch
from unitify.capture.whole import Capture
from unitify.diagnostics import UnitifyError, UnknownCode, UnknownValue, all_diagnostics
from unitify.estimates import Rms
from unitify.estimating import FAR, estimated, far_apart, measures
from unitify.formats.powers import exponent_of
from unitify.module.assembly import plan_of
from unitify.part import value_name
from unitify.plan.bands import tolerance_of
from unitify.plan.planner import plan
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.planning import carrier_of
from unitify.rule_trials.listing import rule_texts
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable, load_rules
from unitify.rulebook.schema import operation_name

#: How many values a derivation shows on its way back to inputs and parameters.
LONGEST = 12


def explain_code(code: str) -> str:
    """A diagnostic's own page: what it means, an example, a fix.

    Raises ``UnitifyError`` (U006) for a code that does not exist.
    """
    known = all_diagnostics()
    if code not in known:
        raise UnitifyError(UnknownCode(asked=code, known=", ".join(known)))
    found = known[code]
    return f"{code} {found.__name__}\n\n{inspect.getdoc(found)}\n\nMessage: {found.why}"


def explain_value(
    name: str,
    model: nn.Module,
    example_inputs: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    chosen: ScalePlan | None = None,
    rules: Iterable[Any] = (),
) -> str:
    """How the scale of the value ``name`` of ``model`` was derived, down to the source line.

    ``name``: as in the plan, ``part/value`` in an island; or a parameter's.
    ``chosen``: a plan that was made before; where None that of a run, or of the analysis where
    weights hold no data. The derivation is the analysis', and what was measured stands beside it.
    Raises ``UnitifyError`` (U203) for a name that the graph does not hold.
    """
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    table = load_rules(rules)
    recorded = with_true_parameters(record(model, args, kwargs))
    part, node = _find(recorded.parts, name)
    captured = recorded.parts[part]
    analysis = analyze(captured, table)
    is_run = measures("auto", recorded.parts.values())
    estimates, measured = analysis.estimates, Rms()
    if is_run:
        known = estimated(recorded, "measured", [(args, kwargs)], None, table)
        estimates = next(p.estimates for p in known.parts if p.name == part)
        measured = estimates.get(node.name, Rms())
    if chosen is None:
        tolerance = tolerance_of(is_run and is_given(example_inputs, example_kwargs))
        own = plan(captured, estimates, table, tolerance, carrier=carrier_of(model, None, "true"))
    else:
        own = plan_of(chosen, part, captured)
    return "\n".join(_derivation(node, analysis, measured, own, table))


def _find(parts: Mapping[str, Capture], name: str) -> tuple[str, fx.Node]:
    """The part and node of a value, by its own name or by that of the parameter that it holds."""
    known: dict[str, tuple[str, fx.Node]] = {}
    for part, captured in parts.items():
        inside = f"{path_of(part)}." if path_of(part) else ""
        nodes = [node for node in captured.graph.nodes if is_scalable(node)]
        for node in nodes:
            known.setdefault(value_name(part, node.name), (part, node))
        attributes = {str(node.target): node for node in nodes if node.op == "get_attr"}
        for alias, first in captured.aliases.items():
            if first in attributes:
                known.setdefault(inside + alias, (part, attributes[first]))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=4, cutoff=0.3)
        raise UnitifyError(UnknownValue(name=name, close=", ".join(close) or "none"))
    return known[name]


def _derivation(
    node: fx.Node, analysis: Analysis, measured: Rms, chosen: ScalePlan, rules: RuleTable
) -> list[str]:
    scale = chosen.values.get(node.name, Scale())
    estimate = analysis.estimates.get(node.name, Rms())
    lines = [_title(node), *_origin(node), ""]
    for direction, factor in (("forward", scale.fwd), ("backward", scale.bwd)):
        predicted, found = getattr(estimate, direction), getattr(measured, direction)
        stored = _stored(predicted if found is None else found, factor)
        lines.append(f"{direction:8} scale {_power(factor)}{stored}")
        if far_apart(predicted, found):
            lines.append(f"         predicted rms {predicted:.4g}: more than {FAR:g} octaves off")
    unit = chosen.unit(node.name)
    if unit != scale:
        powers = f"{_power(unit.fwd)}, its gradient at {_power(unit.bwd)}"
        lines.append(f"stays true; a cast rounds it at {powers}")
    lines += ["", "forward, from the value back to inputs and parameters:"]
    for found in _ancestors(node, analysis):
        lines.append(f"  {step_text(found.name, analysis.forward[found.name])}")
        if found.op == "call_function":
            operation = operation_name(found)
            lines += [f"      {text}" for text in rule_texts(rules.get(operation))]
            fallen = (d for d in analysis.diagnostics if d.operation == operation)
            lines += [f"      {d.code} {d.message}" for d in fallen]
    steps = analysis.backward.get(node.name, ())
    lines += ["", f"backward, {len(steps)} contribution{'' if len(steps) == 1 else 's'} added up:"]
    lines += [f"  {step_text('gradient', step)}" for step in steps]
    return lines


def _title(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"{node.name}: an input"
    if node.op == "get_attr":
        return f"{node.name}: {node.target}"
    return f"{node.name}: {operation_name(node)}"


def _origin(node: fx.Node) -> list[str]:
    """Module path and the innermost source line that is not torch's own, as capture recorded."""
    lines = []
    path, kind = module_of(node)
    if kind:
        lines.append(f"in module {path or '(root)'} ({kind})")
    frames = frames_of(node)
    if frames:
        frame = (without_torch(frames) or frames)[-1]
        lines.append(f"at {frame}: {frame.text}")
    return lines


def _ancestors(node: fx.Node, analysis: Analysis) -> list[fx.Node]:
    """The value and what it was made from, nearest first."""
    found = [node]
    for current in found:
        for operand in current.all_input_nodes:
            if operand.name in analysis.forward and operand not in found:
                found.append(operand)
        if len(found) >= LONGEST:
            break
    return found[:LONGEST]


def step_text(name: str, step: Step) -> str:
    """One step of a derivation: RMS, by what means, from which RMS of which values."""
    operands = ", ".join(f"{operand} ({rms:.4g})" for operand, rms in step.inputs.items())
    source = f" from {operands}" if operands else ""
    return f"{name}: rms {step.rms:.4g} ({step.way}){source}"


def _power(factor: float) -> str:
    return f"2^{exponent_of(factor)}"


def _stored(rms: float | None, factor: float) -> str:
    return f", true rms {rms:.4g}, stored rms {rms / factor:.4g}" if rms else ""
