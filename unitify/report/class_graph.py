"""The graph of ``plan.scale_classes`` as plain values, with classes by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import networkx as nx

from unitify.formats.powers import exponent_of
from unitify.part import Part, value_name
from unitify.plan.scale_classes import scale_classes
from unitify.report.numerics import Crossing, ScaleClass
from unitify.rewrite import rewrite
from unitify.rulebook.rule_table import RuleTable


def class_graph(
    parts: Iterable[Part], rules: RuleTable
) -> tuple[tuple[ScaleClass, ...], tuple[Crossing, ...]]:
    """Scale classes of all parts, and the rescales between them by index of the classes.

    The graphs are rewritten without casts, which would separate a rescale from its use.
    """
    classes: list[ScaleClass] = []
    crossings: list[Crossing] = []
    for part in parts:
        found = scale_classes(rewrite(part.capture, part.plan, rules), part.plan)
        number = {node: len(classes) + i for i, node in enumerate(found.nodes)}
        classes += [_class(part.name, found, node) for node in found.nodes]
        uses = Counter(
            (number[a], number[b], exponent_of(d["forward"]), exponent_of(d["backward"]))
            for a, b, d in found.edges(data=True)
        )
        crossings += [Crossing(*edge, uses=count) for edge, count in uses.items()]
    return tuple(classes), tuple(crossings)


def _class(part: str, found: nx.MultiDiGraph, node: str) -> ScaleClass:
    forward, backward = found.nodes[node]["scale"].exponents
    values = tuple(value_name(part, value) for value in found.nodes[node]["values"])
    return ScaleClass(values, forward, backward)
