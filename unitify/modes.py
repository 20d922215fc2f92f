"""One graph for ``.train()`` and ``.eval()``: the two recordings, merged.

Export bakes a mode into the graph as constants (the flag of a dropout, attention's
dropout probability). Where the two recordings have the same structure, every constant in
which they differ becomes a choice by the ``training`` flag of the module that recorded it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from unitify.schema import named_arguments, set_argument

aten = torch.ops.aten

#: Operations that do nothing where a recording left them out: export drops the call.
_IDENTITY_IF_ABSENT = {aten.contiguous.default, aten.dropout.default}


def by_mode(training: bool, in_training: Any, in_evaluation: Any) -> Any:
    """One of two constants, by the mode of the module."""
    return in_training if training else in_evaluation


def merge_modes(training: fx.Graph, evaluation: fx.Graph) -> fx.Graph | None:
    """``training``, following the mode flag; None if the two differ in more than constants.

    Changes ``training`` in place.
    """
    pairs = _aligned(training, evaluation)
    if pairs is None:
        return None
    choices: list[tuple[fx.Node, list[Any], Any]] = []
    for node, (other, mapped) in pairs.items():
        differing = _differences(node, other, mapped)
        if differing is None:
            return None
        choices.extend((node, path, value) for path, value in differing)
    flags: dict[str, fx.Node] = {}
    for node, path, value in choices:
        _choose(training, node, path, value, flags)
    return training


def _aligned(
    training: fx.Graph, evaluation: fx.Graph
) -> dict[fx.Node, tuple[fx.Node | None, dict[fx.Node, fx.Node]]] | None:
    """Training nodes, each with its evaluation twin (None: identity there) and the map so far."""
    left, right = list(training.nodes), list(evaluation.nodes)
    mapped: dict[fx.Node, fx.Node] = {}
    pairs: dict[fx.Node, tuple[fx.Node | None, dict[fx.Node, fx.Node]]] = {}
    i = j = 0
    while i < len(left) and j < len(right):
        a, b = left[i], right[j]
        if a.op == b.op and (a.target == b.target or a.op in ("output", "placeholder")):
            mapped[b] = a
            pairs[a] = (b, mapped)
            i, j = i + 1, j + 1
        elif a.target in _IDENTITY_IF_ABSENT:
            twin = next((k for k, v in mapped.items() if v is a.args[0]), None)
            if twin is None:
                return None
            mapped[twin] = a
            pairs[a] = (None, mapped)
            i += 1
        elif b.target in _IDENTITY_IF_ABSENT and b.target is not aten.dropout.default:
            source = mapped[b.args[0]]  # type: ignore[index]
            made = _insert_identity(training, source, b)
            mapped[b] = made
            j += 1
        else:
            return None
    return pairs if i == len(left) and j == len(right) else None


def _insert_identity(graph: fx.Graph, source: fx.Node, twin: fx.Node) -> fx.Node:
    with graph.inserting_after(source):
        made = graph.call_function(twin.target, (source, *twin.args[1:]))  # type: ignore[arg-type]
    made.meta = dict(source.meta)
    source.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return made


def _differences(
    node: fx.Node, other: fx.Node | None, mapped: dict[fx.Node, fx.Node]
) -> list[tuple[list[Any], Any]] | None:
    """Paths into the arguments of ``node`` whose constants differ, with the other value."""
    if other is None:
        return [(["train"], False)] if "train" in named_arguments(node) else []
    found: list[tuple[list[Any], Any]] = []
    stack: list[tuple[list[Any], Any, Any]] = [([], named_arguments(node), named_arguments(other))]
    while stack:
        path, mine, theirs = stack.pop()
        if isinstance(mine, fx.Node) or isinstance(theirs, fx.Node):
            if not isinstance(mine, fx.Node) or not isinstance(theirs, fx.Node):
                return None
            if mapped.get(theirs) is not mine:
                return None
        elif isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
            if len(mine) != len(theirs):
                return None
            stack.extend(
                ([*path, k], x, y) for k, (x, y) in enumerate(zip(mine, theirs, strict=True))
            )
        elif isinstance(mine, dict) and isinstance(theirs, dict):
            if mine.keys() != theirs.keys():
                return None
            stack.extend(([*path, k], mine[k], theirs[k]) for k in mine)
        elif mine != theirs:
            found.append((path, theirs))
    return found


def owner_path(node: fx.Node) -> str:
    """Path of the innermost module that recorded ``node``, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _choose(
    graph: fx.Graph, node: fx.Node, path: list[Any], value: Any, flags: dict[str, fx.Node]
) -> None:
    owner = owner_path(node)
    flag = flags.get(owner)
    if flag is None:
        target = f"{owner}.training" if owner else "training"
        with graph.inserting_before(next(iter(graph.nodes))):
            flag = flags[owner] = graph.get_attr(target)
    name, *rest = path
    present = named_arguments(node)[name]
    whole = present
    for key in rest:
        present = present[key]
    chosen: Any = flag
    if (present, value) != (True, False):
        with graph.inserting_before(node):
            chosen = graph.call_function(by_mode, (flag, present, value))
    set_argument(node, name, _replaced(whole, rest, chosen))


def _replaced(container: Any, path: list[Any], value: Any) -> Any:
    if not path:
        return value
    key, *rest = path
    if isinstance(container, dict):
        return {**container, key: _replaced(container[key], rest, value)}
    items = list(container)
    items[key] = _replaced(items[key], rest, value)
    return type(container)(items) if isinstance(container, tuple) else items
