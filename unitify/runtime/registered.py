"""Registers our operators with torch: a schema, a kernel, and derivatives.

A registered operator passes export, Dynamo and AOT autograd with its backward pass. Inductor fuses
its decomposition, and the transforms of ``torch.func`` support it. Each transform is a level: a
``Function`` is applied at one level, and ``below`` calls the operator for the levels under it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library
from torch._functorch.utils import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from unitify.formats.narrow import NARROW, lower_for_inductor, there_and_back
from unitify.version import __version__

_library = library.Library("unitify", "FRAGMENT")

#: Our operators in terms of torch's own; ``register`` adds a row for each.
_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}

#: Operators whose decomposition Inductor does not take. ``NARROW`` has a lowering: Inductor would
#: remove its decomposition, a conversion and back.
_OPAQUE = {NARROW}

#: The placements of distributed tensors that each operator supports: see ``register``.
SHARDINGS: dict[Any, Callable[..., Any]] = {}

#: One placement of an operand or a result: the dimension that is sharded, or a word.
Placement = int | str | None

#: Types of tensors with data; subclasses are used in recording.
_PLAIN = (Tensor, torch.nn.Parameter)


def register(
    schema: str,
    kernel: Callable[..., Any],
    derivative: Callable[..., Any],
    batched: Callable[..., Any] | None = None,
    decomposition: Callable[..., Any] | None = None,
    sharded: Callable[..., list[tuple[list[Placement], list[Placement]]]] | None = None,
    is_opaque: bool = False,
) -> Any:
    """Register the operator ``unitify::schema``, and return it.

    - ``kernel``: computes its results, also on meta and fake tensors
    - ``derivative``: the same, differentiable at one level: see ``at_one_level``
    - ``batched``: the argument of ``torch.library.register_vmap``; None where ``derivative``
      calls only operators that have one
    - ``decomposition``: for compilers; None takes the kernel
    - ``sharded``: gives, for an operator's arguments, pairs of placements of the results and of the
      operands: the sharded dimension of a distributed tensor, "whole" for a replicated one,
      "partial" for terms of a sum; None for an argument that is not a tensor. None where
      ``derivative`` calls only operators that have one
    - ``is_opaque``: Inductor does not decompose it
    """
    name = schema.split("(")[0]
    _library.define(schema)
    base, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.unitify, base), overload or "default")

    def run(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x[0] if isinstance(x, list) else x, FakeTensor):
            register_decompositions()
        return kernel(x, *args, **kwargs)

    _library.impl(name, run, "CompositeExplicitAutograd")
    _library.impl(name, derivative, "Autograd")
    if batched is None:
        _library.impl(name, derivative, "FuncTorchBatched")
    else:
        library.register_vmap(f"unitify::{name}", batched, lib=_library)
    _decompose(operator, decomposition or kernel)
    if is_opaque:
        _OPAQUE.add(operator)
    if sharded is not None:
        SHARDINGS[operator] = sharded
    return operator


def by_element(*rest: Placement, results: int = 1) -> Callable[..., Any]:
    """``sharded`` of ``register``, for an operator that is elementwise in its first operand.

    ``rest``: the placements of the other operands. ``results``: the number of results.
    """

    def sharded(x: Any, *_: Any) -> list[tuple[list[Placement], list[Placement]]]:
        wholes: list[Placement] = ["whole"] * (results - 1)
        placements: list[Placement] = ["whole", *range(x.ndim)]
        return [([placement, *wholes], [placement, *rest]) for placement in placements]

    return sharded


def _decompose(operator: Any, into: Callable[..., Any]) -> None:
    _DECOMPOSITIONS[operator] = into
    # torch's own table, in which ``torch.onnx.export`` looks up unknown operators.
    torch._decomp.register_decomposition(operator)(into)


_decompose(NARROW, there_and_back)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """A table of decompositions of our operators into torch's own.

    A decomposed program runs without unitify::

        program = torch.export.export(module, args).run_decompositions(unitify.decompositions())
        torch.export.save(program, "model.pt2")

    Use it for the forward pass only: its gradients lack our scales and rounding.
    ``torch.onnx.export`` and Inductor use the table automatically.
    """
    return dict(_DECOMPOSITIONS)


def at_one_level(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` at the present level of transforms, or without a transform.

    ``Function.apply`` starts at the top level, which would skip this level within a dispatch.
    """
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def applied(*args: Any) -> Any:
        if not is_transformed():
            return apply(*args)
        with enable_single_level_autograd_function():
            return apply(*args)

    return applied


def below(operator: Any, *args: Any) -> Any:
    """``operator`` without its derivative at this level, but with those of lower levels."""
    register_shardings()
    with torch._C._AutoDispatchBelowAutograd():
        if not is_transformed():
            return operator(*args)
        with torch.enable_grad(), _set_fwd_grad_enabled(True):
            return operator(*args)


def is_transformed() -> bool:
    """Is this call inside a transform of ``torch.func``?"""
    return torch._C._are_functorch_transforms_active()


def is_plain(x: Tensor) -> bool:
    """Is ``x`` a plain tensor, outside of transforms? Then the dispatcher is not needed again."""
    return type(x) in _PLAIN and not torch._C._are_functorch_transforms_active()


def is_batch_of_gradients(x: Tensor) -> bool:
    """Is ``x`` one of the gradients of ``torch.autograd.grad(…, is_grads_batched=True)``?

    This is not a transform of ``torch.func``, and supports fewer operators.
    """
    return torch._C._functorch.is_legacy_batchedtensor(x)


def is_spread(x: Tensor) -> bool:
    """Is ``x`` a distributed tensor?"""
    return any(kind.__module__.startswith("torch.distributed.tensor") for kind in type(x).__mro__)


def register_shardings() -> None:
    """Register the placements of distributed tensors, once torch's module for them is loaded."""
    if SHARDINGS and "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import Partial, Replicate, Shard
        from torch.distributed.tensor.experimental import register_sharding

        words = {"whole": Replicate(), "partial": Partial(), None: None}

        def placed(sharded: Callable[..., Any]) -> Callable[..., Any]:
            def placements(*args: Any, **kwargs: Any) -> Any:
                return [
                    tuple([words[p] if p in words else Shard(p) for p in side] for side in row)
                    for row in sharded(*args, **kwargs)
                ]

            return placements

        while SHARDINGS:
            operator, sharded = SHARDINGS.popitem()
            register_sharding(operator)(placed(sharded))


def register_decompositions() -> None:
    """Let Inductor fuse our operators with their neighbors, if Inductor is loaded.

    Inductor may be loaded after this module. Each compilation first runs a graph on tensors without
    data, so the kernels of our operators call this in time.
    """
    inductor = sys.modules.get("torch._inductor.decomposition")
    if inductor is None and "torch._inductor" in sys.modules:
        inductor = importlib.import_module("torch._inductor.decomposition")
    table = {o: into for o, into in _DECOMPOSITIONS.items() if o not in _OPAQUE}
    if inductor is None or table.keys() <= inductor.decompositions.keys():
        return
    inductor.decompositions.update(table)
    lower_for_inductor()
    # Inductor may have copied the table in an earlier compilation. Its caches on disk identify an
    # operator by name only, so our version is part of their keys.
    inductor.fast_random_decomps.cache_clear()
    torch.compiler.config.cache_key_tag += f" unitify {__version__}"
