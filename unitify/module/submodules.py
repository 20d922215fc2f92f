"""The submodules of a transformed module, each with a graph of its own.

Where all values of a plan are true, submodules exchange the same values as in the model. Then a
call of a submodule runs its own part of the graph, and the module can run its own code around them
(after one was wrapped, replaced or hooked). Each part is cut out when it is first needed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unitify.arrival import (
    TokenGraph,
    Units,
    arrive_at,
    arrived,
    is_watched,
    join_tokens,
    loss_starts,
    unit_of,
    units_of,
    unwatched,
    with_tokens,
)
from unitify.capture.boundaries import Region, first_names
from unitify.capture.guards import Guards
from unitify.capture.signature import CallSignature, Misfit
from unitify.diagnostics import CastsLeftOut, Diagnostic, UnitifyError
from unitify.module.graph_forward import CallsOfSubmodules
from unitify.module.interpreted import sizes_of_python
from unitify.module.own_code import warn_once
from unitify.module.owner import Owner
from unitify.module.recorded_state import RecordedState, changed_now
from unitify.module.regions import NoPiece, Piece, piece_of
from unitify.plan.scale_plan import ScalePlan

#: The code of a graph, called with the module and flat inputs.
Code = Callable[..., Any]


class MakesCasts:
    """An argument of calls that does casts of the graph itself, as a cache of codes does.

    ``casts``: the names of the values that it casts.
    """

    casts: frozenset[str]


@dataclass(frozen=True)
class _Graph:
    """A submodule's own graph as code, and how to call it. ``names``: of the casts' tokens.

    ``starts``: results at which the gradient of a loss is measured, with the position among the
    ends of the whole graph, and the unit.
    """

    code: Code
    call: CallSignature
    constants: tuple[str, ...]
    units: Units
    casts: Mapping[frozenset[int], tuple[str, ...]]
    names: tuple[str, ...]
    starts: tuple[tuple[int, int, float], ...] = ()


class _Whole:
    """Facts about one graph of an owner, each computed when it is first needed."""

    def __init__(self, owner: Owner) -> None:
        self.graph = owner.graph
        self.plain = unwatched(owner.graph)
        self.originals = {node.name: node for node in owner.capture.graph.nodes}
        #: Attributes that it reads and the model does not have: constants of the recording, means,
        #: and codes of weights, which may belong to another module with a tied weight.
        self.constants = frozenset(
            target
            for target in (str(n.target) for n in self.plain.nodes if n.op == "get_attr")
            if target in owner.capture.constants or not _has(owner.capture.model, target)
        )
        #: By path: the graph of a submodule, or why it has none; casts outside its submodules.
        self.graphs: dict[str, _Graph | str] = {}
        self.own_casts: dict[str, frozenset[str]] = {}
        self.has_casts: dict[str, bool] = {}
        self.starts = loss_starts(owner.capture, owner.plan)
        #: The unit of each flat result, and the casts behind each set of ends.
        self.arrivals: tuple[Units, Mapping[frozenset[int], tuple[str, ...]]] | None = None


class Submodules(CallsOfSubmodules):
    """Runs the calls of the submodules of ``owner``, by parts of its present graph."""

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner._tree, owner.capture.regions.paths)
        self.owner = owner
        #: The state that the code of each submodule reads, by path.
        self.states: dict[str, RecordedState] = {}
        #: The tokens of casts in the running call of the module; None while none runs.
        self.tokens: list[tuple[str, Tensor]] | None = None
        #: Joined tokens that a start of a loss took in that call.
        self.joined: dict[frozenset[int], Tensor] = {}
        #: The modules that ran their own code in that call, without their casts, and why.
        self.left: dict[str, str] | None = None
        #: Kinds of calls with a warning so far.
        self.warned: set[Hashable] = set()
        self._known: _Whole | None = None

    # -- calls ----------------------------------------------------------------------------

    def run(
        self, module: nn.Module, own: Code, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call of a submodule: by its graph where that holds for the call, else by its code."""
        path = self._paths[module]
        if not self._has_casts(path):
            return own(*args, **kwargs)
        graph = self._graph(path)
        mode = self.owner.capture.mode
        why: str | partial[Misfit]
        if isinstance(graph, str):
            why = graph
        elif (found := self._changed(path)) is not None:
            why = f"{found} has changed"
        elif mode is not None and module.training != (mode == "train"):
            why = f"its graph is for {mode} mode"
        else:
            flat = graph.call.fitted(args, kwargs)
            if isinstance(flat, list):
                return self._run_graph(module, graph, flat)
            why = partial(graph.call.misfit, flat)
        if self._own_casts(path) - _made_by(*args, *kwargs.values()):
            self._leave(path, why if isinstance(why, str) else why().message)
        return own(*args, **kwargs)

    def _run_graph(self, module: nn.Module, graph: _Graph, flat: list[Any]) -> Any:
        constants = [self.owner._attribute(name) for name in graph.constants]
        results = list(graph.code(module, *flat, *constants))
        if graph.names:
            results, given_tokens = results[: -len(graph.names)], results[-len(graph.names) :]
            tokens = list(zip(graph.names, given_tokens, strict=True))
            if self.tokens is not None:
                self.tokens.extend(tokens)
            else:
                results = arrived(results, graph.units, graph.casts, tokens)
        if graph.starts and self.tokens is not None:
            casts = self._arrivals()[1]
            for index, position, unit in graph.starts:
                behind = {group: names for group, names in casts.items() if position in group}
                self.joined = join_tokens(behind, self.tokens, self.joined)
                results[index] = arrive_at(results[index], position, unit, self.joined)
        return graph.call.unflatten(results)

    def run_around(
        self,
        code: Code,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        why: Callable[[], Diagnostic] | None = None,
        is_as_recorded: bool = True,
    ) -> Any:
        """A call of the whole module by its own ``code``, around the graphs of submodules.

        ``why``: the reason that it does not run the graph. Where the call ``is_as_recorded``, all
        casts get the size of the gradients that arrive at its results; else each submodule's casts
        get that at its own results.

        Raises ``UnitifyError`` where the code would have to read codes: ``why``, else U117.
        """
        outer = self.tokens, self.left, self.joined
        self.tokens, self.left, self.joined = [] if is_as_recorded else None, {}, {}
        try:
            if why is not None and self._own_casts("") - _made_by(*args, *kwargs.values()):
                found = why()
                self._leave("", found.message, found)
            result = code(*args, **kwargs)
            tokens, left, joined = self.tokens, self.left, self.joined
        finally:
            self.tokens, self.left, self.joined = outer
        self._warn(left)
        if not tokens:
            return result
        leaves, spec = pytree.tree_flatten(result)
        if spec != self.owner.capture.call.out_spec:
            return result
        units, casts = self._arrivals()
        made = arrived(leaves, units[: len(leaves)], casts, tokens, joined)
        return pytree.tree_unflatten(made, spec)

    def _arrivals(self) -> tuple[Units, Mapping[frozenset[int], tuple[str, ...]]]:
        """The unit of each flat result of the whole graph, and the casts behind sets of results."""
        whole, capture, plan = self._whole(), self.owner.capture, self.owner.plan
        if whole.arrivals is None:
            (end,) = (n for n in capture.graph.nodes if n.op == "output")
            values = [a if isinstance(a, fx.Node) else None for a in end.args[0]]
            casts = with_tokens(whole.plain, units_of(capture, plan), whole.starts).casts
            whole.arrivals = _once(values, plan), casts
        return whole.arrivals

    # -- what a call leaves out -----------------------------------------------------------

    def _changed(self, path: str) -> str | None:
        """The first changed value that the code of a submodule reads; None without one."""
        owner = self.owner
        return changed_now(self.states[path], not owner.is_inference, owner.about.again is not None)

    def _leave(self, path: str, reason: str, refused: Diagnostic | None = None) -> None:
        """Note that the module at ``path`` runs its own code, without its casts.

        Raises ``UnitifyError`` where weights are codes, which its code cannot read: ``refused``,
        else U117.
        """
        name = path or type(self.owner.capture.model).__name__
        if self.owner.is_inference and self._casts_weights(path):
            raise UnitifyError(refused or CastsLeftOut(where=name, module=name, reason=reason))
        left = {name: reason} if self.left is None else self.left
        left.setdefault(name, reason)
        if self.left is None:
            self._warn(left)

    def _warn(self, left: Mapping[str, str]) -> None:
        """Warn which modules ran their own code in a call, once for each kind of call."""
        if not left:
            return
        (name, reason), *others = left.items()
        module = f"{name} (and {len(others)} more)" if others else name
        lost = CastsLeftOut(where=name, module=module, reason=reason)
        warn_once(lost, tuple(left), self.warned)

    def _casts_weights(self, path: str) -> bool:
        """Does a module cast weights outside its submodules?"""
        originals = self._whole().originals
        return any(_is_of_weights(originals[name]) for name in self._own_casts(path))

    def _has_casts(self, path: str) -> bool:
        """Does its graph have casts, or another function, that its code lacks?"""
        whole, capture = self._whole(), self.owner.capture
        if path not in whole.has_casts:
            cast = {choice.value for choice in self.owner._casts if choice.is_cast}
            made = frozenset().union(*(region.nodes for region in capture.regions.of(path)))
            is_other_model = capture.reparametrization is not None
            whole.has_casts[path] = is_other_model or not cast.isdisjoint(made)
        return whole.has_casts[path]

    def _own_casts(self, path: str) -> frozenset[str]:
        """Casts in the graph of a module, outside its submodules."""
        known, regions = self._whole().own_casts, self.owner.capture.regions
        if path not in known:
            own = regions.recorded
            if path:
                own = frozenset().union(*(region.nodes for region in regions.of(path)))
            lost = own & {choice.value for choice in self.owner._casts if choice.is_cast}
            for region in regions.calls:
                is_below = not path or region.path.startswith(f"{path}.")
                if is_below and not isinstance(self._graph(region.path), str):
                    lost -= region.nodes
            known[path] = lost
        return known[path]

    def copied_apart(self, module: nn.Module) -> None:
        """Warn that a copy of ``module`` alone has no graph."""
        path = self._paths[module]
        if self._own_casts(path):
            self._leave(path, "it is a copy of a submodule alone")

    # -- graphs ---------------------------------------------------------------------------

    def _whole(self) -> _Whole:
        if self._known is None or self._known.graph is not self.owner.graph:
            self._known = _Whole(self.owner)
        return self._known

    def _graph(self, path: str) -> _Graph | str:
        """The graph of a submodule, or why it has none."""
        known = self._whole().graphs
        if path not in known:
            try:
                known[path] = self._made(path)
            except NoPiece as why:
                known[path] = str(why)
        return known[path]

    def _made(self, path: str) -> _Graph:
        whole, capture, plan = self._whole(), self.owner.capture, self.owner.plan
        for effect in capture.call.effects:
            if f"{effect.location.root}.".startswith(f"{path}."):
                raise NoPiece(f"its call changes {effect.location}")
        regions = capture.regions.of(path)
        pieces = [self._piece(region) for region in regions]
        if any(piece.text() != pieces[0].text() for piece in pieces):
            raise NoPiece("its calls have different graphs")
        piece, region = pieces[0], regions[0]
        sizes = [size for leaf in piece.leaves for size in leaf.shape or ()]
        if piece.computes_sizes and any(not str(size).isalnum() for size in sizes):
            raise NoPiece("it uses sizes that the whole graph computes")
        by_result = _once([whole.originals.get(name) for name in piece.results], plan)
        of = TokenGraph(piece.graph, {}, {})
        if is_watched(whole.graph):
            (end,) = (n for n in piece.graph.nodes if n.op == "output")
            pairs = zip(by_result, end.args[0], strict=True)
            of = with_tokens(piece.graph, [unit for unit, r in pairs if isinstance(r, fx.Node)])
        given = region.given.leaves
        same = None if capture.call.same is None else first_names(given)
        guards = () if region.guards is None else (_as_known(region.guards, capture.call.guards),)
        call = CallSignature(
            region.signature, region.arguments, region.given.spec, region.result.spec,
            piece.leaves, guards, attributes=capture.call.attributes, same=same,
        )  # fmt: skip
        # The code gets its attributes from the module with which it is called.
        module = fx.GraphModule(nn.Module(), fx.Graph())
        graph = of.returning()
        graph.on_generate_code(lambda _: sizes_of_python)
        module.graph = graph
        outputs = sum(unit is not None for unit in self._arrivals()[0])
        starts = tuple(
            (piece.results.index(name), outputs + position, unit)
            for position, (name, unit) in enumerate(whole.starts.items())
            if name in piece.results
        )
        return _Graph(
            type(module).forward, call, piece.constants, by_result, of.casts, tuple(of.tokens),
            starts,
        )  # fmt: skip

    def _piece(self, region: Region) -> Piece:
        whole, capture = self._whole(), self.owner.capture
        below = f"{region.path}."

        def own_name(target: str) -> str | None:
            if target.startswith(below):
                return target.removeprefix(below)
            names = (n for n, first in capture.aliases.items() if first == target)
            return next((n.removeprefix(below) for n in names if n.startswith(below)), None)

        return piece_of(whole.plain, region, capture.regions.recorded, own_name, whole.constants)


