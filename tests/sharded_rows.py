"""Rows whose processes see batches of their own: data parallel and fully sharded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_training import (
    STEPS,
    in_plain_model,
    module_of_net,
    optimizer_of,
    ran,
    resumed,
    step,
    wrapped,
)
from frameworks import Trained, adamw, compared, net
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import unitify


class Unused(nn.Module):
    """A model with a parameter that no call uses."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.extra = net(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def ddp(
    rank: int, folder: Path, of: Callable[[], nn.Module] = net, **options: Any
) -> dict[str, bool]:
    return wrapped(partial(DistributedDataParallel, **options), rank, folder, 2, of)


def fsdp2(
    rank: int, folder: Path, blocks: bool = False, half: bool = False, **options: Any
) -> dict[str, bool]:
    if half:
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)

    def wrap(owner: nn.Module) -> nn.Module:
        if blocks:
            for path in ("blocks.0", "blocks.1"):
                fully_shard(owner.get_submodule(path), **options)
        return fully_shard(owner, **options)

    return wrapped(wrap, rank, folder)


class Collectives(TorchDispatchMode):
    """Counts collectives by name, and the bytes that all-gathers give."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.gathered = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.__name__] += 1
            if "allgather" in func.__name__:
                self.gathered += args[0].nbytes
        return func(*args, **(kwargs or {}))


def gathered_codes(rank: int, folder: Path, blocks: bool = True, **options: Any) -> dict[str, bool]:
    """Codes of weights are gathered in place of weights: the same numbers, fewer bytes."""

    def made(are_codes: bool) -> nn.Module:
        module = module_of_net("fp8,multiple=1")
        if are_codes:
            assert isinstance(module, unitify.UnitScaledModule)
            unitify.gather_codes_(module)
        for path in ("blocks.0", "blocks.1") if blocks else ():
            fully_shard(module.get_submodule(path), **options)
        return fully_shard(module, **options)

    runs, sent = [], []
    for are_codes in (False, True):
        owner = made(are_codes)
        optimizer = optimizer_of(owner)
        # The first call in another type records, which counts nothing here.
        step(owner, optimizer, 0, rank)
        with Collectives() as counted:
            step(owner, optimizer, 1, rank)
        sent.append(counted)
        runs.append(ran(made(are_codes), rank, folder / str(are_codes)))
        runs[-1].resumed = resumed(made(not are_codes), rank, folder / str(are_codes))
    with pytest.raises(unitify.UnitifyError, match="U021"):
        unitify.rebase_(owner)
    wide, narrow = sent
    # Each block is gathered for either pass, the rest once. Nothing is reduced to find a scale.
    gathers, scatters = (5, 3) if blocks else (1, 1)
    assert wide.counts["_allgather_base_.default"] == gathers, wide.counts
    assert wide.counts["_reduce_scatter_base_.default"] == scatters, wide.counts
    assert narrow.counts == wide.counts
    again = 1 + blocks
    times = {n: again if "blocks" in n else 1 for n, p in net().named_parameters() if p.ndim == 2}
    numbers = sum(times[n] * p.numel() for n, p in net().named_parameters() if n in times)
    sent_wide = 2 if options else 4
    assert wide.gathered - narrow.gathered == (sent_wide - 1) * numbers
    return compared(*runs)


def fsdp1(rank: int, folder: Path, **options: Any) -> dict[str, bool]:
    def wrap(owner: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(owner, device_id=torch.device("cpu"), **options)

    runs = []
    for make in (net, module_of_net):
        owner, found = wrap(make()), Trained()
        optimizer = optimizer_of(owner)
        for number in range(STEPS):
            loss, norm = step(owner, optimizer, number, rank)
            found.losses.append(loss)
            found.norms.append(norm)
        with FullyShardedDataParallel.summon_full_params(owner):
            held = {n: p.detach().clone() for n, p in owner.module.state_dict().items()}
        kept = FullyShardedDataParallel.optim_state_dict(owner, optimizer)
        found.saved = in_plain_model(held)
        again = make()
        again.load_state_dict(held)
        again = wrap(again)
        optimizer = adamw(again.parameters())
        kept = FullyShardedDataParallel.optim_state_dict_to_load(again, optimizer, kept)
        optimizer.load_state_dict(kept)
        found.resumed = [step(again, optimizer, n, rank)[0] for n in range(STEPS, 2 * STEPS)]
        runs.append(found)
    return compared(*runs)
