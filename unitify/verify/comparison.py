"""Bitwise comparison of two sets of named tensors: what differs, and by how much."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unitify.verification import Difference


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[Difference, ...]:
    """Every name whose tensors are not bitwise the same, the largest relative difference first."""
    differences = []
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found:
            differences.append(Difference(f"{name} (present on one side only)", 0.0, 0.0))
        elif difference := difference_of(name, expected[name], found[name]):
            differences.append(difference)
    return tuple(sorted(differences, key=lambda d: -d.relative))


def difference_of(name: str, expected: Tensor, found: Tensor) -> Difference | None:
    """How far ``found`` is from the original's tensor; None where the two are the same."""
    return None if same(expected, found) else _difference(name, _strided(expected), _strided(found))


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equal in values, shape and type; a NaN equals a NaN."""
    if a.layout != b.layout or a.is_nested != b.is_nested or a.dtype != b.dtype:
        return False
    a, b = _strided(a), _strided(b)
    if a.shape != b.shape:
        return False
    if torch.equal(a, b):
        return True
    if not a.is_floating_point():
        return False
    nans = torch.isnan(a)
    return (
        bool(nans.any()) and torch.equal(nans, torch.isnan(b)) and torch.equal(a[~nans], b[~nans])
    )


def _strided(tensor: Tensor) -> Tensor:
    """The numbers of a sparse, nested or complex tensor as a plain one of real numbers."""
    if tensor.is_nested:
        parts = [t.flatten() for t in tensor.unbind()]
        tensor = torch.cat(parts) if parts else torch.empty(0, dtype=tensor.dtype)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _difference(name: str, a: Tensor, b: Tensor) -> Difference:
    """How far ``b`` is from the original's ``a``."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(name, float("inf"), float("inf"))
    distance = (a.double() - b.double()).abs()
    largest = float(distance.max()) if a.numel() else 0.0
    relative = largest / (float(a.double().square().mean().sqrt()) or 1.0)
    if not a.is_floating_point():
        return Difference(name, largest, relative)
    limits = torch.finfo(a.dtype)
    # So small a number is a sum to whose last digit a part below the normal range may reach.
    is_reached = a.abs() < limits.smallest_normal / limits.eps
    return Difference(
        name,
        largest,
        relative,
        is_underflow=largest < limits.smallest_normal and bool(is_reached[distance > 0].all()),
        is_rounding=relative < limits.eps**0.5,
    )
