"""How a flat graph is called: the original's signature, its structure of inputs and outputs.

A captured graph takes a flat list of tensors and returns one. ``CallSignature`` holds what
leads from the arguments of the original ``forward`` to that list, and back from the flat
results to the type that the original returns (a Hugging Face ``ModelOutput`` stays one).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from unitify.capture.effects import Effect, leave
from unitify.diagnostics import InputMismatch, UnitifyError


@dataclass(frozen=True)
class Leaf:
    """One flat input: a tensor (free sizes by symbol, fixed ones by number) or a constant."""

    name: str
    shape: tuple[int | str, ...] | None
    dtype: torch.dtype | None
    constant: Any = None

    def describe(self) -> str:
        """The leaf as a reader would write it, such as ``x: float32[s0, 16]``."""
        if self.shape is None:
            return f"{self.name}={self.constant!r}"
        extents = ", ".join(str(s) for s in self.shape)
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{extents}]"


@dataclass(frozen=True)
class CallSignature:
    """The call that a graph was captured for."""

    signature: inspect.Signature
    arguments: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    #: What a call leaves behind; the graph returns it after the result.
    effects: tuple[Effect, ...] = ()

    def describe(self) -> str:
        """All leaves, in order."""
        return "(" + ", ".join(leaf.describe() for leaf in self.leaves) + ")"

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The flat inputs of the graph for this call.

        Raises ``UnitifyError`` (U104) where structure, a fixed size or a constant differs.
        """
        try:
            given = bind(self.signature, args, kwargs)
        except TypeError as error:
            raise self._mismatch(str(error)) from None
        expected = dict.fromkeys(self.arguments)
        for name, value in given.items():
            if name not in expected and not _is_default(self.signature, name, value):
                raise self._mismatch(f"the argument {name!r} was not part of the captured call")
        missing = [name for name in self.arguments if name not in given]
        if missing:
            raise self._mismatch(f"the argument {missing[0]!r} is missing")
        return self.flatten_values([given[name] for name in self.arguments])

    def flatten_values(self, values: Sequence[Any]) -> list[Any]:
        """The flat inputs of the graph for these values of ``arguments``, in their order.

        Raises ``UnitifyError`` (U104) as ``flatten``.
        """
        if len(values) != len(self.arguments):
            raise self._mismatch(f"{len(values)} arguments, captured {len(self.arguments)}")
        leaves, spec = pytree.tree_flatten(dict(zip(self.arguments, values, strict=True)))
        if spec != self.in_spec:
            raise self._mismatch("the arguments have another structure")
        self._check(leaves)
        return leaves

    def unflatten(self, results: Any) -> Any:
        """The original's own output structure around flat results."""
        return pytree.tree_unflatten(list(results)[: self.out_spec.num_leaves], self.out_spec)

    def leave(self, results: Any, tree: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Put what a call leaves behind where it belongs, in the modules of ``tree`` and in the
        arguments, which ``inputs`` has by name.
        """
        if self.effects:
            leave(self.effects, list(results)[self.out_spec.num_leaves :], tree, inputs)

    def _check(self, leaves: list[Any]) -> None:
        sizes: dict[str, int] = {}
        for leaf, value in zip(self.leaves, leaves, strict=True):
            if leaf.shape is None:
                if isinstance(value, torch.Tensor) or value != leaf.constant:
                    raise self._mismatch(f"{leaf.name} is {value!r}, captured {leaf.constant!r}")
                continue
            if not isinstance(value, torch.Tensor) or value.dim() != len(leaf.shape):
                raise self._mismatch(f"{leaf.name} is not a tensor of {len(leaf.shape)} dimensions")
            if value.dtype != leaf.dtype:
                raise self._mismatch(f"{leaf.name} is {value.dtype}, captured {leaf.dtype}")
            for dimension, (size, expected) in enumerate(zip(value.shape, leaf.shape, strict=True)):
                known = expected if isinstance(expected, int) else sizes.setdefault(expected, size)
                if size != known:
                    raise self._mismatch(
                        f"dimension {dimension} of {leaf.name} is {size}, expected {known}"
                    )

    def _mismatch(self, problem: str) -> UnitifyError:
        return UnitifyError(InputMismatch(problem=problem, expected=self.describe()))


def bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments by parameter name; ``*args`` and ``**kwargs`` are spread out by position and key.

    Raises ``TypeError`` as the call itself would.
    """
    bound = signature.bind(*args, **kwargs).arguments
    flat: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            flat.update({f"{name}_{i}": item for i, item in enumerate(value)})
        elif kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        else:
            flat[name] = value
    return flat


def unbind(
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    named: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call ``(args, kwargs)`` again, each value as ``named`` has it for what ``bind`` gave.

    What was positional stays so: some models look at how they are called.
    """
    places: list[str] = []
    for name, value in signature.bind_partial(*args).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            places.extend(f"{name}_{i}" for i in range(len(value)))
        else:
            places.append(name)
    return tuple(named[name] for name in places), {name: named[name] for name in kwargs}


def _is_default(signature: inspect.Signature, name: str, value: Any) -> bool:
    parameter = signature.parameters.get(name)
    if isinstance(value, torch.Tensor):
        return False
    return value is None or (parameter is not None and bool(value == parameter.default))


def register_dataclasses(value: Any) -> None:
    """Make every dataclass inside ``value`` known to pytree, so that capture can take it apart."""
    seen: list[Any] = [value]
    while seen:
        item = seen.pop()
        if isinstance(item, dict):
            seen.extend(item.values())
        elif isinstance(item, list | tuple):
            seen.extend(item)
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            if type(item) not in pytree.SUPPORTED_NODES and not isinstance(item, dict):
                torch.export.register_dataclass(type(item))
            seen.extend(getattr(item, f.name) for f in dataclasses.fields(item))
