"""Sizes of one and zero: does the model take another branch there, and does it matter?

A recording assumes that every free size is at least two. Code that asks for one element (``if batch
!= 1: x = x.expand(batch, -1)``) takes another branch there, often with the same result. Here the
model and its recording run on the example cut to one element, or none. If all results and gradients
agree to the last bit, the other branch makes no difference at that size. Both run on weights and
buffers of which some are moved a little: a zero or a one could hide the difference of two branches.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.copy_on_write import release
from unitify.capture.digests import gradients_as_digests
from unitify.capture.equality import same
from unitify.capture.execution import backward_starts, run_captured, unchanged
from unitify.capture.exporting import without_cache
from unitify.capture.signature import unbind
from unitify.capture.tree import copy_of
from unitify.capture.whole import Capture

#: Dimensions to cut, and to how many elements.
_CUTS = (((0,), 1), ((1,), 1), ((0, 1), 1), ((0,), 0))


def tried_small(captured: Capture, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
    """The capture, whose guards ignore conditions that make no difference below two.

    ``args``, ``kwargs``: the call of the recording.
    """
    guards = list(captured.call.guards)
    has_data = not any(isinstance(x, Tensor) and x.is_meta for x in captured.example)
    if not any(held.small for held in guards) or not (captured.holds_weights and has_data):
        return captured

    copied = _moved(captured.model)
    moved = dataclasses.replace(captured, model=copied)

    def call(named: dict[str, Any]) -> Any:
        given, keywords = unbind(captured.call.signature, args, kwargs, named)
        return moved.model(*given, **keywords)

    for dimensions, size in _CUTS:
        flat = _cut(captured, dimensions, size)
        if flat is None or any(held.broken(flat, small=False) for held in guards):
            continue
        broken = [held.broken_small(flat) for held in guards]
        if any(broken) and _agree(moved, call, flat):
            guards = [
                dataclasses.replace(held, immaterial=held.immaterial | found)
                for held, found in zip(guards, broken, strict=True)
            ]
    release(copied, captured.model)
    signature = dataclasses.replace(captured.call, guards=tuple(guards))
    return dataclasses.replace(captured, call=signature)


def _moved(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with other numbers in each floating tensor that holds a zero or a one."""
    made = copy_of(model, on_write=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point() and not tensor.is_meta and _hides(tensor):
                noise = torch.rand(tensor.shape, generator=generator) + 0.5
                tensor.mul_(noise.to(tensor)).add_(0.01 * noise.to(tensor))
    return made


def _hides(tensor: Tensor) -> bool:
    return bool((tensor == 0).any()) or bool((tensor.abs() == 1).any())


def _cut(captured: Capture, dimensions: tuple[int, ...], size: int) -> list[Any] | None:
    """The example with those of its free dimensions cut; None if it has none of them."""
    flat = list(captured.example)
    is_cut = False
    for position, leaf in enumerate(captured.call.leaves):
        for dimension in dimensions:
            if (
                leaf.shape
                and dimension < len(leaf.shape)
                and isinstance(leaf.shape[dimension], str)
            ):
                flat[position] = flat[position].detach().narrow(dimension, 0, size)
                is_cut = True
    return flat if is_cut else None


def _agree(captured: Capture, call: Callable[[dict[str, Any]], Any], flat: list[Any]) -> bool:
    model = captured.model
    named = pytree.tree_unflatten([_leaf(x) for x in flat], captured.call.in_spec)
    try:
        with _in_mode(model, captured.mode), without_cache(model):
            expected = _results(model, lambda: call(named))
            flat = [_leaf(x) for x in flat]
            found = _results(model, lambda: run_captured(captured, flat))
    except Exception:
        # The model cannot be called so: there is nothing to agree with.
        return False
    return expected.keys() == found.keys() and all(_equal(expected[n], found[n]) for n in found)


def _equal(a: Any, b: Any) -> bool:
    return same(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)


def _leaf(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _results(model: nn.Module, run: Callable[[], Any]) -> dict[str, Any]:
    """The outputs, and the gradients of parameters: where they are plain, their digests."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Without a copy of its weights: it is a copy itself.
    with unchanged(model), torch.enable_grad(), gradients_as_digests(weights) as gradients:
        output = run()
        leaves = pytree.tree_leaves(output)
        found = {f"output {i}": t for i, t in enumerate(leaves) if isinstance(t, Tensor)}
        starts, given = backward_starts(output, None)
        if starts and weights:
            torch.autograd.backward(starts, given, inputs=list(weights.values()))
        for name, weight in weights.items():
            if weight.grad is not None:
                found[name], weight.grad = weight.grad, None
        return {**found, **{f"gradient of {name}": read for name, read in gradients.items()}}


@contextlib.contextmanager
def _in_mode(model: nn.Module, mode: str | None) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    for module, training in flags:
        module.training = training if mode is None else mode == "train"
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
