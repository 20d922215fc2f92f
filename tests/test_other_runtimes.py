"""Folders for runtimes that are no readers of compressed-tensors: ModelOpt's layout, and ONNX."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from served import damaged, flipped, run
from slow import some_slow
from torch import Tensor, nn

from unitify.capture.inputs import infer_inputs
from unitify.checkpoint.files import mapped_weights
from unitify.diagnostics import UnitifyError
from unitify.recipe.reader import read_recipe
from unitify.serve.export import export
from unitify.serve.mapped import mapped_model
from unitify.serve.onnx_folder import export_onnx, in_onnxruntime
from unitify.serve.reopened import in_transformers, outputs_of, reopened
from unitify.serve.writing import Export

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")
Made = dict[str, tuple[Path, Export]]


# -- ModelOpt's layout -------------------------------------------------------------------


@pytest.mark.parametrize("name", some_slow(["fp8", "nvfp4"], {"fp8"}.__contains__))
def test_a_folder_of_modelopt_computes_what_compressed_tensors_computes(
    name: str,
    made: Made,
    source: Path,
) -> None:
    folder, found = made[f"modelopt-{name}"]
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    own = json.loads((folder / "hf_quant_config.json").read_text())
    assert config["quant_method"] == "modelopt"
    assert config["quant_algo"] == own["quantization"]["quant_algo"] == name.upper()
    assert config["producer"] == own["producer"]
    assert own["producer"]["name"] == "unitify"
    assert config["ignore"] == own["quantization"]["exclude_modules"] == []
    assert [note.code for note in found.notes] == ["U619"]
    one = [n for n, t in mapped_weights(folder).items() if "scale" in n and t.numel() == 1]
    assert len(one) >= 2 * len(found.layers)
    assert all(mapped_weights(folder)[n].shape == () for n in one)
    # The other family's reader rounds to bfloat16 where it unpacks four bits.
    assert found.sqnr is not None
    assert found.sqnr == pytest.approx(made[name][1].sqnr, abs=0.2)


def test_transformers_reads_modelopt_wrongly(
    made: Made,
    source: Path,
) -> None:
    """What the note says; once this fails, the note can go."""
    model, _ = mapped_model(source, mapped_weights(source))
    with pytest.raises(UnitifyError) as caught:
        reopened(
            made["modelopt-fp8"][0],
            model,
            [infer_inputs(model)],
            6.0,
            partial(in_transformers, model),
        )
    assert caught.value.code == "U615"


@pytest.mark.slow
def test_the_cache_of_modelopt_is_named_after_its_projections(
    source: Path,
    tmp_path: Path,
) -> None:
    recipe = read_recipe("fp8,kv_cache=e4m3")
    assert recipe is not None
    found = export(source, tmp_path / "out", recipe, "modelopt")
    tensors = mapped_weights(tmp_path / "out")
    for kept in found.caches:
        assert float(tensors[f"{kept.attention}.k_proj.k_scale"]) == kept.key
        assert float(tensors[f"{kept.attention}.v_proj.v_scale"]) == kept.value
    own = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    assert own["kv_cache_quant_algo"] == "FP8"


@pytest.mark.slow
# -- ONNX --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_language_model_in_onnx_is_the_module(
    source: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    outcome = run("convert", str(source), "-o", str(out), "--recipe", "fp8", "--format", "onnx")
    assert outcome.exit_code == 0, outcome.stderr
    assert "dB of signal to noise" in outcome.stdout
    model = transformers.LlamaForCausalLM.from_pretrained(source).eval()
    # A quarter of float32, and the graph.
    bytes_of_model = sum(p.nbytes for p in model.parameters())
    assert (out / "model.onnx.data").stat().st_size < 0.32 * bytes_of_model
    assert (out / "tokenizer.json").is_file()
    reader = in_onnxruntime(out)
    module = unitify_module(model)
    for sizes in ((2, 16), (3, 9)):
        call: Any = ((), {"input_ids": torch.randint(0, 128, sizes)})
        (found,), (expected,) = reader(call), outputs_of(module, call)
        assert error(found, expected) < 1e-6
    assert run("verify", str(out)).exit_code == 0
    assert "U001" in run("verify", str(out), "--source", str(source)).stderr
    copy = damaged(out, tmp_path, lambda folder: flipped(folder / "model.onnx.data"))
    assert "U607" in run("verify", str(copy)).stderr


def unitify_module(model: nn.Module) -> nn.Module:
    import unitify

    return unitify.transform(model, *infer_inputs(model), recipe="fp8", verify=False).eval()


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


class Twice(nn.Module):
    """Takes and returns several tensors, by position and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, *, gate: Tensor) -> dict[str, Tensor]:
        hidden = self.up(x).relu()
        return {"hidden": hidden, "output": self.down(hidden) * gate}


class Sorts(nn.Module):
    """Holds an operator that ONNX has no translation of."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigh(x @ x.mT).eigenvalues


def test_any_model_with_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = Twice()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    recipe = read_recipe("fp8")
    assert recipe is not None
    monkeypatch.setattr("unitify.convert.build_model", lambda _: Twice())
    call = ((torch.randn(4, 16),), {"gate": torch.rand(4, 16)})
    monkeypatch.setattr(
        "unitify.serve.onnx_folder.input_batches",
        lambda _: [{"x": call[0][0], **call[1]}],
    )
    made = export_onnx(
        tmp_path / "model.pt", tmp_path / "out", recipe, model="any:model", inputs="any:inputs"
    )
    assert made.sqnr is not None
    assert made.sqnr > 20
    other = {"x": torch.randn(7, 16), "gate": torch.rand(7, 16)}
    hidden, output = in_onnxruntime(tmp_path / "out")(((), other))
    assert hidden.shape == (7, 32)
    assert error(output, model(**other)["output"].detach()) < 0.1


def test_what_onnx_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({}, tmp_path / "model.pt")
    monkeypatch.setattr("unitify.convert.build_model", lambda _: Sorts())
    monkeypatch.setattr("unitify.serve.onnx_folder.input_batches", lambda _: [(torch.randn(4, 4),)])
    recipe = read_recipe("fp8")
    assert recipe is not None
    with pytest.raises(UnitifyError) as caught:
        export_onnx(
            tmp_path / "model.pt", tmp_path / "out", recipe, model="any:model", inputs="any:inputs"
        )
    assert caught.value.code == "U620"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
