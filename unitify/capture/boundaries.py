"""Regions: which values each call of a submodule took and returned, and which nodes it made.

While a model is recorded, every call of a submodule puts two marks into the graph: one where its
forward begins, with the tensors that it takes, and one where it ends, with those that it returns.
The marks follow the tensors through all rewriting of the graph. In the end they become ``Region``
values and are removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unitify.capture.guards import Guards
from unitify.capture.reachable import PLAIN
from unitify.capture.signature import Leaf, bind, laid_out, leaf_shape

torch.library.define(
    "unitify::boundary", "(Tensor[] tensors, SymInt[] sizes, int call, bool ends) -> ()"
)
torch.library.impl("unitify::boundary", "CompositeExplicitAutograd")(lambda *_: None)
BOUNDARY = torch.ops.unitify.boundary.default
# It returns nothing, and is no dead code.
fx.node.has_side_effect(BOUNDARY)

_CONSTANTS = (*PLAIN, torch.dtype, torch.device)


@dataclass(frozen=True)
class Named:
    """A value of the graph, by name, in the arguments or the result of a call."""

    name: str


@dataclass(frozen=True)
class CallForm:
    """Arguments or a result: each leaf is ``Named``, or a constant."""

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]


@dataclass(frozen=True)
class Region:
    """One call of the submodule at ``path``.

    ``given``: its arguments by name, as a dict of ``arguments``; ``leaves``: the form of each.
    ``nodes``: the names of the nodes between its begin and its end. ``guards``: the conditions on
    sizes of ``given`` under which it holds. ``tail``: a graph of the results that nothing in the
    whole graph uses; its placeholders have the names of the values that it takes.
    """

    path: str
    signature: inspect.Signature
    arguments: tuple[str, ...]
    given: CallForm
    leaves: tuple[Leaf, ...]
    result: CallForm
    nodes: frozenset[str]
    guards: Guards | None = None
    tail: fx.Graph | None = field(default=None, compare=False)

    def tail_text(self) -> str:
        """The tail as text, independent of the names of its values."""
        return "" if self.tail is None else text_of(self.tail)


def first_names(leaves: Sequence[Any]) -> tuple[int, ...]:
    """For each leaf of a call the position of the first one that is the same value."""
    return tuple(leaves.index(x) if isinstance(x, Named) else i for i, x in enumerate(leaves))


def text_of(graph: fx.Graph) -> str:
    """A graph as text, independent of the names and the order of its nodes."""
    places: dict[fx.Node, int] = {}
    lines: list[str] = []

    def note(node: fx.Node) -> None:
        pending = [node]
        while pending:
            ahead = [n for n in pending[-1].all_input_nodes if n not in places]
            if ahead:
                pending += reversed(ahead)
                continue
            made = pending.pop()
            if made not in places:
                places[made] = len(places)
                arguments = fx.node.map_arg((made.args, made.kwargs), lambda n: f"%{places[n]}")
                held = "" if made.op == "placeholder" else made.target
                lines.append(f"{made.op} {held} {arguments}")

    given = [n for n in graph.nodes if n.op == "placeholder"]
    for node in (*given, *(n for n in graph.nodes if n.op == "output" or n.is_impure())):
        note(node)
    return "\n".join(lines)


@dataclass(frozen=True)
class Regions:
    """The regions of a recording, and the names of all nodes that it had."""

    recorded: frozenset[str] = frozenset()
    calls: tuple[Region, ...] = ()

    def of(self, path: str) -> list[Region]:
        """The calls of one submodule, in order."""
        return [region for region in self.calls if region.path == path]

    @property
    def paths(self) -> list[str]:
        """The submodules that were called, each once."""
        return list(dict.fromkeys(region.path for region in self.calls))

    def common(self, others: Regions) -> Regions:
        """The regions without submodules that the recording with ``others`` calls differently."""
        same = [
            path
            for path in self.paths
            if [r.tail_text() for r in self.of(path)] == [r.tail_text() for r in others.of(path)]
        ]
        return dataclasses.replace(self, calls=tuple(r for r in self.calls if r.path in same))


@dataclass
class _SubmoduleCall:
    path: str
    signature: inspect.Signature
    arguments: tuple[str, ...]
    given: tuple[pytree.TreeSpec, list[Any]]
    result: tuple[pytree.TreeSpec, list[Any]] | None = None


@dataclass
class SubmoduleCalls:
    """The calls of a recording, each with the contents of its marks other than tensors."""

    found: list[_SubmoduleCall] = field(default_factory=list)


#: Stand in a structure for a tensor and for a size, until the mark says which.
_TENSOR, _SIZE = object(), object()


@contextlib.contextmanager
def marked(model: nn.Module) -> Iterator[SubmoduleCalls]:
    """Inside, calls of the submodules of ``model`` leave marks in what is recorded."""
    calls = SubmoduleCalls()
    handles: list[Any] = []
    running: list[int] = []

    def begin(path: str, module: nn.Module) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            number = len(calls.found)
            signature = inspect.signature(module.forward)
            named = bind(signature, args, kwargs)
            calls.found.append(
                _SubmoduleCall(path, signature, tuple(named), _mark(named, number, False))
            )
            running.append(number)

        return before

    def end(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        number = running.pop()
        calls.found[number].result = _mark(result, number, True)

    for path, module in model.named_modules():
        if path and not isinstance(module, torch.jit.ScriptModule):
            # The innermost hooks: after all others in front of the forward, before all others
            # behind.
            before = module.register_forward_pre_hook(begin(path, module), with_kwargs=True)
            after = module.register_forward_hook(end, prepend=True, with_kwargs=True)
            handles += [before, after]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _mark(structure: Any, number: int, ends: bool) -> tuple[pytree.TreeSpec, list[Any]]:
    leaves, spec = pytree.tree_flatten(structure)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    sizes = [leaf for leaf in leaves if isinstance(leaf, torch.SymInt)]
    BOUNDARY(tensors, sizes, number, ends)
    kinds = ((Tensor, _TENSOR), (torch.SymInt, _SIZE))
    return spec, [next((s for k, s in kinds if isinstance(leaf, k)), leaf) for leaf in leaves]


class Marks:
    """The contents of the marks of a graph, kept outside while the graph is rewritten."""

    def __init__(self, graph: fx.Graph) -> None:
        """Take the contents out of the marks of ``graph``."""
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.held: dict[fx.Node, list[Any]] = {}
        #: Where the calls that are running began, by number.
        self.begun: dict[Any, fx.Node] = {}
        for node in graph.nodes:
            if node.target is BOUNDARY:
                self.held[node] = [node.args[0], node.args[1]]
                node.args = ([], [], *node.args[2:])

    def passes(self, node: fx.Node, now: Callable[[fx.Node], fx.Node | None]) -> bool:
        """Is the node a mark? Then update its contents to the values of ``now``."""
        if node.target is not BOUNDARY:
            return False
        number, ends = node.args[2:]
        if ends:
            self.begun.pop(number, None)
        else:
            self.begun[number] = node
        found = [[now(n) for n in values] for values in self.held.pop(node, ())]
        if all(n is not None for values in found for n in values):
            self.held[node] = found
        return True

    def writes(self, tensor: fx.Node) -> None:
        """Note a write, because a call that writes into its arguments does more than return."""
        if tensor.op != "get_attr":
            for begin in self.begun.values():
                if self.position[tensor] < self.position[begin]:
                    self.held.pop(begin, None)

    def put_back(self) -> None:
        """Put the contents back into the marks. A mark without contents is removed."""
        for node in self.position:
            if node.target is BOUNDARY:
                if node in self.held:
                    node.args = (*self.held[node], *node.args[2:])
                else:
                    node.graph.erase_node(node)


def regions_of(
    graph: fx.Graph,
    calls: SubmoduleCalls,
    guards_for: Callable[[Sequence[tuple[str, Any]]], Guards | None],
    asks_layout: bool = False,
) -> Regions:
    """The regions that the marks of ``graph`` hold. Removes the marks.

    ``guards_for``: the guards on named values that are given. ``asks_layout``: do regions depend on
    the memory layout of what they are given?
    """
    begun: dict[Any, fx.Node] = {}
    inside: dict[Any, list[str]] = {}
    found: list[Region] = []
    live = _live(graph)
    for node in list(graph.nodes):
        if node.target is not BOUNDARY:
            for names in inside.values():
                names.append(node.name)
            continue
        number, ends = node.args[2:]
        if not ends:
            begun[number], inside[number] = node, []
        elif number in begun:
            nodes = inside.pop(number)
            call = calls.found[number]
            region = _region(call, begun[number], node, nodes, live, asks_layout)
            if region is not None:
                values = {n.name: n.meta.get("val") for n in begun[number].all_input_nodes}
                names = [x.name if isinstance(x, Named) else "" for x in region.given.leaves]
                guards = guards_for([(name, values.get(name)) for name in names])
                found.append(dataclasses.replace(region, guards=guards))
    for node in list(graph.nodes):
        if node.target is BOUNDARY:
            graph.erase_node(node)
    return Regions(frozenset(node.name for node in graph.nodes), tuple(found))


def _region(
    call: _SubmoduleCall,
    begin: fx.Node,
    end: fx.Node,
    nodes: list[str],
    live: set[fx.Node],
    asks_layout: bool,
) -> Region | None:
    if call.result is None:
        return None
    given, result = _form(call.given, begin), _form(call.result, end)
    if given is None or result is None:
        return None
    values: dict[str, Any] = {n.name: n.meta.get("val") for n in begin.all_input_nodes}
    if not all(isinstance(value, Tensor) for value in values.values()):
        return None
    leaves = tuple(
        Leaf(x.name, leaf_shape(values[x.name]), values[x.name].dtype)
        if isinstance(x, Named)
        else Leaf("", None, None, x)
        for x in given.leaves
    )
    if asks_layout:
        given_values = [values[x.name] if isinstance(x, Named) else x for x in given.leaves]
        leaves = laid_out(leaves, given_values)
    tail = _tail([n for n in end.all_input_nodes if n not in live], live)
    return Region(
        call.path,
        call.signature,
        call.arguments,
        given,
        leaves,
        result,
        frozenset(nodes),
        tail=tail,
    )


def _live(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that stay in a graph without its marks."""
    pending = [n for n in graph.nodes if n.target is not BOUNDARY and n.is_impure()]
    live: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in live:
            live.add(node)
            pending += node.all_input_nodes
    return live


