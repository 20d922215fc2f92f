"""Merges the recordings of ``.train()`` and ``.eval()`` into one graph.

Export writes the mode into the graph as constants (the flag of a dropout, attention's dropout
probability). If the two recordings have the same structure, every constant in which they differ
becomes a choice by the ``training`` flag of the module that recorded it.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

from unitify.capture.aliases import written_argument
from unitify.capture.counterparts import functional_counterpart
from unitify.rulebook.dimensions import is_floating
from unitify.rulebook.schema import named_arguments, set_argument

aten = torch.ops.aten

_Twins = dict[fx.Node, tuple[fx.Node | None, dict[fx.Node, fx.Node]]]


def by_mode(training: bool, in_training: Any, in_evaluation: Any) -> Any:
    """One of two constants, by the mode of the module."""
    return in_training if training else in_evaluation


def merge_modes(training: fx.Graph, evaluation: fx.Graph) -> fx.Graph | None:
    """``training``, following the mode flag; None if the two differ in more than constants."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(training, {}))
    training = copied
    pairs = _aligned(training, evaluation)
    if pairs is None:
        return None
    choices: list[tuple[fx.Node, list[Any], Any]] = []
    writes: list[fx.Node] = []
    for node, (other, mapped) in pairs.items():
        if other is None and _counts(node):
            writes.append(node)
            continue
        differing = _differences(node, other, mapped)
        if differing is None:
            return None
        choices.extend((node, path, value) for path, value in differing)
    flags: dict[str, fx.Node] = {}
    for node, path, value in choices:
        _choose(training, node, path, value, flags)
    for node in writes:
        _write_in_training(training, node, flags)
    return training


def _aligned(training: fx.Graph, evaluation: fx.Graph) -> _Twins | None:
    """Training nodes, each with its evaluation twin (None: identity there) and the map so far."""
    left, right = list(training.nodes), list(evaluation.nodes)
    held_left = {n.target for n in left if n.op == "get_attr"}
    held_right = {n.target for n in right if n.op == "get_attr"}
    mapped: dict[fx.Node, fx.Node] = {}
    pairs: _Twins = {}
    i = j = 0
    while i < len(left) and j < len(right):
        a, b = left[i], right[j]
        if a.op == b.op and (a.target == b.target or a.op in ("output", "placeholder")):
            mapped[b] = a
            pairs[a] = (b, mapped)
            i, j = i + 1, j + 1
        elif a.op == "get_attr" and a.target not in held_right:
            i += 1
        elif b.op == "get_attr" and b.target not in held_left:
            mapped[b] = _insert_attribute(training, a, b)
            j += 1
        elif _counts(a):
            pairs[a] = (None, mapped)
            i += 1
        elif _is_identity_where_absent(a):
            twin = next((k for k, v in mapped.items() if v is a.args[0]), None)
            if twin is None:
                return None
            mapped[twin] = a
            pairs[a] = (None, mapped)
            i += 1
        elif b.target is aten.contiguous.default:
            source = mapped[b.args[0]]  # type: ignore[index]
            made = _insert_identity(training, source, b)
            mapped[b] = made
            j += 1
        else:
            return None
    return pairs if i == len(left) and j == len(right) else None


def _is_identity_where_absent(node: fx.Node) -> bool:
    """Does the operation do nothing in the mode whose recording lacks it, as a dropout does?"""
    if not isinstance(node.target, OpOverload):
        return False
    has_flag = any(a.name == "train" for a in node.target._schema.arguments)
    return has_flag or node.target is aten.contiguous.default


def _counts(node: fx.Node) -> bool:
    """Does the node only write into a buffer that carries no scale, such as a batch counter?"""
    buffer = written_argument(node)
    value = buffer.meta.get("val") if buffer is not None else None
    return (
        buffer is not None
        and buffer.op == "get_attr"
        and not node.users
        and isinstance(value, torch.Tensor)
        and not is_floating(value)
        and functional_counterpart(node.target) is not None  # type: ignore[arg-type]
    )


def _write_in_training(graph: fx.Graph, node: fx.Node, flags: dict[str, fx.Node]) -> None:
    """Let a write that the evaluation recording lacks go to its own new value in evaluation.

    So the buffer is left alone there, as the model leaves it.
    """
    buffer = written_argument(node)
    assert buffer is not None
    counterpart: Any = functional_counterpart(node.target)  # type: ignore[arg-type]
    flag = _flag(graph, node, flags)
    with graph.inserting_before(node):
        value = graph.call_function(counterpart, node.args, node.kwargs)
        value.meta = dict(node.meta)
        place = graph.call_function(by_mode, (flag, buffer, value))
        place.meta = dict(node.meta)
        written = graph.call_function(aten.copy_.default, (place, value))
    written.meta = dict(node.meta)
    graph.erase_node(node)
    # Regions name it; ``_rename`` never gives the name of an erased node again.
    written.name = node.name


def _insert_attribute(graph: fx.Graph, before: fx.Node, twin: fx.Node) -> fx.Node:
    with graph.inserting_before(before):
        made = graph.get_attr(str(twin.target))
    made.meta = dict(twin.meta)
    return made


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


def _flag(graph: fx.Graph, node: fx.Node, flags: dict[str, fx.Node]) -> fx.Node:
    """The mode flag of the module that recorded ``node``, as a value of the graph."""
    owner = owner_path(node)
    if owner not in flags:
        with graph.inserting_before(next(iter(graph.nodes))):
            flags[owner] = graph.get_attr(f"{owner}.training" if owner else "training")
    return flags[owner]


def _choose(
    graph: fx.Graph, node: fx.Node, path: list[Any], value: Any, flags: dict[str, fx.Node]
) -> None:
    flag = _flag(graph, node, flags)
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


def switches_itself(module: nn.Module) -> bool:
    """May a change of mode do more than to set a flag that Python code reads?"""
    is_opaque = isinstance(module, torch.jit.ScriptModule) or not isinstance(
        type(module).forward, FunctionType
    )
    plain = nn.Module.train, nn.Module.eval
    own = type(module).train, type(module).eval
    return is_opaque or own != plain or not {"train", "eval"}.isdisjoint(vars(module))
