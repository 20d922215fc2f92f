"""Recognizes a model's own tensors, however its code reaches them.

A recording knows parameters by the tables of their modules. Code that keeps them in a list, a dict
or a closure uses the tensors themselves, which a recording takes for constants. Inside ``by_table``
such a tensor is replaced by the entry of its table. Every other tensor with data that is used is
noted, so that a constant of the recording can be recognized.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Table:
    """Where a module keeps one of its own tensors."""

    module: nn.Module
    table: str
    name: str

    @property
    def now(self) -> Tensor:
        """The present tensor; while a model is recorded, the recording's tensor."""
        held: Tensor = vars(self.module)[self.table][self.name]
        return held


@dataclass
class Tensors:
    """A model's own tensors by identity, with their names; and other tensors that its code uses."""

    tables: dict[int, Table]
    names: dict[int, str]
    used: list[Tensor] = field(default_factory=list)

    @staticmethod
    def of(model: nn.Module) -> Tensors:
        """The tensors that are in the tables of ``model`` now."""
        tables: dict[int, Table] = {}
        names: dict[int, str] = {}
        for path, module in model.named_modules():
            for table in ("_parameters", "_buffers"):
                for name, tensor in vars(module).get(table, {}).items():
                    if tensor is not None:
                        tables.setdefault(id(tensor), Table(module, table, name))
                        names.setdefault(id(tensor), f"{path}.{name}" if path else name)
        return Tensors(tables, names)

    def original(self, constant: Tensor) -> Tensor:
        """The model's own object behind a constant of a recording; else the constant."""
        for tensor in self.used:
            if _is_alias(tensor, constant):
                return tensor
        return constant


class _ByTable(TorchFunctionMode):
    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = tensors
        self.seen: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = tuple(self._now(a) for a in args)
        return func(*given, **{name: self._now(a) for name, a in (kwargs or {}).items()})

    def _now(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if isinstance(value, FakeTensor):
                return value
            table = self.tensors.tables.get(id(value))
            if table is not None:
                return table.now
            if id(value) not in self.seen:
                self.seen.add(id(value))
                self.tensors.used.append(value)
            return value
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            return type(value)([self._now(v) for v in value])
        return value


@contextlib.contextmanager
def by_table(tensors: Tensors) -> Iterator[None]:
    """Inside, code that uses one of a model's own tensors uses what its tables hold now."""
    with _ByTable(tensors):
        yield


def _is_alias(a: Tensor, b: Tensor) -> bool:
    return bool(storage_of(a) == storage_of(b)) and bool(_geometry(a) == _geometry(b))


def storage_of(tensor: Tensor) -> Any:
    """What is the same for tensors that share memory; for one without memory, its identity."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return id(tensor)
    return tensor.untyped_storage()._cdata


def _geometry(tensor: Tensor) -> Any:
    if tensor.layout != torch.strided:
        return None
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def view_of_own(
    graph: fx.Graph, node: fx.Node, constant: Tensor, model: nn.Module
) -> fx.Node | None:
    """A node for ``constant`` as a view of the model's own tensor with the same storage.

    It is inserted before ``node``, the constant. None where no own tensor has that storage. The
    view has no history, because an object that shares a parameter's storage was detached from it.
    """
    if constant.layout != torch.strided or constant.is_meta:
        return None
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, own in named:
        if own.layout != torch.strided or storage_of(own) != storage_of(constant):
            continue
        if own.dtype != constant.dtype:
            continue
        with graph.inserting_before(node):
            held = graph.get_attr(name)
            held.meta = {"val": own}
            shown = graph.call_function(aten.detach.default, (held,))
            shown.meta = dict(node.meta)
            if _geometry(own) != _geometry(constant):
                geometry = (
                    list(constant.shape),
                    list(constant.stride()),
                    constant.storage_offset(),
                )
                shown = graph.call_function(aten.as_strided.default, (shown, *geometry))
                shown.meta = dict(node.meta)
        return shown
    return None


def first_of(leaves: Sequence[Any]) -> tuple[int, ...]:
    """For each flat input the position of the first one that is the same tensor."""
    first: dict[int, int] = {}
    return tuple(
        first.setdefault(id(leaf), i) if isinstance(leaf, Tensor) else i
        for i, leaf in enumerate(leaves)
    )
