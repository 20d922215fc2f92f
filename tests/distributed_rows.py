"""Frameworks of two processes: each row trains the original and the module, and compares.

A row is called in both processes of a group, with the rank and a folder that both see. It gives,
by column, whether this rank saw the original's numbers.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import unitify

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


# -- data parallel ---------------------------------------------------------------------------------


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


# -- fully sharded ---------------------------------------------------------------------------------


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


# -- tensors spread over processes -----------------------------------------------------------------


def _plan(owner: nn.Module, sequence: bool) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan: dict[str, Any] = {}
    for block in ("blocks.0", "blocks.1"):
        plan[f"{block}.up"] = ColwiseParallel()
        plan[f"{block}.down"] = RowwiseParallel()
        if sequence:
            plan[f"{block}.norm"] = SequenceParallel()
            plan[f"{block}.up"] = ColwiseParallel(input_layouts=Shard(1))
            plan[f"{block}.down"] = RowwiseParallel(output_layouts=Shard(1), use_local_output=True)
            plan[block] = PrepareModuleInput(
                input_layouts=(Shard(1),), desired_input_layouts=(Shard(1),), use_local_output=True
            )
    if sequence:
        plan["into"] = RowwiseParallel(
            input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=True
        )
        plan["norm"] = SequenceParallel(use_local_output=False)
        plan["out"] = ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate())
    return parallelize_module(owner, mesh, plan)


def parallel(
    rank: int, folder: Path, sequence: bool = False, after: bool = False
) -> dict[str, bool]:
    """Every process sees the same batch. ``after``: the model is transformed as it is spread."""

    def spread() -> nn.Module:
        return _plan(net(), sequence)

    def module() -> nn.Module:
        return transformed(spread()) if after else _plan(module_of_net(), sequence)

    runs = [ran(make(), 0 * rank, folder / str(i)) for i, make in enumerate((spread, module))]
    for i, run in enumerate(runs):
        run.resumed = resumed((module, spread)[i](), 0, folder / str(i))
    return compared(*runs)


def _spread(owner: nn.Module, halves: Mapping[str, int]) -> nn.Module:
    """Parameters as tensors of a mesh; those of ``halves`` in two along a dimension."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, parameter in list(owner.named_parameters()):
        path, _, own = name.rpartition(".")
        place: Any = Shard(halves[name]) if name in halves else Replicate()
        spread = distribute_tensor(parameter.detach(), mesh, [place])
        owner.get_submodule(path)._parameters[own] = nn.Parameter(spread)
    return owner


def tensors(rank: int, folder: Path) -> dict[str, bool]:
    """The graph on spread tensors, without a hook: its own operations take them."""
    halves = {f"blocks.{i}.up.{own}": 0 for i in range(2) for own in ("weight", "bias")}
    halves |= {f"blocks.{i}.down.weight": 1 for i in range(2)}
    mesh, runs = init_device_mesh("cpu", (dist.get_world_size(),)), []
    for owner in (_spread(net(), halves), _spread(module_of_net(), halves)):
        optimizer, found = optimizer_of(owner), Trained()
        for number in range(STEPS):
            optimizer.zero_grad()
            x, y = (distribute_tensor(t, mesh, [Replicate()]) for t in batch(number))
            loss = F.mse_loss(owner(x), y)
            loss.backward()
            gradients = [plain(p.grad) for p in owner.parameters()]
            found.norms.append(nn.utils.get_total_norm(gradients))
            found.losses.append(plain(loss))
            optimizer.step()
        found.saved = {n: plain(t) for n, t in owner.state_dict().items()}
        runs.append(found)
    return compared(*runs)


def whole_numbers(*size: int) -> Tensor:
    """Numbers of which float32 holds every sum, so that no order of adding matters."""
    return torch.randint(-8, 9, size).float()


def cast_tensors(rank: int, folder: Path, recipes: Sequence[str]) -> dict[str, bool]:
    """Under a recipe the graph on spread tensors rounds as it does on whole ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    x, weights = whole_numbers(4, 6, 16), whole_numbers(4, 6, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(whole_numbers(*parameter.shape) / 8)
    plain_gradients = _results(model, x, weights)
    mesh, found = init_device_mesh("cpu", (dist.get_world_size(),)), {}
    ways: list[tuple[dict[str, int], Any]] = [
        ({}, Shard(0)), ({}, Shard(1)), ({"0.weight": 0, "0.bias": 0, "2.weight": 1}, Replicate())
    ]  # fmt: skip
    for recipe in recipes:
        module = unitify.transform(model, (x,), recipe=recipe)
        # Products of codes and products of numbers add up the same.
        expected = _results(copy.deepcopy(module), x, weights)
        assert not same(expected, plain_gradients)
        for halves, place in ways:
            owner = _spread(copy.deepcopy(module), halves)
            given = [distribute_tensor(t, mesh, [place]) for t in (x, weights)]
            results = _results(owner, *given)
            found[f"{recipe} {place} {len(halves)}"] = same(expected, results)
    return found


def _results(owner: nn.Module, x: Tensor, weights: Tensor) -> list[Any]:
    out = owner(x)
    (out * weights).sum().backward()
    return [plain(out), *(plain(p.grad) for p in owner.parameters())]


# -- pipelines -------------------------------------------------------------------------------------


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


# -- checkpoints -----------------------------------------------------------------------------------


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


# -- all in turn -----------------------------------------------------------------------------------


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
