"""Folders for runtimes: every layout opened by its reader, and every trap of loading."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from served import MADE, damaged
from slow import some_slow

from unitify.capture.inputs import infer_inputs
from unitify.capture.islands import record
from unitify.checkpoint.files import mapped_weights
from unitify.diagnostics import UnitifyError
from unitify.formats.table import FORMATS, quantize
from unitify.recipe.reader import read_recipe
from unitify.rulebook.rule_table import load_rules
from unitify.serve.checked import check_folder
from unitify.serve.export import _parts, export
from unitify.serve.layouts import LAYOUTS
from unitify.serve.mapped import mapped_model, recorded
from unitify.serve.reopened import in_transformers, reopened
from unitify.serve.served import Served, served
from unitify.serve.writing import Export

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")


#: Layouts that are not left to `make slow`.
QUICK = {"fp8", "nvfp4"}


def test_every_layout_is_made() -> None:
    assert MADE.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", some_slow(MADE, lambda name: name not in QUICK))
def test_a_folder_is_read_by_its_reader_and_is_of_its_source(
    name: str, made: dict[str, tuple[Path, Export]], source: Path
) -> None:
    folder, found = made[name]
    assert found.layout == name
    assert found.sqnr is not None
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert written["ignore"] == []
    assert len(found.layers) == 15
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.parent.glob(".*partial"))
    count = check_folder(folder, source)
    assert count == len(mapped_weights(folder))
    # A quarter of float32, or an eighth, where weights were served.
    served = {f"{row.layer}.weight" for row in found.layers}
    weights = mapped_weights(source)
    kept = sum(t.nbytes for n, t in weights.items() if n not in served)
    share = (found.size - kept) / sum(weights[n].nbytes for n in served)
    bits = FORMATS[found.layers[0].format].bits / 32
    assert bits <= share < bits * 1.2


def held(rows: tuple[Served, ...], layer: str) -> Served:
    return next(row for row in rows if row.layer.endswith(layer))


def test_scales_are_powers_of_two_and_joint_where_runtimes_fuse(
    made: dict[str, tuple[Path, Export]],
) -> None:
    folder, found = made["fp8"]
    weights = mapped_weights(folder)
    for row in found.layers:
        for ending, scale in (("weight_scale", row.weight), ("input_scale", row.input)):
            stored = weights[f"{row.layer}.{ending}"]
            assert stored.shape == (1,)
            assert float(stored) == scale
            assert float(stored.bfloat16()) == scale
            assert torch.frexp(stored).mantissa == 0.5
    for block in ("layers.0", "layers.1"):
        for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            of = [r for r in found.layers if block in r.layer and r.layer.endswith(group)]
            assert len({(r.group, r.weight, r.input) for r in of}) == 1, group
    assert held(found.layers, "0.mlp.down_proj").group != held(found.layers, "0.mlp.up_proj").group


@pytest.mark.parametrize(
    "name", some_slow(["fp8", "nvfp4", "mxfp4", "mxfp8"], lambda name: name not in QUICK)
)
def test_codes_are_those_of_the_casts(
    name: str, made: dict[str, tuple[Path, Export]], source: Path
) -> None:
    """What a runtime multiplies is what a transformed module multiplies, at the same scale."""
    weights = mapped_weights(source)
    folder, found = made[name]
    reader = transformers.LlamaForCausalLM.from_pretrained(folder)
    reader(torch.zeros(1, 2, dtype=torch.long))  # it decodes at the first call
    for row in found.layers:
        given = weights[f"{row.layer}.weight"]
        ours = quantize(given / row.weight, FORMATS[row.format]) * row.weight
        theirs = reader.get_submodule(row.layer).weight
        assert torch.equal(theirs.float(), ours.to(theirs.dtype).float()), row.layer


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scales"), [("fp8", "analysis"), ("fp8-ptq", "measured")])
def test_recording_without_weights_gives_the_scales_of_one_with(
    name: str, scales: str, source: Path
) -> None:
    recipe, rules = read_recipe(name), load_rules()
    assert recipe is not None
    model, _ = mapped_model(source, mapped_weights(source))
    calls = [infer_inputs(model)]
    rows = [
        served(model, _parts(made, calls, scales, recipe, rules), recipe, rules)
        for made in (recorded(model, calls, runs=True), record(model, *calls[0]))
    ]
    # Kernels are recorded otherwise there, so that values have other names.
    without, with_ = ([dataclasses.replace(r, group="") for r in found] for found in rows)
    assert without == with_
    assert not any(p.is_meta for p in model.parameters())


# -- every known trap of loading, and that the comparison catches it ---------------------


def without_status(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["quantization_status"]
    (folder / "config.json").write_text(json.dumps(config))


def each_tensor(change: Any) -> Any:
    def changed(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            held = change(load_file(file))
            save_file(held, file, metadata={"format": "pt"})

    return changed


TRAPS = {
    "no status": without_status,
    "no input scales": each_tensor(
        lambda held: {n: t for n, t in held.items() if not n.endswith("input_scale")}
    ),
    "scales of no dimension": each_tensor(
        lambda held: {n: t.reshape(()) if n.endswith("_scale") else t for n, t in held.items()}
    ),
    "reciprocal scales": each_tensor(
        lambda held: {n: 1 / t if n.endswith("_scale") else t for n, t in held.items()}
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_of_loading_is_caught(
    trap: str, made: dict[str, tuple[Path, Export]], source: Path, tmp_path: Path
) -> None:
    copy = damaged(made["fp8"][0], tmp_path, TRAPS[trap])
    model, _ = mapped_model(source, mapped_weights(source))
    with pytest.raises(UnitifyError) as caught:
        reopened(
            copy,
            model,
            [infer_inputs(model)],
            least=made["fp8"][1].sqnr or 0.0,
            opened=partial(in_transformers, model),
        )
    assert caught.value.diagnostics[0].code == "U615"


# -- what does not fold ------------------------------------------------------------------


def refusal(source: Path, output: Path, recipe: Any, format: str = "compressed-tensors") -> str:
    read = read_recipe(recipe)
    assert read is not None
    with pytest.raises(UnitifyError) as caught:
        export(source, output, read, format)
    assert not output.exists()
    assert not list(output.parent.glob(".*partial"))
    assert {d.code for d in caught.value.diagnostics} == {"U614"}
    return str(caught.value)


@pytest.mark.slow
def test_what_does_not_fold_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "constants of operands" in refusal(source, out, "fp8-amax")
    assert "no layout holds operands in bf16" in refusal(source, out, "bf16")
    assert "no linear layer is cast" in refusal(source, out, "fp8,include=nothing")
    assert "no layout holds operands in e5m2" in refusal(source, out, "fp8,forward=e5m2")
    assert "no contraction with a weight" in refusal(source, out, "fp8,attention=true")
    assert "has the same input, is not cast" in refusal(source, out, "fp8,exclude=*.k_proj")
    tied = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, intermediate_size=64, vocab_size=64,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(tied).save_pretrained(tmp_path / "tied")
    assert "its weight is also model.embed_tokens" in refusal(tmp_path / "tied", out, "fp8")
    assert "not divisible by 128" in refusal(
        tmp_path / "tied", out, "fp8,exclude=lm_head", "fp8-block"
    )


def test_what_is_left_out_is_ignored(source: Path, tmp_path: Path) -> None:
    recipe = read_recipe("fp8,exclude=lm_head+*.down_proj")
    assert recipe is not None
    found = export(source, tmp_path / "out", recipe, "compressed-tensors")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written["ignore"] == ["lm_head", *(f"model.layers.{i}.mlp.down_proj" for i in (0, 1))]
    assert len(found.layers) == 12
    weights = mapped_weights(tmp_path / "out")
    for name in written["ignore"]:
        assert torch.equal(weights[f"{name}.weight"], mapped_weights(source)[f"{name}.weight"])
