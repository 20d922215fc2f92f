"""``GraphForward``: the ``forward`` of a submodule, which runs a graph instead of its own code."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, Protocol

from torch import nn

from unitify.diagnostics import NotPickled, UnitifyError


class Runs(Protocol):
    """Decides how to run a call of a module, and runs it."""

    def run(
        self,
        module: nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The call ``(args, kwargs)`` of ``module``, whose own code is ``own``."""
        ...

    def copied_apart(self, module: nn.Module) -> None:
        """Warn of the casts that a copy of ``module`` alone leaves out, as it runs its own code."""
        ...


class GraphForward:
    """A ``forward`` that passes each call of ``module`` to ``runs``.

    It is an attribute of the module, not of its class. So the module keeps its class, its hooks run
    around the call, and wrappers of the module call it, too.
    """

    def __init__(self, module: nn.Module, runs: Runs) -> None:
        self.module = module
        self.runs: Runs = runs
        self.put_in()
        self.__signature__ = inspect.signature(self.own)

    def put_in(self) -> None:
        """Become the ``forward`` attribute of the module, or replace another ``GraphForward``."""
        before = vars(self.module).get("forward")
        if isinstance(before, GraphForward) and type(before.runs) is type(self.runs):
            before.take_out(self.module)
        #: The attribute before.
        self.replaced = vars(self.module).get("forward")
        self.module.__dict__["forward"] = self

    @property
    def own(self) -> Any:
        """The module's own code: that of its present class.

        Not as a bound method, which compiled code takes from the module by its name: it would get
        this object.
        """
        if self.replaced is not None:
            return self.replaced
        own = type(self.module).forward
        is_plain = isinstance(own, FunctionType)
        return functools.partial(own, self.module) if is_plain else own.__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call, by a graph where one holds for it, else by the module's own code."""
        return self.runs.run(self.module, self.own, args, kwargs)

    def take_out(self, module: nn.Module) -> None:
        """Remove this from the module, or from its copy, so that it runs its own code again."""
        del module.__dict__["forward"]
        if self.replaced is not None:
            module.__dict__["forward"] = self.replaced

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The ``forward`` of a copy of the module alone: its own code, on its own weights."""
        self.runs.copied_apart(self.module)
        copied = memo.get(id(self.module))
        if copied is None or self.replaced is not None:
            return self.replaced
        return type(self.module).forward.__get__(copied)

    def __reduce__(self) -> Any:
        raise UnitifyError(NotPickled(where=type(self.module).__name__))


class CallsOfSubmodules(Runs):
    """The submodules of ``tree`` at ``paths``, as far as it has them, whose calls ``run`` gets."""

    def __init__(self, tree: nn.Module, paths: Iterable[str]) -> None:
        self._paths: dict[nn.Module, str] = {}
        self._forwards: dict[nn.Module, GraphForward] = {}
        for path in paths:
            with contextlib.suppress(AttributeError):
                self._paths[tree.get_submodule(path)] = path

    def install(self) -> None:
        """Send calls of the submodules to ``run``, from now on."""
        for module in self._paths:
            # A module that returns to an earlier recording keeps its ``GraphForward``.
            forward = self._forwards.get(module)
            if forward is None:
                self._forwards[module] = GraphForward(module, self)
            else:
                forward.put_in()


def own_code_again(tree: nn.Module) -> None:
    """Remove every ``GraphForward`` from ``tree``, so that its modules run their own code."""
    for module in tree.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, GraphForward):
            forward.take_out(module)
