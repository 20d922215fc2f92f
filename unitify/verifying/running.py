"""Runs the transformed module and the user's model, and compares everything that they do.

The model runs as the user runs it: eagerly, with its hooks and its Python state. Both make the same
``calls`` from the same state, under the same seeds of torch, Python and NumPy. Results, gradients,
buffers, inputs and all state left behind are compared bit by bit. ``validation`` also derives every
inserted factor again, without running anything.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from unitify.capture.example import Inputs
from unitify.capture.execution import LossFunction
from unitify.capture.islands import path_of
from unitify.capture.state import modes_kept
from unitify.capture.whole import Capture, nothing_captured
from unitify.cast.lowering import without_codes
from unitify.diagnostics import (
    Diagnostic,
    OneModeOnly,
    RoundsOtherwise,
    Underflow,
    UnitifyError,
    UnitifyWarning,
)
from unitify.module.assembly import unscaled
from unitify.module.unit_scaled import UnitScaledModule
from unitify.rulebook.rule_table import RuleTable
from unitify.verification import Difference, Verification
from unitify.verifying.calls import Call, calls_of
from unitify.verifying.comparison import compare
from unitify.verifying.results import Results, results_of
from unitify.verifying.side import BACKWARD, Asking, Runnable, asking_of, run, sides_of
from unitify.verifying.underflow import underflowing_gradients
from unitify.verifying.validation import validate, validate_parameters
from unitify.verifying.yardstick import rounding_among, yardstick


def verify_module(
    model: nn.Module,
    module: UnitScaledModule,
    rules: RuleTable,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss_fn: LossFunction | None = None,
    seed: int = 0,
    further: Sequence[Inputs] = (),
) -> Verification:
    """Validate the graphs of ``module``, then compare it with ``model`` by running both.

    On the meta device nothing runs. ``model`` runs in the modes of the submodules of ``module``.
    ``further``: calls to compare beside the example.
    """
    strangers = _other_parameters(model, module)
    if strangers:
        return Verification(exact=False, compared=0, differences=strangers)
    findings: tuple[Diagnostic, ...] = ()
    for name, part in module.parts.items():
        graph = without_codes(part.graph, part.capture, rules)
        findings += validate(part.capture, graph, part.plan, rules)
        findings += validate_parameters(part, model.get_submodule(path_of(name)))
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return Verification(exact=not findings, compared=0, findings=findings)
    with _in_modes_of(module, model):
        found = verify_by_running(model, module, args, kwargs, loss_fn, seed, further)
    return replace(found, exact=found.exact and not findings, findings=findings)


def verify_by_running(
    model: nn.Module,
    module: UnitScaledModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss_fn: LossFunction | None = None,
    seed: int = 0,
    further: Sequence[Inputs] = (),
) -> Verification:
    """Make the same calls of ``model`` and ``module``, and compare everything that they do.

    A call that the model refuses is left out, unless it is the first.
    """
    total = Verification(exact=True, compared=0)
    whole = module.parts.get("")
    captured = whole.capture if whole is not None else None
    own = calls_of(captured, module.training, (args, kwargs))
    others = (
        Call(f"batch {n}", module.training, batch, is_example=False)
        for n, batch in enumerate(further)
    )
    sides = sides_of(model, module)
    for number, call in enumerate([*own, *others]):
        try:
            total = _and(total, call, _compared(*sides, call, loss_fn, seed))
        except _ModelRefuses as error:
            if number == 0:
                cause = error.error
                reason = f"it does not run: {type(cause).__name__}: {cause}"
                raise nothing_captured(reason) from cause
    return total


class _ModelRefuses(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _compared(
    model: Runnable,
    module: Runnable,
    call: Call,
    loss_fn: LossFunction | None,
    seed: int,
) -> Verification:
    try:
        try:
            asking, mine = asking_of(model, call, loss_fn, seed)
        except UnitifyError:
            # A loss may hold targets that fit only the example.
            if call.is_example:
                raise
            loss_fn = None
            asking, mine = asking_of(model, call, loss_fn, seed)
    except Exception as error:
        # The model of a scheme is a graph, which refuses other sizes with a code.
        if isinstance(error, UnitifyError) and call.is_example:
            raise
        raise _ModelRefuses(error) from error
    if (code := _refusal(module.target, call)) is not None:
        return Verification(exact=True, compared=0, refused=(f"{call.name}: {code}",))
    for keeps_gradients in (False, True):
        if keeps_gradients:
            # Only the gradients themselves tell by how much they differ, and code that reads
            # ``.grad`` in a backward pass needs them.
            mine = run(model, call, asking, loss_fn, seed, keeps_gradients=True)
        theirs = _of_module(module, call, asking, loss_fn, seed, mine, keeps_gradients)
        if isinstance(theirs, Verification):
            return theirs
        expected, found = results_of(mine, theirs)
        differing = compare(expected, found)
        if not differing and not any(name.startswith(BACKWARD) for name in expected):
            break
    underflows = tuple(d for d in differing if d.is_underflow)
    others = [d for d in differing if not d.is_underflow]
    rounding: set[str] = set()
    if others and not any(math.isinf(d.relative) for d in others):
        measure = yardstick(model.target, call, asking, loss_fn, seed, expected)
        if measure is not None:
            rounding = rounding_among(others, found, measure)
    notes = underflowing_gradients(model, call, asking, loss_fn) if call.times > 1 else ()
    return Verification(
        exact=not differing,
        compared=len(expected),
        differences=tuple(d for d in others if d.name not in rounding),
        rounding=tuple(d for d in others if d.name in rounding),
        underflows=underflows,
        calls=(call.name,),
        notes=tuple(notes),
    )


def _of_module(
    module: Runnable,
    call: Call,
    asking: Asking,
    loss_fn: LossFunction | None,
    seed: int,
    mine: list[Results],
    keeps_gradients: bool,
) -> list[Results] | Verification:
    """The results of the module; what is found where it does not run."""
    try:
        with warnings.catch_warnings():
            # The graph has to run, not the model's own code in place of it.
            warnings.filterwarnings("error", "U11[58]", UnitifyWarning)
            return run(module, call, asking, loss_fn, seed, mine, keeps_gradients=keeps_gradients)
    except UnitifyError as error:
        return Verification(exact=True, compared=0, refused=(f"{call.name}: {error.code}",))
    except Exception as error:
        raised = f"the module raises {type(error).__name__}: {error}"[:200]
        return Verification(False, 0, differences=(Difference(raised, math.inf, math.inf),))


def _refusal(module: Any, call: Call) -> str | None:
    """The code of what no graph of the whole model takes a call for; None where one does."""
    mode = "train" if call.training else "eval"
    wholes = [part.capture for name, part in module.parts.items() if not path_of(name)]
    found = [OneModeOnly.code for _ in wholes[:1]]
    for captured in wholes:
        if captured.mode in (None, mode):
            fitted = captured.call.fitted_apart(*call.inputs)
            if isinstance(fitted, list):
                return None
            found.append(captured.call.misfit(fitted).code)
    return found[-1] if found else None


def _and(total: Verification, call: Call, found: Verification) -> Verification:
    def at(differences: tuple[Difference, ...]) -> tuple[Difference, ...]:
        return tuple(replace(d, name=f"{d.name}, {call.name}") for d in differences)

    return Verification(
        exact=total.exact and found.exact,
        compared=total.compared + found.compared,
        differences=total.differences + at(found.differences),
        rounding=total.rounding + at(found.rounding),
        underflows=total.underflows + at(found.underflows),
        calls=total.calls + found.calls,
        refused=total.refused + found.refused,
        notes=total.notes + found.notes,
    )


def lost_by_recording(
    model: nn.Module,
    module: UnitScaledModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Do the unscaled recordings of ``module`` differ from ``model``?"""
    plain = unscaled(model, {name: part.capture for name, part in module.parts.items()})
    return not verify_by_running(model, plain, args, kwargs).is_accepted


