"""Calls of submodules of a module with a single graph, whose values between submodules are scaled.

A method of the model's class may call a submodule itself, as ``generate`` calls an encoder. The
submodule then runs its own code on true weights, with a warning about the casts that it lacks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from torch import nn

from unitify.diagnostics import CastsLeftOut, UnitifyError
from unitify.module.graph_forward import CallsOfSubmodules
from unitify.module.own_code import run_own_code, warn_once
from unitify.module.owner import Owner
from unitify.plan.scale_plan import Scale


class Undivided(CallsOfSubmodules):
    """Runs calls of the submodules of ``owner`` from outside its graph."""

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner._tree, owner.capture.regions.paths)
        self.owner = owner
        self.warned: set[Hashable] = set()
        self._is_inside = False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """A context in which the model's code runs on true weights, without further warnings."""
        before, self._is_inside = self._is_inside, True
        try:
            yield
        finally:
            self._is_inside = before

    def run(
        self, module: nn.Module, own: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """The own code of a submodule, on true weights.

        Raises ``UnitifyError`` (U117) where its weights are codes.
        """
        if self._is_inside:
            return own(*args, **kwargs)
        self._leave(self._paths[module], "it was called by itself")
        with self.inside():
            return run_own_code(module, own, self._scales(module), args, kwargs)

    def copied_apart(self, module: nn.Module) -> None:
        """Warn of the casts that a copy of ``module`` alone leaves out.

        Raises ``UnitifyError`` (U117) where its weights are stored, which its code cannot use.
        """
        is_stored = bool(self._scales(module))
        reason = f"it is a copy of a submodule alone{', with stored weights' * is_stored}"
        self._leave(self._paths[module], reason, is_refused=is_stored)

    def _scales(self, module: nn.Module) -> dict[str, Scale]:
        """The scales of stored parameters, by their names in ``module``."""
        if self.owner.plan.weights != "stored":
            return {}
        known = {id(p): name for name, p in self.owner._tree.named_parameters()}
        found = {
            name: self.owner.plan.parameters.get(known.get(id(p), ""), Scale())
            for name, p in module.named_parameters()
        }
        return {name: scale for name, scale in found.items() if scale != Scale()}

    def _leave(self, path: str, reason: str, is_refused: bool = False) -> None:
        capture = self.owner.capture
        cast = {choice.value for choice in self.owner._casts if choice.is_cast}
        made = frozenset().union(*(region.nodes for region in capture.regions.of(path)))
        loses = capture.reparametrization is not None or not cast.isdisjoint(made)
        lost = CastsLeftOut(where=path, module=path, reason=reason)
        if is_refused or (loses and self.owner.is_inference):
            raise UnitifyError(lost)
        if loses:
            warn_once(lost, path, self.warned)
