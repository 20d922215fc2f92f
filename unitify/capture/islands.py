"""A model that cannot be captured whole, captured island by island.

Takes a model and example inputs; gives the captures that together stand for it, by part. Usually
that is one, of the whole model. Otherwise its submodules are tried from the top down, each on the
inputs that it receives in one run of the model; what can be captured is an *island*, exact at its
boundary, since values that cross it are true. What is left runs as the Python code that it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from unitify.capture.example import Inputs, copied, initialise_lazy
from unitify.capture.execution import backward_starts, unchanged
from unitify.capture.exporting import without_cache
from unitify.capture.observing import Observed, Settled, observe, settled
from unitify.capture.watching import Watch, watched, without_hooks
from unitify.capture.whole import Capture, capture, nothing_captured
from unitify.diagnostics import (
    AliasedMutation,
    AlreadyTransformed,
    CacheLeftOut,
    Diagnostic,
    GradientLost,
    NotCaptured,
    UnitifyError,
)

#: Do captures of a module, by part, compute what it computes on these inputs?
IsFaithful = Callable[[nn.Module, Mapping[str, Capture], Inputs], bool]

#: Failures of a capture that its submodules may not have.
_LOCAL = (NotCaptured, GradientLost, AliasedMutation)

#: Ends the name of a part that holds in the other mode than its twin.
OTHER_MODE = "@other"


@dataclass(frozen=True)
class Recording:
    """The captures that stand for ``model``, by part.

    A part is named by the path of its submodule ("" for the whole model), and ``@other`` after it
    where the two modes of a submodule are two graphs. ``diagnostics``: what was left alone.
    """

    model: nn.Module
    parts: Mapping[str, Capture]
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def whole(self) -> Capture | None:
        """The one capture of the whole model, in both modes; None if it takes more than one."""
        return self.parts[""] if tuple(self.parts) == ("",) else None


def path_of(part: str) -> str:
    """The path of the submodule that a part stands for."""
    return part.removesuffix(OTHER_MODE)


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any = "auto",
    is_faithful: IsFaithful | None = None,
) -> Recording:
    """Capture ``model`` whole, else each of its islands.

    What its calls do beside returning is observed first: a module whose state no graph keeps stays
    Python. ``model`` is afterwards as it was before. ``is_faithful``: the whole is known not to be,
    and each island has to be.

    Raises ``UnitifyError``: U102 where no part of it can be captured, U016 for a module that is
    transformed already.
    """
    for path, module in model.named_modules():
        if getattr(type(module), "IS_TRANSFORMED", False):
            name = path or type(module).__name__
            raise UnitifyError(AlreadyTransformed(where=name, module=name))
    initialise_lazy(model, args, kwargs)
    observed = observe(model, args, kwargs)
    with settled(model, observed, args, kwargs) as state:
        try:
            if is_faithful is not None:
                raise _unfaithful(type(model).__name__)
            captured = _whole(model, args, kwargs, dynamic_shapes, observed, state)
        except UnitifyError as error:
            if not all(isinstance(d, _LOCAL) for d in error.diagnostics):
                raise
            with without_cache(model) as cached:
                found = _islands(
                    model, args, kwargs, dynamic_shapes, observed, state, error, is_faithful
                )
            notes = [CacheLeftOut(where=type(model).__name__)] if cached else []
            return dataclasses.replace(found, diagnostics=(*found.diagnostics, *notes))
        parts = _with_twin("", captured)
        return Recording(model, _with_state(parts, model, observed, state), captured.diagnostics)


def _whole(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    observed: Observed,
    state: Settled,
) -> Capture:
    """The whole model as one graph, its own hooks within where they leave nothing behind."""
    unfit = [(path, observed.unfit[m]) for path, m in model.named_modules() if m in observed.unfit]
    if unfit:
        name = type(model).__name__
        raise UnitifyError(
            *(NotCaptured(where=path or name, module=path or name, reason=r) for path, r in unfit)
        )
    if None in observed.unfit or model._backward_hooks or model._backward_pre_hooks:
        with without_hooks(model):
            captured = capture(model, args, kwargs, dynamic_shapes, state.carried)
        return dataclasses.replace(captured, has_hooks=False)
    return capture(model, args, kwargs, dynamic_shapes, state.carried)


def _with_state(
    parts: Mapping[str, Capture], model: nn.Module, observed: Observed, state: Settled
) -> dict[str, Capture]:
    """The captures with what a first call makes, and what the code of their modules reads."""
    found: dict[str, Capture] = {}
    for name, captured in parts.items():
        inside = set(model.get_submodule(path_of(name)).modules())
        reads = tuple(where for where, who in observed.reads.items() if who & inside)
        captured = dataclasses.replace(captured, made=state.made, reads=reads)
        found[name] = _with_true(captured, _touched(model))
    return found


def _with_twin(path: str, captured: Capture) -> dict[str, Capture]:
    parts = {path: captured}
    if captured.other is not None:
        parts[path + OTHER_MODE] = captured.other
    return parts


def _islands(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    observed: Observed,
    state: Settled,
    error: UnitifyError,
    is_faithful: IsFaithful | None,
) -> Recording:
    calls = _calls_of(model, args, kwargs)
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
        elif any(m in observed.unfit for m in module.modules()):
            if module in observed.unfit and not isinstance(error, NotCaptured):
                reason = observed.unfit[module]
                notes.append(NotCaptured(where=path, module=path, reason=reason))
        elif module in calls.inputs:
            try:
                # The module's own hooks run around its graph, as they do around its code.
                with without_hooks(module):
                    captured = capture(module, *calls.inputs[module], shapes, state.carried)
                recorded = _with_twin(path, captured)
                if is_faithful is not None:
                    alone = {name.removeprefix(path): c for name, c in recorded.items()}
                    if not is_faithful(module, alone, calls.inputs[module]):
                        raise _unfaithful(path)
                found.update(recorded)
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
    parts = _with_state(parts, model, observed, state)
    for part, captured in parts.items():
        where = path_of(part)
        notes.extend(
            dataclasses.replace(d, where=f"{where} {d.where}".strip()) for d in captured.diagnostics
        )
    return Recording(model, parts, tuple(notes))


def _unfaithful(name: str) -> UnitifyError:
    reason = "while recorded it computes something else than by itself"
    return UnitifyError(NotCaptured(where=name, module=name, reason=reason))


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

    ``inputs``: each submodule's first call. ``uses``: each parameter, with the modules that were
    running whenever it was used. ``unfit``: modules that a graph cannot stand for, and why.
    """

    inputs: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    uses: dict[nn.Parameter, set[tuple[nn.Module, ...]]] = field(default_factory=dict)
    unfit: dict[nn.Module, str] = field(default_factory=dict)


