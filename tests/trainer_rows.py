"""Trainers: each row trains what it is given under one library, saves it, and resumes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from frameworks import Trained, adamw, batch, net, transformed
from torch import Tensor, nn

import unitify

Make = Callable[[], Any]
STEPS = 4


# -- transformers ----------------------------------------------------------------------------------


def language_model(is_tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=32, max_position_embeddings=32,
        use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=is_tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def sentences(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 32, (count, 8), generator=generator)
    # Of different lengths, so that batches have different numbers of items.
    labels = [
        torch.where(torch.arange(8) < 3 + i % 6, row, torch.full_like(row, -100))
        for i, row in enumerate(rows)
    ]
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": own}
        for row, own in zip(rows, labels, strict=True)
    ]


@cache
def language_module(is_tied: bool = False) -> unitify.UnitScaledModule:
    """Recorded as the trainer calls a model: with the number of items of all micro-batches."""
    held = sentences(4)
    example = {name: torch.stack([row[name] for row in held]) for name in held[0]}
    items = {**example, "num_items_in_batch": torch.tensor(12.0)}
    return unitify.transform(language_model(is_tied), (), items, batches=[example])


def hf_trainer(make: Make, **options: Any) -> Trained:
    """Accumulation, clipping, evaluation, the best checkpoint, resuming: no flag for us."""
    found = Trained()
    with TemporaryDirectory() as folder:

        def made(name: str) -> Any:
            return _hf(make(), f"{folder}/{name}", **options)

        first = made("first")
        first.train()
        logged = [row for row in first.state.log_history if "grad_norm" in row]
        found.losses = [row["loss"] for row in logged]
        found.norms = [row["grad_norm"] for row in logged]
        found.norms += [r["eval_loss"] for r in first.state.log_history if "eval_loss" in r]
        first.save_model(f"{folder}/saved")
        found.saved = _loaded(f"{folder}/saved")
        again = made("again")
        again.train(resume_from_checkpoint=f"{folder}/first/checkpoint-2")
        found.resumed = [r["loss"] for r in again.state.log_history if "grad_norm" in r]
        assert found.resumed == found.losses
    return found


def _loaded(folder: str) -> dict[str, Tensor]:
    held: dict[str, Tensor] = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return held


def sft(make: Make) -> Trained:
    """``SFTTrainer``, which puts a head of its own around the model's submodules."""
    import datasets
    import tokenizers
    import trl

    found = Trained()
    words = tokenizers.models.WordLevel({str(i): i for i in range(32)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="0", bos_token="1", eos_token="2"
    )
    rows = [
        {"input_ids": r["input_ids"].tolist()[: 3 + i % 6]} for i, r in enumerate(sentences(20))
    ]
    with TemporaryDirectory() as folder:

        def made(name: str) -> Any:
            arguments = trl.SFTConfig(f"{folder}/{name}", **_USUAL)
            return trl.SFTTrainer(
                make(), arguments, processing_class=tokenizer,
                train_dataset=datasets.Dataset.from_list(rows[:16]),
                eval_dataset=datasets.Dataset.from_list(rows[16:]),
            )  # fmt: skip

        first = made("first")
        first.train()
        logged = [row for row in first.state.log_history if "grad_norm" in row]
        found.losses = [row["loss"] for row in logged]
        found.norms = [row["grad_norm"] for row in logged]
        first.save_model(f"{folder}/saved")
        found.saved = _loaded(f"{folder}/saved")
        again = made("again")
        again.train(resume_from_checkpoint=f"{folder}/first/checkpoint-2")
        found.resumed = [r["loss"] for r in again.state.log_history if "grad_norm" in r]
    return found


_USUAL: dict[str, Any] = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS,
    "report_to": [], "logging_steps": 1, "save_strategy": "steps", "save_steps": 2,
    "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True,
    "max_grad_norm": 0.5, "learning_rate": 0.01, "weight_decay": 0.1, "warmup_steps": 1,
    "use_cpu": True, "disable_tqdm": True, "seed": 0, "dataloader_pin_memory": False,
}  # fmt: skip


