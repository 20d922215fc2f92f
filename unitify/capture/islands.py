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

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from unitify.capture.calls import Calls, calls_of
from unitify.capture.compiled import eagerly
from unitify.capture.example import Inputs, in_order, initialize_lazy
from unitify.capture.exporting import without_cache
from unitify.capture.observing import Observed, observe
from unitify.capture.outline import Outline, outline_of
from unitify.capture.recorded_graph import How
from unitify.capture.settled import Settled, settled
from unitify.capture.sizes import RECORDING_SECONDS
from unitify.capture.small import tried_small
from unitify.capture.watching import without_hooks
from unitify.capture.whole import Capture, capture, nothing_captured
from unitify.diagnostics import (
    AliasedMutation,
    AlreadyTransformed,
    CacheLeftOut,
    Diagnostic,
    GradientLost,
    NotCaptured,
    UnitifyError,
    UnknownOption,
)

#: Do captures of a module, by part, compute what it computes on these inputs?
IsFaithful = Callable[[nn.Module, Mapping[str, Capture], Inputs], bool]

#: Failures of a capture that its submodules may not have.
_LOCAL = (NotCaptured, GradientLost, AliasedMutation)

#: Ends the name of each further recording of a module, with its number.
_FURTHER = re.compile(r"@\d+$")


@dataclass(frozen=True)
class Recording:
    """The captures of ``model``, by part.

    A part is named by the path of its submodule ("" for the whole model), and by ``@2``, ``@3``
    after it where that has further recordings: of the other mode, or for other sizes.
    ``diagnostics``: what was left alone.
    """

    model: nn.Module
    parts: Mapping[str, Capture]
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """What the user should know of the recording."""
        return self.diagnostics if self.whole is None else self.whole.diagnostics

    @property
    def whole(self) -> Capture | None:
        """The one capture of the whole model, for every call; None if it takes more than one."""
        return self.parts[""] if tuple(self.parts) == ("",) else None


def path_of(part: str) -> str:
    """The path of a part's submodule."""
    return _FURTHER.sub("", part)


def flat_calls(parts: Mapping[str, Capture], name: str, calls: Sequence[Inputs]) -> list[list[Any]]:
    """Flat inputs of those calls of the model that the part ``name``, one of its whole, is for.

    A part without such a call has its own example.

    Raises ``UnitifyError`` (U104, U111) for a call that no part takes.
    """
    own = parts[name]
    found: list[list[Any]] = []
    for args, kwargs in calls:
        flat = own.call.fitted_apart(args, kwargs)
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
    further: Sequence[Inputs] = (),
    seconds: float | None = RECORDING_SECONDS,
    is_faithful: IsFaithful | None = None,
) -> Recording:
    """Capture ``model`` whole, else each of its islands.

    What its calls do beside returning is observed first: a module whose state no graph keeps stays
    Python. ``model`` is afterwards as it was before. ``further`` calls are recorded, too, where the
    recordings so far do not hold for them. ``seconds``: see ``How``. ``is_faithful``: a test that
    the whole is known to fail, and that each island has to pass.

    Raises ``UnitifyError``: U102 where no part of it can be captured, U016 for a module that is
    transformed already.
    """
    if not isinstance(seconds, int | float | None) or isinstance(seconds, bool):
        value, choices = repr(seconds), "numbers of seconds, None"
        raise UnitifyError(UnknownOption(option="recording_seconds", value=value, choices=choices))
    for path, module in model.named_modules():
        if getattr(type(module), "IS_TRANSFORMED", False):
            name = path or type(module).__name__
            raise UnitifyError(AlreadyTransformed(where=name, module=name))
    initialize_lazy(model, args, kwargs)
    with eagerly(model):
        return _recorded(model, [(args, kwargs), *further], dynamic_shapes, seconds, is_faithful)


def _recorded(
    model: nn.Module,
    calls: Sequence[Inputs],
    dynamic_shapes: Any,
    seconds: float | None,
    is_faithful: IsFaithful | None,
) -> Recording:
    args, kwargs = calls[0]
    observed = observe(model, args, kwargs)
    with settled(model, observed, args, kwargs) as state:
        asks = bool(observed.layouts)
        # What further calls run was not observed.
        touched, has_modes = observed.touched, observed.has_modes or len(calls) > 1
        how = How(
            dynamic_shapes, seconds, state.carried, touched, asks, observed.asks,
            has_modes=has_modes,
        )  # fmt: skip
        try:
            if is_faithful is not None:
                raise _unfaithful(type(model).__name__)
            parts = _whole(model, calls, how, observed)
        except UnitifyError as error:
            if not all(isinstance(d, _LOCAL) for d in error.diagnostics):
                raise
            with without_cache(model) as cached:
                found = _islands(model, calls, how, observed, state, error, is_faithful)
            notes = [CacheLeftOut(where=type(model).__name__)] if cached else []
            return dataclasses.replace(found, diagnostics=(*found.diagnostics, *notes))
        noted = dict.fromkeys(d for captured in parts.values() for d in captured.diagnostics)
        outlines: list[Outline] = []
        for captured in parts.values():
            outlines += [outline for outline in captured.calls if outline not in outlines]
        parts = _with_state(parts, model, observed, state, outlines)
        return Recording(model, parts, tuple(noted))


