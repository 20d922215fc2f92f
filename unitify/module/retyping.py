"""A module whose weights have other number types than those it was recorded in.

It is recorded again, in the types of a call, and runs that recording from then on: the graph of a
transformed module is always one of the types that its weights have. ``module`` stands for a
``UnitScaledModule`` of one graph throughout.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.signature import bind, unbind
from unitify.diagnostics import RecordedAnew, UnitifyError, UnitifyWarning
from unitify.module.graph_forward import own_code_again
from unitify.module.types import Types, to_record
from unitify.runtime.registered import is_transformed

#: What of a module is of one recording.
_OF_ONE = (
    "plan",
    "capture",
    "diagnostics",
    "recipe",
    "_casts",
    "verification",
)
#: The same, of how it runs.
_RUNNING = ("_knobs", "_submodules", "_undivided", "graph")


def record_anew(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give ``module`` a graph for the types that its weights have in this call, if it has none.

    Where no recording can be made it keeps the graph that it has, and finds that out itself.
    """
    if module._again is None or module.is_inference:
        return
    types: Types = module.__dict__["_knobs"].types
    if (changed := types.changed()) is not None:
        # Not while a compiler traces; and not to be decorated so, which loads the compiler.
        torch.compiler.disable(_exchange)(module, types, changed, args, kwargs)


def _exchange(
    module: Any,
    types: Types,
    changed: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    if module.__dict__["_knobs"].turned_attribute() is not None or is_transformed():
        return
    known: dict[Any, dict[str, Any] | None] = module.__dict__.setdefault("_recordings", {})
    now = types.now()
    key = frozenset(now.items())
    if key not in known:
        example = _example(module, args, kwargs)
        if example is None:
            return
        known[key] = _recording(module, example)
        if known[key] is not None:
            note = RecordedAnew(
                where=type(module.original).__name__,
                tensor=changed,
                dtype=str(now.get(changed)).removeprefix("torch."),
            )
            warnings.warn(UnitifyWarning(str(note)), stacklevel=5)
    found = known[key]
    if found is None:
        return
    known[frozenset(types.recorded.items())] = _taken(module)
    _put(module, found)


def _taken(module: Any) -> dict[str, Any]:
    """What of ``module`` is of its present recording."""
    held = {name: getattr(module, name) for name in (*_OF_ONE, *_RUNNING)}
    return held | {"constants": _constants(module)}


def _constants(module: Any) -> dict[str, Any]:
    """What a recording, or its casts, brought into the root of a module."""
    tree, model = module._tree, module.capture.model
    held = {**tree._buffers, **tree._modules}
    own = {*model._buffers, *model._modules}
    made = [where for where, _ in module.capture.made]
    return {
        name: value
        for name, value in held.items()
        if name not in own and not any(where.names_tensor(name) for where in made)
    }


def _put(module: Any, found: dict[str, Any]) -> None:
    tree = module._tree
    for name in _constants(module):
        tree._buffers.pop(name, None)
        tree._modules.pop(name, None)
    for name, constant in found["constants"].items():
        if isinstance(constant, nn.Module):
            tree._modules[name] = constant
        else:
            tree.register_buffer(name, constant, persistent=False)
    own_code_again(tree)
    for name in _OF_ONE:
        setattr(module, name, found[name])
    if found["_knobs"] is None:
        module.divide()
        module.watch(tree)
    else:
        for name in _RUNNING[:-1]:
            module.__dict__[name] = found[name]
        (module._submodules or module._undivided).install()
    module.graph = found["graph"]


def _recording(
    module: Any, example: tuple[tuple[Any, ...], dict[str, Any]]
) -> dict[str, Any] | None:
    """A recording in the types of a call, on the example; None where none can be made."""
    assert module._again is not None
    capture = module.capture
    model = to_record(module._tree, capture.aliases, capture.has_hooks)
    for name in _constants(module):
        model._buffers.pop(name, None)
        model._modules.pop(name, None)
    try:
        with torch.enable_grad():
            made = module._again(model, *example)
    except UnitifyError:
        return None
    # Of several graphs each runs at its own place in the model's code, which ours are not.
    return {**_taken(made), "_knobs": None} if list(made.parts) == [""] else None


def _example(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The example of the recording in the types of a call; None for a call of another form."""
    call = module.capture.call
    try:
        given = bind(call.signature, args, kwargs)
    except TypeError:
        return None
    if list(given) != list(call.arguments):
        return None
    leaves, spec = pytree.tree_flatten(given)
    if len(leaves) != len(module.capture.example):
        return None
    cast = [
        kept.to(leaf.device, leaf.dtype if leaf.is_floating_point() else None)
        if isinstance(kept, Tensor) and isinstance(leaf, Tensor)
        else kept
        for kept, leaf in zip(module.capture.example, leaves, strict=True)
    ]
    return unbind(call.signature, args, kwargs, pytree.tree_unflatten(cast, spec))
