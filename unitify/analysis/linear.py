"""Moments through operations that sum products: the operation itself, run on moments.

For y = Σ a·x·w with independent x and w,

    E[y] = f(E[x], E[w]),    Var[y] = a·(f(E[x²], E[w²]) − f(E[x]², E[w]²)),

where f is the operation and a its constant coefficient; gradients use its transpose (its
vector-Jacobian product) in the same way. Where nothing but one number is known of every
operand, the count of products does (``terms`` of the rule). An operation that only selects
(where, scatter, pad) is linear in all operands at once; the same two lines hold for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unitify.analysis.formulas import formula_values
from unitify.analysis.moments import Moment, compress, from_parts
from unitify.operations.dimensions import evaluate
from unitify.operations.operation import Operation
from unitify.operations.refusal import CannotRun, refusals
from unitify.operations.rule_table import Rule

#: Moments by argument name; a list for an argument that is a list of tensors.
Operands = Mapping[str, "Moment | list[Moment]"]
#: Beyond this many elements operands are multiplied in single precision, and an operand of which
#: one number is known is counted and not expanded.
_LARGE = 2**22
#: Beyond this many elements the gradient of an operand is counted: one number is wanted of it.
_HUGE = 2**24
#: Beyond this many elements a uniform gradient through a view is not followed place by place.
_MOVED = 2**18


def linear_forward(operation: Operation, rule: Rule, operands: Operands) -> list[Moment]:
    """Moments of every result of an operation that is linear in each of ``rule.linear``."""
    if _is_counted(operation, rule, operands):
        operands = _as_numbers(operands)
    if rule.terms and _all_uniform(operands):
        terms, coefficient = _counts(operation, rule, "out")
        product = _product([operands[n] for n in rule.linear if n in operands])
        added = [m for n, m in operands.items() if n not in rule.linear]
        return [
            _counted(product, terms, coefficient, added, len(shape))
            for shape in operation.result_shapes
        ]
    run = _Run(operation, rule, operands)
    means = run.forward(lambda m: m.mean)
    if run.is_multilinear:
        full, known = run.forward(lambda m: m.square), run.forward(lambda m: m.mean**2)
        spread = [compress(a) - compress(b) for a, b in zip(full, known, strict=True)]
    else:
        spread = run.forward(lambda m: m.var)
    return [
        from_parts(compress(m), (compress(v) * run.coefficient).clamp_min(0.0))
        for m, v in zip(means, spread, strict=True)
    ]


def linear_gradient(
    operation: Operation, rule: Rule, operands: Operands, name: str, grads: list[Moment]
) -> list[Moment]:
    """Moments of the gradient of one operand (of each tensor, where it is a list of them).

    ``grads``: moments of the gradients of the operation's results.
    """
    if len(grads) == 1 and _is_counted(operation, rule, operands, name, grads[0]):
        operands, grads = _as_numbers(operands), [grads[0].uniform()]
    if rule.terms and _all_uniform(operands) and len(grads) == 1 and grads[0].is_uniform:
        terms, coefficient = _counts(operation, rule, name)
        others = [operands[n] for n in rule.linear if n in operands and n != name]
        product = _product([grads[0], *(others if name in rule.linear else [])])
        return [_counted(product, terms, coefficient, [], len(operation.shape(name)))]
    size = max(g.rms for g in grads) or 1.0
    units = [Moment(g.mean / size, g.square / size**2) for g in grads]
    run = _Run(operation, rule, operands)
    means = run.backward(name, lambda m: m.mean, [u.mean for u in units])
    if run.is_multilinear and name in rule.linear:
        full = run.backward(name, lambda m: m.square, [u.square for u in units])
        known = run.backward(name, lambda m: m.mean**2, [u.mean**2 for u in units])
        spread = [compress(a) - compress(b) for a, b in zip(full, known, strict=True)]
    else:
        spread = run.backward(name, lambda m: m.var, [u.var for u in units])
    return [
        from_parts(compress(m) * size, (compress(v) * run.coefficient).clamp_min(0.0) * size**2)
        for m, v in zip(means, spread, strict=True)
    ]


def repeats(operation: Operation, rule: Rule) -> bool:
    """Is the gradient of the (only) operand that of the result, once for each that was summed?"""
    if len(rule.linear) != 1 or "out" not in rule.terms or rule.linear[0] not in rule.terms:
        return False
    values = formula_values(operation, rule, {})
    one = evaluate(rule.terms[rule.linear[0]], values)
    return one == 1 and evaluate(rule.terms["out"], values) > 1


def _is_counted(
    operation: Operation,
    rule: Rule,
    operands: Operands,
    target: str | None = None,
    grad: Moment | None = None,
) -> bool:
    """Would running on arrays take too large ones, for what a count tells as well?"""
    if not rule.terms or any(isinstance(m, list) for m in operands.values()):
        return False
    sizes = {n: math.prod(operation.shape(n)) for n in operands}
    blank = [n for n, m in operands.items() if isinstance(m, Moment) and m.is_uniform]
    if any(sizes[n] > _LARGE for n in blank):
        return True
    if target is None or grad is None:
        return False
    moved = len(operands) == 1 and grad.is_uniform and sizes[target] > _MOVED
    return moved or sizes[target] > _HUGE


def _as_numbers(operands: Operands) -> Operands:
    return {n: m.uniform() for n, m in operands.items() if isinstance(m, Moment)}


def _all_uniform(operands: Operands) -> bool:
    return all(isinstance(m, Moment) and m.is_uniform for m in operands.values())


def _counts(operation: Operation, rule: Rule, name: str) -> tuple[float, float]:
    """How many products are summed into an element, and the constant on each."""
    values = formula_values(operation, rule, {})
    return evaluate(rule.terms[name], values), evaluate(rule.coefficient, values)


def _product(factors: list[Moment | list[Moment]]) -> tuple[float, float]:
    means = [float(m.mean) for m in factors if isinstance(m, Moment)]
    squares = [float(m.square) for m in factors if isinstance(m, Moment)]
    return math.prod(means), math.prod(squares)


def _counted(
    product: tuple[float, float],
    terms: float,
    coefficient: float,
    added: list[Moment | list[Moment]],
    ndim: int,
) -> Moment:
    mean, square = product
    if terms >= 1:
        var = terms * coefficient**2 * max(square - mean * mean, 0.0)
        mean = terms * coefficient * mean
    else:
        # Only this share of the elements receives a product; the others are zero.
        mean = terms * coefficient * mean
        var = max(terms * coefficient**2 * square - mean * mean, 0.0)
    for moment in added:
        if isinstance(moment, Moment):
            mean, var = mean + float(moment.mean), var + float(moment.var)
    shape = (1,) * ndim
    return from_parts(
        torch.full(shape, mean, dtype=torch.float64), torch.full(shape, var, dtype=torch.float64)
    )


@dataclass(frozen=True)
class _Row:
    """A dimension that is run with one row: its size, and the dimension of the result it is."""

    size: int
    result: int


class _Run:
    """The operation on arrays of moments.

    A uniform dimension that only repeats rows (the tokens of a linear layer) is run with one row;
    a gradient that sums over those rows is multiplied by their number.
    """

    def __init__(self, operation: Operation, rule: Rule, operands: Operands) -> None:
        self.operation = operation
        self.operands = operands
        self.linear = [n for n in rule.linear if n in operands]
        self.added = [n for n in operands if n not in rule.linear]
        lists = any(isinstance(operands[n], list) for n in self.linear)
        self.is_multilinear = lists or len(self.linear) > 1
        self.coefficient = evaluate(rule.coefficient, formula_values(operation, rule, {}))
        large = any(m.mean.numel() > _LARGE for m in operands.values() if isinstance(m, Moment))
        self.dtype = torch.float32 if large else torch.float64
        self.dense = False
        self.rows = {n: self._free_rows(n, rule) for n in self.linear} if rule.terms else {}

    def forward(self, part: Callable[[Moment], Tensor]) -> list[Tensor]:
        return self._or_dense(
            lambda: [r.double() for r in _listed(self.operation(self._arrays(part, added=True)))]
        )

    def backward(
        self, name: str, part: Callable[[Moment], Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        return self._or_dense(lambda: self._backward(name, part, grads))

    def _or_dense(self, run: Callable[[], list[Tensor]]) -> list[Tensor]:
        """``run()``; again with dense operands where a view refuses expanded ones."""
        try:
            return run()
        except RuntimeError:
            if self.dense:
                raise
        self.dense = True
        return run()

    def _backward(
        self, name: str, part: Callable[[Moment], Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        if len(self.linear) == 1:
            # The gradient of a sum does not depend on what was summed: its own rows count.
            for rows in self.rows.values():
                for dimension, row in list(rows.items()):
                    if any(g.shape[row.result] != 1 for g in grads):
                        del rows[dimension]
        arrays = self._arrays(part, added=False)
        target = arrays[name]
        leaves = target if isinstance(target, list) else [target]
        leaves = [x.detach().requires_grad_(True) for x in leaves]
        arrays[name] = leaves if isinstance(target, list) else leaves[0]
        with torch.enable_grad():
            results = _listed(self.operation(arrays))
            upstream = [
                _averaged_to(g, tuple(r.shape)).to(self.dtype).expand(r.shape)
                for g, r in zip(grads, results, strict=True)
            ]
            with refusals():
                found = torch.autograd.grad(results, leaves, upstream, allow_unused=True)
        repeated = math.prod(
            row.size for n, rows in self.rows.items() if n != name for row in rows.values()
        )
        return [
            (torch.zeros_like(x) if g is None else g).double() * repeated
            for x, g in zip(leaves, found, strict=True)
        ]

    def _arrays(self, part: Callable[[Moment], Tensor], added: bool) -> dict[str, Any]:
        arrays: dict[str, Any] = {}
        for name, moment in self.operands.items():
            if isinstance(moment, list):
                pairs = zip(moment, self._shapes(name), strict=True)
                arrays[name] = [self._expanded(name, part(m), s) for m, s in pairs]
            elif isinstance(self.operation.number(name), int | float):
                arrays[name] = float(part(moment))
            else:
                array = part(moment)
                if name in self.added and not added:
                    array = torch.zeros_like(array)
                arrays[name] = self._expanded(name, array, self._shapes(name)[0])
        return arrays

    def _shapes(self, name: str) -> list[list[int]]:
        """The shape of an operand, or of each tensor of a list."""
        argument = self.operation.operands.get(name)
        if isinstance(argument, list):
            return [list(self.operation.shape_of(a)) for a in argument]
        return [list(self.operation.shape(name))]

    def _expanded(self, name: str, array: Tensor, shape: list[int]) -> Tensor:
        for dimension in self.rows.get(name, {}):
            shape[dimension] = 1
        expanded = array.to(self.dtype).expand(shape)
        return expanded.contiguous() if self.dense else expanded

    def _free_rows(self, name: str, rule: Rule) -> dict[int, _Row]:
        """Uniform dimensions of an operand that reappear, alone, as a dimension of the result."""
        held = self.operands[name]
        moments = held if isinstance(held, list) else [held]
        shapes = {n: self._shapes(n) for n in self.operands}
        whole = self._result_shape(shapes)
        free: dict[int, _Row] = {}
        for dimension, size in enumerate(shapes[name][0]):
            uniform = all(
                m.mean.shape[dimension] == 1 and m.square.shape[dimension] == 1 for m in moments
            )
            if size == 1 or not uniform or (rule.window and dimension):
                continue
            before = [shape[dimension] for shape in shapes[name]]
            for shape in shapes[name]:
                shape[dimension] = 1
            now = self._result_shape(shapes)
            changed = [i for i, (a, b) in enumerate(zip(whole, now, strict=False)) if a != b]
            if len(now) == len(whole) and len(changed) == 1 and now[changed[0]] == 1:
                free[dimension] = _Row(size, changed[0])
                whole = now
            else:
                for shape, present in zip(shapes[name], before, strict=True):
                    shape[dimension] = present
        return free

    def _result_shape(self, shapes: Mapping[str, list[list[int]]]) -> tuple[int, ...]:
        """The shape of the (only) result for operands of these shapes; () where it cannot be."""
        blanks: dict[str, Any] = {}
        for name, listed in shapes.items():
            tensors = [torch.empty(shape, device="meta") for shape in listed]
            is_list = isinstance(self.operands[name], list)
            number = None if is_list else self.operation.number(name)
            blanks[name] = tensors if is_list else tensors[0]
            if isinstance(number, int | float):
                blanks[name] = number
        try:
            result = self.operation(blanks)
        except CannotRun:
            return ()
        return tuple(result.shape) if isinstance(result, Tensor) else ()


def _listed(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, list | tuple) else [result]


def _averaged_to(array: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The array with dimensions that were run with one row averaged down to one."""
    for dimension, size in enumerate(shape):
        if array.shape[dimension] not in (1, size):
            array = array.mean(dimension, keepdim=True)
    return array
