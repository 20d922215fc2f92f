"""A transformed module is of the model's class: what the class has works on it, and is the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor, nn

import unitify


def ids() -> Tensor:
    return torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))


def tied() -> Any:
    """A language model whose head is its embedding."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def sequential() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_container_is_one() -> None:
    model, x = sequential(), torch.randn(3, 4)
    module: Any = unitify.transform(model, (x,))
    assert isinstance(module, nn.Sequential)
    assert isinstance(module, unitify.UnitScaledModule)
    assert len(module) == 3
    assert [type(m) for m in module] == [type(m) for m in model]
    assert module[0].weight is module.get_parameter("0.weight")
    assert type(module[:2]) is nn.Sequential
    assert torch.equal(module[:2](x), model[:2](x))
    copied = copy.deepcopy(module)
    assert isinstance(copied, nn.Sequential)
    assert torch.equal(copied(x), model(x))
    assert "Linear(in_features=4" in repr(module)


def test_methods_of_a_language_model() -> None:
    model = tied()
    module: Any = unitify.transform(model, (), {"input_ids": ids(), "labels": ids()})
    assert isinstance(module, transformers.GPT2LMHeadModel)
    assert type(module).__name__ == "GPT2LMHeadModel"
    assert (module.dtype, module.device) == (model.dtype, model.device)
    assert module.num_parameters() == model.num_parameters()
    assert module.can_generate()
    assert module.get_input_embeddings() is module.transformer.wte
    module.tie_weights()
    assert module.lm_head.weight is module.transformer.wte.weight
    module.resize_token_embeddings(70)
    assert module.get_input_embeddings().weight.shape == (70, 16)


def test_generation_runs_the_graph() -> None:
    model = tied()
    example = {
        "input_ids": ids(), "position_ids": torch.arange(8).expand(2, 8), "logits_to_keep": 1,
        "use_cache": False, "return_dict": True,
    }  # fmt: skip
    module: Any = unitify.transform(model, (), example)
    counts: list[int] = []
    own = module.run_flat
    module.__dict__["run_flat"] = lambda *call: counts.append(1) or own(*call)
    options = {"max_new_tokens": 5, "do_sample": False, "use_cache": False}
    expected = model.generate(ids()[:, :4], **options)
    assert torch.equal(module.generate(ids()[:, :4], **options), expected)
    assert (len(counts), expected.shape) == (5, (2, 9))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_saved_folder_is_the_models(tmp_path: Path) -> None:
    model = tied()
    module: Any = unitify.transform(model, (), {"input_ids": ids(), "labels": ids()})
    model.save_pretrained(tmp_path / "model")
    module.save_pretrained(tmp_path / "module")
    assert files(tmp_path / "module") == files(tmp_path / "model")
    assert {"config.json", "model.safetensors"} <= files(tmp_path / "model").keys()
    plain = type(module).from_pretrained(tmp_path / "module")
    assert type(plain) is transformers.GPT2LMHeadModel
    held = model.state_dict()
    assert all(torch.equal(t, held[name]) for name, t in plain.state_dict().items())


class Planner(nn.Module):
    """A model whose names are those that a transformed module has, too."""

    flag = 1
    changed: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.casts, self.meta, self.flag = 5.0, {"a": 1}, 2

    @property
    def diagnostics(self) -> str:
        return "the model's"

    @property
    def width(self) -> int:
        return 4 * len(self.parts)

    def plan(self, x: Tensor) -> Tensor:
        return self.report(x)

    def report(self, x: Tensor) -> Tensor:
        return self(x) + self.casts

    def everything(self, x: Tensor) -> list[Any]:
        self.flag += 1
        self.changed["calls"] = 1
        return [
            self.plan(x), self.report(x), self.diagnostics, self.width, self.flag, self.meta,
            self.forward(x), isinstance(self, Planner),
        ]  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x * self.casts


def test_names_that_both_have() -> None:
    torch.manual_seed(0)
    model, x = Planner(), torch.randn(3, 4)
    module: Any = unitify.transform(model, (x,))
    assert torch.equal(module(x), model(x))
    for each in (module, copy.deepcopy(module)):
        expected, found = copy.deepcopy(model).everything(x), each.everything(x)
        assert all(map(_same, expected, found)), found
        assert each.flag == 3
        # On the module itself they are unitify's; `report`, which no part of it reads, is not.
        assert each.plan.parameters.keys() == dict(model.named_parameters()).keys()
        assert (each.diagnostics, each.casts) == ((), ())
        assert torch.equal(each.report(x), model.report(x))
    module.flag = 9
    assert (module.flag, type(module).flag) == (9, 1)


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


class Registry(nn.Module):
    """A class that notes what is derived of it, and puts something around a call."""

    known: ClassVar[list[type]] = []

    def __init_subclass__(cls) -> None:
        Registry.known.append(cls)

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.plan = nn.Linear(4, 4), 3

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)[0] + 1

    def forward(self, x: Tensor) -> Any:
        return self.layer(x), x

    def twice(self, x: Tensor) -> Any:
        return self(self(x)) * self.plan


@pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
def test_a_class_with_a_call_of_its_own() -> None:
    model, x = Registry(), torch.randn(3, 4)
    module: Any = unitify.transform(model, (x,))
    assert torch.equal(module(x), model(x))
    assert torch.equal(module.twice(x), model.twice(x))
    assert Registry.known == []


@pytest.mark.parametrize("weights", ["true", "stored"])
def test_a_compiled_module_is_of_the_class(weights: Any) -> None:
    model, x = sequential(), torch.randn(3, 4)
    module: Any = unitify.transform(model, (x,), weights=weights)
    torch.compiler.reset()
    assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(x), model(x))
    exported = torch.export.export(module, (x,)).module()
    assert torch.equal(exported(x), model(x))


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (nn.Conv2d(3, 4, 3), (2, 3, 6, 6)),
        (nn.GRU(8, 6), (2, 3, 8)),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), (2, 8)),
    ],
)
def test_it_shows_itself_as_the_model(model: nn.Module, sizes: tuple[int, ...]) -> None:
    assert repr(unitify.transform(model, torch.randn(sizes))) == repr(model)
