"""Folders for runtimes: every layout opened by its reader, and every trap of loading."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import unitify
from unitify.capture.inputs import infer_inputs
from unitify.checkpoint.files import mapped_shards, mapped_weights
from unitify.checkpoint.new_folder import new_folder
from unitify.cli import app
from unitify.diagnostics import UnitifyError
from unitify.formats.table import FORMATS, quantize
from unitify.recipe.reader import read_recipe
from unitify.serve.checked import check_folder
from unitify.serve.export import Export, export
from unitify.serve.layouts import LAYOUTS
from unitify.serve.mapped import mapped_model, recorded
from unitify.serve.reopened import reopened
from unitify.serve.served import Served
from unitify.serve.shards import Promise, write_shard

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

#: Recipe and format, by the layout that they make.
MADE = {
    "fp8": ("fp8", "compressed-tensors"),
    "fp8-dynamic": ("fp8", "fp8-dynamic"),
    "fp8-block": ("fp8", "fp8-block"),
    "nvfp4": ("nvfp4", "compressed-tensors"),
    "mxfp4": ("mxfp4", "compressed-tensors"),
    "mxfp8": ("mxfp8", "compressed-tensors"),
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with grouped keys, in shards, whose layers differ in size."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, num_hidden_layers=2, intermediate_size=256, vocab_size=128,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for layer, factor in zip(model.model.layers, (3.0, 0.3), strict=True):
            layer.self_attn.q_proj.weight.mul_(factor)
            layer.mlp.up_proj.weight.mul_(1 / factor)
    folder = tmp_path_factory.mktemp("served") / "llama"
    model.save_pretrained(folder, max_shard_size="300KB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Export]]:
    """Every layout of it."""
    found = {}
    for name, (recipe, format) in MADE.items():
        folder = tmp_path_factory.mktemp("out") / name
        read = read_recipe(recipe)
        assert read is not None
        found[name] = folder, export(source, folder, read, format)
    return found


def test_every_layout_is_made() -> None:
    assert MADE.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", MADE)
def test_a_folder_is_read_by_its_reader_and_is_of_its_source(
    name: str, made: dict[str, tuple[Path, Export]], source: Path
) -> None:
    folder, found = made[name]
    assert found.layout == name
    assert found.sqnr is not None
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert told["ignore"] == []
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


def test_codes_are_those_of_the_casts(made: dict[str, tuple[Path, Export]], source: Path) -> None:
    """What a runtime multiplies is what a transformed module multiplies, at the same scale."""
    weights = mapped_weights(source)
    for name in ("fp8", "nvfp4", "mxfp4", "mxfp8"):
        folder, found = made[name]
        reader = transformers.LlamaForCausalLM.from_pretrained(folder)
        reader(torch.zeros(1, 2, dtype=torch.long))  # it decodes at the first call
        for row in found.layers:
            given = weights[f"{row.layer}.weight"]
            ours = quantize(given / row.weight, FORMATS[row.format]) * row.weight
            theirs = reader.get_submodule(row.layer).weight
            assert torch.equal(theirs.float(), ours.to(theirs.dtype).float()), (name, row.layer)


@pytest.mark.slow
def test_recording_without_weights_gives_the_scales_of_one_with(source: Path) -> None:
    from unitify.rulebook.rule_table import load_rules
    from unitify.serve.export import _parts
    from unitify.serve.served import served

    recipe, rules = read_recipe("fp8"), load_rules()
    assert recipe is not None
    model, _ = mapped_model(source, mapped_weights(source))
    calls = [infer_inputs(model)]
    rows = [
        served(
            model,
            _parts(recorded(model, calls, runs=runs), calls, "analysis", recipe, rules),
            recipe,
            rules,
        )
        for runs in (False, True)
    ]
    # Kernels are recorded otherwise there, so that values have other names.
    without, with_ = ([dataclasses.replace(r, group="") for r in found] for found in rows)
    assert without == with_
    assert not any(p.is_meta for p in model.parameters())


# -- every known trap of loading, and that the comparison catches it ---------------------


def damaged(folder: Path, tmp_path: Path, change: Any) -> Path:
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


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
        reopened(copy, model, [infer_inputs(model)], least=made["fp8"][1].sqnr or 0.0)
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
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert told["ignore"] == ["lm_head", *(f"model.layers.{i}.mlp.down_proj" for i in (0, 1))]
    assert len(found.layers) == 12
    weights = mapped_weights(tmp_path / "out")
    for name in told["ignore"]:
        assert torch.equal(weights[f"{name}.weight"], mapped_weights(source)[f"{name}.weight"])


# -- writing: whole or not at all --------------------------------------------------------


class Stop(Exception):
    """An interruption."""


@pytest.mark.slow
def test_an_interrupted_run_looks_unfinished_and_is_gone_on_from(
    source: Path, made: dict[str, tuple[Path, Export]], tmp_path: Path
) -> None:
    recipe = read_recipe("fp8")
    assert recipe is not None
    output = tmp_path / "out"
    whole = made["fp8"][1].size
    for share in (0.2, 0.7):
        left = [share * whole]

        def on_bytes(count: int, left: list[float] = left) -> None:
            left[0] -= count
            if left[0] < 0:
                raise Stop

        with pytest.raises(Stop):
            export(
                source, output, recipe, "compressed-tensors",
                resume=True, verify=False, on_start=lambda _: on_bytes,
            )  # fmt: skip
        assert not output.exists()
        partial = tmp_path / ".out.partial"
        finished = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.safetensors")}
        for name in finished:
            load_file(partial / name)
    export(source, output, recipe, "compressed-tensors", resume=True)
    after = {p.name: p.stat().st_mtime_ns for p in output.glob("*.safetensors")}
    assert finished
    assert finished.items() <= after.items()
    for file in output.iterdir():
        if file.name != "unitify.json":
            assert file.read_bytes() == (made["fp8"][0] / file.name).read_bytes(), file.name


def test_another_request_does_not_go_on(tmp_path: Path) -> None:
    promise = Promise("x", torch.float32, (3,), lambda: torch.arange(3.0))
    write = partial(write_shard, promises=[promise], on_bytes=lambda _: None)
    file = tmp_path / ".out.partial" / "one.safetensors"

    def done_before(request: Mapping[str, int]) -> set[str]:
        """What a run of ``request`` that is interrupted found there."""
        with (
            contextlib.suppress(KeyboardInterrupt),
            new_folder(tmp_path / "out", request, resume=True) as folder,
        ):
            found = set(folder.done)
            folder.once("one.safetensors", write)
            raise KeyboardInterrupt
        return found

    assert done_before({"a": 1}) == set()
    assert done_before({"a": 1}) == {"one.safetensors"}
    file.write_bytes(file.read_bytes()[:-1])
    assert done_before({"a": 1}) == set()
    assert done_before({"a": 2}) == set()
    assert done_before({"a": 2}) == {"one.safetensors"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8])
def test_a_file_is_what_safetensors_writes(dtype: torch.dtype, tmp_path: Path) -> None:
    held = {"a": torch.randn(3, 5).to(dtype), "b": torch.zeros(0, 4).to(dtype), "c": torch.ones(())}
    held["c"] = held["c"].to(dtype)
    told: list[int] = []
    promises = [Promise(n, t.dtype, tuple(t.shape), lambda t=t: t) for n, t in held.items()]
    digest = write_shard(tmp_path / "x.safetensors", promises, told.append)
    assert sum(told) == sum(t.nbytes for t in held.values())
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == held.keys()
    for name, tensor in held.items():
        assert torch.equal(read[name].float(), tensor.float())
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
    from unitify.checkpoint.new_folder import sha256

    assert digest == sha256(tmp_path / "x.safetensors")


def test_a_shard_in_memory_is_a_map_of_its_file(source: Path) -> None:
    shards = mapped_shards(source)
    assert list(shards) == sorted(p.name for p in source.glob("*.safetensors"))
    model, notes = mapped_model(source, {n: t for s in shards.values() for n, t in s.items()})
    assert notes == ()
    parameters = dict(model.named_parameters())
    for held in shards.values():
        for name, tensor in held.items():
            assert parameters[name].data_ptr() == tensor.data_ptr(), name


# -- verify, and back --------------------------------------------------------------------


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x80
    file.write_bytes(data)


DAMAGE = {
    "a bit": lambda folder: flipped(next(folder.glob("*.safetensors"))),
    "a file less": lambda folder: next(folder.glob("*.safetensors")).unlink(),
    "a file more": lambda folder: (folder / "model-9.safetensors").write_bytes(b""),
    "another config": lambda folder: (folder / "config.json").write_text("{}"),
    "no contents": lambda folder: (folder / "unitify.json").unlink(),
    "contents of text": lambda folder: (folder / "unitify.json").write_text("[" * 10**5),
    "a path outside": lambda folder: outside(folder),
}


def outside(folder: Path) -> None:
    told = json.loads((folder / "unitify.json").read_text())
    told["sha256"]["../secret"] = "0"
    (folder / "unitify.json").write_text(json.dumps(told))


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_tells_what_is_not_as_it_was_written(
    damage: str, made: dict[str, tuple[Path, Export]], tmp_path: Path
) -> None:
    copy = damaged(made["fp8"][0], tmp_path, DAMAGE[damage])
    with pytest.raises(UnitifyError) as caught:
        check_folder(copy)
    assert {d.code for d in caught.value.diagnostics} == {"U607"}


def test_verify_tells_another_source(
    made: dict[str, tuple[Path, Export]], source: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    flipped(sorted(copy.glob("*.safetensors"))[0])
    assert check_folder(made["fp8"][0], source)
    with pytest.raises(UnitifyError, match="differs from that of the source"):
        check_folder(made["fp8"][0], copy)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.slow
def test_a_folder_of_codes_is_a_quarter_and_the_same_module(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("convert", str(source), "-o", str(out), "--recipe", "fp8").exit_code == 0
    weights = mapped_weights(source)
    coded = load_file(out / "model.safetensors")
    rows = json.loads((out / "plan.json").read_text())["codes"]
    assert len(rows) == 15
    for name in rows:
        assert coded[name].nbytes * 4 == weights[name].nbytes
    model = transformers.LlamaForCausalLM.from_pretrained(source)
    kwargs = infer_inputs(model)[1]
    original = unitify.transform(model, (), kwargs, recipe="fp8")
    assert torch.equal(original(**kwargs).logits, unitify.load(out)(**kwargs).logits)
    assert run("verify", str(out), "--source", str(source)).exit_code == 0
    back = run("convert", str(out), "-o", str(tmp_path / "back"), "--to", "original")
    assert "U616" in back.stderr
    assert not (tmp_path / "back").exists()


def test_what_no_recipe_cast_comes_back_bit_for_bit(source: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    assert run("convert", str(source), "-o", str(out)).exit_code == 0
    assert run("verify", str(out), "--source", str(source)).exit_code == 0
    assert run("convert", str(out), "-o", str(back), "--to", "original").exit_code == 0
    theirs, ours = mapped_weights(source), mapped_weights(back)
    assert theirs.keys() == ours.keys()
    assert all(same(ours[name], tensor) for name, tensor in theirs.items())
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def test_the_command_line_tells_layers_and_sqnr(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = run(
        "convert", str(source), "-o", str(out), "--recipe", "nvfp4",
        "--format", "compressed-tensors",
    )  # fmt: skip
    assert told.exit_code == 0, told.stderr
    assert "outputs of its reader:" in told.stdout
    layers = json.loads((out / "unitify.json").read_text())["layers"]
    for row in layers:
        low, high = row["window"]
        assert low <= row["input"] <= high
        assert row["margin"] >= 0
    assert run("verify", str(out), "--source", str(source)).exit_code == 0
    assert "U605" in run("convert", str(source), "-o", str(out), "--format", "fp8-block").stderr
    new = str(tmp_path / "new")
    assert "U001" in run("convert", str(source), "-o", new, "--format", "gguf").stderr
    assert "U001" in run("convert", str(source), "-o", new, "--to", "copy").stderr


def test_a_bound_that_is_missed_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unitify.serve.export.LEAST", 60.0)
    recipe = read_recipe("fp8")
    assert recipe is not None
    with pytest.raises(UnitifyError) as caught:
        export(source, tmp_path / "out", recipe, "fp8-dynamic")
    assert caught.value.diagnostics[0].code == "U615"
    assert not list(tmp_path.iterdir())
