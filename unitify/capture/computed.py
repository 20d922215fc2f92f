"""Data that follows from sizes alone, known while a model is recorded.

A recording has no data, so that it cannot take a branch on data. But some data follows from sizes:
positions counted by ``arange``, and whether they ever jump. Inside ``ReadData`` such a value is
computed when code asks for it, for the example's sizes and for others. If all results are equal,
the recording goes on. The computation is kept, and each call checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from unitify.capture.aliases import storages, written_arguments

_ASKING: dict[Any, Callable[[Tensor], Any]] = {
    Tensor.__bool__: bool,
    Tensor.__int__: int,
    Tensor.__float__: float,
    Tensor.item: lambda tensor: tensor.item(),
}
#: Sizes to try beside the example's. Each symbol takes the next number of a row.
_TRIED = ((2, 3, 5), (9, 4, 7), (33, 2, 3), (257, 3, 2), (2, 129, 3))


@dataclass(frozen=True)
class Computed:
    """A value that follows from sizes: ``graph`` takes integers, ``sizes`` as expressions."""

    graph: fx.Graph = field(compare=False)
    sizes: tuple[sympy.Basic, ...]
    value: Any

    def now(self, sizes: list[int]) -> Any:
        """The value for these sizes."""
        with _disable_current_modes(), torch.no_grad():
            return fx.Interpreter(nn.Module(), graph=self.graph).run(*sizes)


class ReadData(TorchFunctionMode):
    """A context in which code can read data that follows from sizes; each result is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Computed] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _ASKING and not kwargs:
            computed = _computed(args[0], _ASKING[func])
            if computed is not None:
                self.found.append(computed)
                return computed.value
        return func(*args, **(kwargs or {}))


def _computed(tensor: Tensor, reading: Callable[[Tensor], Any]) -> Computed | None:
    mode = get_proxy_mode()
    slot: Any = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    if slot is None:
        return None
    nodes = _ancestors(slot.proxy.node)
    graph = fx.Graph()
    sizes: dict[fx.Node, torch.SymInt] = {}
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        held = node.meta.get("val")
        if isinstance(held, torch.SymInt):
            copies[node] = graph.placeholder(f"size_{len(sizes)}")
            sizes[copies[node]] = held
        elif node.op == "call_function" and _is_repeatable(node.target):
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            leave_meta(copies[node], torch.device("cpu"))
        else:
            return None
    if _is_written(nodes):
        return None
    graph.output(graph.call_function(reading, (copies[slot.proxy.node],)))
    expressions = tuple(size.node.expr for size in sizes.values())
    made = Computed(graph, expressions, None)
    try:
        values = {made.now(given) for given in _given(list(sizes.values()))}
    except Exception:
        # It does not run for every size, so that nothing is known.
        return None
    return Computed(graph, expressions, values.pop()) if len(values) == 1 else None


def leave_meta(node: fx.Node, device: torch.device) -> None:
    """Let a node that makes a tensor on the meta device make one on ``device``."""
    node.args, node.kwargs = pytree.tree_map_only(
        torch.device, lambda of: device if of.type == "meta" else of, (node.args, node.kwargs)
    )


def _ancestors(node: fx.Node) -> list[fx.Node]:
    """The node and its ancestors, down to sizes, in order."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            if not isinstance(current.meta.get("val"), torch.SymInt):
                stack.extend(current.all_input_nodes)
    return [n for n in node.graph.nodes if n in found]


def _is_written(nodes: list[fx.Node]) -> bool:
    """Does any operation so far write into the memory of one of these values?"""
    held = set().union(*map(storages, nodes))
    written = (n for node in nodes[0].graph.nodes for n in written_arguments(node))
    return any(not held.isdisjoint(storages(node)) for node in written)


def _is_repeatable(target: Any) -> bool:
    """Is the operation deterministic?"""
    is_operator = isinstance(target, torch._ops.OpOverload)
    return is_operator and torch.Tag.nondeterministic_seeded not in target.tags


def _given(sizes: list[torch.SymInt]) -> Iterator[list[int]]:
    """Sizes for which a value is tried, the example's first."""
    if not sizes:
        yield []
        return
    env: ShapeEnv = sizes[0].node.shape_env
    expressions = [size.node.expr for size in sizes]
    yield [int(size.node.hint) for size in sizes]
    symbols = sorted({s for e in expressions for s in e.free_symbols}, key=str)
    for row in _TRIED:
        chosen = {symbol: row[i % len(row)] for i, symbol in enumerate(symbols)}
        yield [int(env.replace(e).xreplace(chosen)) for e in expressions]
