"""Checks every name in a row against the arguments of its operation.

Takes a ``Row`` and the arguments by name; gives problems. Each key allows some kinds of names: an
operand, a number, one of the row's own ``dims`` and shorthands, a count, a word of the language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sympy
import torch

from unitify.rulebook.expressions import COUNTED, ExpressionError, Monomial
from unitify.rulebook.formula_names import named_in, one_slip_apart
from unitify.rulebook.row_forms import close_to
from unitify.rulebook.row_reader import Problem, Row
from unitify.rulebook.rule import Moments
from unitify.rulebook.samples import parse_arguments
from unitify.rulebook.schema import Argument

_TENSORS = ("tensor", "tensors", "any")
_NUMBERS = ("number", "any")
_VALUES = (*_TENSORS, *_NUMBERS)
_SIZES = ("numbers", "any")
_EVERY = (*_TENSORS, "number", "numbers", "type", "other")
_WORDS = {_TENSORS: "tensor", _NUMBERS: "number", _VALUES: "tensor or number", _SIZES: "list"}
_SIZE = re.compile(r"(\w+)\.(?:numel|ndim|shape\[-?\d+\])")
_EPSILON = "epsilon"

#: The kinds of arguments that each key may name: in a list, and as keys of a table.
_LISTED = {
    "linear": _VALUES, "channels": _TENSORS, "contraction": _TENSORS, "casts": _TENSORS,
    "corners": _VALUES, "elementwise": _TENSORS, "pads": (*_SIZES, "other"), "logits": _VALUES,
    "weighs": _NUMBERS, "cached": _TENSORS,
}  # fmt: skip
_KEYED = {
    "terms": _VALUES, "backward": _VALUES, "parameters": _VALUES, "only": _EVERY, "sample": _EVERY,
    "statistics": _TENSORS, "initial": _TENSORS, "domain": _TENSORS,
    "balanced": _TENSORS, "common": _TENSORS, "contracts": _TENSORS, "law": _VALUES,
    "defaults": _NUMBERS,
}  # fmt: skip


def unknown_names(row: Row, arguments: Mapping[str, Argument]) -> Iterator[Problem]:
    """Names that mean nothing, or not a kind that their key allows."""
    yield from _Names(row, arguments).problems()


class _Names:
    def __init__(self, row: Row, arguments: Mapping[str, Argument]) -> None:
        self.row, self.rule, self.arguments = row, row.rule, arguments
        self.numbers = {n for n, a in arguments.items() if a.kind in _NUMBERS}

    def problems(self) -> Iterator[Problem]:
        yield from self._of_keys()
        yield from self._law()
        yield from self._numbers()
        yield from self._moments()
        yield from self._words()
        yield from self._sample()

    # -- names of arguments ---------------------------------------------------------------

    def _argument(
        self, path: tuple[str, ...], name: str, kinds: tuple[str, ...]
    ) -> Iterator[Problem]:
        found = self.arguments.get(name)
        if found is None:
            hint = close_to(name, self.arguments)
            yield Problem(path, f"the operation has no argument {name!r}{hint}")
        elif found.kind not in kinds:
            yield Problem(path, f"{name!r} is not a {_WORDS.get(kinds, 'argument of this kind')}")

    def _of_keys(self) -> Iterator[Problem]:
        for key, kinds in _LISTED.items():
            held = self.row.keys.get(key, ())
            for name in (held,) if isinstance(held, str) else held:
                yield from self._argument((key,), name, kinds)
        for key, kinds in _KEYED.items():
            for name in self.row.keys.get(key, ()):
                if not (name == "out" and key in ("law", "terms")):
                    yield from self._argument((key, name), name, kinds)
        for variant in self.row.keys.get("variants", ()):
            for name in variant:
                yield from self._argument(("variants",), name, _EVERY)
        if self.rule.matmul is not None:
            matmul = self.rule.matmul
            for operand in (matmul.left, matmul.right, matmul.bias):
                if operand is not None:
                    yield from self._argument(("matmul",), operand, _TENSORS)

    def _words(self) -> Iterator[Problem]:
        """Arguments and dims within a text, such as "trailing:normalized_shape"."""
        if isinstance(self.rule.over, str):
            kind, _, name = self.rule.over.partition(":")
            if kind != "except":
                kinds = _SIZES if kind == "trailing" else (*_SIZES, "number")
                yield from self._argument(("over",), name, kinds)
        for operand, said in self.rule.balanced.items():
            if isinstance(said, str) and " if " in said:
                yield from self._argument(("balanced", operand), said.split()[-1], _NUMBERS)
        for operand, axis in self.rule.contracts.items():
            if isinstance(axis, str):
                yield from self._argument(("contracts", operand), axis, _SIZES)
        for name, values in self.rule.law.only.items() if self.rule.law is not None else ():
            if name in self.arguments and self.arguments[name].kind == "type":
                for value in values:
                    if value != "None" and not _is_type(value):
                        yield Problem(("only", name), f"{value!r} is not a type like torch.float32")
        if self.rule.width is not None and self.rule.width not in self.rule.dims:
            yield Problem(("width",), f"{self.rule.width!r} is not one of the row's dims")
        for operand in self.rule.statistics:
            both = _both(self.rule.statistics[operand])
            named = {name for f in both for _, name in named_in(f).moments}
            for name in sorted(named - self.rule.initial.keys()):
                yield Problem(("statistics", operand), f"initial has no value for {name!r}")

    # -- monomials ------------------------------------------------------------------------

    def _law(self) -> Iterator[Problem]:
        if self.rule.law is None:
            return
        law = self.rule.law
        monomials = {("law", "out"): law.output, ("even",): law.even}
        monomials |= {("law", name): powers for name, powers in law.factors.items()}
        for path, powers in monomials.items():
            yield from self._monomial(path, powers)

    def _monomial(self, path: tuple[str, ...], powers: Monomial) -> Iterator[Problem]:
        for name, power in powers.items():
            if name != "out":
                yield from self._argument(path, name, _VALUES)
            if isinstance(power, str):
                yield from self._argument(path, power, _NUMBERS)

    # -- formulas of numbers --------------------------------------------------------------

    def _numbers(self) -> Iterator[Problem]:
        rule = self.rule
        before: set[str] = set()
        for name, formula in rule.dims.items():
            yield from self._own_name("dims", name)
            yield from self._plain(("dims", name), formula, before | COUNTED.keys())
            yield from self._countable(("dims", name), formula)
            before.add(name)
        for name, formula in rule.terms.items():
            yield from self._plain(("terms", name), formula, before)
        yield from self._plain(("coefficient",), rule.coefficient, before)
        for name, formula in rule.law.defaults.items() if rule.law is not None else ():
            yield from self._plain(("defaults", name), formula, {_EPSILON})

    def _own_name(self, key: str, name: str) -> Iterator[Problem]:
        """Problems of a name that the row defines: taken, or one typing error from another."""
        others = self.numbers | COUNTED.keys() | {_EPSILON}
        own = [*self.rule.dims, *self.row.where]
        earlier = own[: own.index(name)] if own.count(name) == 1 else own
        for other in sorted(others | set(earlier)):
            if other == name:
                yield Problem((key, name), f"{name!r} is the name of something else")
            elif one_slip_apart(name, other):
                text = f"{name!r} and {other!r} are one typing error apart; rename one"
                yield Problem((key, name), text)

    def _countable(self, path: tuple[str, ...], formula: sympy.Expr) -> Iterator[Problem]:
        for name in sorted(named_in(formula).symbols & COUNTED.keys()):
            missing = [a for a in COUNTED[name] if a not in self.arguments]
            if missing:
                text = f"{name!r} needs arguments that the operation lacks: {', '.join(missing)}"
                yield Problem(path, text)

    def _plain(
        self, path: tuple[str, ...], formula: sympy.Expr, names: Iterable[str]
    ) -> Iterator[Problem]:
        for applied in named_in(formula).applied:
            yield Problem(path, f"{applied} is not a number of shapes and arguments")
        yield from self._symbols(path, formula, {*names})

    def _symbols(
        self, path: tuple[str, ...], formula: sympy.Expr, names: set[str]
    ) -> Iterator[Problem]:
        known = names | self.numbers | ({"over.numel"} if self.rule.over is not None else set())
        for name in sorted(named_in(formula).symbols - known):
            size = _SIZE.fullmatch(name)
            if size is None:
                yield Problem(path, f"{name!r} means nothing here{close_to(name, known)}")
            elif size.group(1) != "output":
                kinds = (*_TENSORS, "numbers") if name.endswith(".numel") else _TENSORS
                yield from self._argument(path, size.group(1), kinds)
        if formula.has(sympy.zoo, sympy.nan, sympy.oo):
            yield Problem(path, f"{formula} is not a finite number")
        defaults = self.rule.law.defaults if self.rule.law is not None else {}
        for name in sorted(named_in(formula).symbols & self.numbers - names):
            if self.arguments[name].is_optional and name not in defaults:
                yield Problem(path, f"{name!r} may be None, and defaults has no value for it")

    # -- formulas of moments --------------------------------------------------------------

    def _moments(self) -> Iterator[Problem]:
        rule = self.rule
        found: list[Problem] = []
        before: set[str] = set(rule.dims)
        for name, formula in self.row.where.items():
            found += self._own_name("where", name)
            found += self._of_moments(("where", name), formula, before, gradient=True)
            before.add(name)
        yield from found
        if found:
            return
        tables: dict[tuple[str, ...], tuple[Moments, bool]] = {}
        if rule.forward is not None:
            tables["forward",] = rule.forward, False
        tables |= {("statistics", n): (m, False) for n, m in rule.statistics.items()}
        tables |= {("backward", n): (m, True) for n, m in rule.backward.items()}
        tables |= {("common", n): (c.var, True) for n, c in rule.common.items()}
        for path, (moments, gradient) in tables.items():
            for formula in dict.fromkeys(_both(moments)):
                yield from self._of_moments(path, formula, set(rule.dims), gradient)

    def _of_moments(
        self, path: tuple[str, ...], formula: sympy.Expr, names: set[str], gradient: bool
    ) -> Iterator[Problem]:
        for applied, name in named_in(formula).moments:
            if name != "grad":
                yield from self._argument(path, name, ("tensor", *_NUMBERS))
            elif not gradient:
                yield Problem(path, f"{applied} needs the gradient, which only backward has")
        if self.rule.over is None:
            for applied in named_in(formula).averaged:
                yield Problem(path, f"{applied} needs dimensions: the row has no over")
        yield from self._symbols(path, formula, names)

    def _sample(self) -> Iterator[Problem]:
        given = self.row.keys.get("sample")
        if given is None:
            return
        missing = [n for n, a in self.arguments.items() if a.is_needed and n not in given]
        if missing:
            yield Problem(("sample",), f"it lacks {', '.join(missing)}")
        variants = self.row.keys.get("variants", ())
        for key, table in (("sample", given), *(("variants", v) for v in variants)):
            for name, value in table.items():
                try:
                    parse_arguments({name: value})
                except ExpressionError as error:
                    yield Problem((key, name), str(error))


def _is_type(text: Any) -> bool:
    space, _, name = str(text).partition(".")
    return space == "torch" and isinstance(getattr(torch, name, None), torch.dtype)


def _both(moments: Moments) -> tuple[sympy.Expr, sympy.Expr]:
    return moments.mean, moments.square
