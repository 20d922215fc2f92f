"""A module against the model that it was made of: the same calls of both, everything compared."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy
import torch
from conversion import same
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def call(model: nn.Module, args: tuple[Any, ...], seed: int = 0) -> dict[str, Any]:
    """One step of training: what it returns, every gradient, and what it leaves of its inputs."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)
    model.zero_grad(set_to_none=True)
    given = pytree.tree_map(_leaf, args)
    asked = [x for x in pytree.tree_leaves(given) if isinstance(x, Tensor) and x.requires_grad]
    output = model(*given)
    tensors = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
    total = sum(
        (torch.view_as_real(x) if x.is_complex() else x).double().square().sum()
        for x in tensors
        if x.requires_grad
    )
    if isinstance(total, Tensor):
        total.backward()
    found: dict[str, Any] = {f"output {i}": x.detach() for i, x in enumerate(tensors)}
    found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters()}
    found |= {f"gradient of input {i}": x.grad for i, x in enumerate(asked)}
    left = [x for x in pytree.tree_leaves(given) if isinstance(x, Tensor)]
    found |= {f"input {i}": x.detach() for i, x in enumerate(left)}
    found["structure"] = str(pytree.tree_structure((output, given)))
    return found


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def differences(model: nn.Module, module: nn.Module, args: tuple[Any, ...], seed: int = 0) -> list:
    """Names of what the same call of both does otherwise."""
    mine, theirs = call(model, args, seed), call(module, args, seed)
    names = {f"buffer {n}": b for n, b in model.named_buffers()}
    own = {f"buffer {n}": b for n, b in module.named_buffers() if "captured_" not in n}
    return [n for n in mine.keys() | theirs.keys() if not _equal(mine.get(n), theirs.get(n))] + [
        n for n in names.keys() | own.keys() if not _equal(names.get(n), own.get(n))
    ]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same(a, b)
    return type(a) is type(b) and bool(a == b)


def assert_true_to(
    model: nn.Module, module: nn.Module, calls: Iterable[tuple[Any, ...]], attributes: str = ""
) -> None:
    """Every one of ``calls``, in a row, in train and in eval mode, is the same call of both.

    ``attributes``: names of what both have to hold alike afterwards, as dotted paths.
    """
    calls = list(calls)
    for training in (True, False, True):
        model.train(training)
        module.train(training)
        for number, args in enumerate(calls):
            assert not differences(model, module, args, number), (training, number)
            for name in attributes.split():
                assert _same_value(_attribute(model, name), _attribute(module, name)), name


def _attribute(model: nn.Module, name: str) -> Any:
    held: Any = model
    for part in name.split("."):
        held = held[part] if isinstance(held, dict) else getattr(held, part)
    return held


def _same_value(a: Any, b: Any) -> bool:
    (left, spec), (right, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return spec == other and all(map(_equal, left, right))
