"""What a call does beside returning is reproduced, left to Python, or told of; never lost."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from truth import assert_true_to, call, differences

import unitify

#: The changes make a difference to a graph that holds values near unit RMS.
pytestmark = pytest.mark.usefixtures("near_unit")


class Linear(nn.Module):
    """A linear layer that its subclasses do something beside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 8)


def transformed(model: nn.Module, *args: Any) -> unitify.UnitScaledModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        return unitify.transform(model, args)


def x(rows: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 8, generator=generator)


# -- tensors that a call keeps -----------------------------------------------------------------


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


# -- what the first call makes -------------------------------------------------------------------


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


class StartsFromItsFirstBatch(Linear):
    mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.detach().mean(0)
        return self.inner(x - self.mean)


class DrawsItsTable(Linear):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "noise"):
            self.noise = torch.randn(8)
        return self.inner(x + self.noise)


# -- state that no graph keeps -------------------------------------------------------------------


class Counts(Linear):
    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.inner(x) / max(0.1, 1.0 - 0.1 * self.seen)


class CountsInAList(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.counts = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.counts[0] += 1
        return self.inner(x) * self.counts[0]


class Appends(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.history.append(len(self.history))
        return self.inner(x) + len(self.history)


CALLS = 0


class CountsGlobally(Linear):
    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        return self.inner(x) * (1 + CALLS % 3)


class CountsByClass(Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return self.inner(x) * (1 + self.calls % 3)


class CountsInADefault(Linear):
    def forward(self, x: Tensor, counts: Any = None, _held: dict[str, int] = {}) -> Tensor:  # noqa: B006
        _held["calls"] = _held.get("calls", 0) + 1
        return self.inner(x) * (1 + _held["calls"] % 3)


class TakesOver(Linear):
    state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        held = torch.zeros(8) if self.state is None else self.state
        self.state = (held + x.detach().mean(0)) / 2
        return self.inner(x) + self.state


class DropsALayer(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.5 else self.inner(x)


class DrawsFromNumPy(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * float(numpy.random.rand())


class DrawsFromItsOwn(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.rand(8, generator=self.generator)


class ClampsItsWeight(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.inner.weight.data.clamp_(-0.1, 0.1)
        return self.inner(x)


class Inside(nn.Module):
    """Something of the kind within a larger model, whose other parts are transformed."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.before, self.part, self.after = nn.Linear(8, 8), part, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.part(torch.tanh(self.before(x))))


STATEFUL = [
    StartsFromItsFirstBatch, DrawsItsTable, Counts, CountsInAList, Appends, CountsGlobally,
    CountsByClass, CountsInADefault, TakesOver, DropsALayer, DrawsFromNumPy, DrawsFromItsOwn,
    ClampsItsWeight,
]  # fmt: skip
#: Kept by the class or a function, not by the model: both that are compared use the same.
SHARED = (CountsGlobally, CountsByClass, CountsInADefault)


@pytest.mark.parametrize("kind", STATEFUL)
def test_state_stays_python(kind: type[Linear]) -> None:
    global CALLS
    model = Inside(kind())
    state = torch.get_rng_state(), random.getstate()
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (x(),))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert {"before", "after"} <= set(module.parts)
    assert "part" not in module.parts
    assert module.verification is not None
    assert module.verification.exact
    if kind in SHARED:
        for step in range(3):
            mine = call(model, (x(),), step)
            CALLS, CountsByClass.calls = CALLS - 1, CountsByClass.calls - 1
            CountsInADefault.forward.__defaults__[1]["calls"] = step
            theirs = call(module, (x(),), step)
            CountsInADefault.forward.__defaults__[1]["calls"] = step + 1
            if kind is not CountsInADefault:
                assert torch.equal(mine["output 0"], theirs["output 0"])
    else:
        assert_true_to(model, module, [(x(),), (x(),), (x(7),)])


def test_who_reads_what_another_changes_stays_python() -> None:
    class Writes(Linear):
        def __init__(self, box: dict[str, int]) -> None:
            super().__init__()
            self.box = box

        def forward(self, x: Tensor) -> Tensor:
            self.box["calls"] += 1
            return self.inner(x)

    class Reads(Linear):
        def __init__(self, box: dict[str, int]) -> None:
            super().__init__()
            self.box = box

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.box["calls"]

    box = {"calls": 0}
    model = nn.Sequential(Writes(box), Reads(box), nn.Linear(8, 8))
    module = transformed(model, x())
    assert set(module.parts) == {"0.inner", "1.inner", "2"}
    assert_true_to(model, module, [(x(),), (x(7),)])


def test_a_model_of_nothing_else_is_refused() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.randn(8, 8)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return F.linear(x, self.weight) / self.calls

    with pytest.raises(unitify.UnitifyError, match=r"U102 .*changes calls") as raised:
        unitify.transform(Alone(), (x(),))
    assert raised.value.code == "U102"


def _into_a_list(seen: Any) -> Callable[..., None]:
    return lambda _module, _args, output: seen.append(output.detach())


def _into_a_dict(seen: Any) -> Callable[..., None]:
    return lambda _module, _args, output: seen.update(last=output.detach())


@pytest.mark.parametrize(("hook", "seen"), [(_into_a_list, []), (_into_a_dict, {})])
@pytest.mark.parametrize("path", ["", "0", "2"])
def test_a_hook_that_logs_leaves_the_layers_to_graphs(path: str, hook: Any, seen: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model.get_submodule(path).register_forward_hook(hook(seen))
    module = transformed(model, x())
    assert set(module.parts) == ({"0", "2"} if path else {""})
    assert_true_to(model, module, [(x(),), (x(7),)])


# -- inputs --------------------------------------------------------------------------------------


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


# -- settings --------------------------------------------------------------------------------------


class Settings(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.temperature, self.drop = 1.0, nn.Dropout(0.5)
        self.options = {"shift": 0.0}
        self.config = SimpleNamespace(gain=1.0)
        self.widths = [1.0, 2.0]
        self.act: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.drop(self.inner(x)) / self.temperature) + self.options["shift"]
        return y * self.config.gain * self.widths[1]


def _set(name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model, name, value)


CHANGES: dict[str, Callable[[Any], None]] = {
    "number": _set("temperature", 0.25),
    "dropout": lambda m: [_set("p", 0.0)(k) for k in m.modules() if isinstance(k, nn.Dropout)],
    "dict": lambda m: m.options.update(shift=2.0),
    "object": lambda m: setattr(m.config, "gain", 3.0),
    "list": lambda m: m.widths.__setitem__(1, 5.0),
    "function": _set("act", torch.sigmoid),
    "submodule": lambda m: setattr(m.get_submodule(""), "drop", nn.Identity()),
    "hook": lambda m: m.get_submodule("inner").register_forward_hook(lambda *a: a[2] * 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_takes_effect(name: str) -> None:
    model = Settings()
    module = unitify.transform(model, (x(),))
    assert not differences(model, module, (x(),))
    for one in (model, module):
        CHANGES[name](one)
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, module, (x(),))


def test_a_changed_setting_of_a_module_for_inference_is_refused() -> None:
    options: Any = {"recipe": "fp8,multiple=1", "placement": "everywhere"}
    module = unitify.transform(Settings(), (x(),), **options).to_inference()
    module(x())
    module.get_submodule("drop").p = 0.1
    with pytest.raises(unitify.UnitifyError, match=r"U115 drop\.p"):
        module(x())


def test_what_the_code_does_not_read_may_be_set() -> None:
    module = unitify.transform(Settings(), (x(),))
    module.tag = "mine"
    module.get_submodule("inner").in_features = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x())


def test_a_copy_has_settings_of_its_own() -> None:
    import copy

    model = Settings()
    module = unitify.transform(model, (x(),))
    other = copy.deepcopy(module)
    other.temperature = 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not differences(model, module, (x(),))
    model.temperature = 0.25
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, other, (x(),))


# -- a capture that fails ------------------------------------------------------------------------


class Fails(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.table = x * 2
        self.calls = {"n": x.mean()}
        if x.sum() > 1e9:
            raise ValueError
        return F.linear(x, torch.ones(8, 8))


def test_the_model_is_as_it_was_when_capture_fails() -> None:
    model = Fails()
    before = dict(vars(model))
    with pytest.raises(unitify.UnitifyError):
        unitify.transform(model, (x(),))
    assert vars(model) == before
    assert isinstance(model(x()), Tensor)
