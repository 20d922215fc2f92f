"""Each kind of input that unitify reads: a whole one, a change of it, and what reads it."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import factories
import torch
import torch.distributed.checkpoint as dcp
from hostile import changed_bytes, changed_document, changed_json
from safetensors.torch import save_file

import unitify
from unitify.check.baseline import read_baseline
from unitify.check.plan_faults import read_plan
from unitify.check.settings import read_settings
from unitify.checkpoint import folder
from unitify.checkpoint.converted import PLAN, digest_of_plan, read
from unitify.checkpoint.files import mapped_shards, read_state_dicts
from unitify.checkpoint.filling import fill
from unitify.checkpoint.new_folder import new_folder, sha256
from unitify.checkpoint.original import write_original
from unitify.convert import read_source
from unitify.recipe.reader import read_recipe
from unitify.report.drift_file import read_drift
from unitify.rulebook.rule_table import load_rules
from unitify.serve.checked import check_folder
from unitify.serve.contents import CONTENTS, FORMAT
from unitify.serve.layouts import LAYOUTS
from unitify.serve.served import Served
from unitify.serve.shards import write_shard
from unitify.serve.writing import promised


@dataclass(frozen=True)
class Kind:
    """``make`` writes a whole input, ``change`` changes a copy, ``read`` may write to a folder."""

    make: Callable[[Path], object]
    change: Callable[[Path, random.Random], object]
    read: Callable[[Path, Path], object]


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: tensor.clone() for name, tensor in factories.mlp().state_dict().items()}


def _filled(name: str) -> Callable[[Path, Path], object]:
    return lambda path, _: fill(factories.mlp(), read_state_dicts(path / name), name)


def _bytes_of(name: str) -> Callable[[Path, random.Random], object]:
    def change(path: Path, draw: random.Random) -> None:
        file = draw.choice(sorted(path.glob(name)))
        file.write_bytes(changed_bytes(file.read_bytes(), draw))

    return change


def _json_of(name: str) -> Callable[[Path, random.Random], object]:
    def change(path: Path, draw: random.Random) -> None:
        (path / name).write_bytes(changed_json((path / name).read_text(), draw))

    return change


def _either(*changes: Callable[[Path, random.Random], object]) -> Callable[..., object]:
    return lambda path, draw: draw.choice(changes)(path, draw)


def _header(path: Path, draw: random.Random) -> None:
    """A changed header of safetensors, of the length that it says."""
    data = (path / "x.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = changed_json(data[8:end].decode(), draw)
    made = struct.pack("<Q", len(header)) + header + data[end:]
    (path / "x.safetensors").write_bytes(made)


def _inside_zip(path: Path, draw: random.Random) -> None:
    """A changed entry in an archive that is whole otherwise."""
    file = path / "x.pt"
    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([n for n in held if n.endswith(".pkl")] * 4 + list(held))
    held[name] = changed_bytes(held[name], draw)
    kind = zipfile.ZIP_DEFLATED if draw.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def _legacy(path: Path) -> None:
    torch.save(_state(), path / "x.pt", _use_new_zipfile_serialization=False)


def _shards(path: Path) -> None:
    state = _state()
    names = list(state)
    files = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, path / file)
    placed = {name: file for file, held in files.items() for name in held}
    (path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


@cache
def _module(scheme: str) -> unitify.UnitScaledModule:
    torch.manual_seed(1)
    options = {"unit": {"scheme": "unit"}, "fp8": {"recipe": "fp8-ptq,multiple=1"}}.get(scheme, {})
    return unitify.transform(factories.mlp(), (torch.randn(4, 6),), verify=False, **options)


def _sealed(path: Path, draw: random.Random) -> None:
    """A changed plan with the hashes that belong to it."""
    document = changed_document(json.loads((path / PLAN).read_text()), draw)
    if isinstance(document, dict) and isinstance(document.get("sha256"), dict):
        for name in list(document["sha256"]):
            if isinstance(name, str) and name != PLAN and "\0" not in name:
                file = path / name
                document["sha256"][name] = sha256(file) if file.is_file() else "0"
        document = json.loads(json.dumps(document))
        document["sha256"][PLAN] = digest_of_plan(document)
    (path / PLAN).write_text(json.dumps(document))


def _loaded(path: Path, _: Path) -> None:
    unitify.load(path / "it", factories.mlp())


def _original(path: Path, out: Path) -> None:
    write_original(read(path / "it"), out / "original")


def _below(change: Callable[[Path, random.Random], object]) -> Callable[..., object]:
    return lambda path, draw: change(path / "it", draw)


def _exported(path: Path) -> None:
    """A folder for runtimes of two layers, without a model around them."""
    (path / "source").mkdir()
    torch.manual_seed(1)
    save_file(
        {"a.weight": torch.randn(32, 64), "b.weight": torch.randn(8, 32), "c": torch.ones(3)},
        path / "source" / "model.safetensors",
    )
    layers = [Served(name, "e4m3", 0.5, 2.0, "g") for name in "ab"]
    layout = LAYOUTS["fp8"]
    placed = promised(mapped_shards(path / "source"), layers, [], layout)
    with new_folder(path / "it", {}) as made:
        for file, promises in placed.items():
            made.once(file, partial(write_shard, promises=promises, on_bytes=lambda _: None))
        made.write("config.json", {})
        hashes = made.hashes()
        rows = [{**asdict(each), "window": [1.0, 4.0], "margin": 1.0} for each in layers]
        document = {"format": FORMAT, "layout": "fp8", "layers": rows, "caches": []}
        made.write(CONTENTS, {**document, "sha256": hashes})


def _language_model(path: Path) -> None:
    import transformers

    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, intermediate_size=24, vocab_size=32,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)


_FINDINGS = [["U801", "a.b", "forward", 3], ["U802", "c", "backward", None]]
_BASELINE = {"version": 1, "findings": _FINDINGS}
_READING = {"rms": 1.0}
_RECORD = {"step": 3, "forward": {"a": _READING}, "backward": {"b": _READING}}
_RULES = """
["aten.relu.default"]
replaces = true
law = {out = "self", self = "self"}
where = {m = "mean(self)", v = "m * m + square(self)"}
forward = {square = "square(self) / 2 + v", mean = "sqrt(1 + m ** 2)"}
backward = {self = {square = "square(grad) / 2"}}
sample = {self = "normal(8, 16, mean=0.3)"}
"""
_RECIPE = 'base = "fp8"\nexclude = ["a*"]\nmultiple = 8\nheadroom = "none"\nscale = 1.0\n'
_SETTINGS = '[tool.unitify]\nrecipe = "fp8"\n[tool.unitify.check]\nnoise = 3.0\nselect = ["U80"]\n'
_TOML = (
    b"[]", b"{}", b"1", b"-1", b"9" * 300, b"nan", b"-inf", b"1979-05-27", b'"' * 3, b"true",
    b'"9 ** 9 ** 9"', b'"exp(exp(exp(9)))"', b'"(self)"', b'"' + b"(" * 90 + b")" * 90 + b'"',
    b'"normal(100000, 100000, 100000)"', b'"1 / 0"', b"[" * 2000 + b"]" * 2000, b"a.b.c = 1",
    b'"__import__(1)"', b'"self.__class__"', b'["x", 1, [2]]', b'{a = {b = "c"}}',
)  # fmt: skip


def _toml_of(name: str) -> Callable[[Path, random.Random], object]:
    def change(path: Path, draw: random.Random) -> None:
        data = (path / name).read_bytes()
        if draw.random() < 0.5:
            made = changed_bytes(data, draw)
        else:
            lines = [line for line in data.splitlines() if b"=" in line]
            old = draw.choice(lines).split(b" = ", 1)[-1]
            made = data.replace(old, draw.choice(_TOML), 1)
        (path / name).write_bytes(made)

    return change


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(text)


def _settings(path: Path, _: Path) -> None:
    read_settings(path)
    read_recipe(path / "pyproject.toml")


def _distributed(path: Path) -> None:
    dcp.save({"model": _state(), "step": 3}, checkpoint_id=path / "it", no_dist=True)


KINDS: dict[str, Kind] = {
    "safetensors": Kind(
        lambda path: save_file(_state(), path / "x.safetensors"),
        _either(_bytes_of("*.safetensors"), _header), _filled("x.safetensors"),
    ),
    "torch.save": Kind(
        lambda path: torch.save(_state(), path / "x.pt"),
        _either(_bytes_of("*.pt"), _inside_zip), _filled("x.pt"),
    ),
    "torch.save before 1.6": Kind(_legacy, _bytes_of("*.pt"), _filled("x.pt")),
    "shards and their index": Kind(
        _shards, _either(_bytes_of("*.safetensors"), _json_of("m.safetensors.index.json")),
        _filled("m.safetensors.index.json"),
    ),
    "torch.distributed.checkpoint": Kind(
        _distributed, _below(_either(_bytes_of(".metadata"), _bytes_of("*.distcp"))), _filled("it"),
    ),
    "converted folder": Kind(
        lambda path: folder.write(path / "it", _module("fp8"), {}),
        _below(_either(_sealed, _sealed, _json_of(PLAN), _bytes_of("*.safetensors"))), _loaded,
    ),
    "converted folder, to the original": Kind(
        lambda path: folder.write(path / "it", _module(""), {}),
        _below(_either(_sealed, _bytes_of("*.safetensors"))), _original,
    ),
    "converted folder of a scheme": Kind(
        lambda path: folder.write(path / "it", _module("unit"), {}), _below(_sealed), _loaded,
    ),
    "plan of check": Kind(
        lambda path: (path / PLAN).write_text(_module("").plan.dumps()),
        _json_of(PLAN), lambda path, _: read_plan(path / PLAN),
    ),
    "folder for runtimes": Kind(
        _exported, _below(_either(_json_of(CONTENTS), _bytes_of("*"))),
        lambda path, _: check_folder(path / "it", path / "source"),
    ),
    "Hugging Face folder": Kind(
        _language_model, _either(_json_of("config.json"), _json_of("generation_config.json")),
        lambda path, _: read_source(path, None),
    ),
    "baseline": Kind(
        _write("b.json", json.dumps(_BASELINE)), _json_of("b.json"),
        lambda path, _: read_baseline(path / "b.json"),
    ),
    "readings": Kind(
        _write("r.jsonl", json.dumps(_RECORD)), _json_of("r.jsonl"),
        lambda path, _: read_drift(path / "r.jsonl"),
    ),
    "rule file": Kind(
        _write("r.toml", _RULES), _toml_of("r.toml"), lambda path, _: load_rules([path / "r.toml"]),
    ),
    "recipe file": Kind(
        _write("r.toml", _RECIPE), _toml_of("r.toml"), lambda path, _: read_recipe(path / "r.toml"),
    ),
    "pyproject.toml": Kind(
        _write("pyproject.toml", _SETTINGS), _toml_of("pyproject.toml"), _settings,
    ),
}  # fmt: skip


def copy_of(source: Path, target: Path) -> Path:
    """A new copy of an input."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def archive_of(entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()
