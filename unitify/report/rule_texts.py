"""Rows of the rule table as text: how an operation runs on scaled operands, and its moments."""

from __future__ import annotations

from collections.abc import Iterator

from unitify.operations.expressions import Monomial
from unitify.operations.rule_table import Moments, Rule
from unitify.report.numerics import RuleText


def rule_text(rule: Rule) -> RuleText:
    """One row, for people."""
    return RuleText(rule.operation, rule.kind, rule.family, tuple(_formulas(rule)), rule.source)


def _formulas(rule: Rule) -> Iterator[str]:
    if rule.law is not None:
        factors = {"out": rule.law.output, **rule.law.factors}
        yield "law: " + ", ".join(f"{name} = {_monomial(m)}" for name, m in factors.items())
        for name, values in rule.law.only.items():
            yield f"only where {name} is {' or '.join(map(str, values))}"
    else:
        yield "no law: operands return to true scale"
    if rule.linear:
        yield f"linear in {', '.join(rule.linear)}"
    for name, count in rule.terms.items():
        whose = "the result" if name == "out" else f"the gradient of {name}"
        yield f"products summed into an element of {whose}: {count}"
    for name, formula in rule.dims.items():
        yield f"{name} = {formula}"
    if rule.elementwise:
        yield f"moments by quadrature over {rule.elementwise}"
    if rule.forward is not None:
        yield from _moments("the result", rule.forward)
    for name, moments in rule.backward.items():
        yield from _moments(f"the gradient of {name}", moments)
    if not (rule.linear or rule.terms or rule.elementwise or rule.forward):
        yield "moments by running the operation on samples"


def _moments(whose: str, moments: Moments) -> Iterator[str]:
    yield f"mean of {whose} = {moments.mean}"
    yield f"mean square of {whose} = {moments.square}"


def _monomial(powers: Monomial) -> str:
    return " · ".join(n if p == 1 else f"{n}^{p}" for n, p in powers.items()) or "1"
