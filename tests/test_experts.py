"""Experts that a model holds as one tensor, in folders for runtimes, which read them one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from slow import some_slow
from torch import Tensor

import unitify
from unitify.capture.inputs import infer_inputs
from unitify.checkpoint.files import mapped_weights
from unitify.diagnostics import UnitifyError
from unitify.formats.table import E4M3
from unitify.module.assembly import parts_in
from unitify.recipe.reader import read_recipe
from unitify.rulebook.rule_table import load_rules
from unitify.runtime.scaled_mm import decode, encode
from unitify.serve.checked import check_folder
from unitify.serve.decoded import in_compressed_tensors
from unitify.serve.export import export
from unitify.serve.mapped import mapped_model, recorded
from unitify.serve.served import served
from unitify.serve.writing import Export

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

SMALL: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 1, "intermediate_size": 128, "vocab_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 1,
}  # fmt: skip
MIXTURES = {
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SMALL, num_local_experts=4)
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=128)
    ),
}
#: Its checkpoints hold all experts as one tensor, too.
STACKED = transformers.GptOssConfig(**SMALL, num_local_experts=4, head_dim=32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each mixture."""
    found = {name: tmp_path_factory.mktemp(name) / "model" for name in MIXTURES}
    for name, folder in found.items():
        torch.manual_seed(0)
        MIXTURES[name]().save_pretrained(folder)
    return found


