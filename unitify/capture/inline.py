"""Nested regions of a recorded graph, put back into it.

``torch.export`` wraps the operations under ``torch.no_grad`` into a sub-graph of their own.
Inlined, with their results detached, they are ordinary values again. Other
higher-order operations (``cond``, ``scan``) stay whole: they are operations without a rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.wrap import wrap_with_set_grad_enabled

_GRAD_MODE: tuple[Any, ...] = (wrap_with_set_grad_enabled,)


def inline_regions(graph: fx.Graph, owner: torch.nn.Module, constants: dict[str, Any]) -> None:
    """Inline every grad-mode region of ``graph``; collect other sub-graphs in ``constants``."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _GRAD_MODE:
            _inline(graph, node, owner)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        elif node.op == "get_attr" and isinstance(
            getattr(owner, node.target, None), fx.GraphModule
        ):
            constants[node.target] = getattr(owner, node.target)


def _inline(graph: fx.Graph, node: fx.Node, owner: torch.nn.Module) -> None:
    enabled, body, *operands = node.args
    region: fx.GraphModule = getattr(owner, body.target)  # type: ignore[union-attr, arg-type]
    inputs = [n for n in region.graph.nodes if n.op == "placeholder"]
    inner: dict[fx.Node, Any] = dict(zip(inputs, operands, strict=True))
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(region.graph, inner)
        for made in set(inner.values()):
            if (
                isinstance(made, fx.Node)
                and made.op == "call_function"
                and made.target in _GRAD_MODE
            ):
                _inline(graph, made, region)
        if not isinstance(results, tuple | list):
            results = (results,)
        outputs = [r if enabled else _detached(graph, r) for r in results]
    for user in list(node.users):
        user.replace_all_uses_with(outputs[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(node)


def _detached(graph: fx.Graph, result: Any) -> Any:
    value = result.meta.get("val") if isinstance(result, fx.Node) else None
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return result
    made = graph.call_function(torch.ops.aten.detach.default, (result,))
    made.meta = dict(result.meta)
    return made
