"""A module whose weights changed their number types after it was recorded.

It is recorded again, in the types of a call, and runs that recording from then on. So the graph of
a transformed module always has the types of its weights. ``module`` is a ``UnitScaledModule`` of
one graph throughout.
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

#: The attributes of a module that belong to one recording.
_OF_ONE = (
    "plan",
    "capture",
    "about",
    "_casts",
)
#: Those of them that run it.
_RUNNING = ("_recorded_state", "_submodules", "_undivided", "graph")


def record_anew(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give ``module`` a graph for the types of its weights in this call, if it has none.

    Where no recording can be made it keeps its graph. The call then finds that the types changed.
    """
    if module.about.again is None or module.is_inference:
        return
    types: Types = module.__dict__["_recorded_state"].types
    if (changed := types.changed()) is not None:
        # A compiler must not trace this. A decorator would load the compiler at import.
        torch.compiler.disable(_exchange)(module, types, changed, args, kwargs)


def _exchange(
    module: Any,
    types: Types,
    changed: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    if module.__dict__["_recorded_state"].changed_attribute() is not None or is_transformed():
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
    """The attributes of ``module`` that belong to its present recording."""
    held = {name: getattr(module, name) for name in (*_OF_ONE, *_RUNNING)}
    return held | {"constants": _constants(module)}


def _constants(module: Any) -> dict[str, Any]:
    """Tensors and modules that a recording, or its casts, added to the root of a module."""
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
    if found["_recorded_state"] is None:
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
    """A recording on the example, in the types of a call; None where it fails."""
    capture = module.capture
    model = to_record(module._tree, capture.aliases, capture.has_hooks)
    for name in _constants(module):
        model._buffers.pop(name, None)
        model._modules.pop(name, None)
    try:
        with torch.enable_grad():
            made = module.about.again(model, *example)
    except UnitifyError:
        return None
    # Several graphs would be called from the model's code, which this module does not run.
    return {**_taken(made), "_recorded_state": None} if list(made.parts) == [""] else None


def _example(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The recorded example, in the types of a call; None for a call of another structure."""
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
