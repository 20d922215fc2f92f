"""Optimizers of other packages, averages of weights, and a run that changes horses: bitwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from framework_table import note
from frameworks import Trained, adamw, batch, compared, net, same, transformed
from torch import Tensor, nn
from torch import optim as O
from torch.optim import lr_scheduler as S
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from trainer_rows import module_of_net

import unitify


def lion(p: Any) -> Any:
    from lion_pytorch import Lion

    return Lion(p, lr=1e-3, weight_decay=0.1)


def schedule_free(p: Any) -> Any:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(p, lr=0.01, warmup_steps=2)


def adafactor(p: Any) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(p, scale_parameter=True, relative_step=True, warmup_init=True)


def eight_bits(p: Any) -> Any:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(p, lr=0.01, min_8bit_size=64)


def torch_optimizers() -> dict[str, Callable[[Any], Any]]:
    """Every optimizer of torch, by name, with what it is made with."""
    options: dict[str, dict[str, Any]] = {
        "SGD": {"lr": 0.1, "momentum": 0.9},
        "LBFGS": {"max_iter": 3, "line_search_fn": "strong_wolfe"},
    }
    names = [
        name for name, kind in vars(O).items()
        if isinstance(kind, type) and issubclass(kind, O.Optimizer) and kind is not O.Optimizer
    ]  # fmt: skip
    return {f"torch {n}": lambda p, n=n: getattr(O, n)(p, **options.get(n, {})) for n in names}


OPTIMIZERS = {
    **torch_optimizers(), "Lion": lion, "AdamW schedule-free": schedule_free,
    "Adafactor of transformers": adafactor, "AdamW of bitsandbytes, 8 bits": eight_bits,
}  # fmt: skip
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda n: 1 / (1 + n)),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda n: 0.9),
    "StepLR": lambda o: S.StepLR(o, 2),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: S.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: S.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 4, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 2, eta_min=1e-3),
    "CyclicLR": lambda o: S.CyclicLR(o, 1e-3, 0.1, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 0.1, total_steps=8),
    "SequentialLR": lambda o: S.SequentialLR(o, [S.ConstantLR(o), S.StepLR(o, 1)], [2]),
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.ConstantLR(o), S.StepLR(o, 2)], o),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: SWALR(o, 1e-3, 3),
}


def trained(
    owner: nn.Module, make: Callable[[Any], Any], schedule: Callable[[Any], Any] | None = None
) -> Trained:
    """Six steps, and two more by what was made anew and loaded after the third."""
    found = Trained()

    def steps(owner: nn.Module, optimizer: Any, schedule: Any, numbers: range) -> list[Any]:
        losses = []
        switch = getattr(optimizer, "train", lambda: None)
        switch()
        for number in numbers:
            x, y = batch(number)

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = F.mse_loss(owner(x), y)
                loss.backward()
                found.norms.append(nn.utils.clip_grad_norm_(owner.parameters(), 0.5))
                return loss

            loss = optimizer.step(torch.enable_grad()(closure))
            if isinstance(schedule, S.ReduceLROnPlateau):
                schedule.step(loss)
            elif schedule is not None:
                schedule.step()
            losses.append(loss.detach())
        return losses

    def made(owner: nn.Module) -> tuple[Any, Any]:
        optimizer = make(owner.parameters())
        return optimizer, None if schedule is None else schedule(optimizer)

    fresh = copy.deepcopy(owner)
    optimizer, chosen = made(owner)
    found.losses = steps(owner, optimizer, chosen, range(3))
    held = [o.state_dict() for o in (owner, optimizer, chosen) if o is not None]
    held = copy.deepcopy(held)
    found.losses += steps(owner, optimizer, chosen, range(3, 6))
    optimizer, chosen = made(fresh)
    for target, state in zip((fresh, optimizer, chosen), held, strict=False):
        target.load_state_dict(state)
    found.resumed = steps(fresh, optimizer, chosen, range(3, 6))
    plain = net(9)
    plain.load_state_dict(owner.state_dict())
    found.saved = plain.state_dict()
    return found


def assert_same(name: str, *options: Any) -> None:
    columns = compared(trained(net(), *options), trained(copy.deepcopy(module_of_net()), *options))
    note(name, columns)
    assert all(columns.values()), columns


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "torch SparseAdam"])
def test_an_optimizer(name: str) -> None:
    if name == "torch Muon":
        make: Any = lambda p: O.Muon([w for w in p if w.ndim == 2])  # noqa: E731
    else:
        make = OPTIMIZERS[name]
    assert_same(name, make)


class Bag(nn.Module):
    """Its embedding has sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(32, 8, sparse=True), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embedding(ids).mean(1))


