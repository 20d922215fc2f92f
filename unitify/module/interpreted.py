"""How an interpreter of a transformed module's graph calls it: as the module is called.

``torch.export`` does not call a graph module; it interprets the graph on what it was given, keyword
inputs as positions. The graph is flat. A ``CodeGen`` may say what stands between a call and the
graph, so that an interpretation takes the original's arguments and returns its type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx.graph import CodeGen


def as_first_called(kind: type) -> None:
    """Take away what generating code put around the call of a subclass of a module's own class.

    Frameworks give a module such a class (``fully_shard``). Each of two wrappers would call the
    other.
    """
    wrapped = [k for k in kind.__mro__ if "_wrapped_call" in vars(k)]
    for later in wrapped[:-1]:
        del later._wrapped_call, later.__call__  # type: ignore[attr-defined]


class OwnCall(CodeGen):
    """Plain code for the graph itself; ``flatten`` and ``unflatten`` around an interpretation."""

    def __init__(
        self, flatten: Callable[[Sequence[Any]], list[Any]], unflatten: Callable[[Any], Any]
    ) -> None:
        super().__init__()
        self.flatten, self.unflatten = flatten, unflatten

    def process_inputs(self, *values: Any) -> Any:
        """The graph's flat inputs, from the arguments of a call in the signature's order."""
        return self.flatten(values)

    def process_outputs(self, outputs: Any) -> Any:
        """The original's type of result, from flat results."""
        return self.unflatten(outputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CodeGen:
        """A graph alone has no call but its own: the module that takes the copy gives it one."""
        return CodeGen()
