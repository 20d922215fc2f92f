"""Makes nodes that take views again, and nodes that write through views."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from unitify.capture.aliases import History, View
from unitify.diagnostics import AliasedMutation, UnitifyError
from unitify.rulebook.schema import named_arguments
from unitify.runtime.written import view_text

Chain = Sequence[tuple[View, History]]

WRITTEN = torch.ops.unitify.written.default
_DETACH = view_text(torch.ops.aten.detach.default, (), None)


def call(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    """A new node with the metadata of ``like``."""
    made = graph.call_function(target, args)
    made.meta = dict(like.meta)
    return made


def replay(graph: fx.Graph, chain: Chain, start: fx.Node) -> fx.Node:
    """The views of ``chain``, taken of ``start`` instead."""
    node = start
    for view, _ in chain:
        assert view.call is not None
        taken = view.call
        node = call(graph, taken.target, (node, *taken.args[1:]), taken)
        node.kwargs = dict(taken.kwargs)
        if view.index is not None:
            node = call(graph, operator.getitem, (node, view.index), taken)
            node.meta["val"] = taken.meta["val"][view.index]
    return node


def write(
    graph: fx.Graph,
    base: fx.Node,
    value: fx.Node,
    chain: Chain,
    like: fx.Node,
    untracked: bool = False,
) -> fx.Node:
    """``base``, which is what ``like`` is, with ``value`` written through the views of ``chain``.

    ``untracked``: the history of ``base`` goes on as if nothing had been written.

    Raises ``UnitifyError`` (U105) for a view that the graph cannot hold.
    """
    sizes: list[fx.Node] = []
    others: list[fx.Node] = []
    steps: list[Any] = [_DETACH] if untracked else []
    for view, history in chain:
        steps.append(_step(view, sizes, others))
        if history is History.OWN:
            steps.append(_DETACH)
    args: tuple[Any, ...] = (base, value)
    if steps:
        args += (json.dumps(steps),)
    if sizes or others:
        args += (sizes, *([others] if others else []))
    return call(graph, WRITTEN, args, like)


def _step(view: View, sizes: list[fx.Node], others: list[fx.Node]) -> list[Any]:
    taken = view.call
    assert taken is not None

    def operand(node: fx.Node) -> dict[str, int]:
        is_tensor = isinstance(node.meta["val"], torch.Tensor)
        held = others if is_tensor else sizes
        held.append(node)
        return {"other" if is_tensor else "size": len(held) - 1}

    given = list(named_arguments(taken).values()) if taken.kwargs else list(taken.args)
    text = view_text(taken.target, fx.node.map_aggregate(given[1:], _or(operand)), view.index)  # type: ignore[arg-type]
    if text is None:
        reason = "an argument of the view is not a number, a size or a tensor"
        raise unwritable(taken, str(taken.target), reason)
    return text


def _or(operand: Any) -> Any:
    return lambda item: operand(item) if isinstance(item, fx.Node) else item


def unwritable(tensor: fx.Node, operation: str, reason: str) -> UnitifyError:
    """The error for a write into ``tensor`` that no value can express."""
    return UnitifyError(
        AliasedMutation(where=tensor.name, operation=operation, view=tensor.name, reason=reason)
    )


def is_address(view: View, given: bool = False) -> bool:
    """Is the view given by strides; and, with ``given``, by an offset in the storage?"""
    assert view.call is not None
    arguments = named_arguments(view.call)
    return "stride" in arguments and not (given and arguments.get("storage_offset") is None)