def _hf(model: Any, folder: str, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(folder, **{**_USUAL, **options})
    rows = sentences(20)
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=rows[:16], eval_dataset=rows[16:]
    )


# -- accelerate ------------------------------------------------------------------------------------


class _Batches(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = batch(index, rows=1)
        return x[0], y[0]


def _loader() -> Any:
    return torch.utils.data.DataLoader(_Batches(), batch_size=2)


def with_accelerate(make: Make, precision: str = "no") -> Trained:
    import accelerate

    found = Trained()
    with TemporaryDirectory() as folder:

        def steps(resume: bool) -> Iterator[tuple[Any, Any, Any]]:
            accelerate.state.AcceleratorState._reset_state(True)
            accelerator = accelerate.Accelerator(
                cpu=True, gradient_accumulation_steps=2, mixed_precision=precision
            )
            model = make()
            optimizer = adamw(model.parameters())
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
            prepared = accelerator.prepare(model, optimizer, _loader(), schedule)
            model, optimizer, loader, schedule = prepared
            if resume:
                accelerator.load_state(folder)
                loader = accelerator.skip_first_batches(loader, STEPS)
            for number, (x, y) in enumerate(loader):
                with accelerator.accumulate(model):
                    loss = F.mse_loss(model(x).float(), y)
                    accelerator.backward(loss)
                    norm = None
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                if number == STEPS - 1 and not resume:
                    accelerator.save_state(folder)
                yield loss.detach(), norm, accelerator.unwrap_model(model)

        for loss, norm, owner in steps(resume=False):
            found.losses.append(loss)
            found.norms += [] if norm is None else [norm.detach()]
            model = owner
        plain = net(9)
        plain.load_state_dict(model.state_dict())
        found.saved = plain.state_dict()
        found.resumed = [loss for loss, _, _ in steps(resume=True)]
    return found


# -- Lightning -------------------------------------------------------------------------------------


def lightning(make: Make, precision: str = "32-true", callback: str = "") -> Trained:
    """Clipping, accumulation, averages of weights, precisions; a checkpoint in the plain model."""
    import pytorch_lightning as pl
    from pytorch_lightning import callbacks

    found = Trained()

    class Fits(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

        def training_step(self, pair: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, y = pair
            loss = F.mse_loss(self.model(x), y)
            losses.append(loss.detach().clone())
            return loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            gradients = [p.grad for p in self.parameters()]
            norms.append(nn.utils.get_total_norm(gradients))  # type: ignore[arg-type]

        def configure_optimizers(self) -> Any:
            optimizer = adamw(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def trainer(epochs: int) -> Any:
        chosen: dict[str, Callable[[], Any]] = {
            "SWA": lambda: callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=1),
            "EMA": lambda: callbacks.EMAWeightAveraging(decay=0.9),
        }
        return pl.Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, precision=precision,
            gradient_clip_val=0.5, accumulate_grad_batches=2, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[chosen[callback]()] if callback else [],
        )  # fmt: skip

    losses, norms = found.losses, found.norms
    pl.seed_everything(0, verbose=False)
    epochs = 3 if callback else 2
    with TemporaryDirectory() as folder:
        first = trainer(epochs)
        first.fit(Fits(), _loader())
        path = Path(folder) / "last.ckpt"
        first.save_checkpoint(path)
        held = torch.load(path, weights_only=False)["state_dict"]
        plain = net(9).to(next(iter(held.values())).dtype)
        plain.load_state_dict({n.removeprefix("model."): t for n, t in held.items()})
        found.saved = plain.state_dict()
        if not callback:
            losses, norms = found.resumed, []
            trainer(epochs + 1).fit(Fits(), _loader(), ckpt_path=path)
            assert found.resumed
    return found


# -- adapters --------------------------------------------------------------------------------------


TARGETS = ["up", "down"]


def with_adapters(model: Any, seed: int = 1) -> Any:
    """LoRA in every block, of which nothing is zero."""
    import peft

    torch.manual_seed(seed)
    made = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.02)
    return made


def adapters(make: Make, adapted: Callable[[Any], Any] = with_adapters) -> Trained:
    """Some steps of what ``adapted`` makes; its adapters are saved, and loaded again."""
    import peft

    found = Trained()

    def steps(model: Any, numbers: range) -> tuple[list[Tensor], list[Tensor]]:
        losses, norms = [], []
        own = [p for p in model.parameters() if p.requires_grad]
        optimizer = adamw(own)
        for number in numbers:
            optimizer.zero_grad()
            x, y = batch(number)
            loss = F.mse_loss(model(x), y)
            loss.backward()
            losses.append(loss.detach())
            norms.append(nn.utils.clip_grad_norm_(own, 0.5))
            optimizer.step()
        return losses, norms

    def trainable(model: Any) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    model = adapted(make())
    found.losses, found.norms = steps(model, range(STEPS))
    held = trainable(model)
    again = adapted(make())
    again.load_state_dict(held, strict=False)
    found.resumed, _ = steps(again, range(STEPS, 2 * STEPS))
    plain = with_adapters(net(), seed=9)
    assert isinstance(plain, peft.PeftModel)
    assert not plain.load_state_dict(held, strict=False).unexpected_keys
    found.saved = plain.merge_and_unload().state_dict()
    return found


def with_and_without_codes() -> list[Trained]:
    """Adapters on weights that FP8 codes stand for, and on the same weights cast at each call."""
    cast = unitify.transform(with_adapters(net()), (batch(0)[0],), recipe="fp8")
    return [adapters(lambda: copy.deepcopy(cast), as_it_is), adapters(cast.to_frozen, as_it_is)]


def before_transform() -> list[Trained]:
    """Adapters are in the model when it is transformed."""
    adapted = with_adapters(net())
    module = unitify.transform(adapted, (batch(0)[0],))
    return [adapters(partial(copy.deepcopy, m), as_it_is) for m in (adapted, module)]


def as_it_is(model: Any) -> Any:
    return model


@cache
def module_of_net() -> unitify.UnitScaledModule:
    return transformed(net())


def _of_language(row: Callable[..., Trained], **options: Any) -> Callable[[], list[Trained]]:
    return partial(_both, partial(row, **options), language_model, language_module)


def _of_net(row: Callable[..., Trained], **options: Any) -> Callable[[], list[Trained]]:
    return partial(_both, partial(row, **options), net, module_of_net)


def _both(row: Callable[[Make], Trained], model: Make, module: Make) -> list[Trained]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [row(model), row(lambda: copy.deepcopy(module()))]


#: What the original does, and what the module does, by framework.
ROWS: dict[str, Callable[[], list[Trained]]] = {
    "transformers Trainer": _of_language(hf_trainer),
    "transformers Trainer, bf16": _of_language(hf_trainer, bf16=True),
    "transformers Trainer, tied weights": partial(
        _both, hf_trainer, partial(language_model, True), partial(language_module, True)
    ),
    "trl SFTTrainer": _of_language(sft),
    "accelerate": _of_net(with_accelerate),
    "accelerate, bf16": _of_net(with_accelerate, precision="bf16"),
    "Lightning": _of_net(lightning),
    "Lightning, bf16-mixed": _of_net(lightning, precision="bf16-mixed"),
    "Lightning, bf16-true": _of_net(lightning, precision="bf16-true"),
    "Lightning, stochastic weight averaging": _of_net(lightning, callback="SWA"),
    "Lightning, exponential moving average": _of_net(lightning, callback="EMA"),
    "PEFT after transform": _of_net(adapters),
    "PEFT before transform": before_transform,
    "PEFT on FP8 codes": with_and_without_codes,
}
