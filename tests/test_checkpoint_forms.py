"""Checkpoints as people have them: loaded as torch would, bit for bit, or refused by name."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

import unitify
from unitify.checkpoint.files import read_state_dicts
from unitify.checkpoint.filling import Allowed, fill
from unitify.cli import app
from unitify.convert import convert, read_source
from unitify.diagnostics import UnitifyError


class Normed(nn.Module):
    """Batch norm and weight norm: layers whose names were others once."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU())
        self.head = parametrizations.weight_norm(nn.Linear(8, 6))
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.body(x)))


class Inner(nn.Module):
    """A model below the name ``model``, as Lightning's modules have it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Normed()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def trained() -> Normed:
    """With numbers of its own everywhere."""
    torch.manual_seed(11)
    model = Normed()
    for _ in range(3):
        model(torch.randn(9, 6))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor))
    return model.eval()


X = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
MODEL = trained()
STATE = MODEL.state_dict()


def under(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def lightning() -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(under("model.")),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [optimizer_state()],
        "lr_schedulers": [],
    }


def optimizer_state() -> dict[str, Any]:
    model = trained().train()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def averaged() -> dict[str, Any]:
    average = AveragedModel(Normed())
    for _ in range(3):
        average.update_parameters(MODEL)
    average.module.load_state_dict(STATE)
    return average.state_dict()


def compiled_inside() -> dict[str, Any]:
    def wrapped(name: str) -> str:
        return name.replace("body.", "body._orig_mod.").replace("last.", "_orig_mod.last.")

    return {wrapped(name): tensor for name, tensor in STATE.items()}


def old_names() -> dict[str, Any]:
    """As ``torch.nn.utils.weight_norm`` has them."""
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in STATE.items()
    }


PICKLES: dict[str, Callable[[], Any]] = {
    "plain": lambda: STATE,
    "data parallel": lambda: under("module."),
    "compiled": lambda: under("_orig_mod."),
    "both": lambda: under("module._orig_mod."),
    "any prefix": lambda: under("student.backbone."),
    "compiled inside": compiled_inside,
    "nested": lambda: {"model": STATE, "optimizer": optimizer_state(), "epoch": 3},
    "model_state_dict": lambda: {"model_state_dict": STATE, "loss": 0.5},
    "ema": lambda: {"ema": {"module": STATE, "decay": 0.99}, "step": 7},
    "nested and parallel": lambda: {"net": under("module."), "args": {"lr": 0.1}},
    "lightning": lightning,
    "averaged": averaged,
    "old weight norm": old_names,
    "batch norm of old": lambda: {n: t for n, t in STATE.items() if "num_batches" not in n},
    "with versions": lambda: trained().state_dict(),
}


def filled(path: Path, factory: Callable[[], nn.Module] = Normed, **allowed: Any) -> nn.Module:
    torch.manual_seed(12)
    model = factory().eval()
    model.notes = fill(model, read_state_dicts(path), str(path), Allowed(**allowed))
    return model


def same(ours: nn.Module, theirs: nn.Module = MODEL) -> bool:
    return torch.equal(ours(X), theirs(X)) and all(
        torch.equal(tensor, theirs.state_dict()[name])
        for name, tensor in ours.state_dict().items()
        if "num_batches" not in name
    )


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UnitifyError) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize("name", PICKLES)
def test_what_training_scripts_save(tmp_path: Path, name: str) -> None:
    torch.save(PICKLES[name](), tmp_path / "it.pt")
    model = filled(tmp_path / "it.pt")
    assert same(model)
    quiet = name in ("plain", "old weight norm", "batch norm of old", "with versions")
    assert bool(model.notes) is not quiet
    assert {note.code for note in model.notes} <= {"U612"}


FLAT = [name for name, made in PICKLES.items() if name not in ("lightning",) and all(
    isinstance(value, Tensor) for value in made().values())]  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
def test_the_same_as_safetensors(tmp_path: Path, name: str) -> None:
    save_file({n: t.clone() for n, t in PICKLES[name]().items()}, tmp_path / "it.safetensors")
    assert same(filled(tmp_path / "it.safetensors"))


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    """Since its second version a batch norm saves its count, and torch asks for it."""
    state = trained().state_dict()
    for name in [name for name in state if "num_batches" in name]:
        del state[name]
    for prefix in ("", "module."):
        renamed = OrderedDict(under(prefix, state))
        renamed._metadata = {  # type: ignore[attr-defined]
            f"{prefix}{path}".removesuffix("."): told for path, told in state._metadata.items()
        }
        torch.save(renamed, tmp_path / "it.pt")
        text = refusal(lambda: filled(tmp_path / "it.pt"))
        assert "U603" in text
        assert "missing: body.1.num_batches_tracked" in text
        assert "--allow-missing 'body.1.num_batches_tracked'" in text
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        Normed().load_state_dict(state)


def test_a_factory_with_the_prefix_needs_none_taken(tmp_path: Path) -> None:
    torch.save(lightning(), tmp_path / "it.ckpt")
    assert torch.equal(filled(tmp_path / "it.ckpt", Inner)(X), MODEL(X))


def test_a_prefix_is_taken_only_where_all_then_fits(tmp_path: Path) -> None:
    torch.save({**under("model."), "loss.weight": torch.ones(3)}, tmp_path / "it.pt")
    text = refusal(lambda: filled(tmp_path / "it.pt"))
    assert "U603" in text
    assert "--allow-unexpected" in text
    assert same(filled(tmp_path / "it.pt", unexpected=("loss.*",)))


def test_heads_that_are_missing_or_too_many(tmp_path: Path) -> None:
    state = {name: t for name, t in STATE.items() if not name.startswith("last.")}
    state |= {"top.weight": torch.ones(2), "top.bias": torch.ones(2)}
    torch.save(state, tmp_path / "it.pt")
    text = refusal(lambda: filled(tmp_path / "it.pt"))
    assert "--allow-missing 'last.*' --allow-unexpected 'top.*'" in text
    assert "U603" in refusal(lambda: filled(tmp_path / "it.pt", missing=("last.*",)))
    model = filled(tmp_path / "it.pt", missing=("last.*",), unexpected=("top.*",))
    torch.manual_seed(12)
    expected = Normed().eval()
    expected.load_state_dict(state, strict=False)
    assert same(model, expected)
    told = " ".join(note.message for note in model.notes)
    assert "last.bias, last.weight" in told or "last.weight, last.bias" in told
    assert "top.weight, top.bias" in told


def test_two_that_fit_are_not_chosen_between(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"model": STATE, "ema": other}, tmp_path / "it.pt")
    text = refusal(lambda: filled(tmp_path / "it.pt"))
    assert "U613" in text
    assert "model, ema" in text


def test_tied_names_with_different_numbers(tmp_path: Path) -> None:
    state = factories.tied().state_dict()
    state["head.weight"] = state["head.weight"] + 1
    torch.save(state, tmp_path / "it.pt")
    text = refusal(lambda: filled(tmp_path / "it.pt", factories.tied))
    assert "U603" in text
    assert "one tensor of the model" in text


def test_a_hook_of_the_model_renames(tmp_path: Path) -> None:
    class Hooked(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.register_load_state_dict_pre_hook(self.rename)

        @staticmethod
        def rename(module: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
            for name in [name for name in state_dict if name.startswith(f"{prefix}final.")]:
                state_dict[name.replace("final.", "last.")] = state_dict.pop(name)

    torch.save({n.replace("last.", "final."): t for n, t in STATE.items()}, tmp_path / "it.pt")
    assert same(filled(tmp_path / "it.pt", Hooked))


def test_old_weight_norm_takes_no_new_names(tmp_path: Path) -> None:
    """Torch has a hook for one direction alone."""
    with pytest.warns(FutureWarning):
        old = torch.nn.utils.weight_norm(nn.Linear(6, 6))
    new = parametrizations.weight_norm(nn.Linear(6, 6))
    torch.save(new.state_dict(), tmp_path / "it.pt")
    assert "U603" in refusal(lambda: fill(old, read_state_dicts(tmp_path / "it.pt")))
    torch.save(old.state_dict(), tmp_path / "it.pt")
    fill(new, read_state_dicts(tmp_path / "it.pt"))
    assert torch.equal(new.weight, old.weight)


def fp8(scale: Callable[[Tensor], Tensor], ending: str) -> tuple[dict[str, Tensor], Tensor]:
    """A linear layer's codes with a scale, and the weight that they stand for."""
    weight = torch.randn(200, 150, generator=torch.Generator().manual_seed(4))
    own = scale(weight)
    spread = own
    if own.dim() == 2:
        width = 1 if own.shape[1] == 1 else 128
        spread = own.repeat_interleave(width, 0).repeat_interleave(width, 1)[:200, :150]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    state = {"weight": codes, f"weight{ending}": own, "bias": torch.ones(200)}
    return state, codes.float() * spread


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda w: w.abs().max() / 448,
    "one in a list": lambda w: (w.abs().max() / 448).reshape(1),
    "rows": lambda w: w.abs().amax(1, keepdim=True) / 448,
    "blocks": lambda w: torch.rand(2, 2, generator=torch.Generator().manual_seed(1)) / 50 + 0.01,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ending", ["_scale", "_scale_inv"])