def with_sparse_gradients(owner: nn.Module) -> Trained:
    """``SparseAdam`` for what has sparse gradients, and resuming from its state."""
    found = Trained()

    def made(owner: Any) -> list[O.Optimizer]:
        return [O.SparseAdam(owner.embedding.parameters(), 0.1), O.SGD(owner.out.parameters(), 0.1)]

    def steps(owner: Any, optimizers: list[O.Optimizer], numbers: range) -> list[Tensor]:
        losses = []
        for number in numbers:
            owner.zero_grad()
            ids = torch.randint(0, 32, (4, 6), generator=torch.Generator().manual_seed(number))
            loss = owner(ids).square().mean()
            loss.backward()
            assert owner.embedding.weight.grad.is_sparse
            gradients = [p.grad.to_dense() for p in owner.parameters()]
            found.norms.append(nn.utils.get_total_norm(gradients))
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.detach())
        return losses

    fresh, optimizers = copy.deepcopy(owner), made(owner)
    found.losses = steps(owner, optimizers, range(3))
    held = copy.deepcopy([each.state_dict() for each in (owner, *optimizers)])
    found.losses += steps(owner, optimizers, range(3, 6))
    found.saved = owner.state_dict()
    optimizers = made(fresh)
    for target, state in zip((fresh, *optimizers), held, strict=True):
        target.load_state_dict(state)
    found.resumed = steps(fresh, optimizers, range(3, 6))
    plain = Bag()
    plain.load_state_dict(found.saved)
    found.saved = dict(plain.state_dict())
    return found


def test_sparse_gradients() -> None:
    module = unitify.transform(Bag(), (torch.randint(0, 32, (4, 6)),))
    columns = compared(with_sparse_gradients(Bag()), with_sparse_gradients(module))
    note("torch SparseAdam", columns)
    assert all(columns.values()), columns


def steps_behind_gradients(owner: nn.Module) -> nn.Module:
    """Each parameter takes its step as soon as its gradient is there, and lets go of that."""
    optimizers: dict[Any, O.Optimizer] = {}

    def step(parameter: Tensor) -> None:
        optimizer = optimizers.setdefault(parameter, O.AdamW([parameter], 0.01))
        optimizer.step()
        optimizer.zero_grad()

    for parameter in owner.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return owner


@pytest.mark.parametrize("when", ["before", "after", "before, in place"])
def test_steps_behind_gradients(when: str) -> None:
    def run(owner: nn.Module) -> Trained:
        found = Trained()
        for number in range(4):
            x, y = batch(number)
            loss = F.mse_loss(owner(x), y)
            loss.backward()
            found.losses.append(loss.detach())
            assert all(p.grad is None for p in owner.parameters())
        plain = net(9)
        plain.load_state_dict(owner.state_dict())
        found.saved = plain.state_dict()
        return found

    if when == "after":
        module = steps_behind_gradients(transformed(net()))
    else:
        module = transformed(steps_behind_gradients(net()), inplace="place" in when)
    columns = compared(run(steps_behind_gradients(net())), run(module))
    note(f"AdamW in hooks, {when} transform", columns)
    assert all(columns.values()), columns


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule(name: str) -> None:
    assert_same(f"torch {name}", lambda p: O.SGD(p, 0.1), SCHEDULES[name])


def test_every_schedule_of_torch_is_there() -> None:
    kinds = {n for n, k in vars(S).items() if isinstance(k, type) and issubclass(k, S.LRScheduler)}
    assert kinds - {"LRScheduler", "_LRScheduler"} <= set(SCHEDULES)


class Normalized(nn.Module):
    """Batch norms, whose statistics averages of weights have to be given anew."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x.flatten(0, 1))))


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
def test_averages_of_weights(average: Any) -> None:
    torch.manual_seed(0)
    model = Normalized()
    averages = []
    for owner in (model, transformed(model)):
        averaged = AveragedModel(owner, multi_avg_fn=average, use_buffers=average is not None)
        optimizer = adamw(owner.parameters())
        for number in range(4):
            optimizer.zero_grad()
            x, y = batch(number)
            F.mse_loss(owner(x), y.flatten(0, 1)).backward()
            optimizer.step()
            averaged.update_parameters(owner)
        update_bn((batch(n)[0] for n in range(4)), averaged)
        averages.append([dict(averaged.state_dict()), averaged.eval()(batch(9)[0])])
    assert same(*averages)
