"""Inputs that were made to do harm, one of each idea, for ``unitify`` on the command line."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import torch
import torch.distributed.checkpoint as dcp
from hostile_kinds import KINDS, archive_of
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

#: The folder that a payload makes, in the working folder.
PAYLOAD = "executed"
FACTORY = ("--model", "factories:mlp")


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (PAYLOAD,)


class Huge:
    """Reserves memory where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in factories.mlp().state_dict().items()}


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = struct.pack("<Q", len(text) if length is None else length)
        (path / "x.safetensors").write_bytes(size + text + data)
        return "x.safetensors"

    return make


def row(shape: Any, start: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def written(name: str, content: bytes) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        (path / name).write_bytes(content)
        return name

    return make


def saved(made: Callable[[], Any], **options: Any) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        torch.save(made(), path / "x.pt", **options)
        return "x.pt"

    return make


def with_pickle(code: bytes, kind: int = zipfile.ZIP_STORED, **more: bytes) -> Callable[..., str]:
    """An archive whose pickle is ``code``."""
    entries = {"x/data.pkl": code, "x/version": b"3\n", "x/byteorder": b"little"}
    return written("x.pt", archive_of({**entries, **more}, kind))


def nested_tuples(depth: int, width: int) -> bytes:
    """A dict with a key whose hash takes ``width`` to the power of ``depth`` steps."""
    steps = b"".join(b"0" + b"h\x00" * width + b"\x87q\x00" for _ in range(depth))
    return b"\x80\x02}K\x01q\x00" + steps + b"h\x00K\x01s."


def shards(placed: Any, **files: bytes) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        (path / "it").mkdir()
        save_file({"0.weight": torch.ones(16, 6)}, path / "outside.safetensors")
        for name, content in files.items():
            (path / "it" / name).write_bytes(content)
        text = placed if isinstance(placed, str) else json.dumps({"weight_map": placed})
        (path / "it" / "m.safetensors.index.json").write_text(text)
        return "it"

    return make


def linked(name: str, target: str, *, is_model: bool = False) -> Callable[[Path], str]:
    """A folder with a link that leads out of it."""

    def make(path: Path) -> str:
        (path / "it").mkdir()
        (path / "secret").write_text("{}")
        save_file(state(), path / "secret.safetensors")
        if is_model:
            KINDS["Hugging Face folder"].make(path / "it")
        (path / "it" / name).unlink(missing_ok=True)
        (path / "it" / name).symlink_to(path / target)
        return "it"

    return make


def distributed(change: Callable[[Any], object] | bytes) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        dcp.save(state(), checkpoint_id=path / "it", no_dist=True)
        contents = path / "it" / ".metadata"
        if isinstance(change, bytes):
            contents.write_bytes(change)
        else:
            held = pickle.loads(contents.read_bytes())
            change(held)
            contents.write_bytes(pickle.dumps(held))
        return "it"

    return make


def _elsewhere(held: Any) -> None:
    for key, info in held.storage_data.items():
        held.storage_data[key] = _StorageInfo("../../../../etc/passwd", info.offset, info.length)


def _absurd(held: Any) -> None:
    for one in held.state_dict_metadata.values():
        one.size = torch.Size([2**40, 2**20])


def config(**changes: Any) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        KINDS["Hugging Face folder"].make(path)
        file = path / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        (path / "code.py").write_text(f"import os\nos.mkdir({PAYLOAD!r})\nMyModel = None\n")
        return "."

    return make


def piped(path: Path) -> str:
    os.mkfifo(path / "x.safetensors")
    return "x.safetensors"


def sparse(path: Path) -> str:
    with (path / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(2**40)
    return "x.safetensors"


def program(path: Path) -> str:
    torch.export.save(torch.export.export(factories.mlp(), (torch.randn(4, 6),)), path / "x.pt2")
    return "x.pt2"


def script(path: Path) -> str:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path / "x.pt")
    return "x.pt"


def _list_pickle(code: bytes) -> bytes:
    return b"\x80\x02" + code + b"."


_GLOBAL = b"c%s\n%s\n"
_BIG = b"\x8a\x08" + struct.pack("<q", 10**12)
_ONE = archive_of({"x/data.pkl": b"\x80\x02}."})

#: Name → what makes it, the codes that are right, and further options.
CASES: dict[str, tuple[Callable[[Path], str], set[str], tuple[str, ...]]] = {
    name: (make, set(codes.split()), options)
    for name, make, codes, options in (
        ("an empty file", written("x.safetensors", b""), "U601", FACTORY),
        ("a header longer than the file", safetensors({}, length=2**63), "U601", FACTORY),
        ("a sparse header of 90 MB", sparse, "U601", FACTORY),
        ("a header that is a list", safetensors([]), "U601", FACTORY),
        ("a tensor twice", safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)), "U601", FACTORY),
        ("an absurd shape", safetensors({"a": row([2**62, 2**62])}, bytes(4)), "U601", FACTORY),
        ("an absurd shape without elements",
         safetensors({"a": row([0, 2**62, 2**62], 0, 0)}), "U601 U603", FACTORY),
        ("offsets of the past", safetensors({"a": row([1], 8, 4)}, bytes(8)), "U601", FACTORY),
        ("offsets behind the end", safetensors({"a": row([1], 0, 2**60)}), "U601", FACTORY),
        ("a type that is none", safetensors({"a": row([1], dtype="F99")}, bytes(4)), "U601",
         FACTORY),
        ("metadata of numbers", safetensors({"__metadata__": {"tied": 1}}), "U601", FACTORY),
        ("a header of brackets", safetensors(b'{"a":' + b"[" * 10**6), "U601", FACTORY),
        ("a name of a path", safetensors({"../../x": row([1])}, bytes(4)), "U603", FACTORY),
        ("a name of escapes", safetensors(b'{"\\u001b[2J":{"dtype":"F32","shape":[1],'
         b'"data_offsets":[0,4]}}', bytes(4)), "U603", FACTORY),
        ("a name of 100000 steps", safetensors({"a." * 10**5: row([1])}, bytes(4)), "U603",
         FACTORY),
        ("codes without a dimension", safetensors(
            {"a": row([], 0, 1, "F8_E4M3"), "a_scale": row([3], 1, 13)}, bytes(13)), "U603",
         FACTORY),
        ("1000 state dicts", saved(
            lambda: {f"x{i}": {"a": torch.ones(1)} for i in range(1000)}), "U601", FACTORY),
        ("a pipe", piped, "U601", FACTORY),
        ("GGUF as safetensors", written("x.safetensors", b"GGUF" + bytes(99)), "U601", FACTORY),
        ("GGUF as pickle", written("x.pt", b"GGUF" + bytes(99)), "U601", FACTORY),
        ("GGUF", written("x.gguf", b"GGUF" + bytes(99)), "U601", FACTORY),
        ("a pickle as safetensors", written("x.safetensors", pickle.dumps(Evil())), "U601",
         FACTORY),
        ("an archive as safetensors", written("x.safetensors", _ONE), "U601", FACTORY),
        ("a pointer of Git LFS", written("x.bin", b"version https://git-lfs.github.com/spec/v1"),
         "U601", FACTORY),
        ("a pickle with code", saved(lambda: {"a": Evil(), **state()}), "U602", FACTORY),
        ("an old pickle with code", saved(
            lambda: {"a": Evil()}, _use_new_zipfile_serialization=False), "U602", FACTORY),
        ("a raw pickle with code", written("x.pt", pickle.dumps(Evil())), "U601", FACTORY),
        ("a raw pickle with code, trusted", written("x.pt", pickle.dumps(Evil())), "U601",
         (*FACTORY, "--unsafe-load", "mine")),
        ("a module pickled whole", saved(factories.mlp), "U602", FACTORY),
        ("trust without a reason", saved(factories.mlp), "U001", (*FACTORY, "--unsafe-load", " ")),
        ("trust in safetensors", safetensors({}), "U001", (*FACTORY, "--unsafe-load", "mine")),
        ("trust for a runtime", saved(factories.mlp), "U001",
         ("--unsafe-load", "mine", "--format", "fp8-block")),
        ("a TorchScript archive", script, "U602", FACTORY),
        ("an exported program", program, "U602", FACTORY),
        ("an exported program, trusted", program, "U602", (*FACTORY, "--unsafe-load", "mine")),
        ("a zip bomb", with_pickle(b"\x80\x02}.", zipfile.ZIP_DEFLATED, x=bytes(10**8)), "U601",
         FACTORY),
        ("entries twice", lambda path: _twice(path), "U601", FACTORY),
        ("a bytearray of 1 TB", with_pickle(_list_pickle(
            _GLOBAL % (b"builtins", b"bytearray") + _BIG + b"\x85R")), "U602", FACTORY),
        ("a bytearray of 1 TB in a list", with_pickle(_list_pickle(
            _GLOBAL % (b"builtins", b"bytearray") + b"]" + _BIG + b"aR")), "U602", FACTORY),
        ("a bytearray of 1 TB by another function", with_pickle(_list_pickle(
            _GLOBAL % (b"torch._tensor", b"_rebuild_from_type_v2")
            + b"(" + _GLOBAL % (b"builtins", b"bytearray") + _GLOBAL % (b"torch", b"Tensor")
            + _BIG + b"\x85}tR")), "U602", FACTORY),
        ("a storage of 1 TB", with_pickle(_list_pickle(
            _GLOBAL % (b"torch", b"UntypedStorage") + _BIG + b"\x85R")), "U602 U601", FACTORY),
        ("a number of 2 GB", with_pickle(b"\x80\x02\x8b\xff\xff\xff\x7f."), "U601", FACTORY),
        ("bytes of 2^63", with_pickle(b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"."),
         "U601", FACTORY),
        ("text of 4 GB", with_pickle(b"\x80\x02X\xff\xff\xff\xff."), "U601", FACTORY),
        ("a memo of 2^31", with_pickle(b"\x80\x02Nr\xff\xff\xff\x7f."), "U601", FACTORY),
        ("a hash without end", with_pickle(nested_tuples(90, 3)), "U601", FACTORY),
        ("tuples without end", with_pickle(b"\x80\x02})" + b"\x85" * 10**5 + b"K\x01s."), "U601",
         FACTORY),
        ("attributes of a class", with_pickle(_list_pickle(
            _GLOBAL % (b"collections", b"OrderedDict") + b"}U\x01aK\x01sb")), "U601 U602", FACTORY),
        ("a dict in itself", with_pickle(b"\x80\x02}q\x00U\x01ah\x00s."), "U601", FACTORY),
        ("dicts in dicts", saved(lambda: _crossed(1000)), "U601", FACTORY),
        ("a tensor of 1 PB in one number", saved(
            lambda: {"0.weight": torch.ones(1).expand(2**25, 2**23)}), "U601", FACTORY),
        ("a sparse tensor", saved(lambda: {"a": torch.ones(2, 2).to_sparse()}), "U601 U602",
         FACTORY),
        ("a tensor without memory", saved(lambda: {"a": torch.ones(2, device="meta")}),
         "U601 U602", FACTORY),
        ("metadata of a state dict", saved(lambda: _with_metadata(5)), "", FACTORY),
        ("versions of a state dict", saved(
            lambda: _with_metadata({"": {"version": "x"}, 3: 4})), "", FACTORY),
        ("an index that leads out", shards({"0.weight": "../outside.safetensors"}), "U601",
         FACTORY),
        ("an index of a root", shards({"0.weight": "/etc/passwd"}), "U601", FACTORY),
        ("an index of itself", shards({"a": "m.safetensors.index.json"}), "U601", FACTORY),
        ("an index of folders", shards({"a": "."}), "U601", FACTORY),
        ("an index of numbers", shards({"a": 1}), "U601", FACTORY),
        ("an index of lists", shards({"a": []}), "U601", FACTORY),
        ("an index that is a list", shards("[]"), "U601", FACTORY),
        ("an index of brackets", shards("[" * 10**6), "U601", FACTORY),
        ("an index with a key twice", shards('{"weight_map": {}, "weight_map": {}}'), "U601",
         FACTORY),
        ("an index with half a letter", shards('{"weight_map": {"\\ud800": "a"}}'), "U601",
         FACTORY),
        ("weights that are a link", linked("model.safetensors", "secret.safetensors"), "U601",
         FACTORY),
        ("a link to itself", linked("model.safetensors", "it/model.safetensors"), "U601", FACTORY),
        ("a config that is a link", linked("config.json", "secret", is_model=True), "U601", ()),
        ("a tokenizer that is a link", linked("tokenizer.json", "secret", is_model=True), "U601",
         ()),
        ("code in a list of contents", distributed(pickle.dumps(Evil())), "U602", FACTORY),
        ("contents that are a class", distributed(pickle.dumps(dcp_metadata.Metadata)), "U601",
         FACTORY),
        ("attributes of a list of contents", distributed(
            b"\x80\x02" + _GLOBAL % (b"torch.distributed.checkpoint.metadata", b"Metadata")
            + b"}X\x08\x00\x00\x00__init__K\x01sb."), "U601", FACTORY),
        ("contents of 2^31 entries", distributed(b"\x80\x02Nr\xff\xff\xff\x7f."), "U601", FACTORY),
        ("pieces that lie elsewhere", distributed(_elsewhere), "U601", FACTORY),
        ("pieces of an absurd whole", distributed(_absurd), "U601", FACTORY),
        ("pieces that are not listed", distributed(lambda held: held.storage_data.clear()), "U601",
         FACTORY),
        ("code of a model in its folder",
         config(architectures=["MyModel"], auto_map={"AutoModel": "code.MyModel"}), "U602", ()),
        ("a kernel of the Hub", config(attn_implementation="someone/kernel"), "U602", ()),
        ("a config of 10^9 layers", config(num_hidden_layers=10**9), "U601", ()),
        ("a config of 50000 layers", config(num_hidden_layers=50_000), "U601", ()),
        ("a config of 1 TB a layer", config(intermediate_size=2**34), "U601", ()),
        ("a config of other files", config(transformers_weights="../x.bin"), "U601", ()),
        ("a config of texts", config(hidden_size="x", num_attention_heads=[]), "U601", ()),
    )
}  # fmt: skip


def _crossed(width: int) -> dict[str, Any]:
    """Dicts of one dict under many names, four deep."""
    inner: dict[str, Any] = {"x": 1}
    for _ in range(3):
        inner = dict.fromkeys((f"k{i}" for i in range(width)), inner)
    return inner


def _twice(path: Path) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for code in (b"\x80\x02}.", b"\x80\x02]."):
            archive.writestr("x/data.pkl", code)
    (path / "x.pt").write_bytes(buffer.getvalue())
    return "x.pt"


def _with_metadata(value: Any) -> Any:
    made = collections.OrderedDict(state())
    made._metadata = value  # type: ignore[attr-defined]
    return made