@pytest.mark.parametrize("kind", SCALES)
def test_codes_of_eight_bits(tmp_path: Path, kind: str, ending: str, dtype: torch.dtype) -> None:
    state, weight = fp8(SCALES[kind], ending)
    state["bias"] = state["bias"].to(dtype)
    save_file(state, tmp_path / "it.safetensors")
    model = nn.Linear(150, 200).to(dtype)
    (note,) = fill(model, read_state_dicts(tmp_path / "it.safetensors"))
    assert torch.equal(model.weight, weight.to(dtype))
    assert "1 tensors of FP8 codes" in note.message


@pytest.mark.parametrize("change", ["no scale", "a strange scale"])
def test_codes_whose_scale_is_not_told(tmp_path: Path, change: str) -> None:
    state, _ = fp8(SCALES["one"], "_scale")
    state["weight_scale"] = torch.ones(3, 5)
    if change == "no scale":
        del state["weight_scale"]
    save_file(state, tmp_path / "it.safetensors")
    given = read_state_dicts(tmp_path / "it.safetensors")
    allowed = Allowed(unexpected=("*_scale",))
    assert "U603" in refusal(lambda: fill(nn.Linear(150, 200), given, "", allowed))
    assert "its numbers are codes" in refusal(lambda: fill(nn.Linear(150, 200), given))


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
@pytest.mark.parametrize("nested", [False, True])
def test_distributed_checkpoints(tmp_path: Path, nested: bool) -> None:
    state = {"model": STATE, "optim": optimizer_state(), "epoch": 3} if nested else dict(STATE)
    dcp.save(state, checkpoint_id=tmp_path / "it", no_dist=True)
    assert same(filled(tmp_path / "it"))


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
def test_code_in_a_distributed_checkpoint_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dcp.save({**STATE, "extra": Evil()}, checkpoint_id=tmp_path / "it", no_dist=True)
    assert same(filled(tmp_path / "it"))
    contents = tmp_path / "it" / ".metadata"
    contents.write_bytes(pickle.dumps(Evil()))
    assert "U602" in refusal(lambda: read_state_dicts(tmp_path / "it"))
    contents.write_bytes(b"nothing")
    assert "U601" in refusal(lambda: read_state_dicts(tmp_path / "it"))
    assert not (tmp_path / "evil").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
