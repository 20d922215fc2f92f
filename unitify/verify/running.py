"""Is the transformed module bitwise the original? Without running it, and by running both.

``validation`` derives every inserted factor again. Then outputs, gradients of every parameter and
input, and buffers afterwards are compared with ``torch.equal`` under one seed: against the
captured graph (what the rewriter answers for), and against the model itself (which may take
other kernels than its capture).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.execution import (
    LossFunction,
    backward_starts,
    leaf_parameters,
    run_captured,
    unchanged,
)
from unitify.capture.exporting import without_cache
from unitify.capture.islands import path_of
from unitify.cast.lowering import without_codes
from unitify.diagnostics import CaptureDiffers, Diagnostic, Underflow
from unitify.module.assembly import AssembledModule, unscaled, value_name
from unitify.module.unit_scaled import UnitScaledModule
from unitify.operations.rule_table import RuleTable
from unitify.plan.scale_plan import Scale
from unitify.verification import Difference, Verification
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
    """Both kinds of verification; on the meta device, where nothing can be compared, the first."""
    findings: tuple[Diagnostic, ...] = ()
    for part in module.parts.values():
        graph = without_codes(part.graph, part.capture, rules)
        findings += validate(part.capture, graph, part.plan, rules)
        findings += validate_parameters(part)
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return Verification(exact=not findings, compared=0, findings=findings)
    run = verify_by_running(model, module, args, kwargs, loss_fn, seed)
    return replace(run, exact=run.exact and not findings, findings=findings)


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
    captured: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    for name, part in module.parts.items():
        is_whole = not path_of(name)
        flat = part.capture.flat_inputs(args, kwargs) if is_whole else list(part.capture.example)
        loss = loss_fn if is_whole else None
        expected = _captured_results(part, flat, loss, seed)
        found = _stored_results(part, part.flat_call, flat, loss, seed)
        captured |= {value_name(name, key): tensor for key, tensor in expected.items()}
        stored |= {value_name(name, key): tensor for key, tensor in found.items()}
    named, spec = pytree.tree_flatten((args, kwargs))
    in_islands = any(path_of(name) for name in module.parts)
    eager = _model_results(model, named, spec, loss_fn, seed, wholly=in_islands)
    own = captured
    if tuple(module.parts) != ("",):
        own = _assembled_results(module, named, spec, loss_fn, seed)
        if in_islands:
            plain = unscaled(model, module)
            together = _assembled_results(plain, named, spec, loss_fn, seed)
            drawn: set[str] = set()
            if _compare(together, own):
                again = _assembled_results(plain, named, spec, loss_fn, seed)
                drawn = {d.name for d in _compare(together, again)}
            captured |= {name: t for name, t in together.items() if name not in drawn}
            stored |= {name: t for name, t in own.items() if name not in drawn}
    differing = _compare(captured, stored)
    differences = tuple(d for d in differing if not d.is_underflow)
    # Where the model keeps gradients from its inputs there is nothing to compare.
    skipped = {k for k in own if k.startswith("gradient of input") and k not in eager}
    return Verification(
        exact=not differences,
        compared=len(captured),
        differences=differences,
        underflows=tuple(d for d in differing if d.is_underflow),
        model_differences=_compare(eager, {k: v for k, v in own.items() if k not in skipped}),
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
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if not wholly:
        parameters = {n: p.detach().requires_grad_(p.requires_grad) for n, p in parameters.items()}

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if wholly:
            return model(*args, **kwargs)
        return torch.func.functional_call(model, parameters, args, kwargs, tie_weights=True)

    def run(given: list[Any]) -> Any:
        try:
            return call(*pytree.tree_unflatten(given, spec))
        except RuntimeError:
            # Some models set requires_grad on what they make of their inputs: a leaf of their own.
            return call(*pytree.tree_unflatten([_detached(x) for x in given], spec))

    with unchanged(model, seed, wholly), without_cache(model):
        return _results(run, inputs, parameters, model, loss_fn, by_python=wholly)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _captured_results(
    part: UnitScaledModule, flat: list[Any], loss_fn: LossFunction | None, seed: int
) -> dict[str, Tensor]:
    capture = part.capture
    with unchanged(capture.model, seed):
        parameters = leaf_parameters(capture)
        return _results(
            lambda inputs: run_captured(capture, inputs, parameters),
            flat, parameters, capture.model, loss_fn,
        )  # fmt: skip


def _stored_results(
    module: UnitScaledModule,
    run: Callable[[list[Any]], Any],
    inputs: list[Any],
    loss_fn: LossFunction | None,
    seed: int,
) -> dict[str, Tensor]:
    """The results of a module on stored values, its parameters' gradients true again."""
    host = module.host if isinstance(module, AssembledModule) else None
    with unchanged(host or module, seed, wholly=host is not None):
        own: dict[str, Tensor] = dict(module.named_parameters())
        stored = _results(run, inputs, own, module, loss_fn, by_python=host is not None)
    for name in own:
        key = f"gradient of {name}"
        if key in stored:
            stored[key] = stored[key] * module.plan.parameters.get(name, Scale()).bwd
    return stored


def _results(
    run: Callable[[list[Any]], Any],
    inputs: list[Any],
    parameters: dict[str, Tensor],
    owner: nn.Module,
    loss_fn: LossFunction | None,
    by_python: bool = False,
) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of one run; ``by_python``: of a model's own code."""
    leaves = [
        x.detach().requires_grad_(True) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs
    ]
    output = run(leaves)
    results = {
        f"output {i}": leaf.detach()
        for i, leaf in enumerate(pytree.tree_leaves(output))
        if isinstance(leaf, Tensor)
    }
    targets = {f"gradient of {n}": p for n, p in parameters.items() if p.requires_grad}
    targets |= {
        f"gradient of input {i}": x
        for i, x in enumerate(x for x in leaves if isinstance(x, Tensor))
        if x.requires_grad
    }
    starts, gradients = backward_starts(output, loss_fn)
    if starts and targets:
        wanted = list(targets.values())
        if by_python:
            found = _accumulated(starts, gradients, wanted)
        else:
            found = torch.autograd.grad(starts, wanted, gradients, allow_unused=True)
        results |= {n: g for n, g in zip(targets, found, strict=True) if g is not None}
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


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> tuple[Difference, ...]:
    differences = []
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found:
            differences.append(Difference(f"{name} (present on one side only)", 0.0, 0.0))
            continue
        a, b = expected[name], found[name]
        if a.shape == b.shape and a.dtype == b.dtype and _equal(a, b):
            continue
        largest, scale, smallest, precision = float("inf"), 1.0, 0.0, 0.0
        if a.shape == b.shape:
            largest = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
            scale = float(a.double().square().mean().sqrt()) or 1.0
        if a.is_floating_point() and a.dtype == b.dtype:
            smallest = torch.finfo(a.dtype).smallest_normal
            precision = torch.finfo(a.dtype).eps ** 0.5
        relative = largest / scale
        differences.append(
            Difference(name, largest, relative, largest < smallest, relative < precision)
        )
    return tuple(sorted(differences, key=lambda d: -d.relative))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Bitwise equal; a NaN equals a NaN."""
    if torch.equal(a, b):
        return True
    if not a.is_floating_point():
        return False
    nans = torch.isnan(a)
    return (
        bool(nans.any()) and torch.equal(nans, torch.isnan(b)) and torch.equal(a[~nans], b[~nans])
    )
