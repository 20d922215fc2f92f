"""Outputs and gradients of a module under a compiler, and how far apart two of them are."""

from __future__ import annotations

import copy

import torch
from conversion import Conversion
from torch import Tensor
from torch.utils import _pytree as pytree

from unitify.capture.execution import backward_starts
from unitify.module.unit_scaled import UnitScaledModule


def results(
    module: UnitScaledModule, case: Conversion, backend: str, training: bool = True
) -> dict[str, Tensor]:
    """Outputs and true gradients of one compiled call."""
    module = copy.deepcopy(module).train(training)
    compiled = torch.compile(module, backend=backend)
    inputs, spec = pytree.tree_flatten((case.args, case.kwargs))
    inputs = [
        x.detach().clone().requires_grad_()
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]
    args, kwargs = pytree.tree_unflatten(inputs, spec)
    torch.manual_seed(0)
    output = compiled(*args, **kwargs)
    starts, gradients = backward_starts(output, None)
    torch.autograd.backward(starts, gradients)
    leaves = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
    found = {f"output {i}": leaf.detach() for i, leaf in enumerate(leaves)}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad * module.plan.parameters[name].bwd
    for i, x in enumerate(x for x in inputs if isinstance(x, Tensor) and x.grad is not None):
        found[f"input {i}"] = x.grad
    return found


def distance(a: Tensor, b: Tensor) -> float:
    """RMS of the difference."""
    return float((a.double() - b.double()).square().mean().sqrt())
