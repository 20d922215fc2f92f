"""The scales of keys and values in a cache, as a recipe's ``kv_cache`` casts them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import fx

from unitify.estimates import Rms
from unitify.part import Part
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class Cached:
    """What an attention keeps: value = scale × what is kept. Scales are powers of two.

    ``attention``: the module's path; ``operation``: the value that it makes of these. ``key_rms``,
    ``value_rms``: as they were estimated; 0 where they were not.
    """

    attention: str
    format: str
    key: float
    value: float
    operation: str
    key_rms: float = 0.0
    value_rms: float = 0.0


def cached(parts: Iterable[Part], rules: RuleTable) -> tuple[Cached, ...]:
    """Every attention whose keys and values are cast for a cache, in the order of the calls.

    One that is called several times has the scales that hold the most.
    """
    found: dict[str, Cached] = {}
    for part in parts:
        for each in _cached(part, rules):
            other = found.get(each.attention, each)
            most = max(each.key, other.key), max(each.value, other.value)
            found[each.attention] = replace(other, key=most[0], value=most[1])
    return tuple(found.values())


def _cached(part: Part, rules: RuleTable) -> Iterator[Cached]:
    nodes = {node.name: node for node in part.capture.graph.nodes}
    for choice in part.choices:
        names = rules[choice.operation].cached if choice.is_cast and choice.is_contraction else ()
        kept = {c.place[1]: c for c in choice.casts if c.place[1] in names}
        # Where gradients are cast, the recipe casts the operands of every attention.
        if names and len(kept) == len(names) and not choice.backward:
            key, value = (kept[name] for name in names)
            yield Cached(
                attention=_path(part.path, nodes[choice.value]),
                format=key.format,
                key=math.ldexp(1.0, part.exponent(key)),
                value=math.ldexp(1.0, part.exponent(value)),
                operation=choice.value,
                key_rms=part.estimates.get(key.value, Rms()).forward or 0.0,
                value_rms=part.estimates.get(value.value, Rms()).forward or 0.0,
            )


def _path(part: str, node: fx.Node) -> str:
    """The module whose code calls the attention."""
    stack = node.meta.get("nn_module_stack") or {}
    inner = list(stack.values())[-1][0] if stack else ""
    return f"{part}.{inner}".strip(".")
