"""Prepares example inputs for a recording, and lazy modules for their first call.

A recording would fix sizes of one and zero, and merge two arguments that are one tensor. Such
inputs are exchanged for inputs that are typical of others.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from unitify.capture.exporting import without_cache
from unitify.capture.reachable import PLAIN, cells, set_on
from unitify.diagnostics import NothingCaptured, UnitifyError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def in_order(signature: inspect.Signature, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword inputs in the order of the signature, because export keeps the order of the call."""
    position = {name: i for i, name in enumerate(signature.parameters)}
    return dict(sorted(kwargs.items(), key=lambda item: position.get(item[0], len(position))))


def mapped(change: Callable[[Any], Any], inputs: Any) -> Any:
    """The inputs with ``change`` of each leaf. A tensor that is passed twice stays one."""
    leaves, spec = pytree.tree_flatten(inputs)
    made: dict[int, Any] = {}
    for leaf in leaves:
        if id(leaf) not in made or not isinstance(leaf, Tensor):
            made[id(leaf)] = change(leaf)
    return pytree.tree_unflatten([made[id(leaf)] for leaf in leaves], spec)


def distinct(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """The inputs with a copy of a tensor that is passed twice: export would merge the two."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    seen: set[int] = set()
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            if id(leaf) in seen:
                leaves[position] = copied(leaf)
            seen.add(id(leaf))
    result: Inputs = pytree.tree_unflatten(leaves, spec)
    return result


def copied(value: Any) -> Any:
    """A copy of the tensor, which requires a gradient where the given one does.

    An object that a call may change, such as a cache, is copied with all that it holds.
    """
    if not isinstance(value, Tensor):
        return value if isinstance(value, PLAIN) or callable(value) else _copied_object(value)
    return _as(value, value.detach().clone())


def _as(value: Tensor, made: Tensor) -> Tensor:
    """``made``, which requires a gradient where ``value`` does, with what is set on that."""
    vars(made).update(set_on(value))
    return made.requires_grad_(value.requires_grad)


def _copied_object(value: Any) -> Any:
    """A copy of an object; the object itself where it cannot be copied."""
    held = (x for cell in cells(nn.Module(), value) for x in cell.entries().values())
    # Tensors with a history, too, which deepcopy refuses.
    memo = {id(x): copied(x) for x in held if isinstance(x, Tensor)}
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        return value


def resampled(args: tuple[Any, ...], kwargs: dict[str, Any], seed: int = 0) -> Inputs:
    """Inputs of the same sizes, whose numbers are drawn from the given ones."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.layout != torch.strided:
            return copied(leaf)
        if leaf.is_meta or leaf.is_nested:
            return copied(leaf)
        flat = leaf.detach().reshape(-1)
        chosen = torch.randint(len(flat), (len(flat),), generator=generator)
        made = flat[chosen.to(flat.device)].reshape(leaf.shape)
        return _as(leaf, made)

    result: Inputs = mapped(drawn, (args, kwargs))
    return result


def widened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Inputs]:
    """The inputs with one more element in the batch, and then along the next dimension, where all
    tensors have the same size there.
    """
    leaves = pytree.tree_leaves((args, kwargs))
    for dim in (0, 1):
        sizes = _sizes(leaves, dim)
        if len(sizes) == 1 and sizes != {0}:
            yield mapped(partial(_with_one_more, dim=dim), (args, kwargs))


def _sizes(leaves: list[Any], dim: int = 0) -> set[int]:
    """The sizes of all tensors; none where one is sparse or nested, and cannot be joined."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(x.layout != torch.strided or x.is_nested for x in tensors):
        return set()
    return {x.shape[dim] for x in tensors if x.dim() > dim}


def _with_one_more(value: Any, dim: int) -> Any:
    if not isinstance(value, Tensor) or value.dim() <= dim:
        return copied(value)
    return _as(value, torch.cat([value, value.narrow(dim, 0, 1)], dim).detach())


def doubled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
    """The inputs with a batch of two, where all tensors have a batch of one, or all of none.

    None for other inputs.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    batches = _sizes(leaves)
    if batches not in ({0}, {1}):
        return None
    result: Inputs = pytree.tree_unflatten([_twice(x) for x in leaves], spec)
    return result


def _twice(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        return value
    if value.shape[0]:
        made = torch.cat([value, value]).detach()
    else:
        made = value.new_zeros((2, *value.shape[1:]))
    return _as(value, made)


def initialize_lazy(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give lazy modules of ``model`` their shapes for good, as its first call would.

    The model is called only if there are any.

    Raises ``UnitifyError`` (U102) where the model does not take the inputs.
    """
    if not _is_uninitialized(model):
        return
    flags = {m: m.training for m in model.modules()}
    name = type(model).__name__
    args, kwargs = pytree.tree_map(copied, (args, kwargs))
    try:
        # In evaluation, so that it does not count as a step of training.
        with torch.no_grad(), without_cache(model):
            model.eval()(*args, **kwargs)
    except Exception as error:
        reason = f"it does not run: {type(error).__name__}: {error}"
        raise UnitifyError(NothingCaptured(where=name, reason=reason)) from error
    finally:
        for module, flag in flags.items():
            module.training = flag
    if _is_uninitialized(model):
        reason = "it has lazy modules that a call leaves without parameters"
        raise UnitifyError(NothingCaptured(where=name, reason=reason))


def _is_uninitialized(model: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()])


def call_quietly(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call ``model`` for what it does. Its warnings were shown before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(*args, **kwargs)
