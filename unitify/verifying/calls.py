"""The calls on which a module is compared with its model.

They are: the example twice in a row, which shows what one call leaves for the next; the example in
the other mode; the example without gradients, in both modes, because torch has kernels for
evaluation without gradients alone; and, where sizes are free, calls with larger and smaller sizes
and other numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from unitify.capture.example import Inputs, copied
from unitify.capture.identity import first_of
from unitify.capture.signature import CallSignature, bind, unbind
from unitify.capture.whole import Capture

#: By how much each free size is made larger and smaller, and the least size, because a recording
#: assumes two. The numbers are no multiples: parity and divisibility change, too.
_MORE, _LESS, _LEAST = 1, 1, 2


@dataclass(frozen=True)
class Call:
    """``times`` calls in a row on ``inputs``, in train or eval mode, with or without gradients."""

    name: str
    training: bool
    inputs: Inputs
    times: int = 1
    is_example: bool = True
    has_gradients: bool = True


def calls_of(captured: Capture | None, training: bool, example: Inputs) -> Iterator[Call]:
    """The calls to compare. ``captured``: the capture of the whole model, which has free sizes."""
    mode, other = ("train", "eval") if training else ("eval", "train")
    yield Call(f"the example in {mode} mode", training, example, times=2)
    yield Call(f"the example in {other} mode", not training, example)
    yield Call("the example without gradients", training, example, has_gradients=False)
    without = f"the example in {other} mode without gradients"
    yield Call(without, not training, example, has_gradients=False)
    if captured is None:
        return
    sizes = _free(captured)
    larger = {symbol: size + _MORE for symbol, size in sizes.items()}
    smaller = {symbol: max(size - _LESS, min(size, _LEAST)) for symbol, size in sizes.items()}
    for name, changed in (("larger", larger), ("smaller", smaller)):
        if changed != sizes:
            made = _resized(captured.call, example, changed)
            yield Call(f"{name} inputs", training, made, is_example=False)


def _free(captured: Capture) -> dict[str, int]:
    """Symbol of every independent free size → the size in the example."""
    found: dict[str, int] = {}
    bound: set[str] = set()
    for leaf, value in zip(captured.call.leaves, captured.example, strict=True):
        for size, held in zip(leaf.shape or (), getattr(value, "shape", ()), strict=False):
            if isinstance(size, str) and size.isidentifier():
                found.setdefault(size, held)
            elif isinstance(size, str):
                bound.update(re.findall(r"\w+", size))
    return {symbol: size for symbol, size in found.items() if symbol not in bound}


def _resized(call: CallSignature, example: Inputs, sizes: Mapping[str, int]) -> Inputs:
    """The example in other sizes. Each number is drawn from those of the same tensor."""
    generator = torch.Generator().manual_seed(1)
    args, kwargs = example
    flat, spec = pytree.tree_flatten(bind(call.signature, args, kwargs))
    given = list(flat)
    for position, (leaf, value) in enumerate(zip(call.leaves, given, strict=True)):
        if not isinstance(value, Tensor) or not value.numel() or value.layout != torch.strided:
            flat[position] = copied(value)
            continue
        shape = [
            sizes.get(size, held) if isinstance(size, str) else held
            for size, held in zip(leaf.shape or (), value.shape, strict=True)
        ]
        held = value.detach().reshape(-1)
        count = int(torch.tensor(shape, dtype=torch.int64).prod())
        chosen = torch.randint(len(held), (count,), generator=generator)
        made = held[chosen.to(held.device)].reshape(shape)
        flat[position] = made.requires_grad_(value.requires_grad)
    kept = [flat[first] for first in first_of(given)]
    return unbind(call.signature, args, kwargs, pytree.tree_unflatten(kept, spec))