def _has(model: nn.Module, target: str) -> bool:
    try:
        operator.attrgetter(target)(model)
    except AttributeError:
        return False
    return True


def _made_by(*arguments: Any) -> frozenset[str]:
    """The casts that arguments do themselves."""
    return frozenset().union(*(a.casts for a in arguments if isinstance(a, MakesCasts)))


def _is_of_weights(node: fx.Node) -> bool:
    """Does a cast of this value, or of a contraction's operands, read a weight?"""
    return any(_reads_weight(operand) for operand in [node, *node.all_input_nodes])


def _reads_weight(node: fx.Node) -> bool:
    made_of = node.all_input_nodes
    return node.op == "get_attr" or (bool(made_of) and all(map(_reads_weight, made_of)))


def _once(values: list[fx.Node | None], plan: ScalePlan) -> list[float | None]:
    """The unit of each result; None for a repeated one."""
    return [
        None if value is None or value in values[:i] else unit_of(value, plan)
        for i, value in enumerate(values)
    ]


def _as_known(own: Guards, whole: tuple[Guards, ...]) -> Guards:
    """The guards of a region, without conditions that make no difference for the whole."""
    known = {
        (guards.small[position].line, size)
        for guards in whole
        for position, size in guards.immaterial
    }
    pairs = [(i, guard, line, size) for i, guard in enumerate(own.small) for line, size in known]
    immaterial = {(i, size) for i, guard, line, size in pairs if guard.line == line}
    return replace(own, immaterial=own.immaterial | immaterial)
