"""Inputs that nobody gave: a language model writes text, on which its scales are measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import unitify
from unitify.capture.inputs import LENGTH, WRITTEN, infer_inputs, written_inputs


def gpt2(positions: int = 128) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=96, n_positions=positions,
        initializer_range=0.4, tie_word_embeddings=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def perplexity(model: Any, ids: Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss.exp())


@pytest.mark.parametrize("positions", [128, WRITTEN, 24, 8])
def test_text_is_as_long_as_the_model_can_read(positions: int) -> None:
    model = gpt2(positions)
    drawn = infer_inputs(model)
    assert drawn[1]["input_ids"].shape[1] == min(LENGTH, positions)
    text = written_inputs(model, drawn)[1]["input_ids"]
    assert text.shape == (2, min(WRITTEN, positions))


def test_text_is_the_model_s_own() -> None:
    model = gpt2()
    text = written_inputs(model, infer_inputs(model))[1]["input_ids"]
    random = torch.randint(0, 96, text.shape, generator=torch.Generator().manual_seed(1))
    assert perplexity(model, text) < 0.5 * perplexity(model, random)


@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_other_models_take_what_was_drawn(name: str) -> None:
    model = zoo.build(name)[0]
    drawn = infer_inputs(model)
    assert written_inputs(model, drawn) is drawn


def test_scales_are_those_of_the_text() -> None:
    model = gpt2()
    text = written_inputs(model, infer_inputs(model))
    assert unitify.estimate(model) == unitify.estimate(model, batches=[text[1]])
    assert unitify.estimate(model) != unitify.estimate(model, batches=[infer_inputs(model)[1]])


def test_a_loss_with_targets_of_its_own_runs_on_what_was_drawn() -> None:
    model = gpt2()
    drawn = infer_inputs(model)
    targets = torch.zeros((*drawn[1]["input_ids"].shape, 96))

    def loss(output: Any) -> Tensor:
        return (output.logits - targets).square().mean()

    found = unitify.estimate(model, loss_fn=loss)
    assert found == unitify.estimate(model, batches=[drawn[1]], loss_fn=loss)
