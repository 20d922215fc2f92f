"""How an operator of ours becomes one of torch's: a schema, what it does, and its derivatives.

Registered so, it survives export, Dynamo and AOT autograd with its backward pass, Inductor fuses it
through a decomposition, and the transforms of ``torch.func`` take it as they take torch's own. Each
of those runs it at levels, one for each transform: a ``Function`` is applied at one level, and
``below`` calls the operator again for what is under it.
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

#: How each operator takes tensors that are spread over processes: see ``register``.
SHARDINGS: dict[Any, Callable[..., Any]] = {}

#: One placement of an operand or a result: the dimension along which it is spread, or a word.
Placement = int | str | None

#: Types of tensors that hold data and are not being recorded.
_PLAIN = (Tensor, torch.nn.Parameter)


def register(
    schema: str,
    kernel: Callable[..., Any],
    derivative: Callable[..., Any],
    batched: Callable[..., Any] | None = None,
    decomposition: Callable[..., Any] | None = None,
    sharded: Callable[..., list[tuple[list[Placement], list[Placement]]]] | None = None,
) -> Any:
    """The operator ``unitify::schema``, ready to be called.

    - ``kernel``: its results, from tensors that hold data, or would
    - ``derivative``: the same, differentiable at one level: see ``at_one_level``
    - ``batched``: as ``torch.library.register_vmap`` takes it; where None, ``derivative`` calls
      nothing but operators that have one
    - ``decomposition``: what a compiler fuses; the kernel where None
    - ``sharded``: which placements of the results go with which of the operands, from an operator's
      arguments: a dimension along which a tensor is spread over processes, "whole" in each of them,
      "partial" for what is still to be added up; None for an argument that is no tensor. Where
      None, ``derivative`` calls nothing but operators that have one
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
    if sharded is not None:
        SHARDINGS[operator] = sharded
    return operator


def by_element(*rest: Placement, results: int = 1) -> Callable[..., Any]:
    """What takes each element of its first operand by itself, for ``sharded`` of ``register``.

    ``rest``: of the operands after it, and of the results after the first.
    """

    def sharded(x: Any, *_: Any) -> list[tuple[list[Placement], list[Placement]]]:
        wholes: list[Placement] = ["whole"] * (results - 1)
        places: list[Placement] = ["whole", *range(x.ndim)]
        return [([place, *wholes], [place, *rest]) for place in places]

    return sharded


def _decompose(operator: Any, into: Callable[..., Any]) -> None:
    _DECOMPOSITIONS[operator] = into
    # Torch's own table, in which ``torch.onnx.export`` looks up what it does not know.
    torch._decomp.register_decomposition(operator)(into)


_decompose(NARROW, there_and_back)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The operators of transformed modules in terms of torch's own, as a table of decompositions.

    A program without them needs no unitify to run::

        program = torch.export.export(module, args).run_decompositions(unitify.decompositions())
        torch.export.save(program, "model.pt2")

    Such a program is the forward pass: its gradients are rounded and scaled as torch's own are.
    ``torch.onnx.export`` and Inductor know the table already.
    """
    return dict(_DECOMPOSITIONS)


def at_one_level(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for the level of a transform at which it is called, or for no transform.

    ``Function.apply`` starts at the top; from within a dispatch it would not come back here.
    """
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def applied(*args: Any) -> Any:
        if not is_transformed():
            return apply(*args)
        with enable_single_level_autograd_function():
            return apply(*args)

    return applied


def below(operator: Any, *args: Any) -> Any:
    """``operator`` without its derivative at this level, but with those of the levels under it."""
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
    """Is this call of nobody's concern? Then it need not go through the dispatcher again."""
    return type(x) in _PLAIN and not torch._C._are_functorch_transforms_active()


def is_batch_of_gradients(x: Tensor) -> bool:
    """Is ``x`` one of the gradients of ``torch.autograd.grad(…, is_grads_batched=True)``?

    That is no transform of ``torch.func``, and knows fewer of torch's operators.
    """
    return torch._C._functorch.is_legacy_batchedtensor(x)


def is_spread(x: Tensor) -> bool:
    """Is ``x`` spread over processes?"""
    return any(kind.__module__.startswith("torch.distributed.tensor") for kind in type(x).__mro__)


def register_shardings() -> None:
    """Let operators take tensors that are spread over processes, if there may be any."""
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
    """Let Inductor fuse our operators into their neighbors, if Inductor is loaded.

    It need not be when this module is imported. Every compilation first runs a graph on tensors
    without data, so the kernels of our operators call this in time.
    """
    inductor = sys.modules.get("torch._inductor.decomposition")
    if inductor is None and "torch._inductor" in sys.modules:
        inductor = importlib.import_module("torch._inductor.decomposition")
    # What remains of casts is lowered: taken apart, it would be no more than a conversion.
    table = {operator: into for operator, into in _DECOMPOSITIONS.items() if operator != NARROW}
    if inductor is None or table.keys() <= inductor.decompositions.keys():
        return
    inductor.decompositions.update(table)
    lower_for_inductor()
    # Inductor keeps a copy of the table once something else has been compiled. Its caches on disk
    # know an operator by its name, whatever an older version of ours had made of it.
    inductor.fast_random_decomps.cache_clear()
    torch.compiler.config.cache_key_tag += f" unitify {__version__}"
