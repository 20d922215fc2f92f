"""``Rule``: a row of the rule table, for one operation.

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
    ``even``: a monomial that must have an even exponent, as the operand of a root must; where it is
    odd, its first operand takes one factor of two back. ``only``: argument values for which the law
    holds; others restore. ``defaults``: formulas for arguments that the call passes as None.
    """

    output: Monomial
    factors: Mapping[str, Monomial] = field(default_factory=dict)
    even: Monomial = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, sympy.Expr] = field(default_factory=dict)


@dataclass(frozen=True)
class Moments:
    """Formulas for the mean and the mean square, E[x] and E[x²], of a value or a gradient.

    They may use the operands' moments; those of a gradient also the moments of ``grad``.
    """

    mean: sympy.Expr
    square: sympy.Expr


@dataclass(frozen=True)
class Common:
    """The part that all elements of a gradient along some dimensions share, by its variance."""

    along: tuple[int, ...]
    var: Moments


@dataclass(frozen=True)
class Matmul:
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

    - ``linear``: linear in each of these operands. ``terms``: the number of products summed into an
      element of the output and of each operand's gradient (operands of ``terms`` that are not
      ``linear`` are added). ``coefficient`` multiplies every product. Without ``terms`` the
      operation runs on moments: it selects, or no shape gives the length of its sums. ``pads``: the
      argument that holds the padding of an image, in each direction
    - ``elementwise``: a function of this operand alone, element by element: by quadrature
    - ``forward``/``backward``: formulas; ``channels`` names their operands along dimension 1
    - none of these: the operation runs on samples drawn from its operands' moments

    ``window``: a linear or sampled operation combines neighbors in an image, whose dimensions are
    those from the third on, and treats all its parts alike.
    ``over``: the dimensions of ``average(…)`` in a formula: a tuple, "trailing:ARG" (as many
    trailing ones as ARG has entries), "argument:ARG" (those listed in ARG) or "except:1".
    ``broadcast``: ``backward`` formulas are per element of the output, and summed over the
    dimensions along which the operand was broadcast; False where they are final.
    ``true_gradient``: the backward kernel is not linear in the gradient to the last bit, so the
    gradient is restored before it, like the operands of a restoring operation.
    ``contraction``: the operands that the operation contracts. By default the two ``linear`` ones
    of a row that sums; none for other rows.
    ``casts``: the operands that a recipe may cast: those of ``contraction``, or of an operation
    that holds several contractions. ``inside``: other operands of these, in words; they arise
    within the operation, where no cast reaches. ``cached``: operands that a model computes once
    for every position, and keeps for later calls, when it generates.
    ``matmul``: the operation as a matmul, where it is one.
    ``contracts``: operand → the dimension that is contracted, or the argument whose last entry
    names it. The default is the last one, or what ``matmul`` or ``window`` implies.
    ``unit``: does a unit scaling scheme bring the result to unit RMS by a multiplier? It always
    does for contractions. ``parameters``: operand → the role of a parameter there: "bias", "gain"
    or "table" (of embeddings); operands of contractions are matrices.
    ``logits``: the operand of a softmax, or the number that multiplies the logits within an
    attention. Such logits are contractions over ``width``. ``loss``: does the softmax belong to a
    loss, not to an attention?
    ``creates``: the result takes at most shape and type from an operand, but no values.
    ``weighs``: the number that multiplies the second term of a sum.
    ``statistics``: operand → formulas of its moments from running statistics, which other operands
    hold. ``initial``: such an operand → its value before training, which says nothing about data.
    ``domain``: operand → the least and the greatest number that it may hold.
    ``corners``: operands at whose extremes the result has its own extremes, because it is monotone
    or linear in each of them.
    ``balanced``: operand → the dimensions over which its gradient sums to zero, because a shift
    of all elements along them changes nothing: a tuple, "over", or "over if ARG".
    ``common``: operand → the part that elements of its gradient share. ``backward`` holds for a
    single element.
    ``sample``: arguments on which the row is tested; ``variants``: further ones, as changes to it.
    ``replaces``: may the row replace another one for its operation?
    ``file`` and ``line``: where the row is written, for people only. The line of a shipped row is 0
    unless ``checked_rules`` read it.
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
    contraction: tuple[str, ...] = ()
    casts: tuple[str, ...] = ()
    inside: str = ""
    cached: tuple[str, ...] = ()
    matmul: Matmul | None = None
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
    def location(self) -> str:
        """``rules/loss.toml:12``, or "" for a row that is not from a file."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def moves(self) -> bool:
        """Does the result hold elements of one operand, unchanged and at its scale?"""
        power = tuple(self.law.output.items()) if self.law is not None else ()
        is_its_own = len(power) == 1 and power[0][0] != "out" and power[0][1] == 1
        return is_its_own and self.terms.get("out") == 1 and self.coefficient == 1

    @property
    def kind(self) -> str:
        """The law in words, for tables only: multilinear, homogeneous, aligning, …"""
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
