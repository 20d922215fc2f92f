"""A model is recorded as it runs by itself, in bounded time, and torch is left as it was."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturing import Forward, assert_same_call
from conversion import same
from torch import Tensor, nn
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import unitify
from unitify.capture.whole import capture


def asks_a_flag(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x) * (2.0 if torch.compiler.is_compiling() else 3.0)


def asks_the_other_flag(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x) if torch.compiler.is_exporting() else m.other(x)


def asks_for_the_class(m: Forward, x: Tensor) -> Tensor:
    is_fake = isinstance(x, torch._subclasses.FakeTensor)
    return m.linear(x) if is_fake else m.other(x)


def counts_positions(m: Forward, x: Tensor) -> Tensor:
    """A branch on data that follows from sizes, as code for packed sequences has it."""
    positions = torch.arange(x.shape[0])[None]
    jumps = (torch.diff(positions, prepend=positions[:, :1] - 1) != 1).cumsum(-1)
    return m.linear(x) if (jumps[:, -1] == 0).all() else m.other(x)


def counts_with_a_number(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x) * torch.ones(x.shape[1]).mean().item()


WAYS = [
    asks_a_flag,
    asks_the_other_flag,
    asks_for_the_class,
    counts_positions,
    counts_with_a_number,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_it_is_recorded_as_it_runs(way: Callable[[Forward, Tensor], Tensor]) -> None:
    model = Forward(way)
    module = unitify.transform(model, (torch.randn(4, 8),))
    assert module.diagnostics == ()
    assert module.verification is not None
    for batch in (1, 3, 9):
        assert_same_call(model, module, torch.randn(batch, 8))


def test_a_branch_on_data_is_recorded_as_it_is_compiled() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        y = m.linear(x)
        if not torch.compiler.is_compiling() and (x > 0.0).all():
            return y * 0.1 * 0.7
        return y * (0.1 * 0.7)

    module = unitify.transform(Forward(forward), (torch.randn(4, 8).abs(),))
    assert [d.code for d in module.diagnostics] == ["U113", "U504"]
    assert module.verification is not None


def writes_a_column(flags: Tensor, is_far: Tensor) -> None:
    flags[:, 0] = is_far


def writes_a_view(flags: Tensor, is_far: Tensor) -> None:
    flags.view(-1)[::2].copy_(is_far)


def writes_a_list(flags: Tensor, is_far: Tensor) -> None:
    torch._foreach_copy_([flags[:, 0]], [is_far])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("write", [writes_a_column, writes_a_view, writes_a_list])
def test_what_is_written_through_a_view_does_not_follow_from_sizes(
    write: Callable[[Tensor, Tensor], None], device: str
) -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        flags = torch.zeros(x.shape[0], 2, dtype=torch.bool, device=x.device)
        write(flags, torch.arange(x.shape[0], device=x.device) >= 6)
        return m.linear(x) if flags.any() else m.other(x)

    model = Forward(forward).to(device)
    if device == "meta":
        with pytest.raises(unitify.UnitifyError, match="U102"):
            unitify.transform(model, (torch.empty(4, 8, device=device),))
        return
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (torch.randn(4, 8),))
    for batch in (3, 4, 7, 9):
        assert_same_call(model, module, torch.randn(batch, 8))


class Keyed(nn.Module):
    """Chooses a layer by a text of the input's sizes, in one mode or in both."""

    def __init__(self, text: Callable[[Tensor], str], is_chosen: Callable[[bool], bool]) -> None:
        super().__init__()
        self.text, self.is_chosen = text, is_chosen
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.keys = {text(torch.empty(n, 8)): i for i, n in enumerate((6, 9))}

    def forward(self, x: Tensor) -> Tensor:
        key = self.text(x) if self.is_chosen(self.training) else ""
        made: Tensor = self.layers[self.keys.get(key, 2)](x)
        return made


TEXTS: list[Callable[[Tensor], str]] = [
    lambda x: f"{x.shape[0]}",
    lambda x: str(tuple(x.shape)),
    lambda x: repr(x.shape),
    lambda x: "by {}".format(x.shape[0] * 2),  # noqa: UP032
    lambda x: "%s" % x.shape[0],  # noqa: UP031
    lambda x: "-".join(map(str, x.shape)),
]
MODES: list[Callable[[bool], bool]] = [
    lambda training: True, lambda training: training, lambda training: not training
]  # fmt: skip


@pytest.mark.parametrize("is_chosen", MODES, ids=["both", "train", "eval"])
@pytest.mark.parametrize("text", TEXTS, ids=["f", "tuple", "repr", "format", "percent", "join"])
def test_code_that_decides_by_a_text_of_sizes(
    text: Callable[[Tensor], str], is_chosen: Callable[[bool], bool]
) -> None:
    model = Keyed(text, is_chosen)
    module = unitify.transform(model, (torch.randn(6, 8),))
    for training in (True, False):
        model.train(training)
        module.train(training)
        for batch in (6, 9, 5, 2):
            assert_same_call(model, module, torch.randn(batch, 8))


