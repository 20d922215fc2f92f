"""Which tensors are judged, in which format and at which scale.

Takes a piece of a subject; gives one ``Judged`` for every value and gradient that matters: what the
recipe casts, as its cast sees it, and every other stored value that depends on a weight. Inputs,
buffers, masks, integers, single numbers and views of what is judged already do not alarm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from unitify.check.subject import Piece
from unitify.formats.powers import exponent_of
from unitify.formats.table import FORMATS, Format
from unitify.noise.operand_casts import operand_casts
from unitify.plan.fixed import true_weights
from unitify.recipe.choices import Choice, choose
from unitify.recipe.recipe import Recipe
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operand_nodes


@dataclass(frozen=True)
class Judged:
    """One tensor: ``direction`` "forward" is the value of ``node``, "backward" its gradient.

    - ``exponent``: log2 of what it is divided by before it is stored, or cast
    - ``format``: what has to hold it; None where the unit band is asked for
    - ``is_cast``: is it cast, and not only stored? ``because``: what for
    """

    node: fx.Node
    direction: str
    exponent: int
    format: Format | None
    is_cast: bool
    because: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Value and direction as tallies have them."""
        return self.node.name, int(self.direction == "backward")


@dataclass(frozen=True)
class Scope:
    """What is judged: ``values`` "stored" or "cast" alone.

    ``formats``: of every stored tensor, forward and backward, as if all were cast; None for those
    of the recipe. ``is_unit``: against the unit band, whatever the format.
    """

    values: str = "stored"
    formats: tuple[Format, Format] | None = None
    is_unit: bool = False


def judged(piece: Piece, recipe: Recipe, rules: RuleTable, scope: Scope) -> list[Judged]:
    """What of ``piece`` is judged; what is cast comes first."""
    if scope.is_unit:
        return list(_stored(piece, recipe, rules, None, is_cast=False))
    if scope.formats is not None:
        return list(_stored(piece, recipe, rules, scope.formats, is_cast=True))
    found = list(_cast(piece, recipe, rules))
    if scope.values == "stored":
        seen = {j.key for j in found}
        formats = recipe.forward, recipe.backward
        stored = _stored(piece, recipe, rules, formats, is_cast=False)
        found += [j for j in stored if j.key not in seen]
    return found


def _stored(
    piece: Piece,
    recipe: Recipe,
    rules: RuleTable,
    formats: tuple[Format, Format] | None,
    is_cast: bool,
) -> Iterator[Judged]:
    forward, backward = formats or (None, None)
    stored = dataclasses.replace(
        recipe, values="all", scaling="unit", scale=1.0, loss_scale=1.0,
        headroom="none", min_sqnr=None,
    )  # fmt: skip
    eligible = {c.value for c in choose(piece.capture, stored, rules) if c.is_cast}
    weights = true_weights(piece.capture)
    for node in piece.capture.graph.nodes:
        if node.op == "placeholder" or node.name not in piece.plan.values:
            continue
        # A weight that is held true is judged where a cast would round it.
        held = piece.plan.unit(node.name) if node in weights else piece.plan.wanted(node.name)
        fwd, bwd = held.exponents
        if node.name in eligible:
            yield Judged(node, "forward", fwd, forward, is_cast, "a stored value")
            yield Judged(node, "backward", bwd, backward, is_cast, "a stored gradient")
        elif _is_number(node):
            # Nobody casts a loss; but its gradient is where all others come from.
            yield Judged(node, "backward", bwd, backward, False, "the gradient of a single number")


def _cast(piece: Piece, recipe: Recipe, rules: RuleTable) -> Iterator[Judged]:
    """As the casts see them: operands and gradients of products, or all stored values."""
    if recipe.scaling == "amax":
        return  # Each cast finds its own factor at run time.
    offset = exponent_of(recipe.scale)
    nodes = {node.name: node for node in piece.capture.graph.nodes}
    cast = {c.value: c for c in piece.casts if c.is_cast}
    if recipe.values == "all":
        for name, choice in cast.items():
            fwd, bwd = piece.plan.unit(name).exponents
            yield from _both(nodes[name], choice, fwd + offset, bwd + offset)
        return
    operands = operand_casts(cast.values(), piece.capture, piece.plan, rules)
    seen: set[tuple[str, str, int]] = set()
    for (product, argument, index), operand in operands.items():
        node = next(n for a, i, n in operand_nodes(nodes[product]) if (a, i) == (argument, index))
        exponent = exponent_of(operand.scale) + (0 if cast[product].exponents else offset)
        if (node.name, operand.format.name, exponent) not in seen:
            seen.add((node.name, operand.format.name, exponent))
            yield Judged(node, "forward", exponent, operand.format, True, f"cast for {product}")
    for name, choice in cast.items():
        if choice.backward:
            exponent = piece.plan.unit(name).exponents[1]
            exponent += choice.exponents[-1] if choice.exponents else offset
            format = FORMATS[choice.backward]
            because = f"cast for the backward pass of {name}"
            yield Judged(nodes[name], "backward", exponent, format, True, because)


def _is_number(node: fx.Node) -> bool:
    return node.op == "call_function" and is_scalable(node) and not node.meta["val"].dim()


def _both(node: fx.Node, choice: Choice, fwd: int, bwd: int) -> Iterator[Judged]:
    if choice.forward:
        format = FORMATS[choice.forward]
        yield Judged(node, "forward", fwd, format, True, "a stored value that is cast")
    if choice.backward:
        format = FORMATS[choice.backward]
        yield Judged(node, "backward", bwd, format, True, "a stored gradient that is cast")