class _ParameterUse(TorchFunctionMode):
    """Notes which modules are running where a parameter's contents are used."""

    def __init__(self, calls: _Calls, watch: Watch) -> None:
        super().__init__()
        self.calls, self.watch = calls, watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A size or a type is no use of the contents.
        if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result)):
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, nn.Parameter):
                    self.calls.uses.setdefault(leaf, set()).add(tuple(self.watch.running))
        return result


def _calls_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Calls:
    calls = _Calls()

    def begins(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if any(_is_transformed(leaf) for leaf in pytree.tree_leaves((given, named))):
            calls.unfit.setdefault(
                module, "it is called by a transform of torch.func, such as vmap"
            )
        elif module not in calls.inputs:
            calls.inputs[module] = pytree.tree_map(copied, (given, named))

    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            calls.unfit[module] = "it is a TorchScript module"

    def run() -> Any:
        given, named = pytree.tree_map(copied, (args, kwargs))
        return model(*given, **named)

    def observe(gradients: bool) -> None:
        with (
            unchanged(model, wholly=True),
            torch.set_grad_enabled(gradients),
            watched(model, begins) as watch,
            _ParameterUse(calls, watch),
        ):
            run()

    try:
        try:
            # Without gradients, so that nothing a module keeps of the run holds on to a graph.
            observe(gradients=False)
        except RuntimeError:
            # A call may differentiate inside.
            observe(gradients=True)
        # A backward pass in Python may use parameters, too. Some models refuse to run it.
        with (
            contextlib.suppress(Exception),
            unchanged(model, wholly=True),
            torch.enable_grad(),
            watched(model) as watch,
            _ParameterUse(calls, watch),
        ):
            _run_backward(*backward_starts(run(), None))
    except Exception as error:
        raise nothing_captured(f"it does not run: {type(error).__name__}: {error}") from error
    return calls


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


def _touched(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that other code has in its hands: by a hook, or by the memory that they share.

    It means true numbers, whatever is done with the others.
    """
    storages: dict[int, list[nn.Parameter]] = {}
    found: set[nn.Parameter] = set()
    for parameter in model.parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            found.add(parameter)
        if parameter.layout is torch.strided and not parameter.is_meta:
            storages.setdefault(parameter.untyped_storage()._cdata, []).append(parameter)
    return found.union(*(held for held in storages.values() if len(held) > 1))


def _with_true(captured: Capture, parameters: set[nn.Parameter]) -> Capture:
    """The capture with ``parameters`` kept at true scale."""
    named = captured.model.named_parameters(remove_duplicate=False)
    true = {captured.aliases[name] for name, parameter in named if parameter in parameters}
    return dataclasses.replace(captured, true_parameters=captured.true_parameters | true)


def with_true_parameters(recording: Recording) -> Recording:
    """The recording with every parameter kept at true scale."""
    parts = {name: captured.with_true_parameters() for name, captured in recording.parts.items()}
    return dataclasses.replace(recording, parts=parts)
