"""A recording holds for the sizes that its guards allow: the model there, a code elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capturing import Forward, assert_same_call
from conversion import same
from torch import Tensor, nn

import unitify
from unitify.capture.islands import path_of, record
from unitify.capture.whole import capture
from unitify.module.assembly import AssembledModule


def on_a_size(m: Forward, x: Tensor) -> Tensor:
    return m.other(x) if x.shape[1] > 16 else m.linear(x)


def padded(m: Forward, x: Tensor) -> Tensor:
    rest = x.shape[1] % 4
    if rest:
        x = F.pad(x, (0, 0, 0, 4 - rest))
    return m.linear(x).unflatten(1, (-1, 4)).sum(2)


class Table(nn.Module):
    """Positions from a table, computed anew where a sequence is longer than it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("table", self.rows(8), persistent=False)

    def rows(self, count: int) -> Tensor:
        return torch.sin(torch.arange(float(count))[:, None] * torch.arange(1.0, 9.0))

    def forward(self, x: Tensor) -> Tensor:
        table = self.table if x.shape[1] <= 8 else self.rows(x.shape[1])
        return self.linear(x + table[: x.shape[1]])


def by_kernel(m: Forward, x: Tensor) -> Tensor:
    """Many small products, or one large one."""
    if x.shape[0] * x.shape[1] <= 64:
        return torch.stack([m.linear(row) for row in x.unbind(2)], 2).sum(2)
    return m.linear(x.transpose(1, 2)).sum(2)


def many(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x) if x.numel() > 200 else m.other(x).tanh()


def by_fours(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x) if x.shape[1] % 4 == 0 else m.other(x)


def at_most(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x[:, : min(x.shape[1], 16)])


def with_one(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x) * 2 if x.shape[0] == 1 else m.linear(x)


def halves(m: Forward, x: Tensor) -> Tensor:
    parts = [m.linear(x[:, i]) for i in range(x.shape[1] // 4)]
    return torch.stack(parts)


def joined(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x.reshape(-1, 4, 8)) if (x.shape[0] * x.shape[1]) % 4 == 0 else m.other(x)


def turned(m: Forward, x: Tensor) -> Tensor:
    return m.linear(x) if x.shape[0] < x.shape[1] else m.other(x.relu())


#: Model; sizes of an example; sizes for which its recording holds; sizes of the other side.
Sizes = tuple[int, ...]
KINDS: dict[str, tuple[Callable[[], nn.Module], Sizes, list[Sizes], list[Sizes]]] = {
    "branch": (lambda: Forward(on_a_size), (4, 8, 8), [(3, 12, 8), (1, 16, 8)], [(3, 17, 8)]),
    "other side": (lambda: Forward(on_a_size), (4, 20, 8), [(3, 17, 8)], [(2, 16, 8), (1, 8, 8)]),
    "padding": (lambda: Forward(padded), (2, 8, 8), [(3, 12, 8), (1, 4, 8)], [(3, 10, 8)]),
    "table": (Table, (4, 8, 8), [(3, 6, 8), (1, 3, 8)], [(3, 20, 8)]),
    "numel": (lambda: Forward(many), (4, 8, 8), [(8, 4, 8)], [(2, 4, 8), (1, 3, 8)]),
    "remainder": (lambda: Forward(by_fours), (2, 8, 8), [(5, 16, 8)], [(2, 9, 8), (2, 3, 8)]),
    "minimum": (lambda: Forward(at_most), (2, 8, 8), [(3, 30, 8), (3, 16, 8), (2, 5, 8)], []),
    "batch of one": (lambda: Forward(with_one), (4, 8), [(2, 8), (7, 8)], [(1, 8)]),
    "range": (lambda: Forward(halves), (2, 9, 8), [(3, 8, 8), (1, 11, 8)], [(2, 12, 8)]),
    "products": (lambda: Forward(joined), (2, 6, 8), [(4, 3, 8), (1, 8, 8)], [(3, 3, 8)]),
    "order": (lambda: Forward(turned), (2, 6, 8), [(3, 4, 8), (1, 2, 8)], [(6, 3, 8), (4, 4, 8)]),
}


def recorded(model: nn.Module, sizes: Sizes, **options: Any) -> unitify.UnitScaledModule:
    torch.manual_seed(0)
    return unitify.transform(model, (torch.randn(*sizes),), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_inside_the_guards_it_is_the_model_and_outside_it_says_so(kind: str) -> None:
    build, example, inside, outside = KINDS[kind]
    model = build()
    module = recorded(model, example)
    for sizes in (example, *inside):
        assert_same_call(model, module, torch.randn(*sizes))
    for sizes in outside:
        # The model's own code takes the call, and the graph says why it does not.
        assert_same_call(model, module, torch.randn(*sizes))
        with pytest.raises(unitify.UnitifyError) as caught:
            module.capture.flat_inputs((torch.randn(*sizes),), {})
        assert caught.value.code == "U111"
        assert "x.shape[" in str(caught.value)
        assert str(tuple(sizes)) in str(caught.value)
        assert __file__ in str(caught.value)


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k][3]])
def test_a_batch_of_the_other_side_is_recorded_too(kind: str) -> None:
    build, example, inside, outside = KINDS[kind]
    model = build()
    module = recorded(model, example, batches=[(torch.randn(*sizes),) for sizes in outside])
    assert isinstance(module, AssembledModule)
    assert {path_of(name) for name in module.parts} == {""}
    for sizes in (example, *inside, *outside):
        assert_same_gradients(model, module, torch.randn(*sizes))


