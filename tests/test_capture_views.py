"""Writes through views: programs drawn at random, and the views that people write through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturing import Forward, assert_same_buffers, assert_same_call, transformed
from conversion import same
from hypothesis import HealthCheck, given, seed, settings
from torch import Tensor
from view_programs import ViewProgram, view_programs

from unitify.diagnostics import AliasedMutation, UnitifyError

#: Why a write may be refused, and how many of all programs may be refused so.
REASONS = {
    "several of its elements are one": 0.1,
    "it reads bits of another type as its own": 0.05,
    "the operation writes into the same memory twice": 0.1,
    "it is found by address in another view": 0.1,
    "the operation reads elements that it has written": 0.1,
    "autograd keeps its memory, and will not notice": 0.1,
    "its sizes were changed in place before": 0.1,
    "it changes the sizes of a tensor that something else shows": 0.15,
    "autograd took it before its memory was written, and does not know of that": 0.1,
}


@pytest.mark.parametrize("half", range(2))
def test_programs_of_views_and_writes(half: int) -> None:
    """Two thousand programs, in halves that two processes run side by side.

    They are the same every time: of a thousand others, a few more may be refused than the limits.
    """
    counts: Counter[str] = Counter()

    @seed(half)
    @settings(
        max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(view_programs())
    def one(program: ViewProgram) -> None:
        counts["drawn"] += 1
        try:
            expected = program.run(program.graph)
        except RuntimeError:
            counts["refused by torch"] += 1
            return
        try:
            graph = program.functional()
        except UnitifyError as error:
            counts[refusal(error)] += 1
            return
        found = program.run(graph)
        assert expected.keys() <= found.keys()
        for name, value in expected.items():
            other = found[name]
            assert (value is None) == (other is None), name
            assert value is None or other is None or same(value, other), name
        counts["same"] += 1

    one()
    assert counts["same"] > 0.7 * counts["drawn"]
    assert counts["refused by torch"] < 0.1 * counts["drawn"]
    for reason, share in REASONS.items():
        assert counts[reason] <= share * counts["drawn"], reason


def refusal(error: UnitifyError) -> str:
    """Why the pass refuses a program, for one of the reasons that there may be."""
    (found,) = error.diagnostics
    assert isinstance(found, AliasedMutation)
    assert found.reason in REASONS
    return found.reason


def parts(m: Forward, x: Tensor) -> Tensor:
    """Without gradients, as autograd lets nobody write into one of several views with them."""
    y = x.clone()
    first, second = y.chunk(2, -1)
    first.mul_(2.0)
    second.add_(first)
    for k, row in enumerate(y.unbind(1)):
        row.add_(k)
    y.split([3, 5], 1)[1].neg_()
    y.tensor_split(2, 1)[1].sub_(1)
    y.hsplit(2)[0].mul_(3)
    return m.linear(x) * y


def unseen_parts(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    first, second = y.unsafe_chunk(2, -1)
    first.mul_(2.0)
    return torch.cat([second * first, y], 1)


def turned(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    y.swapaxes(0, 1)[0].add_(m.other(x)[:, 0])
    y.T[1].mul_(2)
    y.mT[2:4].add_(m.other(x).mT[2:4])
    y.movedim(0, 1)[3].neg_()
    y.unsqueeze(1).permute(2, 1, 0)[4].mul_(0.5)
    return y.unfold(1, 3, 3)[:, 1].mul_(2) + y.sum()


def complex_numbers(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    z = torch.view_as_complex(y.unflatten(-1, (4, 2)))
    z.real.mul_(m.other(x)[:, :4])
    z.imag.add_(1)
    torch.view_as_real(z)[..., 0].tanh_()
    return y


def read_between(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    rows, columns = y[1:3], y[:, 2:5]
    before = rows * 2
    columns.mul_(m.other(x)[:, 2:5])
    between = rows * 3
    rows.add_(before)
    return y + (rows * between).sum() + columns.sum()


def no_views(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    y.t().reshape(-1).mul_(5.0)
    y[x > 0].add_(1.0)
    y[[0, 1]] += 1.0
    y.view_as(x)[0].add_(2.0)
    return y


def detached(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    kept = y.detach()
    kept[0].mul_(2.0)
    scaled = kept + m.other(x)
    y[1].add_(1.0)
    return y * 2 + kept + scaled.sum() * 0.1


def without_gradients(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    with torch.no_grad():
        y.add_(m.other(x))
        y[0].clamp_(-0.5, 0.5)
        m.held.mul_(0.9).add_(m.other.weight.mean(0))
    return y + m.held


def lists(m: Forward, x: Tensor) -> Tensor:
    y, z = m.linear(x), m.other(x)
    torch._foreach_mul_([y, z], 2.0)
    torch._foreach_add_([y, z], [x, x])
    return y + z


def sizes_changed(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x).mul_(2.0)
    y.unsqueeze_(0)
    return (y * 2).squeeze_(0)


@pytest.mark.parametrize(
    "function",
    [
        parts, unseen_parts, turned, complex_numbers, read_between, no_views, detached,
        without_gradients, lists, sizes_changed,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_members(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, x = Forward(function), torch.randn(6, 8)
    model.register_buffer("held", torch.ones(8))
    module = transformed(model, x)
    assert tuple(module.parts) == ("",)
    assert module.verification is not None
    assert module.verification.exact
    for size in (6, 9):
        given = torch.randn(size, 8)
        assert_same_call(model, module, given)
        assert_same_buffers(model, module)
        assert_same_gradients(model, module, given)


def assert_same_gradients(model: Forward, module: Any, x: Tensor) -> None:
    found = []
    for net in (model, module):
        net.zero_grad()
        result = net(x)
        (result * torch.linspace(-1, 2, result.numel()).view_as(result)).sum().backward()
        scales = module.plan.parameters if net is module else {}
        found.append(
            {
                n: p.grad * (scales[n].bwd if n in scales else 1.0)
                for n, p in net.named_parameters()
                if p.grad is not None
            }
        )
    assert found[0].keys() == found[1].keys()
    assert all(same(value, found[1][name]) for name, value in found[0].items())


def test_a_write_inside_a_region_that_stays_whole_is_refused() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        y = m.linear(x)
        with torch.autocast("cpu", torch.bfloat16):
            y[0].add_(1.0)
        return y

    model = Forward(forward)
    module = transformed(model, torch.randn(6, 8))
    assert set(module.parts) == {"linear"}
    assert_same_call(model, module, torch.randn(6, 8))