def _whole(
    model: nn.Module, calls: Sequence[Inputs], how: How, observed: Observed
) -> dict[str, Capture]:
    """The whole model as one graph, its own hooks within where they leave nothing behind."""
    unfit = [(path, observed.unfit[m]) for path, m in model.named_modules() if m in observed.unfit]
    if unfit:
        name = type(model).__name__
        raise UnitifyError(
            *(NotCaptured(where=path or name, module=path or name, reason=r) for path, r in unfit)
        )
    # torch records the code of a module of a graph without its hooks.
    are_apart = None in observed.unfit or isinstance(model, fx.GraphModule)
    if are_apart or model._backward_hooks or model._backward_pre_hooks:
        with without_hooks(model):
            parts = _recordings("", model, calls, how)
        return {name: dataclasses.replace(c, has_hooks=False) for name, c in parts.items()}
    return _recordings("", model, calls, how)


def _recordings(
    path: str, module: nn.Module, calls: Sequence[Inputs], how: How
) -> dict[str, Capture]:
    """As many recordings of a module as its calls need, by part."""
    found: list[Capture] = []
    for call in calls:
        modes = {captured.mode for captured in found}
        if not modes or not all(
            any(_takes(c, call) for c in found if c.mode == mode) for mode in modes
        ):
            captured = capture(module, *call, how)
            both = [captured] if captured.other is None else [captured, captured.other]
            found += [tried_small(c, *call) for c in both]
    parts = {path: found[0]}
    for number, captured in enumerate(found[1:], start=2):
        parts[f"{path}@{number}"] = _with_own_constants(captured, number)
    return parts


def _takes(captured: Capture, call: Inputs) -> bool:
    return isinstance(captured.call.fitted_apart(*call), list)


def _with_own_constants(captured: Capture, number: int) -> Capture:
    """The capture with other names for its constants, beside those of others on the same module."""
    renamed = {name: f"captured_{number}_{name}" for name in captured.constants}
    for node in captured.graph.nodes:
        if node.op == "get_attr" and node.target in renamed:
            node.target = renamed[node.target]
    constants = {renamed[name]: constant for name, constant in captured.constants.items()}
    return dataclasses.replace(captured, constants=constants)


def _with_state(
    parts: Mapping[str, Capture],
    model: nn.Module,
    observed: Observed,
    state: Settled,
    outlines: Sequence[Outline],
) -> dict[str, Capture]:
    """The captures with what a first call makes, what the code of their modules reads, and the
    calls of ``model`` that they were recorded in.
    """
    paths = {module: path for path, module in model.named_modules()}
    found: dict[str, Capture] = {}
    for name, captured in parts.items():
        inside = set(model.get_submodule(path_of(name)).modules())
        reads = {
            where: frozenset(paths[m] for m in who if m is not None)
            for where, who in observed.reads.items()
            if who & inside
        }
        captured = dataclasses.replace(
            captured, made=state.made, reads=reads, calls=tuple(outlines)
        )
        found[name] = _with_true(captured, _touched(model))
    return found


def _islands(
    model: nn.Module,
    made: Sequence[Inputs],
    how: How,
    observed: Observed,
    state: Settled,
    error: UnitifyError,
    is_faithful: IsFaithful | None,
) -> Recording:
    calls = calls_of(model, made)
    shapes = how.dynamic_shapes if how.dynamic_shapes is None else "auto"
    how = dataclasses.replace(how, dynamic_shapes=shapes)
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
                received = list(calls.inputs[module].values())
                own = tuple(w for t in observed.touched if (w := t.within(path)) is not None)
                asks = not observed.layouts.isdisjoint(module.modules())
                here = dataclasses.replace(how, touched=own, asks_layout=asks)
                with without_hooks(module):
                    recorded = _recordings(path, module, received, here)
                if is_faithful is not None:
                    alone = {name.removeprefix(path): c for name, c in recorded.items()}
                    if not all(is_faithful(module, alone, call) for call in received):
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
    signature = inspect.signature(model.forward)
    outlines = [
        outline_of(args, in_order(signature, kwargs), sizes=shapes)
        for args, kwargs in calls.distinct
    ]
    parts = _with_state(parts, model, observed, state, outlines)
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
    model: nn.Module, found: Mapping[str, Capture], calls: Calls
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
