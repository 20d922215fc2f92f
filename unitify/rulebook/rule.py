"""A row of the rule table as the engine reads it: ``Rule``, one operation.

Frozen values, made by ``row_reader`` from a row of a file. Knows no file, no graph and no scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy

from unitify.rulebook.expressions import Monomial


@dataclass(frozen=True)
class Law:
    """How an operation runs on stored operands: f(x…) = output · f̂(factor·x̂…).

    ``output`` and ``factors`` are monomials in the operands' forward scales (and in ``out``, the
    scale chosen for the result). Factors of numeric arguments multiply the number.
    ``even``: a monomial that must have an even exponent (so must a root's operand); one factor of
    two is given back to its first operand otherwise. ``only``: argument values for which the
    law holds (restored otherwise). ``defaults``: formulas that stand for an argument left at None.
    """

    output: Monomial
    factors: Mapping[str, Monomial] = field(default_factory=dict)
    even: Monomial = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, sympy.Expr] = field(default_factory=dict)


@dataclass(frozen=True)
class Moments:
    """What a value or gradient is distributed like: formulas for its mean and mean square.

    ``mean`` and ``square`` (E[x²]) may use the operands' moments; gradients also ``grad``'s.
    """

    mean: sympy.Expr
    square: sympy.Expr


@dataclass(frozen=True)
class Common:
    """What all elements of a gradient along some dimensions share: formulas of its variance."""

    along: tuple[int, ...]
    var: Moments


@dataclass(frozen=True)
class MatrixProduct:
    """A row's ``matmul``: the operation as left @ right (+ bias), by names of its arguments.

    Left is [.., K]; right is [K, N], or [N, K] where ``is_transposed``; bias is [N].
    """

    left: str
    right: str
    is_transposed: bool = False
    bias: str | None = None


@dataclass(frozen=True)
class Rule:
    """One operation: its law, and one of four ways to predict moments.

    - ``linear``: linear in each of these operands; ``terms``: number of products summed into an
      element of the output and of each operand's gradient (operands of ``terms`` that are not
      ``linear`` are added); every product is multiplied by ``coefficient``. Without ``terms`` the
      operation is run on moments: one that selects, or whose sums no shape tells. ``window``: it
      sums over neighbors, so that only dimension 0 repeats rows; ``pads``: the argument that says
      how many zeros are put around the image first, in each direction
    - ``elementwise``: a function of this operand alone, element by element: by quadrature
    - ``forward``/``backward``: formulas; ``channels`` names their operands along dimension 1
    - none of these: the operation is run on samples drawn from its operands' moments

    ``over``: the dimensions that ``average(…)`` in a formula runs over: a tuple, "trailing:ARG" (as
    many trailing ones as ARG has entries), "argument:ARG" (those listed in ARG) or "except:1".
    ``broadcast``: ``backward`` formulas are per element of the output, and summed over the
    dimensions along which the operand was broadcast; False where they are final.
    ``true_gradient``: the backward kernel is not linear in the gradient to the last bit, so the
    gradient is restored before it, like the operands of a restoring operation.
    ``products``: the operands whose products are summed: the ``linear`` ones of a row that has
    two and sums, where it does not say otherwise; none for other rows.
    ``casts``: the operands that a recipe may cast: ``products``, or those of an operation that
    holds several products. ``inside``: what else is multiplied, but arises within the operation,
    where no cast reaches, in words. ``cached``: those that a model that generates makes once for
    every position, and keeps for later calls.
    ``matmul``: how to read it as a product of matrices, where it is one.
    ``contracts``: operand → the dimension over which products are summed, or the argument whose
    last entry is it. Of others it is the last; of ``matmul``, and of a ``window``, it is known.
    ``unit``: does a unit scaling scheme bring the result to unit RMS by a multiplier? So it does
    with contractions; rows of other kinds say so. ``parameters``: what a parameter in the place
    of an operand is: "bias", "gain" or "table" (of embeddings); operands of products are matrices.
    ``logits``: the operand of a softmax, or the number that multiplies logits inside of an
    attention, whose logits are sums of ``width`` products. ``loss``: is the softmax that of a loss,
    not of an attention?
    ``creates``: the result has at most its shape and type from an operand, and none of its values.
    ``weighs``: the number that multiplies the second term of a sum.
    ``statistics``: operand → formulas of its moments from running statistics, which other operands
    hold. ``initial``: such an operand → its value before training, of which nothing follows.
    ``domain``: operand → the numbers, least and greatest, between which it has to be.
    ``corners``: the operands of an operation that has its extremes where each of them has one of
    its own: one that is monotone in each of them, or linear.
    ``balanced``: operand → the dimensions over which its gradient sums to zero, because moving all
    elements along them together changes nothing: a tuple, "over", or "over if ARG".
    ``common``: operand → what the elements of its gradient have in common, beside ``backward``,
    which holds for one of them alone.
    ``sample``: arguments on which the row is tested; ``variants``: more of them, as changes to it.
    ``replaces``: does the row mean to stand in the place of another one for its operation?
    ``file`` and ``line``: where the row is written, for people; they mean nothing else. The line of
    a shipped row is 0 unless it was asked for.
    """

    operation: str
    law: Law | None = None
    dims: Mapping[str, sympy.Expr] = field(default_factory=dict)
    linear: tuple[str, ...] = ()
    terms: Mapping[str, sympy.Expr] = field(default_factory=dict)
    coefficient: sympy.Expr = sympy.S.One
    window: bool = False
    pads: str = ""
    elementwise: str | None = None
    forward: Moments | None = None
    backward: Mapping[str, Moments] = field(default_factory=dict)
    over: str | tuple[int, ...] | None = None
    channels: tuple[str, ...] = ()
    broadcast: bool = True
    true_gradient: bool = False
    products: tuple[str, ...] = ()
    casts: tuple[str, ...] = ()
    inside: str = ""
    cached: tuple[str, ...] = ()
    matmul: MatrixProduct | None = None
    contracts: Mapping[str, int | str] = field(default_factory=dict)
    unit: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    logits: str | None = None
    loss: bool = False
    width: str | None = None
    weighs: str | None = None
    creates: bool = False
    statistics: Mapping[str, Moments] = field(default_factory=dict)
    initial: Mapping[str, float] = field(default_factory=dict)
    domain: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    corners: tuple[str, ...] = ()
    balanced: Mapping[str, str | tuple[int, ...]] = field(default_factory=dict)
    common: Mapping[str, Common] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ()
    source: str = ""
    replaces: bool = field(default=False, compare=False)
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)

    @property
    def place(self) -> str:
        """``rules/loss.toml:12``, or "" for a row that no file holds."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def moves(self) -> bool:
        """Does the result hold elements of one operand, as they are and at its scale?"""
        power = tuple(self.law.output.items()) if self.law is not None else ()
        is_its_own = len(power) == 1 and power[0][0] != "out" and power[0][1] == 1
        return is_its_own and self.terms.get("out") == 1 and self.coefficient == 1

    @property
    def kind(self) -> str:
        """The law in words, for tables alone: multilinear, homogeneous, aligning, …"""
        if self.law is None:
            return "restoring"
        if "out" in self.law.output:
            return "aligning"
        if self.logits in self.law.factors:
            return "absorbing"
        if len(self.law.output) > 1:
            return "multilinear"
        if not self.law.output:
            return "homogeneous, degree 0"
        (power,) = self.law.output.values()
        return "same-scale" if self.moves else f"homogeneous, degree {power}"


RuleTable = Mapping[str, Rule]
