"""The values of a graph that autograd keeps for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.aliases import Aliases, without_data


def keepers(aliases: Aliases, root: fx.Node) -> dict[fx.Node, list[fx.Node]]:
    """The values on the memory of ``root`` → the operations that keep their contents."""
    members = aliases.group[root].members
    found: dict[fx.Node, list[fx.Node]] = {}
    for member in members:
        calls = [c for c in (member, *member.users) if c.op == "call_function"]
        found[member] = [c for c in calls if _keeps(c, member)]
    return found


def _keeps(call: fx.Node, tensor: fx.Node) -> bool:
    """Does ``call`` keep the contents of ``tensor``, its operand or result? Tried without data."""
    given: dict[fx.Node, Any] = {}

    def operand(node: fx.Node) -> Any:
        if node not in given:
            given[node] = without_data(node.meta["val"])
            if isinstance(given[node], Tensor) and given[node].dtype.is_floating_point:
                # No leaf: that could not be written in place.
                given[node] = given[node].requires_grad_().clone()
        return given[node]

    try:
        args, kwargs = fx.node.map_arg((call.args, call.kwargs), operand)
        with torch.enable_grad():
            result = call.target(*args, **kwargs)  # type: ignore[operator]
        results = result if isinstance(result, list | tuple) else [result]
        kept = [item for r in results for item in _kept(r)]
    except Exception:
        # It does not run on these, or has no backward pass: it may keep anything.
        return True
    shown = result if call is tensor else given.get(tensor)
    return any(_is_on(shown, item) for item in kept)


def _is_on(shown: Any, kept: Tensor) -> bool:
    if not isinstance(shown, Tensor):
        return False
    return bool(shown.untyped_storage()._cdata == kept.untyped_storage()._cdata)


def _kept(result: Any) -> list[Tensor]:
    """Every tensor that the operations behind ``result`` keep."""
    found: list[Tensor] = []
    stack = [result.grad_fn] if isinstance(result, Tensor) and result.grad_fn is not None else []
    while stack:
        step = stack.pop()
        names = [name for name in dir(step) if name.startswith("_saved_")]
        values = [getattr(step, name) for name in names]
        for value in values:
            items = value if isinstance(value, list | tuple) else [value]
            found += [item for item in items if isinstance(item, Tensor)]
        stack += [following for following, _ in step.next_functions if following is not None]
    return found
