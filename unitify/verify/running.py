"""Is the transformed module bitwise the original? Without running it, and by running both.

``validation`` derives every inserted factor again. Then outputs, gradients of every parameter and
input, and buffers afterwards are compared with ``torch.equal`` under one seed: against the
captured graph (what the rewriter answers for), and against the model itself (which may take
other kernels than its capture).
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.example import in_order
from unitify.capture.execution import (
    LossFunction,
    backward_starts,
    leaf_parameters,
    on_leaves,
    run_captured,
    unchanged,
)
from unitify.capture.exporting import without_cache
from unitify.capture.islands import flat_calls, path_of
from unitify.capture.whole import Capture
from unitify.cast.lowering import without_codes
from unitify.diagnostics import CaptureDiffers, Diagnostic, Underflow
from unitify.module.assembly import AssembledModule, unscaled, value_name
from unitify.module.unit_scaled import UnitScaledModule
from unitify.operations.rule_table import RuleTable
from unitify.plan.scale_plan import Scale
from unitify.verification import Difference, Verification
from unitify.verify.comparison import compare, same
from unitify.verify.validation import validate, validate_parameters


def verify_module(
    model: nn.Module,
    module: UnitScaledModule,
    rules: RuleTable,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss_fn: LossFunction | None = None,
    seed: int = 0,
) -> Verification:
    """Both kinds of verification; on the meta device, where nothing can be compared, the first.

    ``model`` is compared in the modes that the submodules of ``module`` are in.
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
        run = verify_by_running(model, module, args, kwargs, loss_fn, seed)
    return replace(run, exact=run.exact and not findings, findings=findings)


def _other_parameters(model: nn.Module, module: UnitScaledModule) -> tuple[Difference, ...]:
    """Parameters that only one of the two has, or in another shape."""
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
    flags = [(m, m.training) for m in model.modules()]
    modes = {name: m.training for name, m in module.named_modules(remove_duplicate=False)}
    for name, m in model.named_modules(remove_duplicate=False):
        m.training = modes.get(name, m.training)
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training


def notes_on(result: Verification, where: str) -> tuple[Diagnostic, ...]:
    """What a user has to know of a result that is exact: U503, and U110 where capture differs."""
    notes: list[Diagnostic] = []
    if result.underflows:
        notes.append(Underflow(tensors=len(result.underflows), first=str(result.underflows[0])))
    differing = [d for d in result.model_differences if not (d.is_rounding or d.is_underflow)]
    if differing:
        notes.append(CaptureDiffers(where=where, tensors=len(differing), first=str(differing[0])))
    return tuple(notes)


def verify_by_running(
    model: nn.Module,
    module: UnitScaledModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss_fn: LossFunction | None = None,
    seed: int = 0,
) -> Verification:
    """Run ``model``, its captured graph and ``module`` on the same inputs; compare bitwise.

    Islands are run one by one, on the inputs that they were captured with, and then together, by
    the code around them, against the captured graphs in their places. What that code computes
    differently each time (it draws a seed of its own) is left to ``model_differences``.
    """
    captures = {name: part.capture for name, part in module.parts.items()}
    captured: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    for name, part in module.parts.items():
        is_whole = not path_of(name)
        calls = [(args, kwargs)] if is_whole else []
        flat = (flat_calls(captures, name, calls) or [list(part.capture.example)])[0]
        loss = loss_fn if is_whole else None
        capture = replace(part.capture, model=model.get_submodule(path_of(name)))
        expected = _captured_results(capture, flat, loss, seed)
        found = _stored_results(part, part.flat_call, flat, loss, seed)
        captured |= {value_name(name, key): tensor for key, tensor in expected.items()}
        stored |= {value_name(name, key): tensor for key, tensor in found.items()}
    named, spec = pytree.tree_flatten((args, in_order(inspect.signature(model.forward), kwargs)))
    in_islands = any(path_of(name) for name in module.parts)
    eager = _model_results(model, named, spec, loss_fn, seed, wholly=in_islands)
    own = captured
    if tuple(module.parts) != ("",):
        own = _assembled_results(module, named, spec, loss_fn, seed)
        if in_islands:
            plain = unscaled(model, captures)
            together = _assembled_results(plain, named, spec, loss_fn, seed)
            drawn: set[str] = set()
            if compare(together, own):
                again = _assembled_results(plain, named, spec, loss_fn, seed)
                drawn = {d.name for d in compare(together, again)}
            captured |= {name: t for name, t in together.items() if name not in drawn}
            stored |= {name: t for name, t in own.items() if name not in drawn}
    differing = compare(captured, stored)
    differences = tuple(d for d in differing if not d.is_underflow)
    # Where the model keeps gradients from its inputs there is nothing to compare.
    skipped = {k for k in own if k.startswith("gradient of input") and k not in eager}
    return Verification(
        exact=not differences,
        compared=len(captured),
        differences=differences,
        underflows=tuple(d for d in differing if d.is_underflow),
        model_differences=compare(eager, {k: v for k, v in own.items() if k not in skipped}),
    )