def _tail(dead: list[fx.Node], live: set[fx.Node]) -> fx.Graph | None:
    if not dead:
        return None
    wanted: set[fx.Node] = set()
    pending = list(dead)
    while pending:
        node = pending.pop()
        if node not in wanted:
            wanted.add(node)
            pending += [] if node in live else node.all_input_nodes
    made = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    order = [n for n in dead[0].graph.nodes if n in wanted]
    for node in sorted(order, key=lambda n: n not in live):
        if node in live:
            placed[node] = made.placeholder(node.name)
            placed[node].target = node.name
        else:
            placed[node] = made.node_copy(node, placed.__getitem__)
            placed[node].name = node.name
    made.output(tuple(placed[n] for n in dead))
    return made


def _form(of: tuple[pytree.TreeSpec, list[Any]], mark: fx.Node) -> CallForm | None:
    """The structure with its values; None where it holds something that no graph can."""
    spec, leaves = of
    held: dict[Any, Iterator[Any]] = {_TENSOR: iter(mark.args[0]), _SIZE: iter(mark.args[1])}  # type: ignore[arg-type]
    made: list[Any] = []
    for leaf in leaves:
        if leaf is _TENSOR or leaf is _SIZE:
            value = next(held[leaf])
            if not isinstance(value, fx.Node):
                return None
            made.append(Named(value.name))
        elif isinstance(leaf, _CONSTANTS):
            made.append(leaf)
        else:
            return None
    return CallForm(spec, tuple(made))
