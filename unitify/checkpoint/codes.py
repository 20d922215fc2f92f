"""Weights that a recipe casts, held as the codes of these casts: one byte each.

A weight is held as codes if casts to one FP8 format at one scale are its only uses. Decoding and
rounding again changes nothing. Takes a module; gives the coding of its weights, by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from unitify.formats.table import FORMATS
from unitify.module.assembly import parts_in
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part
from unitify.rulebook.schema import operand_nodes
from unitify.runtime.scaled_mm import decode, encode


@dataclass(frozen=True)
class Coded:
    """A weight is 2^``exponent`` times its codes in ``format``, in the type named ``dtype``."""

    format: str
    exponent: int
    dtype: str

    def checked(self) -> Coded:
        """Itself. Raises ``KeyError`` or ``ValueError`` where it is not valid."""
        type_of_codes = FORMATS[self.format].dtype
        dtype = getattr(torch, self.dtype, None)
        is_float = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        if not (type_of_codes is not None and type_of_codes.itemsize == 1 and is_float):
            raise ValueError(f"{self.format} and {self.dtype}")
        if not (isinstance(self.exponent, int) and abs(self.exponent) < 1024):
            raise ValueError(f"an exponent of {self.exponent!r}")
        return self

    def check(self, codes: Tensor) -> None:
        """Raises ``ValueError`` for codes of another type."""
        if codes.dtype != FORMATS[self.format].dtype:
            raise ValueError(f"{codes.dtype} in place of codes in {self.format}")

    def codes(self, weight: Tensor) -> Tensor:
        """The codes of a weight."""
        return encode(weight, FORMATS[self.format], self.exponent)

    def weight(self, codes: Tensor) -> Tensor:
        """The weight of codes."""
        return decode(codes, torch.float32, self.exponent).to(getattr(torch, self.dtype))


def coded_weights(module: UnitScaledModule) -> dict[str, Coded]:
    """The weights of ``module`` that only its casts use, by their first names."""
    recipe = module.recipe
    if recipe is None or recipe.scaling != "unit" or not recipe.saturate or module.scheme:
        return {}
    found: dict[str, set[Coded | None]] = {}
    for part in parts_in(module):
        if not part.capture.true_parameters:
            return {}
        for weight, coded in _uses(part):
            found.setdefault(f"{part.path}.{weight}".strip("."), set()).add(coded)
    alike = {name: ways.pop() for name, ways in found.items() if len(ways) == 1}
    return {name: coded for name, coded in alike.items() if coded is not None}


def _uses(part: Part) -> Iterator[tuple[str, Coded | None]]:
    """Every use of a weight: its codes, or None for the weight itself."""
    capture = part.capture
    # An operand with a mean: the contraction of the mean uses the weight itself.
    choices = [choice for choice in part.choices if choice.is_contraction and not choice.mean]
    casts = {cast.place: cast for choice in choices for cast in choice.casts}
    for user in capture.graph.nodes:
        for argument, index, node in operand_nodes(user):
            weight = capture.aliases.get(str(node.target)) if node.op == "get_attr" else None
            if weight is not None:
                cast = casts.get((user.name, argument, index))
                yield weight, _coded(node, cast.format, part.exponent(cast)) if cast else None


def _coded(node: fx.Node, format: str, exponent: int) -> Coded | None:
    dtype = FORMATS[format].dtype
    if dtype is None or dtype.itemsize != 1:
        return None
    own = str(node.meta["val"].dtype).removeprefix("torch.")
    return Coded(format, exponent, own)


def encoded(weights: Mapping[str, Tensor], coded: Mapping[str, Coded]) -> dict[str, Tensor]:
    """``weights``, with codes for those in ``coded``."""
    return {n: coded[n].codes(t) if n in coded else t for n, t in weights.items()}


def decoded(weights: Mapping[str, Tensor], coded: Mapping[str, Coded]) -> dict[str, Tensor]:
    """``weights``, with the decoded weights for those in ``coded``."""
    return {n: coded[n].weight(t) if n in coded else t for n, t in weights.items()}
