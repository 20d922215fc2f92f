"""The trainer of ``transformers`` trains a transformed model as it does the original: bitwise."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import unitify

LR = 1e-3


def classifier() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def rows(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 50, (count, 12), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": (row[0] > 25).long()}
        for row in tokens
    ]


def trained(model: nn.Module, folder: Path) -> Any:
    """By the trainer's own optimizer, schedule and clipping: losses, norms and rates of a run."""
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=4, num_train_epochs=1, report_to=[], seed=0,
        save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True,
        learning_rate=LR, weight_decay=0.1, max_grad_norm=0.1, warmup_steps=2,
    )  # fmt: skip
    # The batch is all that the captured call takes.
    model.accepts_loss_kwargs = False
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows(24))
    trainer.train()
    trainer.save_model()
    kept = ("loss", "grad_norm", "learning_rate")
    steps = [[row.get(name) for name in kept] for row in trainer.state.log_history[:-1]]
    return steps, trainer.evaluate(rows(8))["eval_loss"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_takes_the_same_steps(tmp_path: Path) -> None:
    model = classifier()
    batch = {name: torch.stack([row[name] for row in rows(4)]) for name in rows(1)[0]}
    module = unitify.transform(copy.deepcopy(model), (), batch)
    expected = trained(model, tmp_path / "original")
    assert len(expected[0]) == 6
    assert trained(module, tmp_path / "module") == expected
    saved = load_file(tmp_path / "module" / "model.safetensors")
    own = module.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name])
        assert torch.equal(tensor, saved[name])
