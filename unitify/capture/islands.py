"""A model that cannot be captured whole, captured island by island.

Takes a model and example inputs; gives the captures that together stand for it, by part. Usually
that is one, of the whole model. Otherwise its submodules are tried from the top down, each on the
inputs that it receives in one run of the model; what can be captured is an *island*, exact at its
boundary, since values that cross it are true. What is left runs as the Python code that it is.

One recording holds for the calls that its guards allow. Where there are calls of other kinds
(another side of a branch on a size, other arguments, the other mode) a module has a recording for
each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from unitify.capture.example import copied, initialise_lazy
from unitify.capture.execution import backward_starts, unchanged
from unitify.capture.exporting import without_cache
from unitify.capture.sizes import RECORDING_SECONDS
from unitify.capture.small import tried_small
from unitify.capture.whole import Capture, capture, nothing_captured
from unitify.diagnostics import (
    AliasedMutation,
    CacheLeftOut,
    Diagnostic,
    GradientLost,
    NotCaptured,
    UnitifyError,
)

#: Failures of a capture that its submodules may not have.
_LOCAL = (NotCaptured, GradientLost, AliasedMutation)

#: Ends the name of each further recording of a module, with its number.
_FURTHER = re.compile(r"@\d+$")
#: A module that is called in more ways than this is recorded for the first ones.
_MOST = 16

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Recording:
    """The captures that stand for ``model``, by part.

    A part is named by the path of its submodule ("" for the whole model), and by ``@2``, ``@3``
    after it where that has further recordings: of the other mode, or for other sizes.
    ``diagnostics``: what was left alone.
    """

    model: nn.Module
    parts: Mapping[str, Capture]
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def whole(self) -> Capture | None:
        """The one capture of the whole model, for every call; None if it takes more than one."""
        return self.parts[""] if tuple(self.parts) == ("",) else None


def path_of(part: str) -> str:
    """The path of the submodule that a part stands for."""
    return _FURTHER.sub("", part)


def flat_calls(parts: Mapping[str, Capture], name: str, calls: Sequence[Call]) -> list[list[Any]]:
    """Flat inputs of those calls of the model that the part ``name``, one of its whole, is for.

    A part that none is for has its own example.

    Raises ``UnitifyError`` (U104, U111) for a call that no part takes.
    """
    own = parts[name]
    found: list[list[Any]] = []
    for args, kwargs in calls:
        flat = own.call.fitted(args, kwargs)
        if isinstance(flat, list):
            found.append(flat)
        elif not any(_takes(captured, (args, kwargs)) for captured in parts.values()):
            raise UnitifyError(own.call.misfit(flat))
    return found or ([list(own.example)] if calls else [])


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any = "auto",
    further: Sequence[Call] = (),
    seconds: float | None = RECORDING_SECONDS,
) -> Recording:
    """Capture ``model`` whole, else each of its islands.

    ``further`` calls are recorded, too, where the recordings so far do not hold for them.
    ``seconds``: see ``capture``.

    Raises ``UnitifyError``: U102 where no part of it can be captured.
    """
    initialise_lazy(model, args, kwargs)
    calls = [(args, kwargs), *further]
    try:
        parts = _recordings("", model, calls, dynamic_shapes, seconds)
    except UnitifyError as error:
        if not all(isinstance(d, _LOCAL) for d in error.diagnostics):
            raise
        with without_cache(model) as cached:
            found = _islands(model, calls, dynamic_shapes, error, seconds)
        notes = [CacheLeftOut(where=type(model).__name__)] if cached else []
        return dataclasses.replace(found, diagnostics=(*found.diagnostics, *notes))
    noted = dict.fromkeys(d for captured in parts.values() for d in captured.diagnostics)
    return Recording(model, parts, tuple(noted))


def _recordings(
    path: str, module: nn.Module, calls: Sequence[Call], shapes: Any, seconds: float | None
) -> dict[str, Capture]:
    """As many recordings of a module as its calls need, by part."""
    found: list[Capture] = []
    for call in calls:
        modes = {captured.mode for captured in found}
        if not modes or not all(
            any(_takes(c, call) for c in found if c.mode == mode) for mode in modes
        ):
            captured = capture(module, *call, shapes, seconds)
            both = [captured] if captured.other is None else [captured, captured.other]
            found += [tried_small(c, *call) for c in both]
    parts = {path: found[0]}
    for number, captured in enumerate(found[1:], start=2):
        parts[f"{path}@{number}"] = _with_own_constants(captured, number)
    return parts


def _takes(captured: Capture, call: Call) -> bool:
    return isinstance(captured.call.fitted(*call), list)


def _with_own_constants(captured: Capture, number: int) -> Capture:
    """The capture with other names for its constants, beside those of others on the same module."""
    renamed = {name: f"captured_{number}_{name}" for name in captured.constants}
    for node in captured.graph.nodes:
        if node.op == "get_attr" and node.target in renamed:
            node.target = renamed[node.target]
    constants = {renamed[name]: constant for name, constant in captured.constants.items()}
    return dataclasses.replace(captured, constants=constants)


def _islands(
    model: nn.Module,
    given: Sequence[Call],
    dynamic_shapes: Any,
    error: UnitifyError,
    seconds: float | None,
) -> Recording:
    calls = _observe(model, given)
    shapes = dynamic_shapes if dynamic_shapes is None else "auto"
    found: dict[str, Capture] = {}
    notes: list[Diagnostic] = list(_named(error, type(model).__name__))
    # Top down: the children of a module are tried only where the module itself fails.
    pending = list(_children(model, ""))
    seen: set[nn.Module] = set()
    while pending:
        path, module = pending.pop(0)
        if module in seen or not any(True for _ in module.parameters()):
            continue
        seen.add(module)
        if module in calls.unfit:
            notes.append(NotCaptured(where=path, module=path, reason=calls.unfit[module]))
        elif module in calls.inputs:
            try:
                received = list(calls.inputs[module].values())[:_MOST]
                found.update(_recordings(path, module, received, shapes, seconds))
                seen.update(module.modules())
                continue
            except UnitifyError as failure:
                notes.extend(_named(failure, path))
        elif not any(True for _ in module.children()):
            notes.append(NotCaptured(where=path, module=path, reason="it is not called itself"))
        pending[:0] = _children(module, path)
    if not found:
        raise nothing_captured("; ".join(d.message for d in notes)) from error
    held = _shared_parameters(model, found) | _used_outside(model, found, calls)
    parts = {part: _with_true(captured, held) for part, captured in found.items()}
    for part, captured in parts.items():
        where = path_of(part)
        notes.extend(
            dataclasses.replace(d, where=f"{where} {d.where}".strip()) for d in captured.diagnostics
        )
    return Recording(model, parts, tuple(notes))


def _children(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        yield f"{path}.{name}" if path else name, child


def _named(error: UnitifyError, path: str) -> Iterator[Diagnostic]:
    """Why the module at ``path`` was not captured, as notes that name it."""
    for diagnostic in error.diagnostics:
        reason = getattr(diagnostic, "reason", None) or diagnostic.message
        if isinstance(diagnostic, GradientLost):
            yield dataclasses.replace(diagnostic, where=path)
        else:
            frames = diagnostic.frames
            yield NotCaptured(where=path, module=path, reason=reason, frames=frames)


@dataclass
class _Calls:
    """What one run of a model shows.

    ``inputs``: each submodule's calls, one of every form. ``uses``: each parameter, with the
    modules that were running whenever it was used. ``unfit``: modules that a graph cannot stand
    for, and why.
    """

    inputs: dict[nn.Module, dict[Any, Call]] = field(default_factory=dict)
    uses: dict[nn.Parameter, set[tuple[nn.Module, ...]]] = field(default_factory=dict)
    unfit: dict[nn.Module, str] = field(default_factory=dict)


class _ParameterUse(TorchFunctionMode):
    """Notes which modules are running where a parameter's contents are used."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self.calls = calls
        self.running: list[nn.Module] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A size or a type is no use of the contents.
        if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result)):
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, nn.Parameter):
                    self.calls.uses.setdefault(leaf, set()).add(tuple(self.running))
        return result


