"""A module that is cast, moved, copied or sent away: as the original, or a coded error."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frameworks import Net, batch, net, same, transformed
from islands import CASES
from torch import Tensor, nn

import unitify

CASTS = ["bfloat16", "half", "double"]


class AsksForTypes(nn.Module):
    """What its code makes depends on the type of its weights, and on that of new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("gain", torch.full((8,), 1.7))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        mask = torch.full((x.shape[1], x.shape[1]), torch.finfo(self.linear.weight.dtype).eps)
        x = self.linear(x) * self.gain + torch.ones(8) / 3
        scores = (x @ x.transpose(1, 2)).float() + mask.triu(1) * 2.0**7
        return scores.softmax(-1).to(x.dtype) @ x


def results(owner: nn.Module, x: Tensor, seed: int = 0) -> list[Any]:
    torch.manual_seed(seed)
    owner.zero_grad()
    out = owner(x)
    out.double().square().mean().backward()
    return [
        out, *(p.grad for p in owner.parameters()), dict(owner.named_parameters()),
        {n: b for n, b in owner.named_buffers() if n in ("count", "gain")},
    ]  # fmt: skip


@functools.cache
def pair(factory: Callable[[], nn.Module]) -> tuple[nn.Module, unitify.UnitScaledModule]:
    torch.manual_seed(0)
    model = factory()
    return model, transformed(model)


@pytest.mark.parametrize("factory", [net, AsksForTypes])
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_module_is_the_cast_model(factory: Any, cast: str) -> None:
    model, module = copy.deepcopy(pair(factory))
    first = module.graph
    x = batch(0)[0]
    for owner in (model, module):
        getattr(owner, cast)()
    wide = x.to(next(model.parameters()).dtype)
    with pytest.warns(unitify.UnitifyWarning, match="U116"):
        found = results(module, wide)
    assert same(results(model, wide), found)
    assert module.capture.call.leaves[0].dtype == wide.dtype
    # The optimizer's steps, another batch size, the other mode, and back again, without a word.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizers = [torch.optim.SGD(o.parameters(), 0.01) for o in (model, module)]
        for step in range(3):
            more = batch(step, rows=step + 2)[0].to(wide.dtype)
            assert same(results(model, more), results(module, more))
            for optimizer in optimizers:
                optimizer.step()
        assert same(results(model.eval(), wide), results(module.eval(), wide))
        for owner in (model, module):
            owner.float()
        assert same(results(model, x), results(module, x))
        assert module.graph is first or str(module.graph) == str(first)
        for owner in (model, module):
            getattr(owner, cast)()
        assert same(results(model, wide), results(module, wide))
    assert same(results(model, wide), results(copy.deepcopy(module), wide))


def test_new_tensors_of_another_type() -> None:
    """As under Lightning's "bf16-true": the default type is another one while a model runs."""
    torch.manual_seed(0)
    model: nn.Module = AsksForTypes().bfloat16()
    x = batch(0)[0].bfloat16()
    module = unitify.transform(model, (x,))
    torch.set_default_dtype(torch.bfloat16)
    try:
        expected = results(model, x)
        with pytest.warns(unitify.UnitifyWarning, match="the type of new tensors is bfloat16 now"):
            assert same(expected, results(module, x))
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(results(model, x), results(module, x))


