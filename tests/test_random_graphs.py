"""Random graphs, random scales: outputs and gradients are bitwise those of the original."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import Program, programs, random_plan
from torch import Tensor

from unitify.capture import Capture
from unitify.execution import leaf_parameters, run_captured
from unitify.module import UnitScaledModule
from unitify.plan import ScalePlan
from unitify.rewrite import rewrite
from unitify.rule_table import load_rules
from unitify.transform import build

RULES = load_rules()
slow = settings(
    deadline=None,
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate, Phase.shrink],
)


def transformed(capture: Capture, chosen: ScalePlan) -> UnitScaledModule:
    return build(capture, rewrite(capture, chosen, RULES), chosen)


def results(run, inputs: tuple[Tensor, ...], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, and the gradients of parameters and inputs, under one seed."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    torch.manual_seed(3)
    outputs = run(leaves)
    generator = torch.Generator().manual_seed(7)
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    starts = [y for y in outputs if y.requires_grad]
    if starts:
        seeds = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in starts]
        targets = {**parameters, **{f"input {i}": x for i, x in enumerate(leaves)}}
        gradients = torch.autograd.grad(starts, list(targets.values()), seeds, allow_unused=True)
        pairs = zip(targets, gradients, strict=True)
        found |= {f"gradient of {name}": g for name, g in pairs if g is not None}
    return found


def original_results(capture: Capture) -> dict[str, Tensor]:
    parameters = leaf_parameters(capture)
    return results(lambda xs: run_captured(capture, xs, parameters), capture.example, parameters)


def module_results(module: UnitScaledModule) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters())
    found = results(lambda xs: module.flat_forward(*xs), module.capture.example, parameters)
    for name in parameters:
        if f"gradient of {name}" in found:
            found[f"gradient of {name}"] *= module.plan.parameters[name].bwd
    return found


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise, where NaN equals NaN."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0))
    )


def assert_same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert expected.keys() == found.keys()
    wrong = [name for name in expected if not same(expected[name], found[name])]
    assert not wrong, wrong


@given(st.data(), programs())
@slow
def test_any_scales_are_exact(data: st.DataObject, program: Program) -> None:
    capture = program.capture()
    chosen = random_plan(data.draw, capture, RULES)
    assert_same(original_results(capture), module_results(transformed(capture, chosen)))
