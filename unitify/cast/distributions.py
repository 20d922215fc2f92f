"""How the operands and gradients of products are distributed, as far as they are known.

A weight is known without data. Of an activation batches tell.
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

#: Operand by its place → how its elements are distributed; of the gradient of a product's result,
#: with "" for the argument.
Distributions = Mapping[Place, Magnitudes]


def weight_distributions(part: Part, rules: RuleTable) -> Distributions:
    """Those of the operands that are weights, or views of them."""
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
    """What a value shows the elements of, each once."""
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
    """Those of the operands and gradients of all cast products over ``batches``.

    ``batches``: lists of flat inputs; the capture's own example where None.
    """
    places: dict[Place, Key] = {c.place: (c.value, int(c.is_gradient)) for c in part.casts()}
    tally = Tally(counts_magnitudes=True, only=frozenset(places.values()))
    measure_into(tally, part.capture, batches, loss_fn)
    found = tally.magnitudes()
    return {p: found[key] for p, key in places.items() if key in found and found[key].total}