class ReturnsBefore(nn.Module):
    """What it returns is cast after that: in float32 both are one tensor, under autocast two."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.linear(x)
        return out, out.float().square().mean()


def test_autocast_is_followed() -> None:
    torch.manual_seed(0)
    model = ReturnsBefore()
    x = batch(0)[0]
    module = unitify.transform(model, (x,))
    runs: list[Any] = []
    for owner in (model, module, module):
        owner.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out, loss = owner(x)
        loss.backward()
        runs.append([out, loss, *(p.grad for p in owner.parameters())])
        if owner is module:
            assert out.dtype == torch.bfloat16
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    assert same(list(model(x)), list(module(x)))


def test_casts_are_those_of_a_model_in_the_new_type() -> None:
    model = net()
    module = transformed(model, recipe="fp8").bfloat16()
    expected = unitify.transform(
        copy.deepcopy(model).bfloat16(), (batch(0)[0].bfloat16(),), recipe="fp8"
    )
    x = batch(1)[0].bfloat16()
    assert same(results(expected, x), results(module, x))
    assert module.casts == expected.casts
    assert any(choice.is_cast for choice in module.casts)
    assert str(module.graph) == str(expected.graph)
    assert module.plan == expected.plan


def test_stored_weights_run_the_models_own_code() -> None:
    """Another recording would ask for other scales than those at which they are stored."""
    model, module = net().bfloat16(), transformed(net(), weights="stored").bfloat16()
    with pytest.warns(unitify.UnitifyWarning, match=r"U115 the type of into\.weight"):
        out = module(batch(0)[0].bfloat16())
    assert torch.equal(model(batch(0)[0].bfloat16()), out)


@pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
def test_the_model_that_a_scheme_made_is_of_one_type() -> None:
    module = transformed(net(), scheme="unit").bfloat16()
    with pytest.raises(unitify.UnitifyError, match="U104"):
        module(batch(0)[0].bfloat16())


def test_codes_are_of_one_type() -> None:
    module = transformed(net(), recipe="fp8").to_inference().bfloat16()
    with pytest.raises(unitify.UnitifyError, match="U115 the type of"):
        module(batch(0)[0].bfloat16())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
def test_islands(name: str) -> None:
    factory, args = CASES[name][:2]
    torch.manual_seed(0)
    model = factory()
    module = unitify.transform(model, args).double()
    model.double()
    args = [a.double() if a.is_floating_point() else a for a in args]
    runs = []
    for owner in (model, module):
        torch.manual_seed(1)
        runs.append(owner(*args))
    assert same(*runs)


def test_meta() -> None:
    model, module = net().to("meta"), transformed(net()).to("meta")
    x = batch(0)[0].to("meta")
    assert module(x).shape == model(x).shape
    assert module(x).is_meta
    module.to_empty(device="cpu")
    module.load_state_dict(net(3).state_dict())
    assert torch.equal(module(batch(0)[0]), net(3)(batch(0)[0]))


def test_a_copy_knows_what_was_changed() -> None:
    """It was recorded with what the attribute was before, as the module was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    module = unitify.transform(model, (torch.ones(4, 8),), weights="stored")
    assembled = nn.Sequential(model, nn.Identity())
    for owner in (model, module):
        owner.get_submodule("1").p = 0.0
    for made in (module, copy.deepcopy(module), copy.deepcopy(copy.deepcopy(module))):
        with pytest.warns(unitify.UnitifyWarning, match=r"U115 1\.p"):
            assert torch.equal(made(torch.ones(4, 8)), assembled(torch.ones(4, 8)))


def test_pickling_is_refused() -> None:
    """A module cannot be an argument of a process that is spawned; its weights and plan can."""
    module = transformed(net())
    for pickled in (pickle.dumps, ForkingPickler.dumps):
        with pytest.raises(unitify.UnitifyError, match="U610"):
            pickled(module)
    held, chosen = pickle.loads(pickle.dumps((module.state_dict(), module.plan)))
    made = unitify.rebuild(Net(), held, chosen, (batch(0)[0],))
    assert torch.equal(made(batch(1)[0]), module(batch(1)[0]))


def test_under_functional_call_a_type_is_followed_without_recording() -> None:
    model, module = net(), transformed(net())
    held = {name: p.detach().double() for name, p in model.named_parameters()}
    x = batch(0)[0].double()

    def loss(owner: nn.Module, weights: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(owner, weights, (x,))
        return F.mse_loss(out, torch.zeros_like(out))

    expected = torch.func.grad(lambda w: loss(model, w))(held)
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        found = torch.func.grad(lambda w: loss(module, w))(held)
    assert same(expected, found)


@pytest.mark.parametrize("made", [nn.GRU, nn.RNN])
def test_autocast_of_recurrent_layers_is_followed(made: type[nn.RNNBase]) -> None:
    """Such a layer holds weak references to its weights; a copy holds some to its own."""
    torch.manual_seed(0)
    model, x = LastOf(made(16, 16, batch_first=True)), torch.randn(2, 5, 16)
    module = unitify.transform(model, x)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.warns(unitify.UnitifyWarning, match="U116"),
    ):
        assert torch.equal(module(x), model(x))


class LastOf(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])
