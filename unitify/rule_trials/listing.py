"""A row of the rule table as text: its law and its formulas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy

from unitify.rulebook.expressions import Monomial
from unitify.rulebook.rule_table import Moments, Rule


@dataclass(frozen=True)
class RuleText:
    """One rule as text. ``law``: its scale of the result and factors of operands; ``forward``,
    ``backward``: its prediction of RMS; ``file``: its file.
    """

    operation: str
    file: str
    kind: str
    law: str
    forward: tuple[str, ...]
    backward: tuple[str, ...]
    source: str = ""


def rows(rules: Iterable[Rule]) -> list[RuleText]:
    """The rules in order of their files and names."""
    return [row(rule) for rule in sorted(rules, key=lambda r: (r.file, r.operation))]


def row(rule: Rule) -> RuleText:
    """One rule as text."""
    forward, backward = _moments(rule)
    return RuleText(
        operation=rule.operation,
        file=rule.file,
        kind=rule.kind,
        law=law_text(rule),
        forward=tuple(forward),
        backward=tuple(backward),
        source=rule.source,
    )


def rule_texts(rule: Rule | None) -> list[str]:
    """Lines on the law of an operation and the moments of its result; None: without a rule."""
    if rule is None:
        return ["no rule: restored to true scale"]
    held = row(rule)
    law = f": {held.law}" if held.law else ""
    return [f"rule {held.operation}, {held.kind}{law}", *held.forward]


def law_text(rule: Rule) -> str:
    """The law as monomials of scales; "" for a row that restores."""
    if rule.law is None:
        return ""
    factors = {"out": rule.law.output, **rule.law.factors}
    text = ", ".join(f"{name} = {monomial_text(powers)}" for name, powers in factors.items())
    only = "; ".join(
        f"{name} is {' or '.join(map(str, values))}" for name, values in rule.law.only.items()
    )
    return f"{text} (where {only})" if only else text


def monomial_text(powers: Monomial) -> str:
    """``input · weight / out``."""

    def power(name: str, exponent: object) -> str:
        return name if exponent == 1 else f"{name}^{exponent}"

    over = [power(n, p) for n, p in powers.items() if isinstance(p, str) or p > 0]
    under = [power(n, -p) for n, p in powers.items() if not isinstance(p, str) and p < 0]
    text = " · ".join(over) or "1"
    if not under:
        return text
    return f"{text} / {under[0] if len(under) == 1 else '(' + ' · '.join(under) + ')'}"


def _moments(rule: Rule) -> tuple[list[str], list[str]]:
    dims = [f"{name} = {formula_text(formula)}" for name, formula in rule.dims.items()]
    if rule.linear:
        names = ", ".join(rule.linear)
        if not rule.terms:
            return [f"run on the moments of {names}"], ["run on moments"]
        count = formula_text(rule.terms.get("out", sympy.S.One))
        scaled = "" if rule.coefficient == 1 else f", × {formula_text(rule.coefficient)}"
        summed = f"contraction of {names} over {count}"
        if len(rule.linear) == 1:
            summed = names if count == "1" else f"sums of {count} of {names}"
        elif count == "1":
            summed = f"products of {names}"
        forward = [summed + scaled]
        backward = [
            f"{name}: sums of {formula_text(terms)}"
            for name, terms in rule.terms.items()
            if name != "out"
        ]
        return [*forward, *dims], backward
    if rule.elementwise:
        return [f"quadrature over {rule.elementwise}"], [
            f"{rule.elementwise}: quadrature of the slope"
        ]
    if rule.forward is None:
        return ["sampled"], ["sampled"]
    backward = [f"{name}: {_moment_text(moments)}" for name, moments in rule.backward.items()]
    return [_moment_text(rule.forward), *dims], backward


def _moment_text(moments: Moments) -> str:
    square = formula_text(moments.square)
    if moments.mean == 0:
        return f"mean square {square}"
    return f"mean {formula_text(moments.mean)}, mean square {square}"


def formula_text(formula: sympy.Expr) -> str:
    """A formula on one line, as sympy prints it, with ``^`` and ``·``."""
    return str(sympy.sstr(formula)).replace("**", "^").replace("*", " · ")