def test_a_distributed_checkpoint_that_is_cut(tmp_path: Path) -> None:
    dcp.save(dict(STATE), checkpoint_id=tmp_path / "it", no_dist=True)
    (file,) = (tmp_path / "it").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:900])
    assert "U601" in refusal(lambda: read_state_dicts(tmp_path / "it"))


def sharded(folder: Path, suffix: str = ".safetensors") -> Path:
    folder.mkdir()
    names = list(STATE)
    placed = {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file = f"model-{number:05}-of-00002{suffix}"
        state = {name: STATE[name].clone() for name in part}
        save_file(state, folder / file) if suffix == ".safetensors" else torch.save(
            state, folder / file
        )
        placed |= dict.fromkeys(part, file)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(tmp_path: Path, suffix: str) -> None:
    index = sharded(tmp_path / "it", suffix)
    assert same(filled(tmp_path / "it"))
    assert same(filled(index))
    (tmp_path / "it" / f"model-00002-of-00002{suffix}").unlink()
    assert "U601" in refusal(lambda: read_state_dicts(index))
    index.write_text(
        json.dumps({"weight_map": {"last.bias": f"../it/model-00001-of-00002{suffix}"}})
    )
    assert "outside its folder" in refusal(lambda: read_state_dicts(index))
    index.write_text("{}")
    assert "U601" in refusal(lambda: read_state_dicts(index))


def test_a_folder_of_one_file(tmp_path: Path) -> None:
    save_file({name: t.clone() for name, t in STATE.items()}, tmp_path / "model.safetensors")
    assert same(filled(tmp_path))
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert same(filled(tmp_path))
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    assert "U601" in refusal(lambda: read_state_dicts(tmp_path))


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    save_file({"lora_A": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    for model in (None, "factories:mlp"):
        text = refusal(lambda: read_source(tmp_path, model))  # noqa: B023
        assert "U611" in text
        assert "some/base" in text
        assert "merge_and_unload" in text


def test_weights_without_a_config_ask_for_a_model(tmp_path: Path) -> None:
    sharded(tmp_path / "it")
    assert "U004" in refusal(lambda: read_source(tmp_path / "it", None))


@pytest.mark.parametrize(
    "made", [{"args": Evil(), "state_dict": STATE}, Evil()], ids=["beside", "it"]
)
def test_what_needs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(made, tmp_path / "it.pt")
    assert "U602" in refusal(lambda: read_state_dicts(tmp_path / "it.pt"))
    assert not (tmp_path / "evil").exists()


def test_weights_for_a_factory_without_memory(tmp_path: Path) -> None:
    def empty() -> nn.Module:
        with torch.device("meta"):
            return factories.mlp()

    state = factories.mlp().state_dict()
    torch.save(state, tmp_path / "it.pt")
    model = empty()
    fill(model, read_state_dicts(tmp_path / "it.pt"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    del state["0.bias"]
    torch.save(state, tmp_path / "it.pt")
    given = read_state_dicts(tmp_path / "it.pt")
    allowed = Allowed(missing=("0.bias",))
    assert "U603" in refusal(lambda: fill(empty(), given, "", allowed))


def test_notes_are_in_the_report(tmp_path: Path) -> None:
    state = {f"module.{name}": t for name, t in factories.mlp().state_dict().items()}
    torch.save({"model": state}, tmp_path / "it.pt")
    report = convert(tmp_path / "it.pt", tmp_path / "out", model="factories:mlp")
    told = [note.message for note in report.left_out if note.code == "U612"]
    assert len(told) == 2
    loaded = unitify.load(tmp_path / "out", factories.mlp())
    assert all(torch.equal(t, state[f"module.{n}"]) for n, t in loaded.state_dict().items())


def test_the_options_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = factories.mlp().state_dict()
    del state["2.bias"]
    torch.save({**state, "loss.weight": torch.ones(2)}, "it.pt")
    call = ["convert", "it.pt", "--model", "factories:mlp", "-o", "out"]
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 2
    options = ["--allow-missing", "2.bias", "--allow-unexpected", "loss.weight"]
    assert "--allow-missing '2.bias' --allow-unexpected 'loss.weight'" in refused.stderr
    result = CliRunner().invoke(app, [*call, *options])
    assert result.exit_code == 0, result.output
    assert "2.bias" in result.stdout


@pytest.mark.slow
def test_an_adapter_is_merged_as_the_refusal_says(tmp_path: Path) -> None:
    import peft
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    base, lora, merged = tmp_path / "base", tmp_path / "lora", tmp_path / "merged"
    transformers.GPT2LMHeadModel(config).save_pretrained(base)
    options = peft.LoraConfig(
        r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True,
        init_lora_weights=False,
    )  # fmt: skip
    adapted = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(base), options)
    adapted.save_pretrained(lora)
    with pytest.raises(UnitifyError, match=r"peft\.PeftModel\.from_pretrained") as caught:
        convert(lora, tmp_path / "none")
    assert str(base) in str(caught.value)
    plain = transformers.GPT2LMHeadModel.from_pretrained(base)
    peft.PeftModel.from_pretrained(plain, lora).merge_and_unload().save_pretrained(merged)
    convert(merged, tmp_path / "out")
    ids = torch.randint(0, 64, (2, 8))
    module = unitify.load(tmp_path / "out", transformers.GPT2LMHeadModel(config))
    model = transformers.GPT2LMHeadModel.from_pretrained(merged)
    expected, found = (m.eval()(input_ids=ids).logits for m in (model, module))
    assert torch.equal(expected, found)
    plain = transformers.GPT2LMHeadModel.from_pretrained(base)
    assert not torch.equal(found, plain.eval()(input_ids=ids).logits)
