"""Hugging Face folders: in the type that they have, with their ties, with heads of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import unitify
from unitify.checkpoint.filling import Allowed
from unitify.convert import convert, read_source
from unitify.diagnostics import UnitifyError

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
IDS = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(0))


def llama(folder: Path, dtype: torch.dtype, tied: bool = True) -> nn.Module:
    torch.manual_seed(1)
    config = LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=tied)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder).eval()


def bert(folder: Path) -> nn.Module:
    torch.manual_seed(1)
    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    return BertModel.from_pretrained(folder).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_folder_keeps_its_type_and_its_ties(
    tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    model = llama(tmp_path / "it", dtype, tied)
    assert model.dtype == dtype
    convert(tmp_path / "it", tmp_path / "out", verify=False)
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in held) is not tied
    module = unitify.load(tmp_path / "out")
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert (module.lm_head.weight is module.model.embed_tokens.weight) is tied
    assert torch.equal(logits(module), logits(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
def test_a_config_without_a_type_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    llama(tmp_path / "it", torch.bfloat16)
    config = tmp_path / "it" / "config.json"
    document = json.loads(config.read_text())
    for key in ("dtype", "torch_dtype"):
        document.pop(key, None)
    config.write_text(json.dumps(document))
    model = LlamaForCausalLM.from_pretrained(tmp_path / "it").eval()
    convert(tmp_path / "it", tmp_path / "out", verify=False)
    assert torch.equal(logits(unitify.load(tmp_path / "out")), logits(model))


def test_a_folder_read_into_a_factory_s_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(tmp_path, torch.float32)
    (tmp_path / "own_factory.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"CONFIG = LlamaConfig.from_pretrained({str(tmp_path)!r})\n"
        "def build():\n    return LlamaForCausalLM(CONFIG)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = read_source(tmp_path, "own_factory:build")
    assert source.companions == ()
    assert torch.equal(logits(source.model.eval()), logits(model))


def test_heads_of_a_folder(tmp_path: Path) -> None:
    bert(tmp_path)
    config = tmp_path / "config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps({**document, "architectures": ["BertForSequenceClassification"]}))
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "spare.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UnitifyError) as caught:
        read_source(tmp_path, None)
    assert "U603" in str(caught.value)
    assert "--allow-missing 'classifier.*'" in str(caught.value)
    assert "--allow-unexpected 'spare.weight'" in str(caught.value)
    allowed = Allowed(("classifier.*",), ("spare.*",))
    torch.manual_seed(3)
    source = read_source(tmp_path, None, allowed)
    torch.manual_seed(3)
    expected = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(source.model), logits(expected))
    assert ["classifier" in note.message for note in source.notes] == [True, False]


@pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
def test_what_a_tokenizer_gives_is_keyword_inputs(tmp_path: Path) -> None:
    model = bert(tmp_path)
    batch = BatchEncoding({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    module = unitify.transform(model, batch, verify=False)
    with torch.no_grad():
        assert torch.equal(module(**batch)[0], model(**batch)[0])
