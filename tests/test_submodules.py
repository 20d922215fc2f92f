"""Submodules of a transformed module: each runs its own part of the graph, whoever calls it.

Everything is compared bitwise: with the model, or with the same module that nobody touched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from slow import some_slow
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unitify
from unitify.diagnostics import UnitifyError, UnitifyWarning


class Convolutions(nn.Module):
    """Batch norms, writes in place, a dropout, attention with a result that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.drop = nn.Dropout(0.2)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).mean(-1).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head(self.drop(mixed)).square().mean()


def shared() -> nn.Module:
    layer = nn.Sequential(nn.Linear(16, 16), nn.GELU())
    return nn.Sequential(layer, nn.LayerNorm(16), layer, layer)


Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def calls(name: str) -> Call:
    torch.manual_seed(0)
    if name == "convolutions":
        return Convolutions(), (torch.randn(2, 3, 8, 8),), {}
    if name == "shared":
        return shared(), (torch.randn(4, 16),), {}
    model = zoo.build(name)[0]
    ids = torch.randint(0, 99, (2, 16))
    return model, (), {"input_ids": ids, "labels": ids}


NAMES = ("gpt2", "llama", "convolutions", "shared")


def results(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The loss, gradients and buffers of one step."""
    torch.manual_seed(3)
    module.zero_grad()
    made = module(*args, **kwargs)
    loss = made if isinstance(made, Tensor) else made.loss
    loss.sum().backward()
    gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    return [loss.detach().clone(), *gradients, *(b.clone() for b in module.buffers())]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def transformed() -> Callable[..., Any]:
    """A fresh copy of a module for each use; each is made once."""
    held: dict[Any, Any] = {}

    def made(name: str, recipe: str | None) -> tuple[unitify.UnitScaledModule, Call]:
        if (name, recipe) not in held:
            model, args, kwargs = calls(name)
            module = unitify.transform(model, args, kwargs, recipe=recipe, placement="casts")
            held[name, recipe] = module, (model, args, kwargs)
        module, call = held[name, recipe]
        return copy.deepcopy(module), call

    return made


@pytest.mark.parametrize("recipe", [None, "fp8,multiple=1", "fp8-amax,multiple=1"])
@pytest.mark.parametrize("name", some_slow(NAMES, {"gpt2", "llama"}.__contains__))
def test_a_hook_anywhere_changes_nothing(transformed: Any, name: str, recipe: str | None) -> None:
    module, (model, args, kwargs) = transformed(name, recipe)
    expected = results(module, args, kwargs)
    if recipe is None:
        assert_same(results(copy.deepcopy(model), args, kwargs), expected)
    paths = [path for path, child in module.named_modules() if path]
    seen: list[str] = []
    for wanted in [[path] for path in paths] + [paths]:
        touched, _ = transformed(name, recipe)
        seen.clear()
        for path in wanted:
            touched.get_submodule(path).register_forward_hook(
                lambda _m, _a, _r, path=path: seen.append(path)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnitifyWarning)
            assert_same(results(touched, args, kwargs), expected)
        called = {path for path in wanted if path in module.capture.regions.paths}
        assert called <= set(seen)


def test_what_passes_between_submodules_is_true(transformed: Any) -> None:
    module, (model, args, kwargs) = transformed("llama", None)
    values: dict[int, list[Tensor]] = {0: [], 1: []}
    for index, each in enumerate((copy.deepcopy(model), module)):
        for path, child in each.named_modules():
            if path:
                child.register_forward_hook(
                    lambda _m, _a, result, to=values[index]: to.extend(
                        r.detach().clone() for r in torch.utils._pytree.tree_leaves(result)
                        if isinstance(r, Tensor)
                    )
                )  # fmt: skip
        results(each, args, kwargs)
    assert len(values[0]) > 20
    assert_same(values[0], values[1])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_submodule_is_called_by_itself(transformed: Any, name: str) -> None:
    module, (model, _, _) = transformed(name, None)
    path = {"gpt2": "transformer.h.0.mlp", "llama": "model.layers.0.mlp"}[name]
    own, other = module.eval().get_submodule(path), model.eval().get_submodule(path)
    for shape in ((2, 16), (3, 5), (1, 1)):
        x = torch.randn(*shape, model.config.hidden_size)
        assert torch.equal(own(x), other(x)), shape
    model.train()
    assert isinstance(own, type(other))


@pytest.mark.slow
def test_a_recomputed_block(transformed: Any) -> None:
    """Activation checkpointing of a block, as ``checkpoint_wrapper`` does."""

    class Recomputed(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return checkpoint(self.block, *args, use_reentrant=False, **kwargs)

    for recipe in (None, "fp8,multiple=1"):
        module, (_, args, kwargs) = transformed("llama", recipe)
        expected = results(module, args, kwargs)
        wrapped, _ = transformed("llama", recipe)
        layers = wrapped.get_submodule("model.layers")
        for name, block in list(layers.named_children()):
            setattr(layers, name, Recomputed(block))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnitifyWarning)
            assert_same(results(wrapped, args, kwargs), expected)


class Adapter(nn.Module):
    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.low = nn.Linear(width, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.low(x).sum(-1, keepdim=True)


@pytest.mark.parametrize("recipe", [None, "fp8,multiple=1"])
def test_replaced_submodules(transformed: Any, recipe: str | None) -> None:
    """What PEFT does after the transform. Without a recipe the module is still the model; an
    adapter that adds zero leaves all that the module does, casts included."""
    module, (model, args, kwargs) = transformed("llama", recipe)
    expected = results(module, args, kwargs)[0]
    found = []
    for each in (copy.deepcopy(model), module):
        torch.manual_seed(1)
        for layer in each.model.layers:
            projection = layer.self_attn.q_proj
            layer.self_attn.q_proj = Adapter(projection, projection.in_features)
            if recipe is not None:
                nn.init.zeros_(layer.self_attn.q_proj.low.weight)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnitifyWarning)
            found.append(results(each, args, kwargs))
    if recipe is None:
        assert_same(found[0], found[1])
    else:
        assert torch.equal(found[1][0], expected)
        assert not torch.equal(found[0][0], expected)


def test_code_without_its_casts_warns(transformed: Any) -> None:
    module, (_, args, kwargs) = transformed("gpt2", "fp8,multiple=1,attention=true,simulate=true")
    module.get_submodule("transformer.h.0.attn.c_attn").register_forward_hook(lambda *_: None)
    with pytest.warns(UnitifyWarning, match=r"U117 \[transformer.h.0.attn\]"):
        results(module, args, kwargs)


def test_a_copy_of_a_submodule_alone(transformed: Any) -> None:
    exact, (model, _, _) = transformed("llama", None)
    x = torch.randn(2, 3, model.config.hidden_size)
    alone = copy.deepcopy(exact.model.layers[0].mlp)
    assert torch.equal(alone(x), model.model.layers[0].mlp(x))
    with torch.no_grad():
        alone.down_proj.weight.zero_()
    assert alone(x).abs().sum() == 0
    assert exact.model.layers[0].mlp(x).abs().sum() > 0
    cast, _ = transformed("llama", "fp8,multiple=1")
    with pytest.warns(UnitifyWarning, match="U117"):
        copy.deepcopy(cast.model.layers[0].mlp)


def test_codes_are_read_by_graphs_alone(transformed: Any) -> None:
    module, (_, args, kwargs) = transformed("llama", "fp8,multiple=1")
    frozen = module.to_inference()
    with torch.no_grad():
        expected = frozen(*args, **kwargs).logits
        frozen.get_submodule("model.layers.0").register_forward_hook(lambda *_: None)
        assert torch.equal(frozen(*args, **kwargs).logits, expected)
        with pytest.raises(UnitifyError, match="U117"):
            frozen.get_submodule("lm_head")(torch.randn(2, 3, 5))


def test_everywhere_has_one_graph() -> None:
    model, args, kwargs = calls("shared")
    module = unitify.transform(model, args, kwargs)
    assert module.plan.placement == "everywhere"
    assert unitify.transform(model, args, kwargs, recipe="fp8").plan.placement == "casts"
    with pytest.raises(UnitifyError, match="U001"):
        unitify.transform(model, args, kwargs, placement="nowhere")  # type: ignore[arg-type]