def test_what_follows_from_sizes_is_known_without_data() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        is_long = (torch.arange(x.shape[0], device=x.device) > 500).any()
        return m.other(x) if is_long else m.linear(x)

    module = unitify.transform(Forward(forward).to("meta"), (torch.empty(4, 8, device="meta"),))
    assert module.diagnostics == ()
    assert module(torch.empty(6, 8, device="meta")).is_meta


def test_what_follows_from_sizes_is_looked_at_again_at_every_size() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        is_long = (torch.arange(x.shape[0]) > 500).any()
        return m.other(x) if is_long else m.linear(x)

    model = Forward(forward)
    module = unitify.transform(model, (torch.randn(4, 8),))
    assert_same_call(model, module, torch.randn(501, 8))
    for _ in range(2):
        with pytest.raises(unitify.UnitifyError, match="U111"):
            module.capture.flat_inputs((torch.randn(502, 8),), {})
    assert_same_call(model, module, torch.randn(502, 8))
    assert_same_call(model, module, torch.randn(7, 8))
    # A recording that were to take the other way could not tell a compiler where that ends.
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        both = unitify.transform(model, (torch.randn(4, 8),), batches=[(torch.randn(600, 8),)])
    for batch in (501, 502, 900):
        assert_same_call(model, both, torch.randn(batch, 8))


def test_random_and_given_data_is_not_taken_for_known() -> None:
    for forward in (
        lambda m, x: m.linear(x) if torch.rand(x.shape[0]).sum() > -1.0 else x,
        lambda m, x: m.linear(x) if (x + torch.arange(8.0)).sum() > -1e9 else x,
    ):
        with pytest.raises(unitify.UnitifyError, match="U101"):
            capture(Forward(forward), (torch.randn(4, 8),), {})


def state_of_torch() -> tuple[Any, ...]:
    return (
        torch.compiler.is_compiling,
        torch.compiler.is_exporting,
        torch.compiler.is_compiling(),
        torch.compiler.is_exporting(),
        torch._subclasses.__class__,
        torch._subclasses.FakeTensor,
        ShapeEnv.evaluate_expr,
        SymNode._eq,
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
        torch.is_grad_enabled(),
    )


class Slow(nn.Module):
    """Recording takes an hour of ``clock`` while size number ``dimension`` is free."""

    def __init__(self, dimension: int, clock: list[float]) -> None:
        super().__init__()
        self.linear, self.dimension = nn.Linear(8, 8), dimension
        # A clock is no state of the model: nothing is found through a method of C code.
        self.pass_an_hour = functools.partial(clock.append, 3600.0)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[self.dimension]
        if isinstance(size, torch.SymInt):
            self.pass_an_hour()
        return self.linear(x) * (2 if size * 2 > 3 else 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed, step by step; it stands still by itself."""
    seconds = [0.0]
    monkeypatch.setattr("unitify.capture.decisions.time.monotonic", lambda: sum(seconds))
    return seconds


@pytest.mark.parametrize(("dimension", "free"), [(2, 2), (1, 1), (0, 0)])
def test_a_recording_that_takes_long_has_fewer_free_sizes(
    dimension: int, free: int, clock: list[float]
) -> None:
    before = state_of_torch()
    model, x = Slow(dimension, clock), torch.randn(3, 4, 5, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U112"):
        module = unitify.transform(model, (x,), recording_seconds=600.0)
    assert state_of_torch() == before
    assert [d.code for d in module.diagnostics] == ["U112"]
    (leaf,) = module.capture.call.leaves
    assert leaf.shape is not None
    assert [isinstance(size, str) for size in leaf.shape] == [i < free for i in range(4)]
    assert_same_call(model, module, x)
    if free:
        assert_same_call(model, module, torch.randn(7, 4, 5, 8))


def test_the_same_sizes_are_not_freed_twice(clock: list[float]) -> None:
    """Of two dimensions the first two are all."""
    model, x = Slow(1, clock), torch.randn(3, 8)
    with pytest.warns(unitify.UnitifyWarning, match="batch sizes stay free"):
        module = unitify.transform(model, (x,), recording_seconds=600.0)
    assert len(clock) == 2
    assert_same_call(model, module, torch.randn(7, 8))


def test_without_a_limit_it_takes_as_long_as_it_takes(clock: list[float]) -> None:
    x = torch.randn(3, 4, 5, 8)
    module = unitify.transform(Slow(2, clock), (x,), recording_seconds=None)
    assert module.diagnostics == ()
    assert_same_call(module.original, module, torch.randn(2, 3, 6, 8))


def test_a_failed_recording_leaves_torch_as_it_was() -> None:
    before = state_of_torch()

    def forward(m: Forward, x: Tensor) -> Tensor:
        raise ValueError("not today")

    with pytest.raises(unitify.UnitifyError):
        unitify.transform(Forward(forward), (torch.randn(4, 8),))
    assert state_of_torch() == before


def test_regions_without_gradients_stay_without() -> None:
    """The flags are hidden from the model alone: torch itself needs them to record these."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = m.other(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = m.linear(x)
        return y.float() + shift

    model, x = Forward(forward), torch.randn(4, 8)
    module = unitify.transform(model, (x,))
    assert module.verification is not None
    assert same(model(x), module(x))
