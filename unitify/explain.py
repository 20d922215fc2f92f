"""``unitify explain``: the meaning of a diagnostic, and the derivation of a value's scale.

The derivation reads the analysis backwards: the RMS of a value, its rule and formula, its operands,
and so on to inputs and parameters.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx, nn

from unitify.analysis.analyze import Analysis, analyze
from unitify.analysis.forward import Derivation
from unitify.capture.inputs import given_or_inferred, is_given
from unitify.capture.islands import path_of, record, with_true_parameters
from unitify.capture.source import frames_of, module_of, without_torch
from unitify.capture.whole import Capture
from unitify.diagnostics import UnitifyError, UnknownCode, UnknownValue, all_diagnostics
from unitify.estimates import Rms
from unitify.estimating import FAR, estimated, far_apart, measures
from unitify.formats.powers import exponent_of
from unitify.module.assembly import plan_of
from unitify.naming import stable_names
from unitify.part import value_name
from unitify.plan.bands import tolerance_of
from unitify.plan.planner import plan
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.planning import carrier_of
from unitify.rule_trials.listing import rule_texts
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable, load_rules
from unitify.rulebook.schema import operation_name

#: The most values of a derivation.
LONGEST = 12


def explain_code(code: str) -> str:
    """The text on a diagnostic: its meaning, an example, a fix.

    Raises ``UnitifyError`` (U006) for an unknown code.
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
    """The derivation of the scale of the value ``name`` of ``model``, with its source line.

    ``name``: that in the plan (``part/value`` in an island), in a finding, or a parameter's.
    ``chosen``: an existing plan; None makes one, from a run or, where weights hold no data, from
    analysis. The derivation is that of the analysis, with measured RMS beside it.
    Raises ``UnitifyError`` (U203) for a name that is not in the graph.
    """
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    table = load_rules(rules)
    recorded = with_true_parameters(record(model, args, kwargs))
    part, node = _find(recorded.parts, name)
    captured = recorded.parts[part]
    analysis = analyze(captured, table)
    is_run = measures("auto", recorded.parts.values())
    estimates, measured = analysis.estimates, Rms()
    drawn = not is_given(example_inputs, example_kwargs)
    if is_run:
        known = estimated(recorded, "measured", [(args, kwargs)], None, table, drawn=drawn)
        estimates = next(p.estimates for p in known.parts if p.name == part)
        measured = estimates.get(node.name, Rms())
    if chosen is None:
        tolerance = tolerance_of(is_run and not drawn)
        own = plan(captured, estimates, table, tolerance, carrier=carrier_of(model, None, "true"))
    else:
        own = plan_of(chosen, part, captured)
    return "\n".join(_derivation(node, analysis, measured, own, table))


def _find(parts: Mapping[str, Capture], name: str) -> tuple[str, fx.Node]:
    """The part and node of a value, by its name in a graph or a finding, or a parameter's."""
    known: dict[str, tuple[str, fx.Node]] = {}
    for part, captured in parts.items():
        inside = f"{path_of(part)}." if path_of(part) else ""
        nodes = [node for node in captured.graph.nodes if is_scalable(node)]
        stable = stable_names(part, captured)
        for node in nodes:
            for own in (value_name(part, node.name), stable[node.name]):
                known.setdefault(own, (part, node))
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
        held = "stays true; a cast" if scale == Scale() else "a cast"
        lines.append(f"{held} rounds it at {powers}")
    lines += ["", "forward, from the value back to inputs and parameters:"]
    for found in _ancestors(node, analysis):
        lines.append(f"  {step_text(found.name, analysis.forward[found.name])}")
        if found.op == "call_function":
            operation = operation_name(found)
            lines += [f"      {text}" for text in rule_texts(rules.get(operation))]
            fallen = (d for d in analysis.diagnostics if d.operation == operation)
            lines += [f"      {d.code} {d.message}" for d in fallen]
    steps = analysis.backward.get(node.name, ())
    lines += ["", f"backward, the sum of {len(steps)} term{'' if len(steps) == 1 else 's'}:"]
    lines += [f"  {step_text('gradient', step)}" for step in steps]
    return lines


def _title(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"{node.name}: an input"
    if node.op == "get_attr":
        return f"{node.name}: {node.target}"
    return f"{node.name}: {operation_name(node)}"


def _origin(node: fx.Node) -> list[str]:
    """The module path and the innermost source line outside torch, as recorded by capture."""
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
    """The value and its ancestors, nearest first."""
    found = [node]
    for current in found:
        for operand in current.all_input_nodes:
            if operand.name in analysis.forward and operand not in found:
                found.append(operand)
        if len(found) >= LONGEST:
            break
    return found[:LONGEST]


def step_text(name: str, step: Derivation) -> str:
    """One step of a derivation: the RMS, its way, and the values and RMS from which it follows."""
    operands = ", ".join(f"{operand} ({rms:.4g})" for operand, rms in step.inputs.items())
    source = f" from {operands}" if operands else ""
    return f"{name}: rms {step.rms:.4g} ({step.way}){source}"


def _power(factor: float) -> str:
    return f"2^{exponent_of(factor)}"


def _stored(rms: float | None, factor: float) -> str:
    return f", true rms {rms:.4g}, stored rms {rms / factor:.4g}" if rms else ""
