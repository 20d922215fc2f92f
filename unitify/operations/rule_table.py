"""The rule table: ``rules/*.toml`` read into frozen rows, one an operation.

Takes TOML files, gives ``RuleTable``: operation name → ``Rule``. Knows no graph and no scale.
An operation without a row has no law (it is restored to true scale) and sampled moments.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import sympy

from unitify.diagnostics import RuleInvalid, UnitifyError
from unitify.operations.expressions import ExpressionError, Monomial, parse_formula, parse_monomial


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
      sums over neighbours, so that only dimension 0 repeats rows; ``pads``: the argument that says
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
    where no cast reaches, in words.
    ``matmul``: how to read it as a product of matrices, where it is one.
    ``unit``: does a unit scaling scheme bring the result to unit RMS by a multiplier? So it does
    with sums of products; rows of other kinds say so. ``parameters``: what a parameter in the place
    of an operand is: "bias", "gain" or "table" (of embeddings); operands of products are matrices.
    ``logits``: the operand of a softmax, or the number that multiplies logits inside of an
    attention, whose logits are sums of ``width`` products.
    ``weighs``: the number that multiplies the second term of a sum.
    ``states``: operand → formulas of what the other operands tell of its moments (statistics that
    the operation keeps), unless they are still those of ``untold``: operand → value.
    ``below``: integer operand → how many rows it picks from.
    ``domain``: operand → the numbers, least and greatest, between which it has to be.
    ``corners``: the operands of an operation that has its extremes where each of them has one of
    its own: one that is monotone in each of them, or linear.
    ``balanced``: operand → the dimensions over which its gradient sums to zero, because moving all
    elements along them together changes nothing: a tuple, "over", or "over if ARG".
    ``common``: operand → what the elements of its gradient have in common, beside ``backward``,
    which holds for one of them alone.
    ``sample``: arguments on which the row is tested; ``variants``: more of them, as changes to it.
    """

    operation: str
    family: str
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
    matmul: MatrixProduct | None = None
    unit: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    logits: str | None = None
    width: str | None = None
    weighs: str | None = None
    states: Mapping[str, Moments] = field(default_factory=dict)
    untold: Mapping[str, float] = field(default_factory=dict)
    below: Mapping[str, sympy.Expr] = field(default_factory=dict)
    domain: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    corners: tuple[str, ...] = ()
    balanced: Mapping[str, str | tuple[int, ...]] = field(default_factory=dict)
    common: Mapping[str, Common] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ()
    source: str = ""

    @property
    def kind(self) -> str:
        """The law in DESIGN's words, for tables: multilinear, homogeneous, aligning, …"""
        if self.law is None:
            return "restoring"
        if "out" in self.law.output:
            return "aligning"
        powers = dict(self.law.output)
        if any(k in self.law.factors for k in ("scale",)):
            return "absorbing"
        if len(powers) > 1:
            return "multilinear"
        if not powers:
            return "homogeneous, degree 0"
        (power,) = powers.values()
        moves = self.terms.get("out") == 1 and self.coefficient == 1
        return "same-scale" if moves and power == 1 else f"homogeneous, degree {power}"


RuleTable = Mapping[str, Rule]

_KEYS = {
    "law", "only", "even", "defaults", "dims", "linear", "terms", "elementwise",
    "coefficient", "window", "pads", "broadcast", "forward", "backward", "over", "sample",
    "variants", "source", "like", "true_gradient", "where", "channels",
    "products", "casts", "inside", "matmul", "unit", "parameters",
    "logits", "width", "weighs", "states", "untold", "below", "domain",
    "corners", "balanced", "common",
}  # fmt: skip


def load_rules(extra: Iterable[str | Path | Mapping[str, Any]] = ()) -> RuleTable:
    """The shipped rules, then ``extra`` files or mappings (later rows replace earlier ones).

    Raises ``UnitifyError`` (U201), listing every row that is not a rule.
    """
    table = dict(_shipped())
    for source in extra:
        if isinstance(source, Mapping):
            table.update(_read(dict(source), "registered"))
        else:
            path = Path(source)
            table.update(_read(_toml(path), path.stem))
    return table


@cache
def _shipped() -> RuleTable:
    table: dict[str, Rule] = {}
    folder = resources.files("unitify.rules")
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            rows = _read(tomllib.loads(entry.read_text("utf-8")), entry.name.removesuffix(".toml"))
            twice = table.keys() & rows.keys()
            assert not twice, f"two rows for {sorted(twice)}"
            table.update(rows)
    return table


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnitifyError(RuleInvalid(operation=str(path), problem=str(error))) from None


def _read(rows: Mapping[str, Any], family: str) -> dict[str, Rule]:
    problems: list[RuleInvalid] = []
    table: dict[str, Rule] = {}
    for operation, row in _expanded(rows):
        try:
            table[operation] = _rule(operation, family, row)
        except (ExpressionError, TypeError, KeyError, ValueError, AttributeError) as error:
            problems.append(RuleInvalid(where=family, operation=operation, problem=str(error)))
    if problems:
        raise UnitifyError(*problems)
    return table


