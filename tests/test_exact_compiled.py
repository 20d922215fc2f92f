"""Under ``torch.compile``: the compiled module against the compiled captured graph.

With ``aot_eager`` both run the same kernels on every edge, so the results are bitwise the same.
Inductor fuses a rescale into its neighbors and may then vectorize a kernel or choose its order of
summation otherwise, so there a difference is rounding. It is held to what rounding is, measured
with the same compiler: the distance of the compiled original from the original in double
precision. ``examples/inductor_ulps.py`` writes the table for more models.
"""

from __future__ import annotations

import copy

import pytest
import torch
from compiled import distance, results
from conversion import conversion, same
from slow import some_slow
from torch import Tensor, nn

import unitify

AOT_EAGER = [
    "mlp", "residual_cnn", "lstm", "gpt2", "llama", "bert", "mixed_convolutions", "experts",
    "shared_layers", "stochastic_depth", "t5", "vit", "mixtral",
]  # fmt: skip
QUICK = {"mlp", "experts", "stochastic_depth"}
INDUCTOR = ["mlp", "experts"]


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("name", some_slow(AOT_EAGER, lambda n: n not in QUICK))
def test_aot_eager_is_exact(name: str) -> None:
    case = conversion(name)
    expected = results(case.unscaled(), case, "aot_eager")
    found = results(case.module, case, "aot_eager")
    assert expected.keys() == found.keys()
    assert [key for key in expected if not same(expected[key], found[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCTOR)
def test_inductor_differs_by_rounding_at_most(name: str) -> None:
    case = conversion(name)
    expected = results(case.unscaled(), case, "inductor", training=False)
    found = results(case.module, case, "inductor", training=False)
    double = conversion(name, torch.float64)
    true = results(double.unscaled(), double, "eager", training=False)
    assert expected.keys() == found.keys() >= true.keys()
    for key, tensor in true.items():
        rounding = distance(tensor, expected[key])
        assert distance(expected[key], found[key]) <= 2 * rounding, key


def test_the_graph_does_not_break() -> None:
    case = conversion("mlp")
    explained = torch._dynamo.explain(copy.deepcopy(case.module))(*case.args, **case.kwargs)
    assert explained.graph_break_count == 0


def test_islands_compile() -> None:
    """Code that was left alone breaks the graph; the rest is compiled, and the same."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) if y.sum() > 0 else self.b(-y)

    torch.manual_seed(0)
    model, x = Branch(), torch.randn(4, 8)
    module = unitify.transform(model, (x,), scales="measured")
    compiled = torch.compile(module, backend="aot_eager")
    model(x).sum().backward()
    compiled(x).sum().backward()
    assert same(compiled(x), model(x))
    for name, parameter in module.named_parameters():
        true = model.get_parameter(name).grad
        assert true is not None
        assert parameter.grad is not None
        assert same(parameter.grad * module.plan.parameters[name].bwd, true)
