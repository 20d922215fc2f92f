"""Folders for runtimes as files: written whole or not at all, verified, and written back."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from served import damaged, flipped, run
from torch import Tensor

import unitify
from unitify.capture.inputs import infer_inputs
from unitify.checkpoint.files import mapped_shards, mapped_weights
from unitify.checkpoint.new_folder import new_folder
from unitify.diagnostics import UnitifyError
from unitify.recipe.reader import read_recipe
from unitify.serve.checked import check_folder
from unitify.serve.export import export
from unitify.serve.mapped import mapped_model
from unitify.serve.shards import Promise, write_shard
from unitify.serve.writing import Export

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")


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
    progress: list[int] = []
    promises = [Promise(n, t.dtype, tuple(t.shape), lambda t=t: t) for n, t in held.items()]
    digest = write_shard(tmp_path / "x.safetensors", promises, progress.append)
    assert sum(progress) == sum(t.nbytes for t in held.values())
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
    document = json.loads((folder / "unitify.json").read_text())
    document["sha256"]["../secret"] = "0"
    (folder / "unitify.json").write_text(json.dumps(document))


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


@pytest.mark.slow
def test_the_command_line_tells_layers_and_sqnr(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = run(
        "convert", str(source), "-o", str(out), "--recipe", "nvfp4",
        "--format", "compressed-tensors",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    assert "outputs of its reader:" in outcome.stdout
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
    monkeypatch.setattr("unitify.serve.writing.LEAST", 60.0)
    recipe = read_recipe("fp8")
    assert recipe is not None
    with pytest.raises(UnitifyError) as caught:
        export(source, tmp_path / "out", recipe, "fp8-dynamic")
    assert caught.value.diagnostics[0].code == "U615"
    assert not list(tmp_path.iterdir())
