"""What operations keep of their inputs, and that the analysis reads it instead of guessing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unitify.analysis.analyze import Analysis, analyze
from unitify.analysis.formulas import formula_statistics
from unitify.analysis.moments import Moment, exactly
from unitify.analysis.sampled import observed
from unitify.capture.whole import capture
from unitify.measure.captured import measure
from unitify.rule_trials import calls
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()
#: What makes a normalization keep the statistics of this very batch.
KEEPING = {"training": True, "momentum": 1.0}


@pytest.mark.parametrize("name", sorted(n for n, r in RULES.items() if r.statistics))
def test_what_a_row_predicts_is_what_the_operation_keeps(name: str) -> None:
    rule = RULES[name]
    kept = next(v for v in rule.variants if all(v.get(n, "None") != "None" for n in rule.initial))
    call = calls.call(rule, calls.drawn(rule, {**kept, **KEEPING}, 0, torch.float64))
    calls.run(call.capture.graph, call.tensors, 0)
    operands = {n: exactly(call.tensors[f"{n}_operand"]) for n in rule.initial}
    for operand in rule.statistics:
        found = formula_statistics(Operation(call.node, {}), rule, operands, operand)
        true = call.tensors[f"{operand}_operand"].detach()
        pooled = [d for d in range(true.dim()) if found.mean.shape[d] == 1]
        # The statistics are those of a sample: of variance n / (n − 1) times this.
        sizes = math.prod(true.shape[d] for d in pooled)
        torch.testing.assert_close(found.mean, true.mean(pooled, keepdim=True))
        var = true.var(pooled, keepdim=True, correction=0) * sizes / (sizes - 1)
        torch.testing.assert_close(found.var, var)


class Trained(nn.Module):
    """Channels that cancel each other in the convolution, unlike independent ones."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8, momentum=1.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.mix(torch.cat([x, -x], 1)))
        return y


def analyzed(is_trained: bool) -> tuple[Analysis, dict[str, float]]:
    """The analysis of ``Trained`` in eval mode, and the true RMS of what its norm takes."""
    torch.manual_seed(0)
    model, x = Trained(), 3 * torch.randn(32, 8, 6, 6) + 1
    with torch.no_grad():
        model.mix.weight[:, 8:] = 0.9 * model.mix.weight[:, :8]
        if is_trained:
            model(x)
    held = capture(model.eval(), (x,), {})
    measured = {n: rms.forward or 0.0 for n, rms in measure(held, None, None).items()}
    return analyze(held, RULES), measured


def test_statistics_of_a_trained_norm_are_estimates_of_its_input() -> None:
    analysis, measured = analyzed(is_trained=True)
    assert analysis.forward["conv2d"].way == "running statistics"
    # The norm keeps n / (n − 1) times the variance of the n numbers of a channel.
    count = 32 * 6 * 6
    for name in ("conv2d", "batch_norm"):
        ratio = analysis.estimates[name].forward / measured[name]
        assert 1 <= ratio <= math.sqrt(count / (count - 1))


def test_statistics_as_initialized_predict_nothing() -> None:
    analysis, measured = analyzed(is_trained=False)
    assert analysis.forward["conv2d"].way == "run"
    assert analysis.estimates["conv2d"].forward > 2 * measured["conv2d"]


def test_a_sampled_operation_keeps_channels_apart() -> None:
    """A maximum has no formula: it is run on samples, of which every channel has enough."""
    torch.manual_seed(0)
    size = torch.logspace(-2, 2, 6).reshape(6, 1, 1, 1)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Conv2d(6, 6, 1, groups=6, bias=False)
            self.mix = nn.Conv2d(6, 6, 1, groups=6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.mix(torch.max_pool2d(self.scale(x), 2))
            return y

    model, x = Pooled(), torch.randn(16, 6, 12, 12)
    with torch.no_grad():
        model.scale.weight.copy_(size)
        model.mix.weight.copy_(1 / size)
    found = analyze(capture(model, (x,), {}), RULES).estimates["conv2d_1"].forward
    # Both are means over as many numbers: one of draws, one of these.
    squares = model(x).detach().double().square()
    error = math.sqrt(2 / squares.numel()) * float(squares.std())
    assert abs(found**2 - float(squares.mean())) < 4 * error


def test_few_samples_are_pooled() -> None:
    values = torch.randn(4, 6, 3, 5)
    assert observed(values, [1]).mean.shape == (1, 6, 1, 1)
    # Fifteen elements of each position along both; along the first of them ninety.
    assert observed(values, [0, 1]).mean.shape == (4, 1, 1, 1)
    assert observed(values[0, 0], []).mean.shape == (1, 1)
    assert isinstance(observed(values[0, 0, 0, 0]), Moment)
