"""The trainer of ``transformers`` trains a transformed model as it does the original: bitwise."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import unitify
import unitify.optim

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


class Clip(transformers.TrainerCallback):
    """Clips true gradients; the trainer itself would take the norm of stored ones."""

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any
    ) -> None:
        if isinstance(model, unitify.UnitScaledModule):
            unitify.optim.clip_grad_norm_(model, 0.1)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def trained(model: nn.Module, groups: Any, folder: Path) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=4, num_train_epochs=1, report_to=[], seed=0,
        save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True,
        max_grad_norm=0.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=0.1)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    # The batch is all that the captured call takes.
    model.accepts_loss_kwargs = False
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows(24), optimizers=(optimizer, constant),
        callbacks=[Clip()],
    )  # fmt: skip
    return trainer.train().training_loss, trainer.evaluate(rows(8))["eval_loss"]


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_takes_the_same_steps(tmp_path: Path) -> None:
    model = classifier()
    batch = {name: torch.stack([row[name] for row in rows(4)]) for name in rows(1)[0]}
    module = unitify.transform(copy.deepcopy(model), (), batch)
    options = {"lr": LR, "weight_decay": 0.1}
    expected = trained(model, model.parameters(), tmp_path / "original")
    groups = unitify.optim.param_groups(module, torch.optim.AdamW, **options)
    assert trained(module, groups, tmp_path / "module") == expected
    true = module.original_state_dict()
    assert all(torch.equal(tensor, true[name]) for name, tensor in model.state_dict().items())
