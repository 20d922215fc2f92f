"""The submodules of a transformed module, each with a graph of its own.

Where all values of a plan are true, what passes between submodules is what passes between those of
the model. Then each submodule that the recording called runs its own part of the graph when it is
called, and the module can run its own code around them: after one was wrapped, replaced or hooked.
Graphs are cut out when they are first needed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unitify.arrival import Told, Units, arrived, is_watched, told, unit_of, units_of, unwatched
from unitify.capture.boundaries import Region
from unitify.capture.guards import Guards
from unitify.capture.signature import CallSignature
from unitify.capture.whole import Capture
from unitify.diagnostics import CastsLeftOut, UnitifyError, UnitifyWarning
from unitify.module.graph_forward import GraphForward
from unitify.module.knobs import Knobs, turned_now
from unitify.module.regions import NoPiece, Piece, piece_of
from unitify.plan.scale_plan import ScalePlan

#: The code of a graph, called with the module and flat inputs.
Code = Callable[..., Any]


@dataclass(frozen=True)
class Whole:
    """The graph that all submodules have a part of, as it is now.

    ``attribute``: what a name in it stands for. ``cast``: the values whose operands are cast.
    """

    graph: fx.Graph
    capture: Capture
    plan: ScalePlan
    attribute: Callable[[str], Any]
    cast: frozenset[str]
    is_inference: bool
    by_autocast: bool


@dataclass(frozen=True)
class _Graph:
    """A submodule's own graph as code, and how it is called. ``names``: of the casts' tokens."""

    code: Code
    call: CallSignature
    constants: tuple[str, ...]
    computes_sizes: bool
    units: Units
    casts: Mapping[frozenset[int], tuple[str, ...]]
    names: tuple[str, ...]


class Submodules:
    """Runs the calls of the submodules of ``tree``; ``whole`` tells of the graph as it is."""

    def __init__(self, tree: nn.Module, whole: Callable[[], Whole]) -> None:
        self.tree, self.whole = tree, whole
        #: What the code of each submodule reads, by path.
        self.knobs: dict[str, Knobs] = {}
        #: What casts told in the call of the module that is running: none runs where it is None.
        self.tokens: list[tuple[str, Tensor]] | None = None
        self._of: fx.Graph | None = None
        self._arrivals: tuple[fx.Graph, Units, Mapping[frozenset[int], tuple[str, ...]]] | None
        self._arrivals = None
        self._graphs: dict[str, _Graph | str] = {}
        self._paths: dict[nn.Module, str] = {}
        capture = whole().capture
        for path in capture.regions.paths:
            with contextlib.suppress(AttributeError):
                self._paths[tree.get_submodule(path)] = path

    def install(self) -> None:
        """From now on, calls of the submodules come here."""
        for module in self._paths:
            GraphForward(module, self)

    # -- calls ----------------------------------------------------------------------------

    def run(
        self, module: nn.Module, own: Code, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call of a submodule: its graph where it holds for the call, else its own code."""
        path = self._paths[module]
        whole, graph = self.whole(), self._graph(path)
        reason = graph if isinstance(graph, str) else ""
        if not reason and (found := self.turned(path)) is not None:
            reason = f"{found} is not what it was"
        mode = whole.capture.mode
        if not reason and mode is not None and module.training != (mode == "train"):
            reason = f"its graph is that of {mode} mode"
        if not reason:
            assert isinstance(graph, _Graph)
            flat = graph.call.fitted(args, kwargs)
            if isinstance(flat, list):
                return self._run_graph(module, graph, flat, whole)
            reason = str(graph.call.misfit(flat).message)
        self.leave(path, reason, whole)
        return own(*args, **kwargs)

    def _run_graph(self, module: nn.Module, graph: _Graph, flat: list[Any], whole: Whole) -> Any:
        constants = [whole.attribute(name) for name in graph.constants]
        results = list(graph.code(module, *flat, *constants))
        if graph.names:
            results, told_ones = results[: -len(graph.names)], results[-len(graph.names) :]
            tokens = list(zip(graph.names, told_ones, strict=True))
            if self.tokens is not None:
                self.tokens.extend(tokens)
            else:
                results = arrived(results, graph.units, graph.casts, tokens)
        return graph.call.unflatten(results)

    def run_around(self, code: Code, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the whole module by ``code``, its own, around the graphs of submodules."""
        whole = self.whole()
        outer, self.tokens = self.tokens, []
        try:
            result = code(*args, **kwargs)
            tokens = self.tokens
        finally:
            self.tokens = outer
        if not tokens:
            return result
        leaves, spec = pytree.tree_flatten(result)
        call = whole.capture.call
        if spec != call.out_spec:
            return result
        by_leaf, casts = self._around(whole)
        return pytree.tree_unflatten(arrived(leaves, by_leaf[: len(leaves)], casts, tokens), spec)

    def _around(self, whole: Whole) -> tuple[Units, Mapping[frozenset[int], tuple[str, ...]]]:
        """Of the whole graph: the unit of each flat result, and its casts by results."""
        if self._arrivals is None or self._arrivals[0] is not whole.graph:
            (end,) = (n for n in whole.capture.graph.nodes if n.op == "output")
            values = [a if isinstance(a, fx.Node) else None for a in end.args[0]]
            units = units_of(whole.capture, whole.plan)
            casts = told(unwatched(whole.graph), units).casts
            self._arrivals = whole.graph, _once(values, whole.plan), casts
        return self._arrivals[1:]

    # -- what a call leaves out -----------------------------------------------------------

    def turned(self, path: str) -> str | None:
        """What the code of a submodule reads that is not what it was; None for nothing."""
        whole = self.whole()
        return turned_now(self.knobs[path], not whole.is_inference, whole.by_autocast)

    def leave(self, path: str, reason: str, whole: Whole) -> None:
        """Say that the module at ``path`` runs its own code, if that leaves casts out.

        Raises ``UnitifyError`` (U117) where weights are codes, which no code can read.
        """
        lost = self._own_casts(path, whole)
        if not lost:
            return
        name = path or type(whole.capture.model).__name__
        found = CastsLeftOut(where=name, module=name, reason=reason)
        if whole.is_inference:
            raise UnitifyError(found)
        warnings.warn(UnitifyWarning(str(found)), stacklevel=5)

    def _own_casts(self, path: str, whole: Whole) -> set[str]:
        """Casts in the graph of a module that are in none of its submodules' graphs."""
        regions = whole.capture.regions
        own = regions.recorded
        if path:
            own = frozenset().union(*(region.nodes for region in regions.of(path)))
        lost = set(whole.cast & own)
        for region in regions.calls:
            is_below = not path or region.path.startswith(f"{path}.")
            if is_below and region.path and not isinstance(self._graph(region.path), str):
                lost -= region.nodes
        return lost

    # -- graphs ---------------------------------------------------------------------------

    def _graph(self, path: str) -> _Graph | str:
        """The graph of a submodule, or why it has none."""
        whole = self.whole()
        if self._of is not whole.graph:
            self._of, self._graphs = whole.graph, {}
            self._plain = unwatched(whole.graph)
        if path not in self._graphs:
            try:
                self._graphs[path] = self._made(path, whole)
            except NoPiece as why:
                self._graphs[path] = str(why)
        return self._graphs[path]

    def _made(self, path: str, whole: Whole) -> _Graph:
        capture = whole.capture
        regions = capture.regions.of(path)
        inside = {path} | {p for p in capture.regions.paths if p.startswith(f"{path}.")}
        for effect in capture.call.effects:
            if effect.location.root in inside:
                raise NoPiece(f"its call changes {effect.location}")
        pieces = [self._piece(path, region, whole) for region in regions]
        if any(piece.text() != pieces[0].text() for piece in pieces):
            raise NoPiece("it is called several times, each time as another graph")
        piece, region = pieces[0], regions[0]
        nodes = {node.name: node for node in capture.graph.nodes}
        values = [nodes.get(name) for name in piece.results]
        by_result = _once(values, whole.plan)
        of = Told(piece.graph, {}, {})
        if is_watched(whole.graph):
            units = [u for u, r in zip(by_result, _results(piece.graph), strict=True) if r]
            of = told(piece.graph, units)
        sizes = [size for leaf in piece.leaves for size in leaf.shape or ()]
        if piece.computes_sizes and any(not str(size).isalnum() for size in sizes):
            raise NoPiece("it computes with sizes that are themselves computed")
        guards = () if region.guards is None else (_as_known(region.guards, capture.call.guards),)
        call = CallSignature(
            region.signature, region.arguments, region.given.spec, region.result.spec,
            piece.leaves, guards,
        )  # fmt: skip
        module = fx.GraphModule(nn.Module(), fx.Graph())
        module.graph = of.returning()
        code = type(module).forward
        return _Graph(
            code, call, piece.constants, piece.computes_sizes, by_result, of.casts,
            tuple(of.tokens),
        )  # fmt: skip

    def _piece(self, path: str, region: Region, whole: Whole) -> Piece:
        capture = whole.capture
        below = f"{path}."

        def own_name(target: str) -> str | None:
            if target.startswith(below):
                return target.removeprefix(below)
            names = (n for n, first in capture.aliases.items() if first == target)
            return next((n.removeprefix(below) for n in names if n.startswith(below)), None)

        constants = {
            str(n.target): None
            for n in self._plain.nodes
            if n.op == "get_attr" and self._is_constant(str(n.target), capture)
        }
        return piece_of(self._plain, region, capture.regions.recorded, own_name, constants)

    def _is_constant(self, target: str, capture: Capture) -> bool:
        """Is it none of the model's own? The recording's constants and means of casts are not."""
        return target in capture.constants or ("." not in target and not hasattr(self.tree, target))

    def copied_apart(self, module: nn.Module) -> None:
        """Say that a copy of ``module`` alone has no graph."""
        self.leave(self._paths[module], "it is a copy of a submodule alone", self.whole())


def _once(values: list[fx.Node | None], plan: ScalePlan) -> list[float | None]:
    """The unit of each result, of one that stands there twice the first time."""
    return [
        None if value is None or value in values[:i] else unit_of(value, plan)
        for i, value in enumerate(values)
    ]


def _as_known(own: Guards, whole: tuple[Guards, ...]) -> Guards:
    """The guards of a region; of the whole it is known which conditions make no difference."""
    known = {
        (guards.small[position].place, size)
        for guards in whole
        for position, size in guards.immaterial
    }
    pairs = [(i, guard, place, size) for i, guard in enumerate(own.small) for place, size in known]
    immaterial = {(i, size) for i, guard, place, size in pairs if guard.place == place}
    return replace(own, immaterial=own.immaterial | immaterial)


def _results(graph: fx.Graph) -> Iterator[bool]:
    """Of each result: is it a value of the graph?"""
    (end,) = (n for n in graph.nodes if n.op == "output")
    return (isinstance(result, fx.Node) for result in end.args[0])  # type: ignore[union-attr]
