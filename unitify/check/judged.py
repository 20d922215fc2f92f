"""Which tensors are judged, in which format and at which scale.

Takes a part of a subject; gives one ``Judged`` for every value and gradient that matters. A tensor
that the recipe casts is judged as the cast sees it. Every other stored tensor that depends on a
weight is judged as stored. Inputs, buffers, masks, integers, single numbers and views of judged
tensors are not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from unitify.formats.table import FORMATS, Format
from unitify.part import Part
from unitify.plan.fixed import true_weights
from unitify.recipe.choices import choose
from unitify.recipe.recipe import Recipe
from unitify.rulebook.laws import is_number
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class Judged:
    """One tensor: ``direction`` "forward" is the value of ``node``, "backward" its gradient.

    - ``exponent``: log2 of what it is divided by before it is stored or cast
    - ``format``: the format that has to hold it; None for the unit band
    - ``is_cast``: is it cast, and not only stored? ``because``: why it is judged
    """

    node: fx.Node
    direction: str
    exponent: int
    format: Format | None
    is_cast: bool
    because: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Value and direction, as keys of tallies."""
        return self.node.name, int(self.direction == "backward")


@dataclass(frozen=True)
class Scope:
    """What is judged: all "stored" ``values``, or only those that are "cast".

    ``formats``: judge every stored tensor, forward and backward, as if it were cast to these; None
    judges by the recipe. ``is_unit``: judge by the unit band alone.
    """

    values: str = "stored"
    formats: tuple[Format, Format] | None = None
    is_unit: bool = False


def judged(part: Part, recipe: Recipe, rules: RuleTable, scope: Scope) -> list[Judged]:
    """The judged tensors of ``part``, casts first."""
    if scope.is_unit:
        return list(_stored(part, recipe, rules, None, is_cast=False))
    if scope.formats is not None:
        return list(_stored(part, recipe, rules, scope.formats, is_cast=True))
    found = list(_cast(part, recipe))
    if scope.values == "stored":
        seen = {j.key for j in found}
        formats = recipe.forward, recipe.backward
        stored = _stored(part, recipe, rules, formats, is_cast=False)
        found += [j for j in stored if j.key not in seen]
    return found


def _stored(
    part: Part,
    recipe: Recipe,
    rules: RuleTable,
    formats: tuple[Format, Format] | None,
    is_cast: bool,
) -> Iterator[Judged]:
    forward, backward = formats or (None, None)
    stored = Recipe(
        recipe.name, recipe.forward, recipe.backward, "all",
        include=recipe.include, exclude=recipe.exclude,
    )  # fmt: skip
    eligible = {c.value for c in choose(part.capture, stored, rules) if c.is_cast}
    weights = true_weights(part.capture)
    for node in part.capture.graph.nodes:
        if node.op == "placeholder" or node.name not in part.plan.values:
            continue
        # A true weight is judged at the scale at which a cast would round it.
        held = part.plan.unit(node.name) if node in weights else part.plan.wanted(node.name)
        fwd, bwd = held.exponents
        if node.name in eligible:
            yield Judged(node, "forward", fwd, forward, is_cast, "a stored value")
            yield Judged(node, "backward", bwd, backward, is_cast, "a stored gradient")
        elif node.op == "call_function" and is_number(node):
            # Nobody casts a loss, but all gradients follow from its own.
            yield Judged(node, "backward", bwd, backward, False, "the gradient of a single number")


def _cast(part: Part, recipe: Recipe) -> Iterator[Judged]:
    """Tensors as their casts see them: operands and gradients, or all stored values."""
    if recipe.scaling == "amax":
        return  # Each cast finds its own factor at run time.
    nodes = {node.name: node for node in part.capture.graph.nodes}
    seen: set[tuple[str, str, int]] = set()
    for cast in sorted(part.casts(), key=lambda cast: cast.is_gradient):
        operation = cast.place[0]
        exponent = part.exponent(cast)
        direction = "backward" if cast.is_gradient else "forward"
        if recipe.values == "all":
            stored = "gradient" if cast.is_gradient else "value"
            because = f"a stored {stored} that is cast"
        elif cast.is_gradient:
            because = f"cast for the backward pass of {operation}"
        else:
            because = f"cast for {operation}"
            # One cast serves several operations.
            if (cast.value, cast.format, exponent) in seen:
                continue
            seen.add((cast.value, cast.format, exponent))
        format = FORMATS[cast.format]
        yield Judged(nodes[cast.value], direction, exponent, format, True, because)
