"""What rows say of ranges and of sums of gradients: ``domain``, ``corners`` and ``balanced``."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor, nn

from examples.estimates import without_rounding
from unitify.analysis.balanced import balance_by_rule
from unitify.analysis.formulas import formula_gradient
from unitify.analysis.moments import gaussian
from unitify.analysis.quadrature import distribution, quadrature
from unitify.analysis.ranges import EVERYTHING, range_of
from unitify.analysis.sampled import draw
from unitify.estimates import Rms
from unitify.rule_trials import calls
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import load_rules
from unitify.transforming import estimate

RULES = load_rules()
SEEDS, LIMIT = 32, 4.0
#: The mass that integrals leave out at a bound.
RARE = 1e-4
DOMAINS = [(n, operand) for n, rule in RULES.items() for operand in rule.domain]
CORNERS = [n for n, rule in RULES.items() if rule.corners]
COMMON = [(n, operand) for n, rule in RULES.items() for operand in rule.common]
BALANCED = [
    (n, operand, i)
    for n, rule in RULES.items()
    for operand in rule.balanced
    for i in range(1 + len(rule.variants))
]


def call_of(operation: str, sample: int = 0) -> calls.Trial:
    rule = RULES[operation]
    arguments = [rule.sample, *rule.variants][sample]
    return calls.call(rule, calls.drawn(rule, arguments, 0, torch.float64))


@pytest.mark.parametrize(("operation", "operand"), DOMAINS)
@pytest.mark.parametrize("beyond", [False, True])
def test_domains(operation: str, operand: str, beyond: bool) -> None:
    """Draws are inside and can be differentiated; an element beyond is refused, or no number."""
    node, domain = Operation(call_of(operation).node, {}), RULES[operation].domain
    low, high = domain[operand]
    wide = gaussian(low + 0.4, math.hypot(0.3, low + 0.4), 2)
    operands = {n: wide.within(*domain[n]) if n in domain else wide for n in node.operands}
    drawn = draw(node, operands, torch.Generator().manual_seed(0))
    assert low <= float(drawn[operand].min()) < float(drawn[operand].max()) <= high
    if beyond:
        drawn[operand][0, 0] = low - 0.5
    leaf = next(t for n, t in drawn.items() if n != operand or not beyond).requires_grad_(True)
    try:
        result = node(drawn)
        result.sum().backward()
    except RuntimeError:
        assert beyond
    else:
        assert leaf.grad is not None
        assert bool(result.isfinite().all() & leaf.grad.isfinite().all()) != beyond


@pytest.mark.parametrize("operation", CORNERS)
def test_corners(operation: str) -> None:
    """No result is beyond the range, and the range is no wider than it has to be."""
    rule = RULES[operation]
    node = Operation(call_of(operation).node, {})
    generator = torch.Generator().manual_seed(1)
    for trial in range(16):
        bounds = torch.randn(len(rule.corners), 2, generator=generator, dtype=torch.float64)
        bounds = bounds.sort(-1).values + (3.0 if trial % 2 else 0.0)
        pairs = {n: (float(b[0]), float(b[1])) for n, b in zip(rule.corners, bounds, strict=True)}
        pairs |= {n: (p[1], p[1]) for n, p in pairs.items() if n not in node.operands}
        ranged = {n: gaussian(sum(p) / 2, 9.0).within(*p) for n, p in pairs.items()}
        found = range_of(node, rule, ranged)
        divisor = pairs.get("other") if "div" in operation else None
        if divisor is not None and divisor[0] <= 0 <= divisor[1]:
            assert found == EVERYTHING
            continue
        share = torch.rand(len(pairs), 4096, generator=generator, dtype=torch.float64)
        share[:, :1024] = share[:, :1024].round()
        values: dict[str, Any] = {
            n: lo + (hi - lo) * s for (n, (lo, hi)), s in zip(pairs.items(), share, strict=True)
        }
        values |= {n: p[0] for n, p in pairs.items() if n not in node.operands}
        result = node(values)
        assert found[0] <= float(result.min()) + 1e-9
        assert found[1] >= float(result.max()) - 1e-9
        assert found == pytest.approx((float(result.min()), float(result.max())), abs=1e-9)


@pytest.mark.parametrize(("operation", "operand", "sample"), BALANCED)
def test_balances(operation: str, operand: str, sample: int) -> None:
    """The gradient sums to zero where the row says so, and not where its flag is off."""
    made = call_of(operation, sample)
    said = balance_by_rule(Operation(made.node, {}), RULES[operation], operand)
    tensors = {n: t.detach().requires_grad_(t.requires_grad) for n, t in made.floating.items()}
    leaf = tensors[f"{operand}_operand"].requires_grad_(True)
    (result,) = calls.run(made.capture.graph, {**made.tensors, **tensors}, 0)
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(result.shape, generator=generator, dtype=result.dtype)
    (gradient,) = torch.autograd.grad(result, leaf, upstream)
    size = float(gradient.abs().sum())
    if said is None:
        assert " if " in str(RULES[operation].balanced[operand])
        assert float(gradient.sum().abs()) > 1e-6 * size
    else:
        assert float(gradient.sum(sorted(said)).abs().max()) < 1e-12 * size


@pytest.mark.parametrize(("operation", "operand"), COMMON)
def test_what_gradients_have_in_common(operation: str, operand: str) -> None:
    """The mean square of their mean along the dimensions that the row names, by z-score."""
    rule = RULES[operation]
    squares: list[float] = []
    for seed in range(SEEDS):
        made = calls.call(rule, calls.drawn(rule, rule.sample, seed, torch.float64))
        (result,) = calls.run(made.capture.graph, made.tensors, 0)
        generator = torch.Generator().manual_seed(seed)
        upstream = torch.randn(result.shape, generator=generator, dtype=result.dtype)
        leaf = made.tensors[f"{operand}_operand"]
        (gradient,) = torch.autograd.grad(result, leaf, upstream)
        squares.append(float(gradient.mean(rule.common[operand].along).square().mean()))
    node = Operation(made.node, {})
    operands = {n: gaussian(0.0, 1.0, len(node.shape(n))) for n in node.operands}
    grad = gaussian(0.0, 1.0, result.dim())
    mean = formula_gradient(node, rule, operands, operand, grad).mean
    assert all(mean.shape[d] == 1 for d in rule.common[operand].along)
    predicted, error = float(mean.square().mean()), statistics.stdev(squares) / math.sqrt(SEEDS)
    assert abs(statistics.mean(squares) - predicted) < LIMIT * error
    for wrong in (0.9 * predicted, 1.1 * predicted):
        assert abs(statistics.mean(squares) - wrong) > LIMIT * error


@pytest.mark.parametrize("scales", ["analysis", "measured"])
def test_what_a_mean_hands_back_is_the_same_everywhere(scales: str) -> None:
    """The gradient of a bias sums copies: its mean square is that of eight unit gradients.

    Were the pixels independent, it would be 1/256 of that.
    """
    torch.manual_seed(0)
    channels, images = 1024, 8
    layers = nn.Conv2d(3, channels, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net, x = nn.Sequential(*layers), torch.randn(images, 3, 16, 16)
    found = estimate(net, (x,), scales=scales)["p_0_bias"].backward
    # Both are of one draw of the gradient, an element a channel.
    assert abs(found**2 / images - 1) < LIMIT * math.sqrt(2 / channels)


class Attention(nn.Module):
    """One head, with biases; positions of keys turn them where ``turns``."""

    def __init__(self, turns: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.turn = torch.randn(6, 8) if turns else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)) for f in (self.query, self.key, self.value))
        k = k if self.turn is None else k * self.turn.unflatten(-1, (2, 4))
        found = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return found.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("turns", [False, True])
def test_a_bias_that_a_softmax_does_not_see(turns: bool) -> None:
    """Keys that move together change nothing, unless positions turn them differently."""
    torch.manual_seed(0)
    found = estimate(Attention(turns), (torch.randn(3, 6, 8),), scales="analysis")
    assert (found["p_key_bias"].backward == 0) != turns
    for name in ("p_value_bias", "p_query_bias", "p_key_weight"):
        assert (found[name].backward or 0) > 0


@pytest.mark.parametrize("training", [True, False])
def test_a_bias_that_a_norm_takes_out(training: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
    found: Any = estimate(net.train(training), (torch.randn(4, 3, 6, 6),), scales="analysis")
    assert (found["p_0_bias"].backward == 0) == training
    assert found["p_2_bias"].backward > 0


def test_the_square_of_a_normal_number_is_one_exactly() -> None:
    """log x² has the moments of a chi-square's logarithm, without its rarest 1e-4."""
    square, _ = quadrature(torch.square, gaussian(0.0, 1.0))
    value, _ = quadrature(torch.log, square)
    least = stats.chi2(1).ppf(RARE)
    mean, mean_square = (
        stats.chi2(1).expect(lambda y, k=k: math.log(y) ** k, lb=least, conditional=True)
        for k in (1, 2)
    )
    assert float(value.mean) == pytest.approx(mean, rel=1e-6)
    assert float(value.square) == pytest.approx(mean_square, rel=1e-6)


