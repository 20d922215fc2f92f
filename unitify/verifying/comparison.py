"""Bitwise comparison of two sets of named results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unitify.capture.equality import same, strided
from unitify.capture.reachable import is_array
from unitify.verification import Difference


def compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The names whose results differ in any bit, the largest relative difference first."""
    differences = []
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found:
            differences.append(Difference(f"{name} (present on one side only)", math.inf, math.inf))
        elif difference := difference_of(name, expected[name], found[name]):
            differences.append(difference)
    return tuple(sorted(differences, key=lambda d: (-d.relative, d.name)))


def difference_of(name: str, expected: Any, found: Any) -> Difference | None:
    """The difference of ``found`` from the model's result; None where the two are equal."""
    if expected is found:
        return None
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
    """The difference of ``b`` from the model's ``a``."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(name, math.inf, math.inf)
    distance = (a.double() - b.double()).abs()
    largest = float(distance.max()) if a.numel() else 0.0
    relative = largest / (float(a.double().square().mean().sqrt()) or 1.0)
    if not a.is_floating_point():
        return Difference(name, largest, relative)
    limits = torch.finfo(a.dtype)
    # A term below the normal range may change the last digit of a sum that is this small.
    is_reached = a.abs() < limits.smallest_normal / limits.eps
    return Difference(
        name,
        largest,
        relative,
        is_underflow=largest < limits.smallest_normal and bool(is_reached[distance > 0].all()),
    )
