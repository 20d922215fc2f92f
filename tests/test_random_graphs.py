"""Random graphs, random scales: outputs and gradients are bitwise those of the original."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from conversion import RULES, same
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from program import Program
from strategies import carriers, programs, random_plan
from torch import Tensor, fx, nn

from unitify.capture.execution import leaf_parameters, run_captured
from unitify.capture.whole import Capture, capture
from unitify.measure.captured import measure
from unitify.module.assembly import build
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part
from unitify.plan.planner import plan
from unitify.plan.scale_plan import Carrier, ScalePlan, check_plan
from unitify.rewrite import rewrite
from unitify.verifying.validation import validate, validate_parameters


def many(examples: int) -> settings:
    """So many examples, the same ones every time; none is too slow under load."""
    return settings(
        deadline=None,
        max_examples=examples,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def transformed(captured: Capture, chosen: ScalePlan) -> UnitScaledModule:
    return build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))


def results(
    run: Callable[[list[Tensor]], Any], inputs: tuple[Tensor, ...], parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
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


def original_results(captured: Capture) -> dict[str, Tensor]:
    parameters = leaf_parameters(captured)
    return results(lambda xs: run_captured(captured, xs, parameters), captured.example, parameters)


def module_results(module: UnitScaledModule) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    found = results(lambda xs: module.flat_forward(*xs), module.capture.example, parameters)
    for name in parameters:
        if f"gradient of {name}" in found:
            found[f"gradient of {name}"] *= module.plan.parameters[name].bwd
    return found


def assert_same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert expected.keys() == found.keys()
    wrong = [name for name in expected if not same(expected[name], found[name])]
    assert not wrong, wrong


def drawn(data: st.DataObject, captured: Capture) -> Capture:
    """With true parameters or with stored ones."""
    return captured.with_true_parameters() if data.draw(st.booleans()) else captured


def keeps_its_distance(captured: Capture) -> bool:
    """Do all values stay far from the ends of a format with the exponents of float32?

    There, powers of two do round: what is subnormal at true scale or at the stored one.
    """
    smallest, largest = math.inf, 0.0

    def observe(_: fx.Node, value: Any) -> None:
        nonlocal smallest, largest
        if isinstance(value, Tensor) and value.is_floating_point():
            magnitudes = value.detach().abs().double()
            magnitudes = magnitudes[magnitudes.isfinite() & (magnitudes > 0)]
            if magnitudes.numel():
                smallest = min(smallest, float(magnitudes.min()))
                largest = max(largest, float(magnitudes.max()))

    inputs = [x.detach() for x in captured.example]
    run_captured(captured, inputs, leaf_parameters(captured), observe)
    return smallest > 2.0**-50 and largest < 2.0**30


@given(st.data(), programs())
@many(120)
def test_any_scales_are_exact(data: st.DataObject, program: Program) -> None:
    captured = drawn(data, program.capture())
    chosen = random_plan(data.draw, captured, RULES, carrier=data.draw(carriers))
    check_plan(captured, chosen)
    module = transformed(captured, chosen)
    assert validate(captured, module.graph, chosen, RULES) == ()
    assert_same(original_results(captured), module_results(module))


@given(st.data(), programs(dtypes=(torch.float32, torch.bfloat16)))
@many(80)
def test_any_scales_are_exact_in_short_formats(data: st.DataObject, program: Program) -> None:
    captured = drawn(data, program.capture())
    assume(keeps_its_distance(captured))
    chosen = random_plan(data.draw, captured, RULES, carrier=data.draw(carriers))
    module = transformed(captured, chosen)
    assert_same(original_results(captured), module_results(module))


@given(programs(), carriers)
@many(30)
def test_chosen_scales_are_exact_and_survive(program: Program, carrier: Carrier) -> None:
    """Through JSON, a copy, a state dict, and the original's own state dict."""
    captured = program.capture()
    chosen = plan(captured, measure(captured), RULES, carrier=carrier)
    again = ScalePlan.from_json(json.loads(json.dumps(chosen.to_json())))
    assert again == chosen
    module = transformed(captured, chosen)
    expected = original_results(captured)
    assert_same(expected, module_results(module))
    assert_same(expected, module_results(copy.deepcopy(module)))

    rebuilt = transformed(captured, again)
    with torch.no_grad():
        for parameter in rebuilt.parameters():
            parameter.fill_(float("nan"))
    rebuilt.load_state_dict(module.state_dict())
    assert_same(expected, module_results(rebuilt))
    assert validate_parameters(rebuilt) == ()

    true = module.original_state_dict()
    for name, tensor in program.root.state_dict().items():
        assert torch.equal(true[name], tensor)
    rebuilt.load_original_state_dict(program.root.state_dict())
    assert_same(expected, module_results(rebuilt))


@given(programs())
@many(40)
def test_in_place_operations_mean_the_same_out_of_place(program: Program) -> None:
    captured = program.capture()
    torch.manual_seed(3)
    with torch.no_grad():
        eager = program.module()(*[x.clone() for x in program.inputs])
    found = original_results(captured)
    for i, output in enumerate(eager):
        assert same(output, found[f"output {i}"])


class Model(nn.Module):
    """A program as a user's module."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.body = program.module()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.body(x, y)


@given(st.data(), programs(max_steps=8))
@many(5)
def test_any_scales_are_exact_after_a_real_capture(data: st.DataObject, program: Program) -> None:
    model = Model(program)
    captured = drawn(data, capture(model, program.inputs, {}))
    assume(captured.mode is None)
    module = transformed(captured, random_plan(data.draw, captured, RULES))
    assert validate(captured, module.graph, module.plan, RULES) == ()
    assert_same(original_results(captured), module_results(module))
