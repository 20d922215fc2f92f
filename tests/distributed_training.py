"""Training of original and module in two processes: steps, a checkpoint, and what is the same."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from frameworks import Trained, adamw, batch, compared, net, same, transformed
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

Wrap = Callable[[nn.Module], nn.Module]
STEPS = 3


def plain(value: Any) -> Any:
    """The whole of a tensor that is spread over processes."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().clone() if isinstance(value, Tensor) else value


@cache
def _module(recipe: str | None) -> nn.Module:
    return transformed(net(), recipe=recipe)


def module_of_net(recipe: str | None = None) -> nn.Module:
    """The transformed net, of which each is a copy: transforming takes longer than the rows."""
    return copy.deepcopy(_module(recipe))


def step(owner: nn.Module, optimizer: Any, number: int, rank: int, parts: int = 1) -> Any:
    """One step of ``parts`` batches, of which the last alone is synchronized: loss and norm."""
    optimizer.zero_grad()
    loss: Any = None
    for part in range(parts):
        x, y = batch(10 * number + part, rank)
        is_last = part == parts - 1
        no_sync = getattr(owner, "no_sync", None)
        with contextlib.nullcontext() if is_last or no_sync is None else no_sync():
            out = owner(x)
            loss = F.mse_loss(out, y.to(out.dtype))
            loss.backward()
    if isinstance(owner, FullyShardedDataParallel):
        norm = owner.clip_grad_norm_(0.5)
    elif len({type(p.grad) for p in owner.parameters() if p.grad is not None}) > 1:
        # Torch clips no mixture of whole tensors and spread ones.
        norm = nn.utils.get_total_norm([plain(p.grad) for p in owner.parameters()])
        for parameter in owner.parameters():
            parameter.grad.mul_(torch.clamp(0.5 / norm, max=1.0))  # type: ignore[union-attr]
    else:
        norm = nn.utils.clip_grad_norm_(owner.parameters(), 0.5)
    optimizer.step()
    return plain(loss), plain(norm)


def whole_state(owner: nn.Module) -> dict[str, Tensor]:
    """What a plain model would load; the same in every process."""
    options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
    held = [states.get_model_state_dict(owner, options=options)]
    dist.broadcast_object_list(held)
    return held[0]


def held_by(owner: nn.Module, optimizer: Any) -> dict[str, Any]:
    """What ``torch.distributed.checkpoint`` saves and loads."""
    model, state = states.get_state_dict(owner, optimizer)
    return {"model": model, "optimizer": state}


def in_plain_model(
    saved: dict[str, Tensor], of: Callable[[], nn.Module] = net
) -> dict[str, Tensor]:
    model = of()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    model.load_state_dict(saved)
    return model.state_dict()


def optimizer_of(owner: nn.Module) -> torch.optim.Optimizer:
    """One that takes whole tensors and spread ones side by side."""
    return adamw(owner.parameters(), foreach=False)


def ran(
    owner: nn.Module, rank: int, folder: Path, parts: int = 1, of: Callable[[], nn.Module] = net
) -> Trained:
    """Some steps, a checkpoint for ``torch.distributed.checkpoint``, and some steps more."""
    optimizer, found = optimizer_of(owner), Trained()
    for number in range(2 * STEPS):
        if number == STEPS:
            found.saved = in_plain_model(whole_state(owner), of)
            held = held_by(owner, optimizer)
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            dist.barrier()
            dcp.save(held, checkpoint_id=str(folder))
            dist.barrier()
        loss, norm = step(owner, optimizer, number, rank, parts)
        found.losses.append(loss)
        found.norms.append(norm)
    return found


def resumed(owner: nn.Module, rank: int, folder: Path, parts: int = 1) -> list[Any]:
    """The steps after the checkpoint, by what was never trained."""
    optimizer = optimizer_of(owner)
    held = held_by(owner, optimizer)
    # An optimizer has no state of what was never used; torch makes some up where it loads.
    planner = DefaultLoadPlanner(allow_partial_load="extra.weight" in str(list(held["model"])))
    dcp.load(held, checkpoint_id=str(folder), planner=planner)
    states.set_state_dict(
        owner, optimizer,
        model_state_dict=held["model"], optim_state_dict=held["optimizer"],
    )  # fmt: skip
    return [step(owner, optimizer, n, rank, parts)[0] for n in range(STEPS, 2 * STEPS)]


def wrapped(
    wrap: Wrap, rank: int, folder: Path, parts: int = 1, of: Callable[[], nn.Module] = net
) -> dict[str, bool]:
    """Original and module in ``wrap``; each resumes from the other's checkpoint."""
    makers: list[Callable[[], nn.Module]] = [
        lambda: wrap(of()),
        lambda: wrap(module_of_net() if of is net else transformed(of())),
    ]
    runs = [ran(make(), rank, folder / str(i), parts, of) for i, make in enumerate(makers)]
    for i, run in enumerate(runs):
        run.resumed = resumed(makers[1 - i](), rank, folder / str(i), parts)
    assert same(runs[0].losses[STEPS:], runs[0].resumed)
    return compared(*runs)
