"""Inputs that nobody gave: a short call is recorded, scales are measured on a longer one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import unitify
from unitify.capture.inputs import LENGTH, MEASURED_LENGTH, infer_inputs, written_inputs


def gpt2(positions: int = 128) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=1, n_head=2, vocab_size=96, n_positions=positions,
        initializer_range=0.4, tie_word_embeddings=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def bert() -> BertModel:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=96, num_hidden_layers=1, **small))


def perplexity(model: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss.exp())


@pytest.mark.parametrize("positions", [128, MEASURED_LENGTH, 24, 8])
def test_text_is_no_longer_than_the_model_can_read(positions: int) -> None:
    model = gpt2(positions)
    for length in (LENGTH, MEASURED_LENGTH):
        ids = infer_inputs(model, length)[1]["input_ids"]
        assert ids.shape == (2, min(length, positions))


def test_a_language_model_writes_its_text() -> None:
    model = gpt2()
    text = written_inputs(model)[1]["input_ids"]
    random = infer_inputs(model, MEASURED_LENGTH)[1]["input_ids"]
    assert text.shape == random.shape
    assert perplexity(model, text) < 0.5 * perplexity(model, random)


@pytest.mark.parametrize(
    "make",
    [gpt2, bert, lambda: nn.Sequential(nn.Embedding(9, 4), nn.GELU())],
    ids=["gpt2", "bert", "embedding"],
)
def test_scales_are_those_of_a_longer_call(make: Any) -> None:
    model = make().eval()
    found = unitify.estimate(model)
    args, kwargs = written_inputs(model)
    assert found == unitify.estimate(model, batches=[args or kwargs])
    args, kwargs = infer_inputs(model)
    assert found != unitify.estimate(model, batches=[args or kwargs])


def test_a_language_model_without_a_config_takes_what_its_first_layer_says() -> None:
    class Own(nn.Sequential):
        def can_generate(self) -> bool:
            return True

    model = Own(nn.Embedding(9, 4), nn.GELU())
    assert unitify.estimate(model) == unitify.estimate(model, batches=[written_inputs(model)[0]])


def test_logits_beyond_the_vocabulary_write_nothing() -> None:
    model = gpt2()
    model.lm_head = nn.Linear(32, 128)
    drawn = infer_inputs(model, MEASURED_LENGTH)[1]["input_ids"]
    assert torch.equal(written_inputs(model)[1]["input_ids"], drawn)


def test_no_batches_are_refused() -> None:
    with pytest.raises(unitify.UnitifyError, match="U003"):
        unitify.estimate(gpt2(), batches=[])


def test_the_recorded_example_is_short() -> None:
    (ids,) = unitify.transform(gpt2()).capture.example
    assert ids.shape == (2, LENGTH)


def test_a_loss_with_targets_of_its_own_runs_on_the_recorded_example() -> None:
    model = gpt2()
    drawn = infer_inputs(model)[1]
    targets = torch.zeros((*drawn["input_ids"].shape, 96))

    def loss(output: Any) -> torch.Tensor:
        return (output.logits - targets).square().mean()

    found = unitify.estimate(model, loss_fn=loss)
    assert found == unitify.estimate(model, batches=[drawn], loss_fn=loss)


def test_a_recording_of_one_length_runs_on_its_example() -> None:
    module = unitify.transform(gpt2(), dynamic_shapes=None)
    assert module.scales == "measured"
