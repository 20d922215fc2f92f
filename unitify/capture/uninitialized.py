"""Zeros in place of memory that is allocated and not written."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from unitify.rulebook.dimensions import is_floating

aten = torch.ops.aten

#: Operations that return unwritten memory, and those that fill it.
_UNINITIALIZED: dict[OpOverload, OpOverload] = {
    aten.empty.memory_format: aten.zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
    aten.new_empty.default: aten.new_zeros.default,
}


def fill_with_zeros(graph: fx.Graph) -> None:
    """Replace unwritten memory by zeros, because its random contents would count as values."""
    for node in graph.nodes:
        if node.target in _UNINITIALIZED and is_floating(node.meta.get("val")):
            known = {a.name for a in _UNINITIALIZED[node.target]._schema.arguments}
            kwargs = {name: value for name, value in node.kwargs.items() if name in known}
            dropped = node.kwargs.keys() - known
            if all(node.kwargs[n] in (None, torch.contiguous_format) for n in dropped):
                node.target, node.kwargs = _UNINITIALIZED[node.target], kwargs
