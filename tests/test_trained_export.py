"""A module in training, written for a runtime, with the codes and scales that it trains with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from served import run
from slow import some_slow
from torch import Tensor

import unitify
from unitify.capture.inputs import infer_inputs
from unitify.diagnostics import UnitifyError
from unitify.runtime import fp8_linear, shared_codes
from unitify.runtime.scaled_mm import encode

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")


def trained(source: Path, recipe: str) -> tuple[Any, dict[str, Any]]:
    """A module after two steps, and its batch."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM.from_pretrained(source)
    batch = infer_inputs(model)[1]
    batch = {**batch, "labels": batch["input_ids"]}
    module = unitify.transform(model, (), batch, recipe=recipe, verify=False).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(2):
        module(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, batch


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The codes that FP8 products made, of weights and of inputs."""
    found: list[Tensor] = []

    def noting(x: Tensor, *given: Any) -> Tensor:
        found.append(encode(x, *given))
        return found[-1]

    monkeypatch.setattr(fp8_linear, "encode", noting)
    monkeypatch.setattr(shared_codes, "encode", noting)
    return found


def bytes_of(codes: Tensor) -> bytes:
    return codes.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "recipe",
    some_slow(["fp8,joint=true", "fp8-ptq,joint=true"], {"fp8-ptq,joint=true"}.__contains__),
)
def test_what_is_trained_is_what_is_served(
    recipe: str, source: Path, tmp_path: Path, multiplied: list[Tensor]
) -> None:
    module, batch = trained(source, recipe)
    made = unitify.export(module, tmp_path / "out")
    multiplied.clear()
    with torch.no_grad():
        output = module.eval()(**batch).logits
    used = {bytes_of(codes) for codes in multiplied}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert len(made.layers) == 15
    for row in made.layers:
        assert bytes_of(tensors[f"{row.layer}.weight"]) in used, row.layer
    reader = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        served = reader(**batch).logits
    # The same codes at the same scales; products are summed in another order.
    assert float((served - output).norm() / output.norm()) < 1e-4
    assert made.sqnr is not None
    assert made.sqnr > 80
    assert not module.training


@pytest.mark.slow
def test_a_converted_folder_on_the_command_line(source: Path, tmp_path: Path) -> None:
    converted, out = tmp_path / "converted", tmp_path / "out"
    made = run("convert", str(source), "-o", str(converted), "--recipe", "fp8,joint=true")
    assert made.exit_code == 0, made.stderr
    outcome = run("export", str(converted), "-o", str(out))
    assert outcome.exit_code == 0, outcome.stderr
    assert "layout fp8: 15 layers" in outcome.stdout
    assert (out / "tokenizer.json").is_file()
    checked = run("verify", str(out))
    assert checked.exit_code == 0, checked.stderr


def test_scales_that_a_runtime_would_join_are_refused(source: Path, tmp_path: Path) -> None:
    module, _ = trained(source, "fp8")
    with pytest.raises(UnitifyError, match="joint = true") as caught:
        unitify.export(module, tmp_path / "out")
    assert {d.code for d in caught.value.diagnostics} == {"U614"}
    assert not list(tmp_path.iterdir())


def test_what_is_no_cast_language_model_is_refused(source: Path, tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(source)
    module = unitify.transform(model, verify=False)
    with pytest.raises(UnitifyError, match="U614"):
        unitify.export(module, tmp_path / "out")


def test_weights_from_elsewhere(source: Path, tmp_path: Path) -> None:
    """Gathered from all processes, say."""
    module, _ = trained(source, "fp8,joint=true")
    whole = {name: tensor * 2 for name, tensor in module.state_dict().items()}
    module.get_submodule("model.norm").eval()
    modes = [m.training for m in module.modules()]
    unitify.export(module, tmp_path / "out", state_dict=whole, verify=False)
    assert len(set(modes)) == 2
    assert [m.training for m in module.modules()] == modes
    norms = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    assert torch.equal(norms, module.state_dict()["model.norm.weight"] * 2)
