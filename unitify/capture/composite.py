"""Opens composite operations where they would hide an order of summation.

Most operations of a captured graph are one node of autograd. A *composite* operation (``rms_norm``,
``gru_cell``, ``matmul`` of more than two dimensions) is several nodes, and may add more than one
term to the gradient of an operand. Floating-point sums depend on their order. Autograd computes
c + a + b, where c comes from another user of the value. With a rescale in front of the operation it
would compute c + (a + b). So such an operation is replaced by the operations that it consists of,
which compute the same bits. Every other operation stays whole. Recurrent layers stay whole, too:
torch would open them into other kernels and for one length. The values to whose gradients they add
stay true, and need no rescale.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from unitify.capture.recurrent import LAYERS
from unitify.rulebook.dimensions import is_floating
from unitify.rulebook.schema import nodes_of


def open_composites(graph: fx.Graph) -> None:
    """Inline every composite operation of ``graph`` that sums gradients inside.

    The sum matters only if its value has other users. An input or a parameter may have some outside
    the graph.
    """
    known: dict[Any, tuple[int, ...]] = {}
    for node in list(graph.nodes):
        if _is_composite(node) and node.target not in LAYERS and _hides_a_sum(node, known):
            _open(graph, node)


def is_summed_unseen(node: fx.Node) -> bool:
    """Does a recurrent layer add several terms to the gradient of ``node``, beside other users?"""
    layers = [user for user in node.users if user.target in LAYERS]
    return bool(layers) and node in {n for layer in layers for n in _shared(layer)}


def _is_composite(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and isinstance(node.target, OpOverload)
        and torch._C._dispatch_has_kernel_for_dispatch_key(
            node.target.name(), "CompositeImplicitAutograd"
        )
    )


def _hides_a_sum(node: fx.Node, known: dict[Any, tuple[int, ...]]) -> bool:
    operands, shared = _operands(node), _shared(node)
    if not shared:
        return False
    key = (node.target, fx.node.map_arg((node.args, node.kwargs), _kind).__repr__())
    if key not in known:
        known[key] = _contributions(node)
    counts: dict[fx.Node, int] = {}
    for operand, count in zip(operands, known[key], strict=True):
        counts[operand] = counts.get(operand, 0) + count
    # Even the order of a + b alone matters: the sum has the memory layout of a.
    return any(counts[operand] > 1 for operand in shared)


def _shared(node: fx.Node) -> set[fx.Node]:
    """Operands to whose gradient another user adds, too."""
    operands = _operands(node)
    return {
        operand
        for operand in operands
        if operands.count(operand) > 1
        or operand.op in ("placeholder", "get_attr")
        or any(_takes_part(u) for u in operand.users if u is not node)
    }


def _operands(node: fx.Node) -> list[fx.Node]:
    """The floating (or complex) tensors among the operands, one entry for each use."""
    found = nodes_of([*node.args, *node.kwargs.values()])
    return [n for n in found if is_floating(n.meta.get("val"))]


def _takes_part(user: fx.Node) -> bool:
    """Can the user add to the gradient?"""
    value = user.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return user.op == "output" or any(is_floating(v) for v in values)


def _kind(node: fx.Node) -> Any:
    """The properties of an operand by which a composite operation runs: rank, type and position."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dim()} {value.dtype} {value.device.type}"


def _contributions(node: fx.Node) -> tuple[int, ...]:
    """The number of edges of the backward graph that lead to each floating operand."""
    try:
        run, leaves = _on_leaves(node)
        with _mode(leaves), torch.enable_grad():
            results = run(*leaves)
    except Exception:
        # It does not run outside its graph (data-dependent sizes), and stays whole.
        return (1,) * len(_operands(node))
    counts = {id(leaf): 0 for leaf in leaves}
    results = results if isinstance(results, list | tuple) else [results]
    stack = [r.grad_fn for r in results if isinstance(r, Tensor) and r.grad_fn is not None]
    seen: set[Any] = set(stack)
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is None:
                continue
            if hasattr(following, "variable"):
                counts[id(following.variable)] = counts.get(id(following.variable), 0) + 1
            elif following not in seen:
                seen.add(following)
                stack.append(following)
    return tuple(counts[id(leaf)] for leaf in leaves)


def _on_leaves(node: fx.Node) -> tuple[Callable[..., Any], list[Tensor]]:
    """The operation as a function of its floating operands, and fresh leaves for them."""
    # Not copies, because results that are views of an operand are recognized by its memory.
    leaves = [n.meta["val"].detach().requires_grad_() for n in _operands(node)]

    def run(*given: Tensor) -> Any:
        rest = iter(given)

        def value(operand: fx.Node) -> Any:
            held = operand.meta["val"]
            return next(rest) if is_floating(held) else held

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        return node.target.decompose(*args, **kwargs)  # type: ignore[union-attr]

    return run, leaves


@contextlib.contextmanager
def _mode(leaves: list[Tensor]) -> Iterator[None]:
    """The fake mode of operands without data, which then logs no failure."""
    fakes = [leaf.fake_mode for leaf in leaves if hasattr(leaf, "fake_mode")]
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        with fakes[0] if fakes else contextlib.nullcontext():
            yield
    finally:
        log.disabled = disabled


def _open(graph: fx.Graph, node: fx.Node) -> None:
    run, leaves = _on_leaves(node)
    try:
        with _mode(leaves), torch.enable_grad():
            inside = make_fx(run)(*leaves).graph
    except RuntimeError:
        # It computes with a size that this trace does not know: it stays one operation.
        return
    if any(n.op == "get_attr" for n in inside.nodes):
        return
    inputs = [n for n in inside.nodes if n.op == "placeholder"]
    copies: dict[fx.Node, Any] = dict(zip(inputs, _operands(node), strict=True))
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(inside, copies)
    for original, copied in copies.items():
        if original not in inputs:
            origin = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
            copied.meta = {**copied.meta, **origin}
    if isinstance(results, list | tuple):
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(results)
    graph.erase_node(node)
