"""Runs a linear operation on arrays of moments instead of its operands.

Takes an operation, its rule and the moments of its operands. Gives the operation of any part of
these (means, squares), and its transpose of the same part of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unitify.analysis.formulas import formula_values
from unitify.analysis.moments import Moment, fit, fitted
from unitify.analysis.small_image import SmallImage, on_small_image
from unitify.rulebook.dimensions import evaluate
from unitify.rulebook.operation import Operation
from unitify.rulebook.refusal import CannotRun, refusals
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.schema import listed

#: Moments by argument name; a list for an argument that is a list of tensors.
Operands = Mapping[str, "Moment | list[Moment]"]
#: Operands of more elements than this are multiplied in float32, for speed.
_SINGLE = 2**16


@dataclass(frozen=True)
class _SingleRow:
    """A dimension that runs with one row: its size, and the dimension of the result."""

    size: int
    result: int


class Run:
    """The operation on arrays of moments.

    A uniform dimension that only repeats rows (the tokens of a linear layer) runs with one row, and
    a gradient that sums over these rows is multiplied by their number. An image whose pixels are
    all alike runs at a smaller size, and so is a gradient that sums over its pixels.
    """

    def __init__(
        self, operation: Operation, rule: Rule, operands: Operands, alike: Sequence[Moment] = ()
    ) -> None:
        self.operation = on_small_image(operation, rule, operands, alike)
        self.operands = operands
        self.linear = [n for n in rule.linear if n in operands]
        self.added = [n for n in operands if n not in rule.linear]
        lists = any(isinstance(operands[n], list) for n in self.linear)
        self.is_multilinear = lists or len(self.linear) > 1
        self.coefficient = evaluate(rule.coefficient, formula_values(operation, rule, {}))
        large = any(m.mean.numel() > _SINGLE for m in operands.values() if isinstance(m, Moment))
        self.dtype = torch.float32 if large else torch.float64
        self.dense = False
        self.rows = {n: self._free_rows(n, rule) for n in self.linear} if rule.terms else {}

    def forward(self, part: Callable[[Moment], Tensor]) -> list[Tensor]:
        """The results of the operation on this part of all operands."""
        found = self._or_dense(
            lambda: [r.double() for r in listed(self.operation(self._arrays(part, added=True)))]
        )
        return [fit(r, s) for r, s in zip(found, self.operation.result_shapes, strict=True)]

    def backward(
        self, name: str, part: Callable[[Moment], Tensor], grads: list[Moment]
    ) -> list[Tensor]:
        """The gradient of one operand, from this part of ``grads`` and of the other operands."""
        return self._or_dense(lambda: self._backward(name, part, grads))

    def _or_dense(self, run: Callable[[], list[Tensor]]) -> list[Tensor]:
        """``run()``; again with dense operands where a view rejects expanded ones."""
        try:
            return run()
        except RuntimeError:
            if self.dense:
                raise
        self.dense = True
        return run()

    def _backward(
        self, name: str, part: Callable[[Moment], Tensor], grads: list[Moment]
    ) -> list[Tensor]:
        if len(self.linear) == 1:
            # The gradient of a sum does not depend on its terms, so its own rows count.
            for rows in self.rows.values():
                for dimension, row in list(rows.items()):
                    if any(g.mean.shape[row.result] != 1 for g in grads):
                        del rows[dimension]
        arrays = self._arrays(part, added=False)
        target = arrays[name]
        leaves = target if isinstance(target, list) else [target]
        leaves = [x.detach().requires_grad_(True) for x in leaves]
        arrays[name] = leaves if isinstance(target, list) else leaves[0]
        with torch.enable_grad():
            results = listed(self.operation(arrays))
            upstream = [
                self._upstream(name, part, g, tuple(r.shape)).to(self.dtype).expand(r.shape)
                for g, r in zip(grads, results, strict=True)
            ]
            with refusals():
                found = torch.autograd.grad(results, leaves, upstream, allow_unused=True)
        repeated: float = math.prod(
            row.size for n, rows in self.rows.items() if n != name for row in rows.values()
        )
        if isinstance(self.operation, SmallImage) and name != self.operation.image:
            # The gradient of a parameter is a sum over all pixels.
            repeated *= self.operation.left_out(tuple(results[0].shape))
        return [
            (torch.zeros_like(x) if g is None else g).double() * repeated
            for x, g in zip(leaves, found, strict=True)
        ]

    def _upstream(
        self, name: str, part: Callable[[Moment], Tensor], grad: Moment, shape: tuple[int, ...]
    ) -> Tensor:
        """A part of the gradient of a result, averaged over the rows and pixels that do not run.

        Where they sum into one gradient, each part is the mean of theirs. Where each has its own,
        the moments are those at a random one of them.
        """
        small = self.operation.image if isinstance(self.operation, SmallImage) else ""
        own = name == small or bool(self.rows.get(name))
        return part(fitted(grad, shape)) if own else fit(part(grad), shape)

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
        shape = list(self.operation.shape(name))
        return [shape]

    def _expanded(self, name: str, array: Tensor, shape: list[int]) -> Tensor:
        for dimension in self.rows.get(name, {}):
            shape[dimension] = 1
        expanded = array.to(self.dtype).expand(shape)
        return expanded.contiguous() if self.dense else expanded

    def _free_rows(self, name: str, rule: Rule) -> dict[int, _SingleRow]:
        """Uniform dimensions of an operand that are, unmixed, dimensions of the result."""
        held = self.operands[name]
        moments = held if isinstance(held, list) else [held]
        shapes = {n: self._shapes(n) for n in self.operands}
        whole = self._result_shape(shapes)
        free: dict[int, _SingleRow] = {}
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
                free[dimension] = _SingleRow(size, changed[0])
                whole = now
            else:
                for shape, present in zip(shapes[name], before, strict=True):
                    shape[dimension] = present
        return free

    def _result_shape(self, shapes: Mapping[str, list[list[int]]]) -> tuple[int, ...]:
        """The shape of the only result for operands of these shapes; () where they do not fit."""
        blanks: dict[str, Any] = {}
        for name, each in shapes.items():
            tensors = [torch.empty(shape, device="meta") for shape in each]
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
