"""How the operands and gradients of products are distributed, as far as they are known.

A weight is known without data. Of an activation batches tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.formats.magnitudes import Magnitudes, magnitudes_of
from unitify.measure.captured import measure_into
from unitify.measure.tally import Key, Tally
from unitify.noise.operand_casts import Place
from unitify.recipe.choices import Choice, shape_numel
from unitify.rulebook.products import product_operands
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name

#: Operand by its place → how its elements are distributed; of the gradient of a product's result,
#: with "" for the argument.
Distributions = Mapping[Place, Magnitudes]


def weight_distributions(
    choices: Iterable[Choice], capture: Capture, rules: RuleTable
) -> Distributions:
    """Those of the operands that are weights, or views of them."""
    cast = {c.value for c in choices if c.is_product and c.forward}
    found: dict[Place, Magnitudes] = {}
    known: dict[str, Magnitudes] = {}
    for node in capture.graph.nodes:
        if node.name not in cast:
            continue
        for name, index, operand in product_operands(rules[operation_name(node)], node):
            weight = _viewed(operand, rules)
            tensor = capture.attribute(str(weight.target)) if weight.op == "get_attr" else None
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                known.setdefault(weight.name, magnitudes_of(tensor))
                found[node.name, name, index] = known[weight.name]
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
    choices: Iterable[Choice],
    capture: Capture,
    rules: RuleTable,
    batches: Iterable[list[Any]] | None = None,
    loss_fn: LossFunction | None = None,
) -> Distributions:
    """Those of the operands and gradients of all cast products over ``batches``.

    ``batches``: lists of flat inputs; the capture's own example where None.
    """
    cast = {c.value for c in choices if c.is_product and c.is_cast}
    places: dict[Place, Key] = {(name, "", 0): (name, 1) for name in cast}
    for node in capture.graph.nodes:
        if node.name in cast:
            for name, index, operand in product_operands(rules[operation_name(node)], node):
                places[node.name, name, index] = operand.name, 0
    tally = Tally(counts_magnitudes=True, only=frozenset(places.values()))
    measure_into(tally, capture, batches, loss_fn)
    found = tally.magnitudes()
    return {p: found[key] for p, key in places.items() if key in found and found[key].total}
