"""Tensors that a call keeps, makes once or puts into its inputs: the module's call does as well."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from python_state import Linear, transformed, x
from torch import Tensor, nn
from truth import assert_true_to

#: The changes make a difference to a graph that holds values near unit RMS.
pytestmark = pytest.mark.usefixtures("near_unit")


class KeepsFeatures(Linear):
    features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.inner(x)
        return self.features.relu()


class KeepsInDict(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["mean"] = x.mean(0)
        return self.inner(x)


class ClearsAndAppends(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.losses.clear()
        y = self.inner(x)
        self.losses.append(y.square().mean())
        return y


class KeepsOnAnObject(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.notes = SimpleNamespace(last=None)

    def forward(self, x: Tensor) -> Tensor:
        self.notes.last = self.inner(x)
        return self.notes.last * 2


class KeepsSeveral(Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.pair = (y.mean(), {"rms": y.square().mean().sqrt()})
        return y


class KeepsASize(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.rows = x.shape[0]
        return self.inner(x)


class ReplacesItsBuffer(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return self.inner(x - self.average)


KEEPS = {
    KeepsFeatures: "features",
    KeepsInDict: "seen",
    ClearsAndAppends: "losses",
    KeepsSeveral: "pair",
    KeepsASize: "rows",
    ReplacesItsBuffer: "average",
}


@pytest.mark.parametrize("kind", KEEPS)
def test_what_a_call_keeps_is_kept(kind: type[Linear]) -> None:
    model = kind()
    module = transformed(model, x())
    assert module.parts[""].capture.call.effects
    assert module.verification is not None
    assert module.verification.exact
    assert_true_to(model, module, [(x(),), (x(7),), (x(3),)], KEEPS[kind])


def test_the_buffer_that_a_call_replaces_is_left_as_it_is() -> None:
    module = transformed(ReplacesItsBuffer(), x())
    before = module.average
    module(x())
    assert module.average is not before
    assert torch.equal(before, torch.zeros(8))


class Resizes(ReplacesItsBuffer):
    def forward(self, x: Tensor) -> Tensor:
        self.average.resize_(len(x)).copy_(x.detach().sum(1))
        return self.inner(x)


class ReplacesByAnotherSize(ReplacesItsBuffer):
    def forward(self, x: Tensor) -> Tensor:
        self.average = x.detach().sum(1)
        return self.inner(x)


@pytest.mark.parametrize("kind", [Resizes, ReplacesByAnotherSize])
def test_a_buffer_that_gets_another_size(kind: type[Linear]) -> None:
    model = kind()
    module = transformed(model, x())
    assert torch.equal(model.average, torch.zeros(8))
    assert_true_to(model, module, [(x(),), (x(7),), (x(3),)], "average")


def test_a_kept_loss_trains_what_it_is_made_of() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(8, 4)
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
            self.balance = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            p = F.softmax(self.gate(x), -1)
            self.balance = 4 * p.mean(0).square().sum()
            return sum(p[..., i : i + 1] * e(x) for i, e in enumerate(self.experts))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.out = Router(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.router(x))

    torch.manual_seed(0)
    model = Net()
    module = transformed(model, x())
    for one in (model, module):
        one.zero_grad()
        loss = one(x(9)).square().mean()
        (loss + 0.1 * sum(m.balance for m in one.modules() if hasattr(m, "balance"))).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(module.get_parameter(name).grad, parameter.grad), name


def test_what_an_object_holds_is_kept() -> None:
    model = KeepsOnAnObject()
    module = transformed(model, x())
    assert_true_to(model, module, [(x(),), (x(7),)])
    assert torch.equal(module.notes.last, model.notes.last)
    assert module.notes is not model.notes


class MakesATable(Linear):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.table = torch.sin(torch.arange(8.0))
        return self.inner(x * self.table)


class MakesABuffer(Linear):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.cos(torch.arange(8.0)), persistent=False)
        return self.inner(x * self.table)


class FillsACache(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "ramp" not in self.cache:
            self.cache["ramp"] = torch.linspace(0, 1, 8)
        return self.inner(x) * self.cache["ramp"]


class SetsAFlag(Linear):
    ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.offset = torch.ones(8)
            self.ready = True
        return self.inner(x + self.offset)


@pytest.mark.parametrize("kind", [MakesATable, MakesABuffer, FillsACache, SetsAFlag])
@pytest.mark.parametrize("called", [False, True], ids=["new", "called_before"])
def test_what_the_first_call_makes_is_there(kind: type[Linear], called: bool) -> None:
    model = kind()
    if called:
        model(x())
    before = dict(vars(model)), dict(model._buffers)
    module = transformed(model, x())
    assert set(module.parts) == {""}
    # The model has neither what its first call would make, nor a tensor of the recording.
    assert (dict(vars(model)), dict(model._buffers)) == before
    assert_true_to(model, module, [(x(),), (x(7),)])


class AddsToItsInput(Linear):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        batch["features"] = self.inner(batch["x"])
        return batch["features"] * 2


class ReplacesInItsInput(Linear):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        batch["x"] = batch["x"] + 1
        return self.inner(batch["x"])


class WritesIntoAList(Linear):
    def forward(self, batch: list[Tensor]) -> Tensor:
        batch[0] = self.inner(batch[0])
        return batch[0] * 2


class PopsFromItsInput(Linear):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.inner(batch.pop("x"))


@pytest.mark.parametrize(
    "kind", [AddsToItsInput, ReplacesInItsInput, WritesIntoAList, PopsFromItsInput]
)
def test_containers_that_were_passed_in(kind: type[Linear]) -> None:
    def batch(rows: int) -> Any:
        return [x(rows)] if kind is WritesIntoAList else {"x": x(rows)}

    model = kind()
    module = transformed(model, batch(4))
    assert set(module.parts) == ({"inner"} if kind is PopsFromItsInput else {""})
    for rows in (4, 7):
        mine, theirs = batch(rows), batch(rows)
        assert torch.equal(model(mine), module(theirs))
        if isinstance(mine, dict):
            assert mine.keys() == theirs.keys()
        for key in mine if isinstance(mine, dict) else range(len(mine)):
            assert torch.equal(mine[key], theirs[key])


class AsksForAGradient(Linear):
    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_()
        return self.inner(x)


class SetsTheFlag(Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad = True
        energy = self.inner(x).tanh().sum()
        return energy, torch.autograd.grad(energy, x, create_graph=True)[0]


@pytest.mark.parametrize("kind", [AsksForAGradient, SetsTheFlag])
def test_an_input_whose_gradient_the_call_asks_for(kind: type[Linear]) -> None:
    model = kind()
    given = x(), x()
    for each, tensor in zip((model, transformed(kind(), x())), given, strict=True):
        output = each(tensor)
        (output if isinstance(output, Tensor) else output[1]).square().sum().backward()
    gradients = [tensor.grad for tensor in given]
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


class Marks(Linear):
    def forward(self, x: Tensor) -> Tensor:
        x.seen = True
        y = self.inner(x)
        y.penalty = y.square().mean()
        return y


def test_attributes_that_a_call_sets_on_tensors() -> None:
    model, given = Marks(), x()
    module = transformed(Marks(), x())
    output = module(given)
    assert given.seen
    assert torch.equal(output.penalty, model(x()).penalty)