@pytest.fixture(scope="module", autouse=True)
def recorded_once() -> Iterator[None]:
    """Each folder is recorded once: most of the time of an export is its recording."""
    models: dict[Path, Any] = {}
    recordings: dict[tuple[int, bool], Any] = {}

    def mapped(folder: Path, weights: Any) -> Any:
        if folder not in models:
            models[folder] = mapped_model(folder, weights)
        return models[folder]

    def once(model: Any, calls: Any, *, runs: bool) -> Any:
        if (id(model), runs) not in recordings:
            recordings[id(model), runs] = recorded(model, calls, runs=runs)
        return recordings[id(model), runs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unitify.serve.export.mapped_model", mapped)
        patch.setattr("unitify.serve.export.recorded", once)
        yield


def exported(source: Path, folder: Path, recipe: str, format: str) -> Export:
    read = read_recipe(recipe)
    assert read is not None
    return export(source, folder, read, format)


WAYS = [
    ("fp8", "compressed-tensors"), ("fp8", "fp8-dynamic"), ("fp8", "fp8-block"),
    ("nvfp4", "compressed-tensors"), ("mxfp4", "compressed-tensors"),
    ("mxfp8", "compressed-tensors"), ("fp8", "modelopt"), ("nvfp4", "modelopt"),
    ("fp8-ptq", "compressed-tensors"),
]  # fmt: skip


def is_slow(way: tuple[str, str]) -> bool:
    return way[0] in ("mxfp4", "mxfp8", "fp8-ptq")


@pytest.mark.parametrize("way", some_slow(WAYS, is_slow), ids="-".join)
def test_every_expert_has_its_scales_visited_or_not(
    way: tuple[str, str], sources: dict[str, Path], tmp_path: Path
) -> None:
    source = sources["mixtral"]
    made = exported(source, tmp_path / "out", *way)
    experts = {n.removesuffix(".weight") for n in mapped_weights(source) if ".experts." in n}
    assert len(experts) == 12
    assert experts <= {row.layer for row in made.layers}
    held = mapped_weights(tmp_path / "out")
    assert all(f"{layer}.weight_scale" in held for layer in experts)
    assert check_folder(tmp_path / "out", source) == len(held)


@pytest.mark.parametrize("name", some_slow(list(MIXTURES), {"qwen3_moe"}.__contains__))
def test_transformers_reads_experts_in_fp8(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    source = sources[name]
    exported(source, tmp_path / "out", "fp8", "compressed-tensors")
    opened = type(MIXTURES[name]()).from_pretrained(tmp_path / "out")
    original = type(opened).from_pretrained(source)
    for parameter in ("gate_up_proj", "down_proj"):
        found, whole = (
            getattr(m.model.layers[0].mlp.experts, parameter) for m in (opened, original)
        )
        exponent = scale_of(tmp_path / "out")
        assert torch.equal(found, decode(encode(whole, E4M3, exponent), torch.float32, exponent))


def scale_of(folder: Path) -> int:
    """The exponent of the scale of all experts' weights, which is the same here."""
    scales = {
        float(t) for n, t in mapped_weights(folder).items()
        if ".experts." in n and n.endswith("weight_scale")
    }  # fmt: skip
    (scale,) = scales
    return int(torch.tensor(scale).log2())


@pytest.mark.parametrize(
    ("recipe", "format"), [("fp8", "compressed-tensors"), ("nvfp4", "modelopt")]
)
@pytest.mark.parametrize("name", some_slow(list(MIXTURES), {"mixtral"}.__contains__))
def test_routers_stay_and_are_named(name: str, recipe: str, format: str, tmp_path: Path) -> None:
    """In bfloat16, as most checkpoints are. A runtime may hold the router as a linear layer."""
    torch.manual_seed(0)
    MIXTURES[name]().bfloat16().save_pretrained(tmp_path / "model")
    exported(tmp_path / "model", tmp_path / "out", recipe, format)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    weights = {n.removesuffix(".weight"): t for n, t in mapped_weights(tmp_path / "out").items()}
    whole = {n for n, t in weights.items() if t.dim() == 2 and t.dtype == torch.bfloat16}
    assert whole - {"model.embed_tokens"} <= set(written["ignore"])
    assert any(n.endswith(".gate") for n in whole)


@pytest.mark.parametrize("recipe", ["fp8,exclude=*experts*", "nvfp4,exclude=*experts*"])
def test_experts_that_stay_are_named_as_layers_that_stay(
    recipe: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    """A runtime looks for the scales of each."""
    source = sources["mixtral"]
    exported(source, tmp_path / "out", recipe, "compressed-tensors")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    experts = {n.removesuffix(".weight") for n in mapped_weights(source) if ".experts." in n}
    assert experts <= set(written["ignore"])


def test_experts_that_are_one_tensor_in_the_checkpoint_do_not_fold(tmp_path: Path) -> None:
    transformers.GptOssForCausalLM(STACKED).save_pretrained(tmp_path / "model")
    with pytest.raises(UnitifyError) as caught:
        exported(tmp_path / "model", tmp_path / "out", "fp8", "compressed-tensors")
    assert {d.code for d in caught.value.diagnostics} == {"U614"}
    exported(tmp_path / "model", tmp_path / "out", "fp8,exclude=*experts*", "compressed-tensors")


def test_what_is_trained_is_what_is_served(sources: dict[str, Path], tmp_path: Path) -> None:
    model = transformers.MixtralForCausalLM.from_pretrained(sources["mixtral"])
    batch = infer_inputs(model)[1]
    module: Any = unitify.transform(model, (), batch, recipe="fp8,joint=true", verify=False).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    module(**batch).logits.square().mean().backward()
    optimizer.step()
    made = unitify.export(module, tmp_path / "out")
    assert made.sqnr is not None
    assert made.sqnr > 80
    rows = {row.layer: row for row in made.layers}
    held, stacked = mapped_weights(tmp_path / "out"), module.model.layers[0].mlp.experts
    for expert in range(4):
        gate, up = stacked.gate_up_proj[expert].chunk(2)
        for name, weight in (("w1", gate), ("w3", up), ("w2", stacked.down_proj[expert])):
            layer = f"model.layers.0.block_sparse_moe.experts.{expert}.{name}"
            assert torch.equal(held[f"{layer}.weight"], codes(weight, rows[layer].weight))
    (served, *_) = in_compressed_tensors(model, tmp_path / "out")(((), batch))
    with torch.no_grad():
        expected = module.eval()(**batch).logits
    assert float((served - expected).norm() / expected.norm()) < 1e-4


def codes(weight: Tensor, scale: float) -> Tensor:
    return encode(weight.detach() / scale, E4M3)


class Parts(torch.nn.Module):
    """Multiplies by the halves of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = torch.nn.Linear(16, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fused.weight.chunk(2)
        return torch.nn.functional.linear(x, first) * torch.nn.functional.linear(x, second)


def test_parts_of_a_weight_do_not_fold() -> None:
    module = unitify.transform(Parts(), (torch.randn(4, 16),), recipe="fp8", verify=False)
    assert module.recipe is not None
    with pytest.raises(UnitifyError, match="not a contraction with a weight") as caught:
        served(module.capture.model, parts_in(module), module.recipe, load_rules())
    assert {d.code for d in caught.value.diagnostics} == {"U614"}
