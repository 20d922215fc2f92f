"""The tree of a model without its code: bare modules that hold parameters, buffers and modes."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def skeleton_like(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Bare modules in the tree of ``model``, with copies of its parameters and buffers.

    Tied parameters and shared modules stay tied; every module keeps its mode flag.
    """
    copies: dict[int, Any] = memo if memo is not None else {}
    modules: dict[int, nn.Module] = {}

    def bare(module: nn.Module) -> nn.Module:
        if id(module) in modules:
            return modules[id(module)]
        made = modules[id(module)] = nn.Module()
        made.training = module.training
        for name, parameter in module._parameters.items():
            held = copy.deepcopy(parameter, copies) if parameter is not None else None
            made.register_parameter(name, held)
        for name, buffer in module._buffers.items():
            copied = copy.deepcopy(buffer, copies) if buffer is not None else None
            persistent = name not in module._non_persistent_buffers_set
            made.register_buffer(name, copied, persistent=persistent)
        return made

    # An explicit stack: a module tree may be deeper than Python recurses.
    root = bare(model)
    stack = [(model, root)]
    visited = {id(model)}
    while stack:
        original, made = stack.pop()
        for name, child in original._modules.items():
            if child is None:
                continue
            made.add_module(name, bare(child))
            if id(child) not in visited:
                visited.add(id(child))
                stack.append((child, made._modules[name]))  # type: ignore[arg-type]
    return root
