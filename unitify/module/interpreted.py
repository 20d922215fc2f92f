"""Lets an interpreter of a transformed module's graph call it like the module.

``torch.export`` does not call a graph module. It interprets the graph on the arguments, with
keywords as positions. Our graph is flat. A ``CodeGen`` converts between a call and the graph, so an
interpretation takes the original's arguments and returns its type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx.graph import CodeGen


def as_first_called(kind: type) -> None:
    """Remove the call wrapper that code generation put on a subclass of a module's class.

    Frameworks give a module such a subclass (``fully_shard``). The two wrappers would call each
    other.
    """
    wrapped = [k for k in kind.__mro__ if "_wrapped_call" in vars(k)]
    for later in wrapped[:-1]:
        del later._wrapped_call, later.__call__  # type: ignore[attr-defined]


def sizes_of_python(lines: list[str]) -> list[str]:
    """Code that asks tensors for sizes as Python code does: ``vmap`` knows no other way."""
    return [line.replace("torch.ops.aten.sym_size.int(", "torch.Tensor.size(") for line in lines]


class OwnCall(CodeGen):
    """Plain code for the graph, with ``flatten`` and ``unflatten`` around an interpretation."""

    def __init__(
        self, flatten: Callable[[Sequence[Any]], list[Any]], unflatten: Callable[[Any], Any]
    ) -> None:
        super().__init__()
        self.flatten, self.unflatten = flatten, unflatten
        self._body_transformer = sizes_of_python

    def process_inputs(self, *values: Any) -> Any:
        """The graph's flat inputs, from the arguments of a call in the signature's order."""
        return self.flatten(values)

    def process_outputs(self, outputs: Any) -> Any:
        """Flat results in the original's type."""
        return self.unflatten(outputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CodeGen:
        """A plain ``CodeGen``: the module that takes the copy of the graph sets its own."""
        return CodeGen()