def _expanded(rows: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with ``like`` filled in: a row may take over another row of its file and change keys."""
    for operation, row in rows.items():
        filled = dict(row) if isinstance(row, Mapping) else {"": row}
        while "like" in filled:
            parent = dict(rows[filled.pop("like")])
            filled = {**parent, **filled}
        yield operation, filled


def _rule(operation: str, family: str, row: Mapping[str, Any]) -> Rule:
    unknown = row.keys() - _KEYS
    if unknown:
        raise ExpressionError(f"unknown keys {sorted(unknown)}")
    ways = [key for key in ("terms", "elementwise", "forward") if key in row]
    if len(ways) > 1:
        raise ExpressionError(f"moments are given more than once: {ways}")
    formulas = {name: parse_formula(text) for name, text in row.get("terms", {}).items()}
    where: dict[sympy.Symbol, sympy.Expr] = {}
    for name, text in row.get("where", {}).items():
        where[sympy.Symbol(name)] = parse_formula(text).xreplace(where)
    products = tuple(row.get("products", _summed_products(row, formulas)))
    return Rule(
        operation=operation,
        family=family,
        law=_law(row),
        dims={name: parse_formula(text) for name, text in row.get("dims", {}).items()},
        linear=tuple(row.get("linear", ())),
        terms=formulas,
        elementwise=row.get("elementwise"),
        forward=_moments(row["forward"], where) if "forward" in row else None,
        backward={name: _moments(m, where) for name, m in row.get("backward", {}).items()},
        channels=tuple(row.get("channels", ())),
        window=bool(row.get("window", False)),
        pads=str(row.get("pads", "")),
        broadcast=bool(row.get("broadcast", True)),
        true_gradient=bool(row.get("true_gradient", False)),
        products=products,
        casts=tuple(row.get("casts", products)),
        inside=str(row.get("inside", "")),
        matmul=_matrix_product(row["matmul"]) if "matmul" in row else None,
        unit=bool(row.get("unit", products)),
        parameters=dict(row.get("parameters", {})),
        logits=row.get("logits"),
        width=row.get("width"),
        weighs=row.get("weighs"),
        states={name: _moments(m, where) for name, m in row.get("states", {}).items()},
        below={name: parse_formula(text) for name, text in row.get("below", {}).items()},
        domain={name: _domain(pair) for name, pair in row.get("domain", {}).items()},
        corners=tuple(row.get("corners", ())),
        common={name: _common(one, where) for name, one in row.get("common", {}).items()},
        balanced={
            n: s if isinstance(s, str) else tuple(s) for n, s in row.get("balanced", {}).items()
        },
        untold={name: float(value) for name, value in row.get("untold", {}).items()},
        coefficient=parse_formula(row.get("coefficient", "1")),
        over=tuple(over) if isinstance(over := row.get("over"), list) else over,
        sample=dict(row.get("sample", {})),
        variants=tuple({**row["sample"], **changes} for changes in row.get("variants", ())),
        source=str(row.get("source", "")),
    )


def _summed_products(row: Mapping[str, Any], terms: Mapping[str, sympy.Expr]) -> tuple[str, ...]:
    linear = tuple(row.get("linear", ()))
    return linear if len(linear) == 2 and terms.get("out", sympy.S.One) != sympy.S.One else ()


def _common(row: Mapping[str, Any], where: Mapping[sympy.Symbol, sympy.Expr]) -> Common:
    var = parse_formula(row["var"]).xreplace(dict(where))
    return Common(tuple(row["along"]), Moments(var, var))


def _domain(pair: list[float]) -> tuple[float, float]:
    low, high = pair
    return float(low), float(high)


_MATRIX_PRODUCT = re.compile(r"(\w+) @ (\w+)(\.T)?(?: \+ (\w+))?")


def _matrix_product(text: str) -> MatrixProduct:
    found = _MATRIX_PRODUCT.fullmatch(text)
    if found is None:
        raise ExpressionError(f"{text!r} is not of the form 'left @ right.T + bias'")
    left, right, transposed, bias = found.groups()
    return MatrixProduct(left, right, transposed is not None, bias)


def _law(row: Mapping[str, Any]) -> Law | None:
    if "law" not in row:
        return None
    factors = {name: parse_monomial(text) for name, text in row["law"].items()}
    return Law(
        output=factors.pop("out"),
        factors=factors,
        even=parse_monomial(row["even"]) if "even" in row else {},
        only={name: tuple(values) for name, values in row.get("only", {}).items()},
        defaults={name: parse_formula(text) for name, text in row.get("defaults", {}).items()},
    )


def _moments(row: Mapping[str, str], where: Mapping[sympy.Symbol, sympy.Expr]) -> Moments:
    """Formulas of a row, with the names of ``where`` replaced by what they stand for."""
    extra = row.keys() - {"mean", "square", "rms", "var"}
    if extra:
        raise ExpressionError(f"a moment is mean, rms, var or square, not {sorted(extra)}")
    given = {name: parse_formula(text).xreplace(where) for name, text in row.items()}
    mean = given.get("mean", sympy.S.Zero)
    if "square" in given:
        return Moments(mean, given["square"])
    if "rms" in given:
        return Moments(mean, given["rms"] ** 2)
    return Moments(mean, given["var"] + mean**2)
