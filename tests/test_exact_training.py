"""Twenty steps of training are bitwise the original's, parameters times ``fwd`` at every step."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion import OTHER_KERNELS, Conversion, conversion, same, tensors
from torch import Tensor, nn

import unitify.optim
from unitify.capture.execution import backward_starts, run_captured

STEPS = 20
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01}),
}


class Run:
    """One training run: how it is called, optimized and clipped."""

    def __init__(
        self,
        owner: nn.Module,
        call: Callable[[], Any],
        optimizer: torch.optim.Optimizer,
        clip: Callable[[float], Tensor],
    ) -> None:
        self.owner, self.call, self.optimizer, self.clip = owner, call, optimizer, clip

    def step(self, seed: int) -> tuple[list[Tensor], Tensor]:
        """Outputs and the gradients' norm of one step."""
        torch.manual_seed(seed)
        output = self.call()
        self.optimizer.zero_grad()
        starts, gradients = backward_starts(output, None)
        torch.autograd.backward(starts, gradients)
        norm = self.clip(1.0)
        self.optimizer.step()
        return [t.detach() for t in tensors(output)], norm


def plainly(owner: nn.Module, call: Callable[[], Any], kind: str) -> Run:
    optimizer, options = OPTIMIZERS[kind]
    parameters = list(owner.parameters())
    return Run(
        owner, call, optimizer(parameters, **options),
        lambda limit: nn.utils.clip_grad_norm_(parameters, limit),
    )  # fmt: skip


def scaled(module: unitify.UnitScaledModule, call: Callable[[], Any], kind: str) -> Run:
    optimizer, options = OPTIMIZERS[kind]
    groups = unitify.optim.param_groups(module, optimizer, **options)
    return Run(
        module, call, optimizer(groups, **options),
        lambda limit: unitify.optim.clip_grad_norm_(module, limit),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a module's run gave: outputs, norm and parameters of each step, buffers at the end."""

    outputs: list[list[Tensor]]
    norms: list[Tensor]
    parameters: list[dict[str, Tensor]]
    buffers: dict[str, Tensor]


@functools.lru_cache(maxsize=len(OPTIMIZERS))
def steps_of_module(name: str, kind: str) -> Steps:
    """One run for every reference that it is compared with; of the latest model alone."""
    case = conversion(name)
    module = copy.deepcopy(case.module).train()
    run = scaled(module, lambda: module(*case.args, **case.kwargs), kind)
    found = Steps([], [], [], dict(module.named_buffers()))
    for step in range(STEPS):
        outputs, norm = run.step(step)
        found.outputs.append([t.clone() for t in outputs])
        found.norms.append(norm)
        found.parameters.append({n: p.detach().clone() for n, p in module.named_parameters()})
    return found


def assert_same_training(expected: Run, found: Steps, case: Conversion) -> None:
    plan = case.module.plan
    for step in range(STEPS):
        outputs, norm = expected.step(step)
        assert same(norm, found.norms[step]), f"norm at step {step}"
        for number, (a, b) in enumerate(zip(outputs, found.outputs[step], strict=True)):
            assert same(a, b), f"output {number} at step {step}"
        for name, parameter in expected.owner.named_parameters():
            fwd = plan.parameters[name].fwd
            assert same(parameter, found.parameters[step][name] * fwd), f"{name} after step {step}"
    for name, buffer in expected.owner.named_buffers():
        assert same(buffer, found.buffers[name]), name


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_is_exact(converted: Conversion, kind: str) -> None:
    case = converted
    original = copy.deepcopy(case.model).train()
    flat = case.capture.flat_inputs(case.args, case.kwargs)
    captured = dataclasses.replace(case.capture, model=original)
    reference = plainly(original, lambda: run_captured(captured, flat), kind)
    assert_same_training(reference, steps_of_module(case.name, kind), case)


def test_training_of_the_model_itself(converted: Conversion) -> None:
    """As run eagerly, where the model computes the same while it is recorded."""
    case = converted
    if case.name in OTHER_KERNELS:
        pytest.skip(OTHER_KERNELS[case.name])
    model = copy.deepcopy(case.model).train()
    reference = plainly(model, lambda: model(*case.args, **case.kwargs), "adamw")
    assert_same_training(reference, steps_of_module(case.name, "adamw"), case)
