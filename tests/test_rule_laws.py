"""The law of every row, bitwise: run on scaled operands, the operation is the operation.

Each row's sampled operands, and its result, get random scales in both directions. The one
equation must then give the outputs and gradients of the plain operation, to the last bit.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

import pytest
import rule_samples
import torch
from torch import Tensor

from unitify.operations.laws import Factors, factors
from unitify.operations.rule_table import Rule, RuleTable, load_rules
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.rewrite import rewrite

RULES = load_rules()
SEEDS = {torch.float32: (0, 1, 2), torch.float64: (3,), torch.bfloat16: (4,)}
#: Rows without a sample, and why.
UNSAMPLED = {
    operation: "uninitialised memory has no value to compare"
    for operation in RULES
    if "empty" in operation
}
ALWAYS_ZERO = {
    name: "zero is zero at every scale"
    for name in RULES
    if name.split(".")[1].endswith(("zeros", "zeros_like"))
}


def test_every_row_has_a_sample() -> None:
    missing = {name for name, rule in RULES.items() if not rule.sample}
    assert missing == UNSAMPLED.keys()


def test_every_row_names_an_operation() -> None:
    for operation in RULES:
        rule_samples.overload(operation)


@pytest.mark.parametrize("dtype", SEEDS, ids=str)
@pytest.mark.parametrize("operation", sorted(RULES.keys() - UNSAMPLED.keys()))
def test_law_is_bitwise(operation: str, dtype: torch.dtype) -> None:
    rule = RULES[operation]
    samples = [rule.sample, *rule.variants]
    if dtype != torch.float32 and not has_kernel(rule, dtype):
        pytest.skip(f"no kernel for {dtype}")
    for sample in samples:
        for seed in SEEDS[dtype]:
            assert differences(rule, sample, seed, dtype) == [], sample


@pytest.mark.parametrize("operation", sorted(n for n, r in RULES.items() if r.law and r.sample))
def test_wrong_factor_is_caught(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if operation in ALWAYS_ZERO:
        pytest.skip(ALWAYS_ZERO[operation])

    def doubled(*arguments: Any) -> Factors:
        found = factors(*arguments)
        is_call = arguments[1].target is rule_samples.overload(operation)
        return dataclasses.replace(found, output=found.output + is_call)

    monkeypatch.setattr("unitify.rewrite.factors", doubled)
    rule = RULES[operation]
    assert differences(rule, rule.sample, 0, torch.float32)


@pytest.mark.parametrize(
    "operation",
    ["aten.gelu.default", "aten.logcumsumexp.default", "aten.max.dim", "aten.cat.default"],
)
def test_operation_without_a_row_is_restored(operation: str) -> None:
    for seed in SEEDS[torch.float32]:
        rule = RULES[operation]
        assert differences(rule, rule.sample, seed, torch.float32, rules={}) == []


def has_kernel(rule: Rule, dtype: torch.dtype) -> bool:
    arguments = rule_samples.drawn(rule, rule.sample, 0, dtype)
    try:
        call = rule_samples.call(rule, arguments)
        outputs_and_gradients(call, call.capture.graph, call.floating, 0)
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
    """What is not bitwise that of the plain operation, under random scales."""
    call = rule_samples.call(rule, rule_samples.drawn(rule, sample, seed, dtype), seed)
    plan = random_plan(call, seed)
    expected = outputs_and_gradients(call, call.capture.graph, call.floating, seed)
    stored = {name: t / plan.parameters[name].fwd for name, t in call.floating.items()}
    table = {rule.operation: rule} if rules is None else rules
    emitted = rewrite(call.capture, plan, table)
    found = outputs_and_gradients(call, emitted, stored, seed)
    for name in call.floating.keys() & found.keys():
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


def random_plan(call: rule_samples.Call, seed: int) -> ScalePlan:
    generator = random.Random(seed)
    values = {
        node.name: Scale.of_exponents(generator.randint(-6, 6), generator.randint(-6, 6))
        for node in call.carriers
    }
    held = {n.target: n.name for n in call.carriers if n.op == "get_attr"}
    return ScalePlan(values, {name: values[held[name]] for name in call.floating})


def outputs_and_gradients(
    call: rule_samples.Call, graph: Any, floating: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    held = {
        n: t.detach().requires_grad_(call.tensors[n].requires_grad)
        for n, t in {**call.tensors, **floating}.items()
    }
    leaves = {n: t for n, t in held.items() if t.requires_grad}
    results = rule_samples.run(graph, held, seed)
    found = {f"result {i}": r.detach() for i, r in enumerate(results) if isinstance(r, Tensor)}
    starts = [r for r in results if isinstance(r, Tensor) and r.requires_grad]
    if starts:
        generator = torch.Generator().manual_seed(seed)
        upstream = [
            torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)
            for r in starts
        ]
        torch.manual_seed(seed)
        gradients = torch.autograd.grad(starts, list(leaves.values()), upstream, allow_unused=True)
        found |= {n: g for n, g in zip(leaves, gradients, strict=True) if g is not None}
    return found
