"""The law of every row, bitwise: run on scaled operands, the operation is the operation.

Each row's sampled operands, and its result, get random scales in both directions. The one
equation must then give the outputs and gradients of the plain operation, to the last bit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from unitify.rule_trials.calls import overload
from unitify.rule_trials.laws import differences, has_kernel
from unitify.rulebook.laws import Factors, factors
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()
SEEDS = {torch.float32: (0, 1, 2), torch.float64: (3,), torch.bfloat16: (4,)}
#: Rows without a sample, and why.
UNSAMPLED = {
    operation: "uninitialized memory has no value to compare"
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
        overload(operation)


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
        is_call = arguments[1].target is overload(operation)
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
