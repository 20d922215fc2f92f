"""How the operands and gradients of contractions are distributed.

Weights are known without data; activations and gradients are known from batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from unitify.capture.execution import LossFunction
from unitify.formats.magnitudes import Magnitudes, magnitudes_of
from unitify.measure.captured import measure_into
from unitify.measure.tally import Key, Tally
from unitify.part import Part
from unitify.recipe.cast import Place
from unitify.recipe.choices import shape_numel
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name

#: Place of a cast → the distribution of what it rounds.
Distributions = Mapping[Place, Magnitudes]


def weight_distributions(part: Part, rules: RuleTable) -> Distributions:
    """The distributions of the operands that are weights, or views of weights."""
    nodes = {node.name: node for node in part.capture.graph.nodes}
    found: dict[Place, Magnitudes] = {}
    known: dict[str, Magnitudes] = {}
    for cast in part.casts():
        weight = _viewed(nodes[cast.value], rules)
        if cast.is_gradient or weight.op != "get_attr":
            continue
        tensor = part.capture.attribute(str(weight.target))
        if isinstance(tensor, Tensor) and not tensor.is_meta:
            if weight.name not in known:
                known[weight.name] = magnitudes_of(tensor)
            found[cast.place] = known[weight.name]
    return found


def _viewed(node: fx.Node, rules: RuleTable) -> fx.Node:
    """The value that a chain of views starts from, as long as each shows every element once."""
    while node.op == "call_function":
        rule = rules.get(operation_name(node))
        sources = node.all_input_nodes
        is_view = rule is not None and rule.moves and len(sources) == 1
        if not is_view or shape_numel(sources[0]) != shape_numel(node):
            break
        node = sources[0]
    return node


def measured_distributions(
    part: Part,
    batches: Iterable[list[Any]] | None = None,
    loss_fn: LossFunction | None = None,
) -> Distributions:
    """The distributions of all cast operands and gradients over ``batches``.

    ``batches``: lists of flat inputs; the capture's own example where None.
    """
    places: dict[Place, Key] = {c.place: (c.value, int(c.is_gradient)) for c in part.casts()}
    tally = Tally(counts_magnitudes=True, only=frozenset(places.values()))
    measure_into(tally, part.capture, batches, loss_fn)
    found = tally.magnitudes()
    return {p: found[key] for p, key in places.items() if key in found and found[key].total}
