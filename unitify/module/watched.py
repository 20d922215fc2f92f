"""A transformed module that watches its model: how it runs when the model's state has changed."""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from torch import fx, nn

from unitify.capture.exporting import switched_off
from unitify.capture.named import Read
from unitify.capture.reachable import Location
from unitify.capture.signature import Refusal, kind_of
from unitify.capture.whole import Capture
from unitify.diagnostics import (
    AttributeChanged,
    CastsLeftOut,
    Diagnostic,
    OneModeOnly,
    OwnCodeRuns,
    UnitifyError,
    UnitifyWarning,
)
from unitify.module.about import About
from unitify.module.own_code import run_own_code, warn_once
from unitify.module.recorded_state import RecordedState, changed_now
from unitify.module.submodules import Submodules
from unitify.module.undivided import Undivided
from unitify.module.weights import HoldsWeights

#: Why a call does not run the graph: state has changed, or no recording holds for the call.
Reason = AttributeChanged | OneModeOnly | Refusal


class WatchesTree(HoldsWeights):
    """The part of a transformed module that checks that its graph still is the model."""

    capture: Capture
    graph: fx.Graph
    #: Runs the submodules' own graphs, where they have some.
    _submodules: Submodules | None = None
    #: Runs the submodules' own code, where they have no graphs.
    _undivided: Undivided | None = None
    about: About
    #: Configs with ``use_cache``; the graph does not return generation caches.
    _caching: list[Any]
    #: Kinds of calls with a warning so far.
    _warned: set[Hashable]

    def _attribute(self, target: str) -> Any:
        return operator.attrgetter(target)(self._tree)

    def run_own(
        self,
        reason: Reason | None,
        code: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call by the model's own ``code`` instead of the graph, for ``reason``.

        Where values are true, submodules run their graphs in it. A warning, once for each kind of
        call, names the casts that are lost. Without casts, only scales are lost: results are the
        model's.

        Raises ``UnitifyError``: U103, U104 or U111 for a call for which no recording holds, where
        all casts would be lost; ``reason`` or U117 where the code would have to read codes.
        """
        with switched_off(self._caching):
            return self._run_own(reason, code, args, kwargs)

    def _run_own(
        self, reason: Reason | None, code: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        submodules = self._submodules
        is_as_recorded = reason is None or isinstance(reason, AttributeChanged)
        if not is_as_recorded and self._casts and submodules is None:
            raise UnitifyError(self._finding(reason))
        if self.is_inference and self.__dict__["_recorded_state"].types.changed() is not None:
            submodules = None  # Codes have one type: neither graphs nor code run in another.
        if submodules is not None:
            why = None if reason is None else partial(self._finding, reason)
            return submodules.run_around(code, args, kwargs, why, is_as_recorded)
        if reason is not None:
            self._leave_graph(reason)
        scales = self.plan.parameters if self.plan.weights == "stored" else {}
        with contextlib.nullcontext() if self._undivided is None else self._undivided.inside():
            return run_own_code(self._tree, code, scales, args, kwargs)

    def _leave_graph(self, reason: Reason) -> None:
        if self.is_inference:
            raise UnitifyError(self._finding(reason))
        kind = kind_of(reason) if isinstance(reason, tuple) else reason
        if kind not in self._warned:
            found = self._finding(reason)
            name = type(self.capture.model).__name__
            if not isinstance(found, AttributeChanged):
                found = OwnCodeRuns(where=name, reason=f"{found.code} {found.message}")
            warn_once(found, kind, self._warned)

    def _finding(self, reason: Any) -> Diagnostic:
        return self.capture.call.misfit(reason) if isinstance(reason, tuple) else reason

    def copied_apart(self) -> None:
        """Warn that a copy of the tree alone runs the model's own code.

        Raises ``UnitifyError`` (U117) for stored weights and codes, which that code cannot use.
        """
        name = type(self.capture.model).__name__
        found = CastsLeftOut(where=name, module=name, reason="it is a copy of a submodule alone")
        if self._fingerprint() is not None:
            raise UnitifyError(found)
        if self._casts:
            warnings.warn(UnitifyWarning(str(found)), stacklevel=4)

    def divide(self) -> None:
        """Give each submodule a graph of its own, where values are true.

        Call it for all graphs of a tree before ``watch``, because it sets ``forward`` attributes.
        """
        if self.plan.is_true:
            self._submodules, self._undivided = Submodules(self), None
            self._submodules.install()
        else:
            self._submodules, self._undivided = None, Undivided(self)
            self._undivided.install()

    def watch(self, tree: nn.Module, path: str = "", like: WatchesTree | None = None) -> None:
        """Watch the state that the code of ``tree`` reads, from now on.

        ``path``: that of this module's own tree in it. ``like``: the module that this one copies.
        """
        reads = {read: who for read, who in self.capture.reads.items() if self._counts(read)}
        left = [effect.location for effect in self.capture.call.effects]
        before = like.__dict__["_recorded_state"] if like is not None else None
        had = like is None or not like.is_inference
        if self._submodules is not None and self._submodules.owner is self:
            own = _by_path(reads)
            held = like._submodules.states if like is not None and like._submodules else {}
            for name in self.capture.regions.paths:
                full = f"{path}.{name}".strip(".")
                state = RecordedState(
                    tree, own.get(full, ()), left, None, held.get(name), full, had
                )
                self._submodules.states[name] = state
        self.__dict__["_recorded_state"] = RecordedState(
            tree, reads, left, self._tree, before, "", had
        )

    def _counts(self, read: Any) -> bool:
        """Is the value watched? ``use_cache`` is not: the graph returns no cache."""
        is_cache = isinstance(read, Location) and read.steps[-1].key == "use_cache"
        return not (is_cache and self._caching)

    def _changed(self) -> AttributeChanged | None:
        """The first change since ``watch``; None without one. Compiled code checked it once."""
        state: RecordedState | None = self.__dict__.get("_recorded_state")
        if state is None:
            return None
        found = changed_now(state, not self.is_inference, self.about.again is not None)
        return None if found is None else AttributeChanged(attribute=found)


def _by_path(reads: Mapping[Location | Read, frozenset[str]]) -> dict[str, list[Any]]:
    """Path of a submodule → the reads within it, from reads with the paths of their readers."""
    found: dict[str, dict[Any, None]] = {}
    for read, readers in reads.items():
        for reader in readers:
            while reader:
                found.setdefault(reader, {})[read] = None
                reader = reader.rpartition(".")[0]
    return {path: list(held) for path, held in found.items()}