@pytest.mark.parametrize("spread", [1.0, 2.0, 3.0])
def test_a_probability_stays_one(spread: float) -> None:
    """A sigmoid's result has a beta distribution: a log leaves out no more than its rarest."""
    p, _ = quadrature(torch.sigmoid, gaussian(0.0, spread))
    assert 0 <= p.low < p.high <= 1
    value, _ = quadrature(torch.log, p)
    a, b = (float(m) for m in distribution(p.mean, p.var.sqrt(), p.low, p.high))

    def moment(power: int, rare: float) -> float:
        """∫ log(p)^power over the logit u of the beta's variable, where both ends are smooth."""

        def inside(u: float) -> float:
            log = math.log(p.low + (p.high - p.low) * special.expit(u))
            return log**power * math.exp(a * special.log_expit(u) + b * special.log_expit(-u))

        left = special.logit(stats.beta(a, b).ppf(rare))
        right = -special.logit(stats.beta(b, a).ppf(rare))
        return float(integrate.quad(inside, left, right, limit=200)[0])

    least, most = (math.sqrt(moment(2, rare) / moment(0, rare)) for rare in (RARE, 1e-9))
    assert least < value.rms < most


def test_rounding_is_no_small_gradient() -> None:
    """Only what is predicted to be zero and is far below the rest counts as zero."""
    measured = {n: Rms(1.0, g) for n, g in {"a": 1.0, "b": 2.0, "c": 1e-8, "d": 1e-8}.items()}
    predicted = {"a": Rms(1.0, 1.0), "b": Rms(1.0, 0.0), "c": Rms(1.0, 0.0), "d": Rms(1.0, 1.0)}
    found = without_rounding(measured, predicted)
    assert {n: r.backward for n, r in found.items()} == {"a": 1.0, "b": 2.0, "c": 0.0, "d": 1e-8}
