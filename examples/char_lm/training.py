"""One training of one model in one precision: the same hyperparameters for all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import unitify
from examples.char_lm.models import LanguageModel, Shape
from examples.char_lm.text import Text

STEPS, BATCH, WARM_UP = 1000, 16, 50
OPTIONS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.01}
HELD_OUT_BATCHES = 32


@dataclass(frozen=True)
class Precision:
    """A precision by its name in the table. ``recipe``: None trains the model as it is."""

    label: str
    recipe: str | None
    is_loss_scaled: bool = False


#: FP8 operands are rounded and multiplied in float32, which is fastest on a CPU, and the same but
#: for the order of sums. Loss scaling is dynamic: ``torch.amp.GradScaler`` with its own defaults.
PRECISIONS = (
    Precision("float32", None),
    Precision("FP16, no loss scaling", "fp16-plain"),
    Precision("FP16, loss scaling", "fp16-plain", is_loss_scaled=True),
    Precision("FP16, unitify", "fp16"),
    Precision("FP8, plain casts", "fp8-plain,simulate=true"),
    Precision("FP8, dynamic amax", "fp8-amax,simulate=true"),
    Precision("FP8, unitify", "fp8,simulate=true"),
)


@dataclass(frozen=True)
class Run:
    """What came of a training. ``bits``: per character of held-out text, after the last step."""

    mixer: str
    norm: str
    precision: str
    seed: int
    bits: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def build(shape: Shape, precision: Precision, seed: int, text: Text) -> nn.Module:
    """The model of a seed, ready to train in a precision."""
    torch.manual_seed(seed)
    model = LanguageModel(shape, text.vocabulary)
    if precision.recipe is None:
        return model
    example = text.batch(BATCH, shape.length, torch.Generator().manual_seed(0))
    return unitify.transform(model, example, recipe=precision.recipe, verify=False)


def optimizer_for(module: nn.Module, **options: Any) -> AdamW:
    """AdamW with the hyperparameters of the original, whatever ``module`` is."""
    return AdamW(unitify.optim.param_groups(module, AdamW, **options))


def rate(step: int, steps: int = STEPS) -> float:
    """Up in a line, down along a cosine; times the learning rate."""
    return min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def train(
    module: nn.Module,
    optimizer: AdamW,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    *,
    is_loss_scaled: bool = False,
    steps: int = STEPS,
    after_step: Callable[[int, Any, float], None] | None = None,
) -> None:
    """``steps`` steps on ``batches(step)``, ``after_step(step, schedule, loss)`` after each."""
    schedule = LambdaLR(optimizer, lambda step: rate(step, steps))
    scaler = GradScaler("cpu", enabled=is_loss_scaled)
    for step in range(steps):
        optimizer.zero_grad()
        loss = module(*batches(step))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        if after_step is not None:
            after_step(step, schedule, float(loss.detach()))


def held_out_bits(module: nn.Module, shape: Shape, text: Text) -> float:
    """Bits per character of held-out text, in the precision of the training."""
    with torch.no_grad():
        found = text.held_out_batches(HELD_OUT_BATCHES, BATCH, shape.length)
        losses = [float(module(*batch)) for batch in found]
    return sum(losses) / len(losses) / math.log(2)


def run(shape: Shape, precision: Precision, seed: int, text: Text) -> Run:
    """Build, train and evaluate."""
    started = time.perf_counter()
    module = build(shape, precision, seed, text)
    generator = torch.Generator().manual_seed(seed)
    optimizer = optimizer_for(module, **OPTIONS)
    train(
        module, optimizer,
        lambda _: text.batch(BATCH, shape.length, generator),
        is_loss_scaled=precision.is_loss_scaled,
    )  # fmt: skip
    bits = held_out_bits(module, shape, text)
    seconds = round(time.perf_counter() - started, 1)
    return Run(shape.mixer, shape.norm, precision.label, seed, bits, seconds)
