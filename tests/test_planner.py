"""The planner's program: within bands, of the fewest rescales, the same every time."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from conversion import RULES
from hypothesis import given
from hypothesis import strategies as st
from program import Program as Drawn
from strategies import carriers, programs
from test_random_graphs import many
from torch import Tensor, fx, nn

import unitify
from unitify.capture.whole import Capture, capture
from unitify.estimates import Estimates
from unitify.measure.captured import measure
from unitify.plan import planner
from unitify.plan.bands import TOLERANCE, WIDE_TOLERANCE, Bands
from unitify.plan.linear_law import linear_law
from unitify.plan.planner import plan
from unitify.plan.program import Exponent, Program
from unitify.plan.scale_plan import Carrier, Scale, ScalePlan
from unitify.rewrite import rewrite
from unitify.rulebook.laws import factors, holds_tensors
from unitify.rulebook.schema import operation_name

RESCALE = torch.ops.unitify.rescale.default


def cost(captured: Capture, chosen: ScalePlan) -> float:
    """What the rescales of a graph cost: each a call, and what its factors move."""
    found = 0.0
    for node in rewrite(captured, chosen, RULES).nodes:
        if node.target is RESCALE:
            moved = node.meta["val"].numel() * node.meta["val"].element_size() / 2**20
            found += 1 + moved * sum(factor != 1.0 for factor in node.args[1:])
    return found


def bands_of(
    captured: Capture, estimates: Estimates, carrier: Carrier
) -> dict[fx.Node, tuple[range, range]]:
    """The exponents that a plan may give to each value, and to its gradient."""
    bands, found = Bands(captured, estimates, RULES), {}
    tolerance = TOLERANCE if carrier == "narrow" else WIDE_TOLERANCE
    chosen = plan(captured, estimates, RULES, carrier=carrier)
    for node in captured.graph.nodes:
        if node.name in chosen.values:
            own = [bands.of(node, d, tolerance) for d in ("forward", "backward")]
            found[node] = (
                range(own[0].low, own[0].high + 1),
                range(own[1].low, own[1].high + 1),
            )
    return found


def with_scales(
    captured: Capture, chosen: ScalePlan, exponents: dict[fx.Node, tuple[int, int]]
) -> ScalePlan:
    """``chosen`` with other scales; gradients follow values on a wide carrier."""
    fwd: dict[fx.Node, int] = {}
    values: dict[str, Scale] = {}
    for node in captured.graph.nodes:
        if node not in exponents:
            continue
        fwd[node], bwd = exponents[node]
        if holds_tensors(node):
            rule = RULES.get(operation_name(node))
            fwd[node] = factors(rule, node, lambda n: fwd.get(n, 0), fwd[node]).output
        values[node.name] = Scale.of_exponents(
            fwd[node], -fwd[node] if chosen.carrier == "wide" else bwd
        )
    return ScalePlan(values, chosen.parameters, weights=chosen.weights, carrier=chosen.carrier)


@given(programs(max_steps=6), carriers, st.booleans())
@many(40)
def test_no_plan_within_the_bands_is_cheaper(
    program: Drawn, carrier: Carrier, is_true: bool
) -> None:
    captured = program.capture()
    captured = captured.with_true_parameters() if is_true else captured
    estimates = measure(captured)
    chosen = plan(captured, estimates, RULES, carrier=carrier)
    assert chosen.gap == 0.0
    least = cost(captured, chosen)
    bands = bands_of(captured, estimates, carrier)
    for node, (forward, backward) in bands.items():
        fwd, bwd = chosen.values[node.name].exponents
        assert fwd in forward or holds_tensors(node), node
        assert carrier == "wide" or bwd in backward, node
    generator = random.Random(0)
    for _ in range(60):
        other = {
            node: (generator.choice(forward), generator.choice(backward))
            if generator.random() < 0.3
            else chosen.values[node.name].exponents
            for node, (forward, backward) in bands.items()
        }
        assert least <= cost(captured, with_scales(captured, chosen, other)) + 0.01


class Tiny(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.randn(4, 4) * gain)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(x @ self.weight)
        return (h * h).sum(-1)


@pytest.mark.parametrize("gain", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("weights", ["true", "stored"])
def test_all_plans_of_a_tiny_graph(gain: float, weights: str) -> None:
    torch.manual_seed(0)
    captured = capture(Tiny(gain), (torch.randn(8, 4),), {})
    captured = captured.with_true_parameters() if weights == "true" else captured
    estimates = measure(captured)
    chosen = plan(captured, estimates, RULES)
    bands = bands_of(captured, estimates, "narrow")
    spans = [span for pair in bands.values() for span in pair]
    assert 50 < math.prod(map(len, spans)) < 20_000
    least = min(
        cost(captured, with_scales(captured, chosen, dict(zip(bands, pairs, strict=True))))
        for exponents in itertools.product(*spans)
        for pairs in [list(zip(exponents[::2], exponents[1::2], strict=True))]
    )
    assert cost(captured, chosen) == pytest.approx(least, abs=1e-6)


@given(programs(max_steps=8), carriers)
@many(10)
def test_the_same_plan_every_time(program: Drawn, carrier: Carrier) -> None:
    captured = program.capture()
    estimates = measure(captured)
    assert plan(captured, estimates, RULES, carrier=carrier) == plan(
        captured, estimates, RULES, carrier=carrier
    )


@given(st.data(), programs(max_steps=8))
@many(40)
def test_a_law_is_linear(data: st.DataObject, program: Drawn) -> None:
    """What ``linear_law`` says of an operation is what ``factors`` does, for any scales."""
    captured = program.capture()
    scales = {node: data.draw(st.integers(-9, 9)) for node in captured.graph.nodes}
    for node in captured.graph.nodes:
        if node.op != "call_function":
            continue
        rule = RULES.get(operation_name(node))
        law = linear_law(rule, node)
        found = factors(rule, node, scales.__getitem__, scales[node])
        assert found.true_gradient == law.true_gradient
        given_back = 0.0
        if law.halved is not None:
            first, place, whole = law.halved
            given_back = float(not sum(m * scales[n] for n, m in whole.items()).is_integer())
        output = sum(m * scales[n] for n, m in law.output.items())
        if law.halved is not None:
            output -= given_back * law.output.get(first, 0.0)
        assert found.output == output, node
        for at, parts in law.operands.items():
            expected = sum(m * scales[n] for n, m in parts.items())
            expected += given_back if law.halved is not None and at == place else 0.0
            assert found.operands.get(at, 0) == expected, (node, at)


@given(st.data())
@many(60)
def test_a_program_against_all_its_values(data: st.DataObject) -> None:
    integers = st.integers(-3, 3)
    program = Program()
    ends = data.draw(st.lists(st.tuples(integers, integers), min_size=1, max_size=4))
    variables = [program.variable(min(pair), max(pair)) for pair in ends]
    rescales = []
    for _ in range(data.draw(st.integers(1, 5))):
        multiples = [data.draw(st.integers(-1, 1)) for _ in variables]
        exponent = Exponent({}, data.draw(integers))
        for multiple, variable in zip(multiples, variables, strict=True):
            exponent += multiple * variable
        moved = data.draw(st.sampled_from([0.0, 0.5, 2.0]))
        program.rescale([(exponent, moved)], 1.0)
        rescales.append((exponent, 1.0 + moved))

    def total(values: tuple[float, ...]) -> float:
        return sum(c for exponent, c in rescales if exponent.value(values))

    spans = [range(min(pair), max(pair) + 1) for pair in ends]
    found = program.solve(10.0)
    assert found is not None
    assert found.gap == 0.0
    own = tuple(round(found.values[next(iter(v.terms))]) for v in variables)
    # Marks and rescales are variables, too; those that were declared first are the exponents.
    assert total(own) == pytest.approx(min(map(total, itertools.product(*spans))))


def test_a_program_without_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Tiny(30.0), torch.randn(8, 4)
    monkeypatch.setattr(planner, "NODES", 1)
    module = unitify.transform(model, x)
    assert module.plan.gap is None
    assert module.verification.exact
    assert [d.code for d in module.diagnostics] == ["U303"]
    assert "nearest" in str(module.diagnostics[0])


def test_gradients_are_not_brought_nearer_to_subnormal_numbers() -> None:
    """On a wide carrier a small value would be made larger, and its gradient smaller."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), torch.randn(16, 8)
    with torch.no_grad():
        model[0].weight.mul_(2.0**-18)
        model[0].bias.zero_()
    found = {}
    for power in (0, -118):
        module = unitify.transform(model, x, loss_fn=lambda y, p=power: y.sum() * 2.0**p)
        assert module.verification.exact
        found[power] = min(scale.exponents[0] for scale in module.plan.values.values())
    assert found[0] < 0
    assert found[-118] == 0
