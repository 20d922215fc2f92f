"""What a monitor reads at each node of a module's graph: values, gradients, and casts of both.

Takes a part of a module. Gives, by node, the values of the original among the results, with their
units, and the formats of the casts that follow. Nothing runs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from unitify.arrival import unwatched
from unitify.formats.table import FORMATS, Format
from unitify.module.unit_scaled import UnitScaledModule
from unitify.plan.fixed import true_weights
from unitify.rulebook.laws import factors, holds_tensors, is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, operation_name

_INSERTED = ("unitify.rescale.default", "unitify.cast.default", "unitify.center.default")


@dataclass(frozen=True)
class WatchedTensor:
    """One reading of a node's result x, or of its gradient.

    It is the share of x · 2^``exponent`` outside the range of ``format``, or its RMS for None.
    With ``amax``, x is multiplied by the factor that its cast finds.
    """

    value: str
    direction: str
    exponent: int = 0
    format: Format | None = None
    amax: bool = False


def watches(
    part: UnitScaledModule, format: Format | None, rules: RuleTable
) -> dict[str, list[WatchedTensor]]:
    """Name of a node of ``part.graph`` → its readings.

    ``format``: the format for shares of values and gradients that are not cast.
    """
    units = stored_units(part, rules)
    graph = unwatched(part.graph)
    cast = _casts(graph, units)
    done = {(watch.value, watch.direction) for held in cast.values() for watch in held}
    found: dict[str, list[WatchedTensor]] = {}
    for node in graph.nodes:
        own = found.setdefault(node.name, [])
        if node.name in units:
            for direction, exponent in zip(("forward", "backward"), units[node.name], strict=True):
                own.append(WatchedTensor(node.name, direction, exponent))
                if format is not None and (node.name, direction) not in done:
                    own.append(WatchedTensor(node.name, direction, exponent, format))
        own += cast.get(node.name, ())
    return found


def stored_units(part: UnitScaledModule, rules: RuleTable) -> dict[str, tuple[int, int]]:
    """Name of a node → log2 of the factors from its result and gradient to those as stored.

    A rescale may follow an operation, whose result then has other units. A true weight, and every
    value that stays true with placement "casts", is read in its unit, in which casts round it.
    """
    scales = {name: scale.exponents for name, scale in part.plan.values.items()}
    weights = true_weights(part.capture)

    def forward(node: fx.Node) -> int:
        return scales.get(node.name, (0, 0))[0]

    units: dict[fx.Node, tuple[int, int]] = {}
    found: dict[str, tuple[int, int]] = {}
    for node in part.capture.graph.nodes:
        own = scales.get(node.name, (0, 0))
        source = node.args[0] if node.args else None
        if node.op != "call_function":
            units[node] = own
        elif isinstance(source, fx.Node) and holds_tensors(source) and is_scalable(node):
            units[node] = units[source]
        else:
            law = factors(rules.get(operation_name(node)), node, forward, own[0])
            units[node] = law.output, part.plan.received(node.name, law)
        if is_scalable(node) and node.op != "output":
            plan = part.plan
            judged = plan.unit(node.name) if node in weights else plan.wanted(node.name)
            forth, back = judged.exponents
            found[node.name] = units[node][0] - forth, units[node][1] - back
    return found


def _casts(graph: fx.Graph, values: Mapping[str, Any]) -> dict[str, list[WatchedTensor]]:
    """Name of a node → readings of the casts of its result, or of its gradient."""
    found: dict[str, list[WatchedTensor]] = {}
    seen: set[tuple[str, WatchedTensor]] = set()

    def add(node: Any, watch: WatchedTensor) -> None:
        if isinstance(node, fx.Node) and (node.name, watch) not in seen:
            seen.add((node.name, watch))
            found.setdefault(node.name, []).append(watch)

    for node in graph.nodes:
        for operand, direction, format, exponent, amax in _rounded(node):
            source = _source(operand, values)
            if source is not None and format:
                watch = WatchedTensor(source, direction, -exponent, FORMATS[format], amax)
                add(operand, watch)
    return found


def _source(node: fx.Node, values: Mapping[str, Any]) -> str | None:
    """The value of a node, seen through inserted operations."""
    while node.name not in values and operation_name(node) in _INSERTED:
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        node = inner
    return node.name if node.name in values else None


def _rounded(node: fx.Node) -> list[tuple[fx.Node, str, str, int, bool]]:
    """The roundings of a node: (node, direction, format, exponent, amax)."""
    if operation_name(node) == "unitify.cast.default":
        given = named_arguments(node)
        amax = bool(given.get("amax"))
        return [
            (given["x"], "forward", given["forward"], given.get("forward_exponent") or 0, amax),
            (node, "backward", given["backward"], given.get("backward_exponent") or 0, amax),
        ]
    if operation_name(node) == "unitify.fp8_linear.default":
        given = named_arguments(node)
        return [
            (given["x"], "forward", given["forward"], given["x_exponent"], False),
            (given["weight"], "forward", given["forward"], given["weight_exponent"], False),
            (node, "backward", given["backward"], given["gradient_exponent"], False),
        ]
    return []
