"""Checks the form of outlines from a file: ``outline_of`` could have made each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from unitify.rows import made

Number = int | float | str


@dataclass(frozen=True)
class _Tensor:
    """The outline of a tensor; see ``outline``."""

    dtype: str
    shape: tuple[int, ...]
    free: tuple[int, ...] = ()
    requires_grad: bool = False
    values: tuple[tuple[Number, int], ...] | None = None
    range: tuple[int | float, int | float] | None = None
    mean: float = 0.0
    rms: float = 0.0
    order: Literal["rising", "falling"] | None = None


@dataclass(frozen=True)
class _CallOutline:
    """The outline of a call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sizes: Literal["auto", "given"] | int


def check_outlines(calls: Any) -> None:
    """Check the outlines of the calls of a recording, of which there is at least one.

    Raises ``ValueError``.
    """
    if not (isinstance(calls, list) and calls):
        raise ValueError("it has no list of calls")
    for call in calls:
        found = made(_CallOutline, call)
        for value in (*found.args, *found.kwargs.values()):
            _check(value)


def _check(value: Any) -> None:
    for kind, held in _containers(value):
        if kind == "tensor":
            tensor = made(_Tensor, held)
            if not isinstance(getattr(torch, tensor.dtype, None), torch.dtype):
                raise ValueError(f"{tensor.dtype!r} is no type of tensors")
            counts = [*tensor.shape, *(count for _, count in tensor.values or ())]
            if min(counts, default=0) < 0:
                raise ValueError("a size is negative")
        elif kind in ("float", "other"):
            if not isinstance(held, str):
                raise ValueError(f"a {kind} is not text")
        elif kind not in ("dict", "tuple", "list"):
            raise ValueError(f"{kind[:60]!r} is no kind of value")


def _containers(value: Any) -> Iterator[tuple[str, Any]]:
    """Every kind with what it holds, in a value and all values inside it."""
    pending = [value]
    while pending:
        value = pending.pop()
        if value is None or isinstance(value, bool | int | str):
            continue
        if not (isinstance(value, Mapping) and len(value) == 1):
            raise ValueError("a value is not an object of one kind")
        ((kind, held),) = value.items()
        yield kind, held
        if kind in ("dict", "tuple", "list"):
            if not isinstance(held, Mapping if kind == "dict" else list):
                raise ValueError(f"a {kind} holds another kind")
            pending += held.values() if isinstance(held, Mapping) else held
