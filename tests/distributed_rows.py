"""Frameworks of two processes: each row trains the original and the module, and compares.

A row is called in both processes of a group, with the rank and a folder that both see. It gives,
by column, whether this rank saw the original's numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from distributed_training import (
    STEPS,
    held_by,
    in_plain_model,
    module_of_net,
    optimizer_of,
    plain,
    step,
    whole_state,
)
from frameworks import Trained, adamw, batch, compared, net, same
from sharded_rows import Unused, ddp, fsdp1, fsdp2, gathered_codes
from spread_rows import cast_tensors, parallel, tensors
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

import unitify


class Stage(nn.Module):
    """One half of the net."""

    def __init__(self, model: Any, index: int) -> None:
        super().__init__()
        self.block = model.blocks[index]
        self.edge = model.into if index == 0 else nn.Sequential(model.norm, model.out)
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.edge(x)) if self.index == 0 else self.edge(self.block(x))


def pipeline(rank: int, folder: Path, schedule: Any = ScheduleGPipe) -> dict[str, bool]:
    runs = []
    for is_module in (False, True):
        torch.manual_seed(0)
        stage: nn.Module = Stage(net(), rank)
        x = batch(0, rows=2)[0]
        hidden = torch.randn(2, 6, 16)
        if is_module:
            stage = unitify.transform(stage, (x if rank == 0 else hidden,))
        made = PipelineStage(stage, rank, 2, torch.device("cpu"))
        driver = schedule(made, n_microbatches=2, loss_fn=F.mse_loss)
        optimizer, found = adamw(stage.parameters()), Trained()
        for number in range(STEPS):
            x, y = batch(number)
            optimizer.zero_grad()
            losses: list[Tensor] = []
            if rank == 0:
                driver.step(x)
            else:
                driver.step(target=y, losses=losses)
            found.norms.append(plain(nn.utils.clip_grad_norm_(stage.parameters(), 0.5)))
            optimizer.step()
            loss = torch.stack(losses).mean() if rank else torch.zeros(())
            dist.broadcast(loss, 1)
            found.losses.append(loss.detach().clone())
        again = Stage(net(9), rank)
        again.load_state_dict(stage.state_dict())
        found.saved = again.state_dict()
        runs.append(found)
    return compared(*runs)


def other_world(rank: int, folder: Path) -> dict[str, bool]:
    """A sharded checkpoint of two processes, read by one into the plain model, and back."""
    owner = fully_shard(module_of_net())
    optimizer = optimizer_of(owner)
    for number in range(STEPS):
        step(owner, optimizer, number, rank)
    held = held_by(owner, optimizer)
    dcp.save(held, checkpoint_id=str(folder / "two"))
    dist.barrier()
    expected = whole_state(owner)
    single = net(9)
    alone = adamw(single.parameters())
    own = held_by(single, alone)
    dcp.load(own, checkpoint_id=str(folder / "two"), no_dist=True)
    states.set_state_dict(
        single, alone, model_state_dict=own["model"], optim_state_dict=own["optimizer"]
    )
    found = {"saved, two to one": same(dict(expected), dict(single.state_dict()))}
    if rank == 0:
        dcp.save(own, checkpoint_id=str(folder / "one"), no_dist=True)
    dist.barrier()
    again = fully_shard(module_of_net())
    other = adamw(again.parameters())
    back = held_by(again, other)
    dcp.load(back, checkpoint_id=str(folder / "one"))
    states.set_state_dict(
        again, other, model_state_dict=back["model"], optim_state_dict=back["optimizer"]
    )
    found["saved, one to two"] = same(whole_state(again), expected)
    following = [step(o, s, STEPS, rank) for o, s in ((owner, optimizer), (again, other))]
    found["resumed"] = same(*following)
    return found


def horses(rank: int, folder: Path) -> dict[str, bool]:
    """Two hundred steps: original, module, original under DDP, module of other scales.

    Every process sees the same batch, so that the mean of the two gradients is either of them.
    """
    legs, length = 4, 50

    def train(owner: nn.Module, optimizer: Any, leg: int) -> list[Any]:
        return [step(owner, optimizer, n, 0) for n in range(length * leg, length * (leg + 1))]

    plain_run = net()
    reference = optimizer_of(plain_run)
    expected = [train(plain_run, reference, leg) for leg in range(legs)]
    found, held = [], None
    for leg in range(legs):
        owner: nn.Module = module_of_net() if leg % 2 else net(leg)
        optimizer = optimizer_of(owner)
        if held is not None:
            owner.load_state_dict(held[0])
            optimizer.load_state_dict(held[1])
        if leg == 3:
            done = unitify.rebase_(owner, [(8.0 * batch(9)[0],)])
            assert done.values > 0
        wrapped = DistributedDataParallel(owner) if leg == 2 else owner
        found.append(train(wrapped, optimizer, leg))
        held = copy.deepcopy((owner.state_dict(), optimizer.state_dict()))
    assert held is not None
    last = Trained(saved=dict(plain_run.state_dict()))
    last.losses, last.norms = ([pair[i] for leg in expected for pair in leg] for i in (0, 1))
    own = Trained(saved=dict(in_plain_model(held[0])))
    own.losses, own.norms = ([pair[i] for leg in found for pair in leg] for i in (0, 1))
    last.resumed, own.resumed = [reference.state_dict()], [held[1]]
    return compared(last, own)


def _rows() -> Iterable[tuple[str, Callable[[int, Path], dict[str, bool]]]]:
    yield "DDP, no_sync", ddp
    yield "DDP, bucket views", partial(ddp, gradient_as_bucket_view=True)
    yield "DDP, unused parameters", partial(ddp, of=Unused, find_unused_parameters=True)
    yield "FSDP2", fsdp2
    yield "FSDP2, per block", partial(fsdp2, blocks=True)
    yield "FSDP2, bfloat16", partial(fsdp2, half=True)
    yield "FSDP2, bfloat16, per block", partial(fsdp2, half=True, blocks=True)
    yield "FSDP2, kept unsharded", partial(fsdp2, blocks=True, reshard_after_forward=False)
    yield "FSDP2, on the host", partial(fsdp2, offload_policy=CPUOffloadPolicy(pin_memory=False))
    yield "FSDP2, gathered as FP8 codes", gathered_codes
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    yield (
        "FSDP2, gathered as FP8 codes, bfloat16",
        partial(gathered_codes, blocks=False, mp_policy=half),
    )
    yield "FSDP1, flat", fsdp1
    yield "FSDP1, original parameters", partial(fsdp1, use_orig_params=True)
    yield "tensor parallel", parallel
    yield "sequence parallel", partial(parallel, sequence=True)
    yield "tensor parallel, then transformed", partial(parallel, after=True)
    yield "spread tensors", tensors
    yield "spread tensors, fp8", partial(cast_tensors, recipes=["fp8"])
    yield "spread tensors, other recipes", partial(cast_tensors, recipes=OTHER_RECIPES)
    yield "pipeline, GPipe", pipeline
    yield "pipeline, 1F1B", partial(pipeline, schedule=Schedule1F1B)
    yield "DCP between world sizes", other_world
    yield "200 steps that change horses", horses


OTHER_RECIPES = ("fp8,simulate=true", "fp8-amax", "bf16")
#: Those that take longer than all others: they record a model several times.
SLOW = (
    "tensor parallel, then transformed", "spread tensors, other recipes", "pipeline, 1F1B",
    "FSDP2, gathered as FP8 codes, bfloat16",
)  # fmt: skip
ROWS = {
    name: (lambda rank, folder, name=name, row=row: row(rank, folder / name.replace(" ", "-")))
    for name, row in _rows()
}
