"""Operations in which two paths from one value meet, without a contraction in between.

A normalization or an activation written by hand (x · σ(x), x − mean(x)) is one, and a gated state.
A multiplier on one of the paths would change the function, not its scale.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from torch import fx

from unitify.rulebook.rule_table import Rule

Values = Mapping[fx.Node, Sequence[fx.Node]]
Rules = Mapping[fx.Node, "Rule | None"]


def find_meetings(
    nodes: Sequence[fx.Node], values: Values, rules: Rules
) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """The operations at which paths meet, and the values inside: between the split and there.

    ``values``: the operands of each node that are neither weights nor constants. Each source (a sum
    of contractions, an input, a table) is one bit, so a set of sources is an integer.
    """
    sources: dict[fx.Node, int] = {}
    meetings: list[fx.Node] = []
    count = 0
    for node in nodes:
        rule = rules[node]
        if not values[node] or (rule is not None and rule.contraction):
            sources[node] = 1 << count
            count += 1
            continue
        united = shared = 0
        for operand in dict.fromkeys(values[node]):
            shared |= united & sources[operand]
            united |= sources[operand]
        sources[node] = united
        if shared and rule is not None and not rule.linear:
            meetings.append(node)
    return frozenset(meetings), frozenset(_inside(meetings, nodes, values, rules))


def _inside(
    meetings: list[fx.Node], nodes: Sequence[fx.Node], values: Values, rules: Rules
) -> set[fx.Node]:
    order = {node: i for i, node in enumerate(nodes)}
    found: set[fx.Node] = set()
    for meeting in reversed(meetings):
        operands = values[meeting]
        parting = _parting(operands[0], operands[-1], order, values, rules)
        first = -1 if parting is None else order[parting]
        pending = list(operands)
        while pending:
            current = pending.pop()
            rule = rules[current]
            if current in found or order[current] <= first or not values[current]:
                continue
            if rule is None or rule.contraction:
                continue
            found.add(current)
            pending.extend(values[current])
    return found


def _parting(
    first: fx.Node, second: fx.Node, order: Mapping[fx.Node, int], values: Values, rules: Rules
) -> fx.Node | None:
    """The latest value from which paths without a contraction lead to both."""
    sides: dict[fx.Node, int] = {first: 1}
    sides[second] = sides.get(second, 0) | 2
    pending = [(-order[n], n) for n in sides]
    heapq.heapify(pending)
    while pending:
        _, current = heapq.heappop(pending)
        if sides[current] == 3:
            return current
        rule = rules[current]
        if rule is not None and rule.contraction:
            continue
        for operand in values[current]:
            if operand not in sides:
                heapq.heappush(pending, (-order[operand], operand))
            sides[operand] = sides.get(operand, 0) | sides[current]
    return None
