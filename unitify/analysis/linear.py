"""Moments through contractions and other linear operations: the operation, run on moments.

For y = Σ a·x·w with independent x and w,

    E[y] = f(E[x], E[w]),    Var[y] = a·(f(E[x²], E[w²]) − f(E[x]², E[w]²)),

where f is the operation and a its constant coefficient. Gradients follow in the same way from its
transpose (its vector-Jacobian product). Where the moments of every operand are uniform, the count
of products is enough (``terms`` of the rule). An operation that only selects (where, scatter, pad)
is linear in all operands at once, and the same formulas hold.
"""

from __future__ import annotations

import math

import torch

from unitify.analysis.formulas import formula_values
from unitify.analysis.moments import Moment, compress, from_parts
from unitify.analysis.on_arrays import Operands, Run
from unitify.rulebook.dimensions import evaluate
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import Rule

# Larger arrays are not built, to bound time and memory; terms are counted instead.
#: The most elements of a uniform operand that is expanded.
_LARGE = 2**22
#: The most elements of an operand whose gradient is computed on arrays.
_HUGE = 2**24


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
    run = Run(operation, rule, operands)
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
    if len(grads) == 1 and _is_counted(operation, rule, operands, name):
        operands, grads = _as_numbers(operands), [grads[0].uniform()]
    if rule.terms and _all_uniform(operands) and len(grads) == 1 and grads[0].is_uniform:
        terms, coefficient = _counts(operation, rule, name)
        others = [operands[n] for n in rule.linear if n in operands and n != name]
        product = _product([grads[0], *(others if name in rule.linear else [])])
        return [_counted(product, terms, coefficient, [], len(operation.shape(name)))]
    size = max(g.rms for g in grads) or 1.0
    units = [Moment(g.mean / size, g.square / size**2) for g in grads]
    # The gradient of a sum repeats that of its result, and does not depend on its terms.
    run = Run(operation, rule, operands, units if len(rule.linear) == 1 else ())
    means = run.backward(name, lambda m: m.mean, units)
    if run.is_multilinear and name in rule.linear:
        full = run.backward(name, lambda m: m.square, units)
        known = run.backward(name, lambda m: m.mean**2, units)
        spread = [compress(a) - compress(b) for a, b in zip(full, known, strict=True)]
    else:
        spread = run.backward(name, lambda m: m.var, units)
    return [
        from_parts(compress(m) * size, (compress(v) * run.coefficient).clamp_min(0.0) * size**2)
        for m, v in zip(means, spread, strict=True)
    ]


def summed_gradient(
    operation: Operation, rule: Rule, operands: Operands, name: str, grads: list[Moment]
) -> list[Moment] | None:
    """One number for the gradient of a parameter; None where it does not follow from ``terms``.

    Each term is a product of two numbers, whose mean squares multiply. The terms must be alike,
    so moments may vary along one dimension only.
    """
    is_list = any(isinstance(m, list) for m in operands.values())
    if name not in rule.terms or is_list or len(grads) > 1:
        return None
    if sum(size > 1 for size in grads[0].mean.shape) > 1:
        return None
    numbers = {n: _typical(m) for n, m in operands.items() if isinstance(m, Moment)}
    return linear_gradient(operation, rule, numbers, name, [_typical(grads[0])])


def _typical(moment: Moment) -> Moment:
    """Uniform moments: the mean of the squares, and the RMS of the means."""
    shape = (1,) * moment.mean.dim()
    mean = moment.mean.square().mean().sqrt().double().reshape(shape)
    return Moment(mean, moment.square.mean().double().reshape(shape))


def repeats(operation: Operation, rule: Rule) -> bool:
    """Does a sum over one operand give each summed element the gradient of the result?"""
    if len(rule.linear) != 1 or "out" not in rule.terms or rule.linear[0] not in rule.terms:
        return False
    values = formula_values(operation, rule, {})
    one = evaluate(rule.terms[rule.linear[0]], values)
    return one == 1 and evaluate(rule.terms["out"], values) > 1


def _is_counted(
    operation: Operation, rule: Rule, operands: Operands, target: str | None = None
) -> bool:
    """Would a run need arrays that are too large, while a count gives the same?"""
    if not rule.terms or any(isinstance(m, list) for m in operands.values()):
        return False
    sizes = {n: math.prod(operation.shape(n)) for n in operands}
    blank = [n for n, m in operands.items() if isinstance(m, Moment) and m.is_uniform]
    is_huge = target is not None and sizes[target] > _HUGE
    return is_huge or any(sizes[n] > _LARGE for n in blank)


def _as_numbers(operands: Operands) -> Operands:
    return {n: m.uniform() for n, m in operands.items() if isinstance(m, Moment)}


def _all_uniform(operands: Operands) -> bool:
    return all(isinstance(m, Moment) and m.is_uniform for m in operands.values())


def _counts(operation: Operation, rule: Rule, name: str) -> tuple[float, float]:
    """The number of products summed into an element, and the coefficient of each."""
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