def _observe(model: nn.Module, observed: Sequence[Call]) -> _Calls:
    calls = _Calls()
    use = _ParameterUse(calls)
    attributes: list[dict[str, Any]] = []

    def before(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if any(_is_transformed(leaf) for leaf in pytree.tree_leaves((given, named))):
            calls.unfit.setdefault(
                module, "it is called by a transform of torch.func, such as vmap"
            )
        else:
            received = calls.inputs.setdefault(module, {})
            form = _form(given, named)
            if form not in received and len(received) < _MOST:
                received[form] = pytree.tree_map(copied, (given, named))
        use.running.append(module)
        attributes.append(dict(vars(module)))

    def after(module: nn.Module, given: Any, result: Any) -> None:
        known = attributes.pop()
        for name, value in vars(module).items():
            if name not in known or not _is_same(known[name], value):
                # Other code may read it, and a graph would not write it.
                reason = f"its call writes {name}, which other code may read"
                for running in use.running:
                    calls.unfit.setdefault(running, reason)
        use.running.pop()

    handles = []
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            calls.unfit[module] = "it is a TorchScript module"
            continue
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    def run(call: Call) -> Any:
        given, named = pytree.tree_map(copied, call)
        return model(*given, **named)

    def observe(call: Call, gradients: bool) -> None:
        use.running.clear()
        attributes.clear()
        with unchanged(model, wholly=True), torch.set_grad_enabled(gradients), use:
            run(call)

    try:
        for call in observed:
            try:
                # Without gradients, so that nothing a module keeps of the run holds on to a graph.
                observe(call, gradients=False)
            except RuntimeError:
                # A call may differentiate inside.
                observe(call, gradients=True)
            # A backward pass in Python may use parameters, too. Some models refuse to run it.
            with (
                contextlib.suppress(Exception),
                unchanged(model, wholly=True),
                torch.enable_grad(),
                use,
            ):
                _run_backward(*backward_starts(run(call), None))
    except Exception as error:
        raise nothing_captured(f"it does not run: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _form(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What a recording can tell calls apart by: structure, sizes and types, other values."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    kinds = ((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else repr(x) for x in leaves)
    return (repr(spec), *kinds)


def _run_backward(starts: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """``torch.autograd.backward``, which would switch off the mode that notes uses."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        tuple(starts), tuple(gradients), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def _is_transformed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(
        value
    )


def _is_same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, int | float | str) and type(a) is type(b) and a == b)


def _shared_parameters(model: nn.Module, found: Mapping[str, Capture]) -> set[nn.Parameter]:
    """Parameters of islands that some module outside the island holds, too."""
    shared: set[nn.Parameter] = set()
    for part in found:
        inside = set(model.get_submodule(path_of(part)).modules())
        held = {p for m in inside for p in m.parameters(recurse=False)}
        for module in model.modules():
            if module not in inside:
                shared |= held & set(module.parameters(recurse=False))
    return shared


def _used_outside(
    model: nn.Module, found: Mapping[str, Capture], calls: _Calls
) -> set[nn.Parameter]:
    """Parameters of islands that Python code used while no island that holds them was running."""
    holders: dict[nn.Parameter, set[nn.Module]] = {}
    for part in found:
        island = model.get_submodule(path_of(part))
        for parameter in island.parameters():
            holders.setdefault(parameter, set()).add(island)
    return {
        parameter
        for parameter, islands in holders.items()
        if any(islands.isdisjoint(running) for running in calls.uses.get(parameter, ()))
    }


def _with_true(captured: Capture, parameters: set[nn.Parameter]) -> Capture:
    """The capture with ``parameters`` kept at true scale: no name stands for them."""
    names = dict(captured.model.named_parameters(remove_duplicate=False))
    aliases = {n: first for n, first in captured.aliases.items() if names[n] not in parameters}
    return dataclasses.replace(captured, aliases=aliases)