def assert_same_gradients(model: nn.Module, module: unitify.UnitScaledModule, x: Tensor) -> None:
    assert_same_call(model, module, x)
    for owner in (model, module):
        owner.zero_grad()
        owner(x).square().sum().backward()
    found = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        scale = module.plan.parameters[name].bwd
        assert (parameter.grad is None) == (found[name].grad is None)
        if parameter.grad is not None:
            assert same(parameter.grad, found[name].grad * scale), name


class Pairs(nn.Module):
    """What two inputs, a list or a number have to do with each other."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Any, y: Any) -> Tensor:
        return self.function(self, x, y)


def test_two_sizes_that_have_to_be_equal() -> None:
    def forward(m: Pairs, x: Tensor, y: Tensor) -> Tensor:
        return m.linear(x).sum() + (m.other(y) if x.shape[0] == y.shape[0] else y).sum()

    model = Pairs(forward)
    x, y, z = torch.randn(4, 8), torch.randn(4, 8), torch.randn(5, 8)
    module = unitify.transform(model, (x, y))
    assert_same_call(model, module, z, torch.randn(5, 8))
    with pytest.raises(unitify.UnitifyError, match=r"U111.*x.shape\[0\] == y.shape\[0\]"):
        module.capture.flat_inputs((x, z), {})
    assert_same_call(model, module, x, z)
    both = unitify.transform(model, (x, y), batches=[(x, z)])
    for pair in ((x, y), (x, z), (z, z), (z, y)):
        assert_same_call(model, both, *pair)


@pytest.mark.parametrize(("first", "second"), [(2, 3), (torch.ones(1, 8), None)])
def test_numbers_and_lists_choose_a_recording(first: Any, second: Any) -> None:
    """An integer, and the length of a list, belong to the form of a call."""

    def forward(m: Pairs, x: Tensor, y: Any) -> Tensor:
        if isinstance(y, list):
            return m.linear(x) * len(y) + sum(t.sum() for t in y if t is not None)
        return m.linear(x) * y if y > 2 else m.other(x)

    model, x = Pairs(forward), torch.randn(4, 8)
    ways = (first, second) if isinstance(first, int) else ([first], [first, first])
    module = unitify.transform(model, (x, ways[0]))
    with pytest.raises(unitify.UnitifyError, match="U104"):
        module.capture.flat_inputs((x, ways[1]), {})
    assert_same_call(model, module, x, ways[1])
    both = unitify.transform(model, (x, ways[0]), batches=[(x, ways[1])])
    for way in ways:
        assert_same_call(model, both, x, way)
        assert_same_call(model, both, torch.randn(7, 8), way)


def test_an_island_has_a_recording_for_each_way_that_it_is_called() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = Forward(on_a_size)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inside(x)
            return y.relu() if y.sum() > 0 else y

    model = Looks()
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = recorded(model, (4, 8, 8), batches=[(torch.randn(4, 20, 8),)])
    assert list(module.parts) == ["inside", "inside@2"]
    for length in (12, 16, 17, 30):
        assert_same_gradients(model, module, torch.randn(3, length, 8))


def test_parameters_of_all_recordings_have_one_scale() -> None:
    module = recorded(
        Forward(on_a_size), (4, 8, 8), scales="measured", batches=[(torch.randn(4, 20, 8) * 100,)]
    )
    parts = list(module.parts.values())
    assert len(parts) == 2
    assert parts[0].plan.parameters == parts[1].plan.parameters


def test_a_further_batch_inside_the_guards_makes_no_further_recording() -> None:
    module = recorded(Forward(on_a_size), (4, 8, 8), batches=[(torch.randn(2, 16, 8),)])
    assert list(module.parts) == [""]


def test_bounds_that_the_user_gives() -> None:
    batch = torch.export.Dim("batch", min=3, max=6)
    model = nn.Linear(8, 2)
    module = unitify.transform(model, (torch.randn(4, 8),), dynamic_shapes={"input": {0: batch}})
    assert_same_call(model, module, torch.randn(6, 8))
    for size, guard in ((2, ">= 3"), (7, "<= 6")):
        with pytest.raises(unitify.UnitifyError, match=f"U111.*{guard}"):
            module.capture.flat_inputs((torch.randn(size, 8),), {})
        assert_same_call(model, module, torch.randn(size, 8))


def test_what_only_looks_like_another_way_for_one_element_holds_there() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        shift = torch.arange(8.0)[None]
        return m.linear(x) + (shift.expand(x.shape[0], -1) if x.shape[0] != 1 else shift)

    model = Forward(forward)
    (guards,) = capture(model, (torch.randn(4, 8),), {}).call.guards
    assert guards.small
    assert_same_call(model, recorded(model, (4, 8)), torch.randn(1, 8))


def test_a_decision_that_holds_for_every_size_but_none() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        return m.linear(x) if x.shape[0] > 0 else x.new_ones(3)

    model = Forward(forward)
    module = recorded(model, (4, 8))
    with pytest.raises(unitify.UnitifyError, match="U111"):
        module.capture.flat_inputs((torch.randn(0, 8),), {})
    assert_same_call(model, module, torch.randn(0, 8))


def test_guards_show_in_a_compiled_module() -> None:
    model = Forward(on_a_size)
    module = recorded(model, (4, 8, 8), batches=[(torch.randn(4, 20, 8),)])
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (12, 16, 17, 30):
        assert_same_call(model, compiled, torch.randn(3, length, 8))


def test_guards_show_in_an_exported_module() -> None:
    module = recorded(Forward(on_a_size), (4, 8, 8))
    free = torch.export.Dim.AUTO
    shapes = {"x": {0: free, 1: free}}
    exported = torch.export.export(module, (torch.randn(4, 8, 8),), dynamic_shapes=shapes)
    assert [int(r.upper) for r in exported.range_constraints.values() if r.upper.is_Integer] == [16]


def test_guards_cost_little() -> None:
    """Less than a small linear layer takes."""
    model = Forward(lambda m, x: on_a_size(m, x) if x.numel() > 20 else by_fours(m, x))
    captured = capture(model, (torch.randn(4, 8, 8),), {})
    flat = [torch.randn(4, 8, 8)]
    layer, x = nn.Linear(64, 64), torch.randn(64, 64)

    def seconds(run: Callable[[], Any]) -> float:
        best = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                run()
            best.append(time.perf_counter() - start)
        return min(best)

    (guards,) = captured.call.guards
    assert len(guards.always) >= 2
    assert seconds(lambda: guards.broken(flat)) < seconds(lambda: layer(x))


def test_recordings_are_parts_of_a_recording() -> None:
    x, y = torch.randn(4, 8, 8), torch.randn(4, 20, 8)
    found = record(Forward(on_a_size), (x,), {}, further=[((y,), {})])
    assert list(found.parts) == ["", "@2"]
    assert found.whole is None
    assert [bool(c.call.guards) for c in found.parts.values()] == [True, True]
