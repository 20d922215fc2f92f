"""The number types of a recording: are they still those of the weights?

A recording holds for its types only, because the graph contains tensors that the model's code
created, and its decisions about types. After ``module.bfloat16()``, or under a framework that
passes the weights of a call in another type, the code must see that type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unitify.capture.tree import copy_of
from unitify.capture.watching import without_hooks
from unitify.module.graph_forward import own_code_again
from unitify.rulebook.dimensions import is_floating

#: Names of types that belong to no tensor.
_AROUND = ("new tensors", "autocast")


def _device(tree: nn.Module) -> str:
    """The device type of a tree."""
    return next((p.device.type for p in tree.parameters()), "cpu")


def _surroundings(device: str) -> dict[str, torch.dtype]:
    """Other types that decide those of a call: that of new tensors, and that of ``autocast``.

    Autocast to float16 is left out: a graph in float32 keeps gradients that the model would lose.
    """
    found = {"new tensors": torch.get_default_dtype()}
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        if dtype != torch.float16:
            found["autocast"] = dtype
    return found


class Types:
    """The number types of a tree's parameters and buffers, and those around a call.

    ``recorded``: each by name; None takes the present types.
    """

    def __init__(self, tree: nn.Module, recorded: Mapping[str, torch.dtype] | None = None) -> None:
        self.tree = tree
        if recorded is None:
            tensors = (
                *tree.named_parameters(remove_duplicate=False),
                *tree.named_buffers(remove_duplicate=False),
            )
            recorded = {n: t.dtype for n, t in tensors if is_floating(t)}
            recorded |= _surroundings(_device(tree))
        self.recorded = recorded
        self.surroundings = {n: recorded[n] for n in _AROUND if n in recorded}
        #: The namespace of a module, a name in it, its recorded type, and the full name.
        self.tensors: list[tuple[dict[str, Any], str, torch.dtype, str]] = []
        for name, dtype in recorded.items():
            path, _, own = name.rpartition(".")
            if name not in _AROUND:
                self.tensors.append((vars(tree.get_submodule(path)), own, dtype, name))

    def changed(self) -> str | None:
        """The first name with another type now, a tensor's or one around a call; None without one.

        A tensor that no longer exists does not count.
        """
        for namespace, own, dtype, name in self.tensors:
            held = namespace["_parameters"].get(own)
            if held is None:
                held = _held(namespace, own)
            if held is not None and held.dtype != dtype:
                return name
        around = _surroundings(_device(self.tree))
        if around == self.surroundings:
            return None
        return next(n for n in _AROUND if around.get(n) != self.surroundings.get(n))

    def now(self) -> dict[str, torch.dtype]:
        """The present types."""
        found = {name: _held(namespace, own) for namespace, own, _, name in self.tensors}
        present = {n: t.dtype for n, t in found.items() if t is not None}
        return {**present, **_surroundings(_device(self.tree))}


def _held(namespace: dict[str, Any], name: str) -> Tensor | None:
    """A tensor of a module. Some frameworks turn parameters into plain attributes."""
    held = namespace["_parameters"].get(name)
    if held is None:
        held = namespace["_buffers"].get(name)
    return namespace.get(name) if held is None else held


def to_record(tree: nn.Module, names: Mapping[str, str], has_hooks: bool) -> nn.Module:
    """A copy of ``tree`` with copies of its present weights, and parameters under ``names``.

    ``has_hooks``: does the recording include the tree's own hooks?
    """
    memo: dict[int, Any] = {}
    for name in names:
        held = _held(vars(tree.get_submodule(name.rpartition(".")[0])), name.rpartition(".")[2])
        if held is not None and id(held) not in memo:
            memo[id(held)] = nn.Parameter(held.detach().clone(), held.requires_grad)
    if has_hooks:
        made = copy_of(tree, memo)
    else:
        with without_hooks(tree):
            made = copy_of(tree, memo)
    own_code_again(made)
    for name in names:
        path, _, own = name.rpartition(".")
        module = made.get_submodule(path)
        if isinstance(held := vars(module).pop(own, None), nn.Parameter):
            module._parameters[own] = held
    return made
