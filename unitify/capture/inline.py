"""Nested regions of a recorded graph, put back into it.

``torch.export`` wraps the operations under ``torch.no_grad`` into a sub-graph. Here they are
inlined, with their results detached, and are ordinary values again. Other higher-order operations
(``cond``, ``scan``) stay whole: they are operations without a rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.wrap import wrap_with_set_grad_enabled

from unitify.capture.aliases import Aliases, written_arguments
from unitify.capture.views import unwritable

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
            _refuse_writes(node, constants[node.target].graph)


def _refuse_writes(node: fx.Node, body: fx.Graph) -> None:
    """Check that a region that stays whole does not write outside."""
    for written in _written_inputs(body):
        reason = f"it belongs to the surroundings of the region {node.name}"
        raise unwritable(written, "an in-place operation", reason)


def _written_inputs(body: fx.Graph) -> dict[fx.Node, None]:
    """The floating-point inputs into which a region writes, also through views."""
    writes = [n for node in body.nodes for n in written_arguments(node)]
    if not writes:
        return {}
    aliases = Aliases(body)
    found = (aliases.root(n) for n in writes)
    return dict.fromkeys(n for n in found if n.op == "placeholder" and aliases.group[n].is_floating)


def _inline(graph: fx.Graph, node: fx.Node, owner: torch.nn.Module) -> None:
    enabled, body, *operands = node.args
    region: fx.GraphModule = getattr(owner, body.target)  # type: ignore[union-attr, arg-type]
    inputs = [n for n in region.graph.nodes if n.op == "placeholder"]
    inner: dict[fx.Node, Any] = dict(zip(inputs, operands, strict=True))
    with graph.inserting_before(node):
        if not enabled:
            # A write without gradients: through a detached view.
            for written in _written_inputs(region.graph):
                inner[written] = _detached(graph, inner[written])
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
        outer = dict(zip(inputs, operands, strict=True))
        for k, result in enumerate(_results(region.graph)):
            # Outside, an input that was written keeps its identity and its history.
            if (origin := _returned(result)) in outer:
                outputs[k] = outer[origin]
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


def _results(region: fx.Graph) -> list[Any]:
    (results,) = region.output_node().args
    return list(results) if isinstance(results, tuple | list) else [results]


def _returned(result: Any) -> Any:
    """The tensor that a chain of in-place operations was given, and returns."""
    while isinstance(result, fx.Node) and (written := written_arguments(result)):
        result = written[0]
    return result
