"""Rows of tensors that are spread over processes: tensor parallel, and the graph on them itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed_training import STEPS, module_of_net, optimizer_of, plain, ran, resumed
from frameworks import Trained, batch, compared, net, same, transformed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import unitify


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