def _assembled_results(
    module: UnitScaledModule,
    inputs: list[Any],
    spec: pytree.TreeSpec,
    loss_fn: LossFunction | None,
    seed: int,
) -> dict[str, Tensor]:
    def run(given: list[Any]) -> Any:
        args, kwargs = pytree.tree_unflatten(given, spec)
        return module(*args, **kwargs)

    return _stored_results(module, run, inputs, loss_fn, seed)


def _model_results(
    model: nn.Module,
    inputs: list[Any],
    spec: pytree.TreeSpec,
    loss_fn: LossFunction | None,
    seed: int,
    wholly: bool,
) -> dict[str, Tensor]:
    """The results of the model as it runs by itself; ``wholly``: on its very parameters."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if not wholly:
        parameters = {n: p.detach().requires_grad_(p.requires_grad) for n, p in parameters.items()}

    def call(given: list[Any]) -> Any:
        args, kwargs = pytree.tree_unflatten(given, spec)
        if wholly:
            return model(*args, **kwargs)
        return torch.func.functional_call(model, parameters, args, kwargs, tie_weights=True)

    def run(leaves: list[Any]) -> dict[str, Tensor]:
        with unchanged(model, seed, wholly), without_cache(model):
            return _results(call, leaves, inputs, parameters, model, loss_fn, by_python=wholly)

    try:
        return on_leaves(run, inputs)
    except RuntimeError:
        if wholly:
            raise
        # Some modules refuse to run on other parameters than their own.
        return _model_results(model, inputs, spec, loss_fn, seed, wholly=True)


def _captured_results(
    capture: Capture, flat: list[Any], loss_fn: LossFunction | None, seed: int
) -> dict[str, Tensor]:
    parameters = leaf_parameters(capture)

    def call(given: list[Any]) -> Any:
        return run_captured(capture, given, parameters)

    def run(leaves: list[Any]) -> dict[str, Tensor]:
        with unchanged(capture.model, seed):
            return _results(call, leaves, flat, parameters, capture.model, loss_fn)

    return on_leaves(run, flat)


def _stored_results(
    module: UnitScaledModule,
    call: Callable[[list[Any]], Any],
    inputs: list[Any],
    loss_fn: LossFunction | None,
    seed: int,
) -> dict[str, Tensor]:
    """The results of a module on stored values, its parameters' gradients true again."""
    host = module.host if isinstance(module, AssembledModule) else None
    by_python = host is not None
    own: dict[str, Tensor] = dict(module.named_parameters())

    def run(leaves: list[Any]) -> dict[str, Tensor]:
        with unchanged(host or module, seed, wholly=by_python):
            return _results(call, leaves, inputs, own, module, loss_fn, by_python)

    stored = on_leaves(run, inputs)
    for name in own:
        key = f"gradient of {name}"
        if key in stored:
            stored[key] = stored[key] * module.plan.parameters.get(name, Scale()).bwd
    return stored


def _results(
    call: Callable[[list[Any]], Any],
    leaves: list[Any],
    inputs: list[Any],
    parameters: dict[str, Tensor],
    owner: nn.Module,
    loss_fn: LossFunction | None,
    by_python: bool = False,
) -> dict[str, Tensor]:
    """Outputs, gradients, buffers and what was written into ``leaves``, which were ``inputs``.

    ``by_python``: of a model's own code.
    """
    output = call(leaves)
    results = {
        f"output {i}": leaf.detach()
        for i, leaf in enumerate(pytree.tree_leaves(output))
        if isinstance(leaf, Tensor)
    }
    targets = {f"gradient of {n}": p for n, p in parameters.items() if p.requires_grad}
    tensors = [(x, given) for x, given in zip(leaves, inputs, strict=True) if isinstance(x, Tensor)]
    targets |= {f"gradient of input {i}": x for i, (x, _) in enumerate(tensors) if x.requires_grad}
    starts, gradients = backward_starts(output, loss_fn)
    if starts and targets:
        wanted = list(targets.values())
        if by_python:
            found = _accumulated(starts, gradients, wanted)
        else:
            found = torch.autograd.grad(starts, wanted, gradients, allow_unused=True)
        results |= {n: g for n, g in zip(targets, found, strict=True) if g is not None}
    for i, (x, given) in enumerate(tensors):
        if not x.requires_grad and not same(x, given):
            results[f"input {i} as the call leaves it"] = x
    for name, buffer in owner.named_buffers():
        if not name.startswith("captured_"):
            results[f"buffer {name}"] = buffer.detach().clone()
    return results


def _accumulated(
    starts: list[Tensor], gradients: list[Tensor], wanted: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients as training finds them: a backward pass in Python may add to ``.grad`` itself."""
    try:
        torch.autograd.backward(starts, gradients)
    except Exception:
        # Some models refuse a backward pass in evaluation; then there are no gradients at all.
        return (None,) * len(wanted)
    return tuple(tensor.grad for tensor in wanted)