def is_faithful(module: nn.Module, captures: Mapping[str, Capture], example: Inputs) -> bool:
    """Do recordings of a submodule compute what it computes, up to rounding?"""
    plain = unscaled(module, captures)
    return verify_by_running(module, plain, *example).is_accepted


def _other_parameters(model: nn.Module, module: UnitScaledModule) -> tuple[Difference, ...]:
    """Parameters that only one of the two has, or that differ in shape."""
    mine, theirs = (
        {n: tuple(p.shape) for n, p in m.named_parameters(remove_duplicate=False)}
        for m in (model, module)
    )
    names = {name for name, _ in mine.items() ^ theirs.items()}
    return tuple(
        Difference(f"parameter {name}: {mine.get(name)}, {theirs.get(name)}", math.inf, math.inf)
        for name in sorted(names)
    )


@contextlib.contextmanager
def _in_modes_of(module: UnitScaledModule, model: nn.Module) -> Iterator[None]:
    modes = {name: m.training for name, m in module.named_modules(remove_duplicate=False)}
    with modes_kept(model):
        for name, m in model.named_modules(remove_duplicate=False):
            m.training = modes.get(name, m.training)
        yield


def notes_on(result: Verification, where: str) -> tuple[Diagnostic, ...]:
    """Notes on an accepted result: U503 for underflow, U504 for other rounding."""
    notes = list(result.notes)
    if result.underflows:
        notes.append(Underflow(tensors=len(result.underflows), first=str(result.underflows[0])))
    if result.rounding:
        first = str(result.rounding[0])
        notes.append(RoundsOtherwise(where=where, tensors=len(result.rounding), first=first))
    return tuple(notes)
