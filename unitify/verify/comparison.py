"""Bitwise comparison of two sets of named results: what differs, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unitify.capture.equality import same, strided
from unitify.capture.places import is_array
from unitify.verification import Difference


def compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Every name whose results are not bitwise the same, the largest relative difference first."""
    differences = []
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found:
            differences.append(Difference(f"{name} (present on one side only)", math.inf, math.inf))
        elif difference := difference_of(name, expected[name], found[name]):
            differences.append(difference)
    return tuple(sorted(differences, key=lambda d: (-d.relative, d.name)))


def difference_of(name: str, expected: Any, found: Any) -> Difference | None:
    """How far ``found`` is from the original's result; None where the two are the same."""
    if not (isinstance(expected, Tensor) and isinstance(found, Tensor)):
        is_same = type(expected) is type(found) and _is_equal(expected, found)
        text = f"{name}: {found!r}, was {expected!r}"
        return None if is_same else Difference(text[:200], math.inf, math.inf)
    return None if same(expected, found) else _difference(name, strided(expected), strided(found))


def _is_equal(a: Any, b: Any) -> bool:
    if is_array(a):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return bool(a == b)


def _difference(name: str, a: Tensor, b: Tensor) -> Difference:
    """How far ``b`` is from the original's ``a``."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(name, math.inf, math.inf)
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
    )
