"""The law of a row, bitwise: run on scaled operands, the operation is the operation.

The sampled operands of a row, and its result, get random scales in both directions. The one
equation must then give the outputs and gradients of the plain operation, to the last bit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.rewrite import rewrite
from unitify.rule_trials.calls import Trial, call, drawn, run
from unitify.rulebook.rule_table import Rule, RuleTable

#: The most octaves of a random scale, in both directions.
_LIMIT = 6


def has_kernel(rule: Rule, dtype: torch.dtype) -> bool:
    """Does the operation of a row run, forward and backward, in this type?"""
    arguments = drawn(rule, rule.sample, 0, dtype)
    try:
        made = call(rule, arguments)
        outputs_and_gradients(made, made.capture.graph, made.floating, 0)
    except RuntimeError as error:
        if any(text in str(error) for text in NO_KERNEL):
            return False
        raise
    return True


NO_KERNEL = (
    "not implemented for",
    "Unsupported dtype",
    "Low precision dtypes not supported",
    "must be either",
    "Half, Float or Double",
    "half, float and double",
    "MKL FFT doesn't support",
)


def differences(
    rule: Rule,
    sample: Mapping[str, Any],
    seed: int,
    dtype: torch.dtype,
    rules: RuleTable | None = None,
) -> list[str]:
    """Results that are not bitwise those of the plain operation, under random scales."""
    made = call(rule, drawn(rule, sample, seed, dtype), seed)
    plan = random_plan(made, seed)
    expected = outputs_and_gradients(made, made.capture.graph, made.floating, seed)
    stored = {name: t / plan.parameters[name].fwd for name, t in made.floating.items()}
    table = {rule.operation: rule} if rules is None else rules
    emitted = rewrite(made.capture, plan, table)
    found = outputs_and_gradients(made, emitted, stored, seed)
    for name in made.floating.keys() & found.keys():
        found[name] = found[name] * plan.parameters[name].bwd
    assert found.keys() == expected.keys()
    return [name for name, tensor in expected.items() if not same(tensor, found[name])]


def same(expected: Tensor, found: Tensor) -> bool:
    """Bitwise equal; a NaN (of a gradient that does not exist) equals a NaN."""
    nan = expected.isnan()
    return (
        expected.dtype == found.dtype
        and torch.equal(nan, found.isnan())
        and torch.equal(expected[~nan], found[~nan])
    )


def random_plan(made: Trial, seed: int) -> ScalePlan:
    """A scale for everything that can carry one."""
    generator = random.Random(seed)
    values = {
        node.name: Scale.of_exponents(
            generator.randint(-_LIMIT, _LIMIT), generator.randint(-_LIMIT, _LIMIT)
        )
        for node in made.carriers
    }
    held = {n.target: n.name for n in made.carriers if n.op == "get_attr"}
    return ScalePlan(values, {name: values[held[name]] for name in made.floating})


def outputs_and_gradients(
    made: Trial, graph: Any, floating: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Results of a graph, and gradients of its operands, for normal gradients of the results."""
    held = {
        n: t.detach().requires_grad_(made.tensors[n].requires_grad)
        for n, t in {**made.tensors, **floating}.items()
    }
    leaves = {n: t for n, t in held.items() if t.requires_grad}
    results = run(graph, held, seed)
    found = {f"result {i}": r.detach() for i, r in enumerate(results) if isinstance(r, Tensor)}
    starts = [r for r in results if isinstance(r, Tensor) and r.requires_grad]
    if starts:
        generator = torch.Generator().manual_seed(seed)
        upstream = [
            torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)
            for r in starts
        ]
        torch.default_generator.manual_seed(seed)
        gradients = torch.autograd.grad(starts, list(leaves.values()), upstream, allow_unused=True)
        found |= {n: g for n, g in zip(leaves, gradients, strict=True) if g is not None}
    return found
