"""Times of several ways to run one thing. They take turns: a busy machine slows them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import loss_of

#: Each way runs so often, after runs that are not counted.
TURNS, FIRST = 9, 2


def ratios(ways: Mapping[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, float]:
    """Way → median over turns of its time over that of the first way in the same turn."""
    for _ in range(FIRST):
        for run in ways.values():
            run()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        seconds = {name: _seconds(run) for name, run in ways.items()}
        base = next(iter(seconds.values()))
        for name, taken in seconds.items():
            found[name].append(taken / base)
    return {name: statistics.median(each) for name, each in found.items()}


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def step_of(module: nn.Module, run: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
    """A training step but for the optimizer."""

    def step() -> None:
        module.zero_grad()
        loss_of(run(**batch)).backward()

    return step


def saved_bytes(module: nn.Module, batch: Mapping[str, Any]) -> int:
    """Bytes of storages that the backward pass keeps of one forward pass, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(module(**batch))
    assert loss.requires_grad
    return sum(kept.values())
