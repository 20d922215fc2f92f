"""Guards: the sizes for which a recording holds, as a frozen value that each call checks.

torch notes its decisions by sizes (a branch, a loop, a view) as expressions over symbols, one for
each size of an input. Here they become one Python function of the sizes of a call, and text in the
user's terms: ``x.shape[1] <= 16``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.printers import PythonPrinter

from unitify.capture.computed import Computed
from unitify.capture.decisions import Decisions, SourceLine

#: torch assumes that every free size is at least this.
_LEAST = 2

Size = tuple[int, int]


@dataclass(frozen=True)
class Guard:
    """One condition on sizes as text, and the line that made it if torch knows one."""

    text: str
    line: SourceLine | None = None


@dataclass(frozen=True)
class Guards:
    """The conditions of one recording.

    - ``sizes``: (flat input, dimension) of each argument of the tests
    - ``always``: conditions of every call; ``small``: further conditions of calls with a size below
      two. The tests give a bool for each
    - ``immaterial``: positions in ``small`` of conditions that make no difference, each with the
      least size of the calls for which that is known
    - ``computed``: data that the recording assumes to be the same at every size, each with the
      sizes that ``size_of`` gives it; ``known``: by the sizes of a call, whether it differed
    """

    sizes: tuple[Size, ...]
    always: tuple[Guard, ...]
    small: tuple[Guard, ...]
    test_always: Callable[..., Sequence[bool]] = field(compare=False)
    test_small: Callable[..., Sequence[bool]] = field(compare=False)
    immaterial: frozenset[tuple[int, int]] = frozenset()
    computed: tuple[Computed, ...] = ()
    size_of: Callable[..., Any] = field(compare=False, default=lambda: ())
    known: dict[tuple[int, ...], bool] = field(compare=False, default_factory=dict)

    def broken(self, leaves: Sequence[Any], small: bool = True) -> Guard | None:
        """The first condition that these flat inputs break; None if the recording holds.

        ``small``: also check the conditions for sizes below two.
        """
        sizes = self._sizes(leaves)
        if self.always:
            broken = _broken(self.test_always, sizes, len(self.always))
            if broken:
                return self.always[broken[0]]
        if small and self.small and any(size < _LEAST for size in sizes):
            for position in _broken(self.test_small, sizes, len(self.small)):
                if (position, min(sizes)) not in self.immaterial:
                    return self.small[position]
        # Computed data is checked once for each set of sizes, and never while a compiler traces.
        if self.computed and not torch.compiler.is_compiling():
            return self._broken_computed(tuple(sizes))
        return None

    def _broken_computed(self, sizes: tuple[int, ...]) -> Guard | None:
        if sizes not in self.known:
            pairs = zip(self.computed, self.size_of(*sizes), strict=True)
            self.known[sizes] = any(data.now(own) != data.value for data, own in pairs)
        return _COMPUTED if self.known[sizes] else None

    def broken_small(self, leaves: Sequence[Any]) -> frozenset[tuple[int, int]]:
        """The conditions in ``small`` that these flat inputs break, and that matter: each by its
        position and the least size.
        """
        sizes = self._sizes(leaves)
        broken = _broken(self.test_small, sizes, len(self.small))
        return frozenset((position, min(sizes)) for position in broken) - self.immaterial

    def _sizes(self, leaves: Sequence[Any]) -> list[int]:
        return [leaves[leaf].shape[dimension] for leaf, dimension in self.sizes]


_COMPUTED = Guard("what the model computes from sizes is as it was for the example")


def _broken(test: Callable[..., Sequence[bool]], sizes: list[int], count: int) -> Sequence[int]:
    try:
        held = test(*sizes)
    except (ArithmeticError, ValueError):
        # A division by a size of zero.
        return range(count)
    return [position for position, holds in enumerate(held) if not holds]


def guards_of(
    inputs: Sequence[tuple[str, Any]],
    decisions: Decisions,
    with_ranges: bool,
    computed: Sequence[Computed] = (),
) -> Guards | None:
    """The guards of a recording; None where it has no free size.

    ``inputs``: name and value of each flat input as the recording has them. ``with_ranges``: the
    user gave bounds of sizes, which count. Otherwise a bound comes from a guard, and says no more.
    """
    symbols: dict[sympy.Symbol, Size] = {}
    standing: dict[sympy.Symbol, sympy.Expr] = {}
    names: dict[sympy.Symbol, sympy.Symbol] = {}
    env: ShapeEnv | None = None
    for position, (name, value) in enumerate(inputs):
        for dimension, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if not isinstance(size, torch.SymInt):
                continue
            env = size.node.shape_env
            own = size.node._expr
            if isinstance(own, sympy.Symbol) and own not in symbols:
                symbols[own] = position, dimension
                standing[own] = size.node.expr
                names[own] = sympy.Symbol(f"{name}.shape[{dimension}]", integer=True)
    if env is None:
        return None
    # What is equal to a size that is none of these inputs' is known by the first that is.
    first: dict[sympy.Basic, sympy.Symbol] = {}
    for own, expression in standing.items():
        if expression.is_Symbol and expression not in standing:
            first.setdefault(expression, own)
    standing = {own: expression.xreplace(first) for own, expression in standing.items()}

    def known(condition: Any) -> Any:
        return condition.xreplace(first)

    always = _equalities(standing, env, decisions)
    for guard in env.guards:
        if guard.expr not in decisions.layout:
            _add(always, known(guard.expr), decisions.lines.get(guard.expr), standing)
    for condition in _ranges(env, standing) if with_ranges else ():
        _add(always, condition, None, standing)
    small: dict[sympy.Basic, SourceLine | None] = {}
    for condition, line in decisions.by_code.items():
        _add(small, known(condition), line, standing)
    small = {condition: line for condition, line in small.items() if condition not in always}
    # An expression with other sizes does not follow from these inputs.
    data = [c for c in computed if all(_of(known(e), standing) for e in c.sizes)]
    return Guards(
        sizes=tuple(symbols.values()),
        always=_described(always, names),
        small=_described(small, names),
        test_always=_function(symbols, always),
        test_small=_function(symbols, small),
        computed=tuple(data),
        size_of=_function(symbols, [[known(e).xreplace(standing) for e in c.sizes] for c in data]),
    )


def _of(expression: Any, standing: Mapping[sympy.Symbol, sympy.Expr]) -> bool:
    return bool(expression.free_symbols <= standing.keys())


def _equalities(
    standing: Mapping[sympy.Symbol, sympy.Expr], env: ShapeEnv, decisions: Decisions
) -> dict[sympy.Basic, SourceLine | None]:
    """Sizes that torch writes in terms of others, each with the line that made them so."""
    found: dict[sympy.Basic, SourceLine | None] = {}
    for symbol, expression in standing.items():
        if expression != symbol and not expression.is_number:
            made = (g.expr for g in env.guards if symbol in g.expr.free_symbols)
            line = next((decisions.lines.get(e) for e in made if isinstance(e, sympy.Eq)), None)
            # A condition on a size that no argument has cannot be checked in a call.
            is_known = _of(expression, standing)
            equality = sympy.Eq(symbol, expression, evaluate=False) if is_known else sympy.false
            found[equality] = line
    return found


def _ranges(env: ShapeEnv, symbols: Iterable[sympy.Symbol]) -> list[sympy.Basic]:
    found: list[sympy.Basic] = []
    for symbol in symbols:
        bounds = env.var_to_range.get(symbol)
        if bounds is None:
            continue
        if bounds.lower > _LEAST:
            found.append(sympy.Ge(symbol, bounds.lower, evaluate=False))
        if bounds.upper.is_Integer:
            found.append(sympy.Le(symbol, bounds.upper, evaluate=False))
    return found


def _add(
    conditions: dict[sympy.Basic, SourceLine | None],
    condition: Any,
    line: SourceLine | None,
    standing: Mapping[sympy.Symbol, sympy.Expr],
) -> None:
    """Note a condition on free sizes of inputs; others are fixed, or known only at run time."""
    if not _of(condition, standing):
        return
    replaced = {s: e for s, e in standing.items() if e != s and s in condition.free_symbols}
    condition = condition.xreplace(replaced)
    if condition.free_symbols:
        conditions.setdefault(condition, line)


def _described(
    conditions: Mapping[sympy.Basic, SourceLine | None], names: Mapping[sympy.Symbol, sympy.Symbol]
) -> tuple[Guard, ...]:
    printer = PythonPrinter()
    return tuple(
        Guard(printer.doprint(condition.xreplace(names)), line)
        for condition, line in conditions.items()
    )


def _function(symbols: Mapping[sympy.Symbol, Size], wanted: Iterable[Any]) -> Callable[..., Any]:
    """Plain Python functions from sizes to conditions, or to lists of sizes."""
    function: Callable[..., Any] = sympy.lambdify(
        list(symbols), list(wanted), modules=[{"math": math, "torch": torch}],
        printer=PythonPrinter(),
    )  # fmt: skip
    return function
