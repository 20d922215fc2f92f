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

from unitify.capture import without_cache
from unitify.execution import (
    LossFunction,
    backward_starts,
    leaf_parameters,
    run_captured,
    unchanged,
)
from unitify.module import UnitScaledModule
from unitify.rule_table import RuleTable
from unitify.validation import validate, validate_parameters
from unitify.verification import Difference, Verification


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
    findings = validate(module.capture, module.graph, module.plan, rules)
    findings += validate_parameters(module)
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return Verification(exact=not findings, compared=0, findings=findings)
    run = verify_by_running(model, module, args, kwargs, loss_fn, seed)
    return replace(run, exact=run.exact and not findings, findings=findings)


def verify_by_running(
    model: nn.Module,
    module: UnitScaledModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss_fn: LossFunction | None = None,
    seed: int = 0,
) -> Verification:
    """Run ``model``, its captured graph and ``module`` on the same inputs; compare bitwise."""
    capture = module.capture
    with unchanged(model, seed):
        flat = capture.flat_inputs(args, kwargs)
        parameters = leaf_parameters(capture)
        captured = _results(
            lambda inputs: run_captured(capture, inputs, parameters),
            flat, parameters, model, loss_fn,
        )  # fmt: skip
    with unchanged(model, seed), without_cache(model):
        parameters = leaf_parameters(capture)
        named, spec = pytree.tree_flatten((args, kwargs))
        eager = _results(
            lambda inputs: _call(model, parameters, *pytree.tree_unflatten(inputs, spec)),
            named, parameters, model, loss_fn,
        )  # fmt: skip
    with unchanged(module, seed):
        own: dict[str, Tensor] = dict(module.named_parameters())
        stored = _results(
            lambda inputs: capture.call.unflatten(module.flat_forward(*inputs)),
            flat, own, module, loss_fn,
        )  # fmt: skip
    for name in own:
        key = f"gradient of {name}"
        if key in stored:
            stored[key] = stored[key] * module.plan.parameters[name].bwd
    differences = _compare(captured, stored)
    return Verification(
        exact=not differences,
        compared=len(captured),
        differences=differences,
        model_differences=_compare(eager, captured),
    )


def _call(model: nn.Module, parameters: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
    return torch.func.functional_call(model, parameters, args, kwargs, tie_weights=True)


def _results(
    run: Callable[[list[Any]], Any],
    inputs: list[Any],
    parameters: dict[str, Tensor],
    owner: nn.Module,
    loss_fn: LossFunction | None,
) -> dict[str, Tensor]:
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
        found = torch.autograd.grad(starts, list(targets.values()), gradients, allow_unused=True)
        results |= {n: g for n, g in zip(targets, found, strict=True) if g is not None}
    for name, buffer in owner.named_buffers():
        if not name.startswith("captured_"):
            results[f"buffer {name}"] = buffer.detach().clone()
    return results


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> tuple[Difference, ...]:
    differences = []
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found:
            differences.append(Difference(f"{name} (present on one side only)", 0.0, 0.0))
            continue
        a, b = expected[name], found[name]
        if a.shape == b.shape and a.dtype == b.dtype and _equal(a, b):
            continue
        largest, scale = float("inf"), 1.0
        if a.shape == b.shape:
            largest = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
            scale = float(a.double().square().mean().sqrt()) or 1.0
        differences.append(Difference(name, largest, largest / scale))
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
