"""Checkpoints in several files: distributed ones, shards with an index, folders, adapters."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import STATE, Evil, filled, optimizer_state, refusal, same
from safetensors.torch import save_file

import unitify
from unitify.checkpoint.files import read_state_dicts
from unitify.convert import convert, read_source
from unitify.diagnostics import UnitifyError


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
@pytest.mark.parametrize("nested", [False, True])
def test_distributed_checkpoints(tmp_path: Path, nested: bool) -> None:
    state = {"model": STATE, "optim": optimizer_state(), "epoch": 3} if nested else dict(STATE)
    dcp.save(state, checkpoint_id=tmp_path / "it", no_dist=True)
    assert same(filled(tmp_path / "it"))


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
