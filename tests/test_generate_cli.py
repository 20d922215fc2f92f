"""``unitify generate``: text by a converted folder, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from typer.testing import CliRunner, Result

from unitify.cli import app

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "the", "cat", "sat", "on", "a", "mat", "and", "dog")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def config() -> Any:
    return transformers.LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with its tokenizer."""
    folder = tmp_path_factory.mktemp("generate") / "source"
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config())
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [(), ("--recipe", "fp8,multiple=1")])
def test_it_writes_on(source: Path, recipe: tuple[str, ...], tmp_path: Path) -> None:
    converted = tmp_path / "converted"
    done = run("convert", source, *recipe, "--no-verify", "-o", converted)
    assert done.exit_code == 0, done.output
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source)
    given = tokenizer("the cat sat", return_tensors="pt")
    made = model.generate(given["input_ids"], max_new_tokens=6, do_sample=False)
    expected = tokenizer.decode(made[0, 3:], skip_special_tokens=True)
    found = run("generate", converted, "the cat sat", "--max-new-tokens", 6)
    assert found.exit_code == 0, found.output
    assert found.stdout.strip()
    if not recipe:
        assert found.stdout == f"{expected}\n"
    sampled = run("generate", converted, "the cat sat", "--max-new-tokens", 6, "--sample")
    assert sampled.exit_code == 0, sampled.output


def test_what_cannot_write(source: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kept = transformers.BertConfig(
        vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, architectures=["BertModel"],
    )  # fmt: skip
    encoder: nn.Module = transformers.BertModel(kept)
    encoder.save_pretrained(tmp_path / "bert")  # type: ignore[operator]
    assert run("convert", tmp_path / "bert", "-o", tmp_path / "out", "--no-verify").exit_code == 0
    refused = run("generate", tmp_path / "out", "the cat")
    assert refused.exit_code == 2
    assert "U601" in refused.stderr
    assert "does not generate text" in refused.stderr
    assert run("generate", tmp_path / "nowhere", "the cat").exit_code == 2
