"""The values of one graph in its order, each with all that the stages found.

Takes a part with measured estimates and choices, and its analysis. Gives one ``Value`` for each
floating-point value. A parameter comes before its first use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import fx

from unitify.analysis.analyze import Analysis
from unitify.analysis.forward import Derivation
from unitify.capture.whole import Capture
from unitify.check.rounding import rounding_gradients
from unitify.check.source_lines import SourceLines
from unitify.estimates import Rms
from unitify.formats.losses import Loss, loss
from unitify.formats.magnitudes import Magnitudes, magnitudes_of
from unitify.formats.table import Format
from unitify.part import Part, value_name
from unitify.plan.fixed import parameter_of, true_weights
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.report.numerics import Ratios, Side, Value
from unitify.report.origins import origin_of
from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.extremes import extreme_values
from unitify.rulebook.laws import factors, holds_tensors, is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name


@dataclass(frozen=True)
class Gathered:
    """The results of all stages for one graph. ``part`` has measured estimates, where there are."""

    part: Part
    analysis: Analysis
    sqnr: Mapping[str, Ratios]
    magnitudes: Mapping[tuple[str, int], Magnitudes]
    lines: SourceLines


def values_of(of: Gathered, rules: RuleTable, formats: Iterable[Format]) -> tuple[Value, ...]:
    """Every floating-point value of a part, in the order of its graph."""
    formats = tuple(formats)
    part, capture = of.part, of.part.capture
    casts = _casts(part)
    contractions = frozenset(choice.value for choice in part.choices if choice.is_contraction)
    true = true_weights(capture)
    rounding = rounding_gradients(of.analysis, part.estimates)

    def side(node: fx.Node, direction: int) -> Side:
        return _side(of, node, direction, formats, casts, node in true, rounding)

    masks = extreme_values(capture.graph, rules, capture.example, capture.attribute)
    return tuple(
        Value(
            name=value_name(part.name, node.name),
            kind="mask" if node in masks else _kind(capture, node),
            operation=operation_name(node) if node.op == "call_function" else node.op,
            shape=shape_of(node.meta["val"]),
            origin=origin_of(node, of.lines, part.name),
            forward=side(node, 0),
            backward=side(node, 1),
            parameter=_parameter(part, node),
            is_true_weight=node in true,
            restored=_restored(part.plan, rules, node),
            contraction=_contraction(part, node, contractions),
            sqnr=of.sqnr.get(node.name, {}),
        )
        for node in ordered(capture.graph)
    )


def ordered(graph: fx.Graph) -> list[fx.Node]:
    """The floating-point values of a graph, each parameter and buffer before its first use."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            continue
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and is_scalable(operand):
                found.setdefault(operand)
        if node.op != "output" and is_scalable(node):
            found.setdefault(node)
    return list(found)


def _casts(part: Part) -> dict[tuple[str, int], str]:
    """The formats to which each value (0) and gradient (1) is cast, by name."""
    nodes = {node.name: node for node in part.capture.graph.nodes}
    found: dict[tuple[str, int], dict[str, None]] = {}
    for cast in part.casts():
        node = nodes[cast.value]
        # An operation with several results has a gradient for each of them.
        for held in [node] if is_scalable(node) else node.users:
            found.setdefault((held.name, int(cast.is_gradient)), {})[cast.format] = None
    return {key: ", ".join(formats) for key, formats in found.items()}


def _contraction(part: Part, node: fx.Node, contractions: frozenset[str]) -> str:
    """The name of the contraction of which ``node`` is the result, or one of the results."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    is_part = isinstance(source, fx.Node) and holds_tensors(source)
    name = source.name if isinstance(source, fx.Node) and is_part else node.name
    return value_name(part.name, name) if name in contractions else ""


def _side(
    of: Gathered,
    node: fx.Node,
    direction: int,
    formats: tuple[Format, ...],
    casts: Mapping[tuple[str, int], str],
    is_true_weight: bool,
    rounding: frozenset[str],
) -> Side:
    plan = of.part.plan
    exponent = plan.wanted(node.name).exponents[direction]
    # Nothing rounds a true weight but a cast, at a scale of its own.
    rounded = plan.unit(node.name).exponents[direction] if is_true_weight else exponent
    predicted = _rms(of.analysis.estimates.get(node.name, Rms()), direction)
    measured = _rms(of.part.estimates.get(node.name, Rms()), direction)
    held = of.magnitudes.get((node.name, direction)) or _of_weight(of.part, node, direction)
    known: Magnitudes | float | None = held if held and held.total else None
    if held is None:
        known = measured or predicted
    if direction:
        steps = of.analysis.backward.get(node.name, ())
    else:
        step = of.analysis.forward.get(node.name)
        steps = () if step is None else (step,)
    return Side(
        predicted=predicted,
        measured=measured,
        exponent=exponent,
        magnitudes=held,
        losses={} if known is None else _losses(known, rounded, formats),
        cast=casts.get((node.name, direction), ""),
        steps=tuple(_derivation(step, of.part.name) for step in steps),
        is_rounding=bool(direction) and node.name in rounding,
    )


def _losses(
    known: Magnitudes | float, exponent: int, formats: tuple[Format, ...]
) -> dict[str, dict[str, Loss]]:
    scales = {"original": 1.0, "transformed": 2.0**exponent}
    return {
        graph: {format.name: loss(format, known, scale) for format in formats}
        for graph, scale in scales.items()
    }


def _of_weight(part: Part, node: fx.Node, direction: int) -> Magnitudes | None:
    """The magnitudes of a parameter or buffer, which need no run."""
    if direction or node.op != "get_attr":
        return None
    tensor = part.capture.attribute(str(node.target))
    return None if tensor.is_meta else magnitudes_of(tensor)


def _rms(estimate: Rms, direction: int) -> float | None:
    return estimate.backward if direction else estimate.forward


def _derivation(step: Derivation, part: str) -> Derivation:
    return replace(step, inputs={value_name(part, n): rms for n, rms in step.inputs.items()})


def _kind(capture: Capture, node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "parameter" if parameter_of(capture, node) is not None else "buffer"
    return "result"


def _parameter(part: Part, node: fx.Node) -> str:
    if node.op != "get_attr":
        return ""
    return f"{part.path}.{node.target}".strip(".")


def _restored(plan: ScalePlan, rules: RuleTable, node: fx.Node) -> str:
    """The reason that the operands of an operation return to true scale; "" where they do not."""
    if node.op != "call_function" or not any(is_scalable(n) for n in node.all_input_nodes):
        return ""
    rule = rules.get(operation_name(node))
    if rule is None:
        return "no rule"

    def scale(n: fx.Node) -> int:
        return plan.values.get(n.name, Scale()).exponents[0]

    return "law" if factors(rule, node, scale, scale(node)).restored else ""
