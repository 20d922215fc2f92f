"""Is a difference rounding? The original in double precision is the yardstick.

Two ways to sum the same numbers differ in their last digits, and neither is the right one. What is
right, a run in double precision tells, to many more digits than either holds. A result of the
module is as good as the model's own if it is as near to that as the model's is.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.equality import strided
from unitify.capture.execution import LossFunction
from unitify.capture.tree import copy_of
from unitify.verification import Difference
from unitify.verify.calls import Call
from unitify.verify.results import Asking, named, run

#: How many times the model's own error a module's may be: both are draws of one distribution.
_TIMES = 4.0


def in_double(
    model: nn.Module, call: Call, asking: Asking, loss_fn: LossFunction | None, seed: int
) -> Mapping[str, Any] | None:
    """Results of a copy of ``model`` in float64; None where it does not run so."""
    try:
        exact = copy_of(model).double()
        inputs = pytree.tree_map(_in_double, call.inputs)
        precise = Call(call.name, call.training, inputs, call.times)
        return named(run(exact, precise, asking, loss_fn, seed))
    except Exception:
        return None


def _in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def rounding_among(
    differences: Iterable[Difference],
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    exact: Mapping[str, Any],
) -> set[str]:
    """Names of those differences that are rounding.

    A result's error is its RMS distance from ``exact``. The module's may be a few times the model's
    own in the same result, or in the median of all: of few numbers one side may be right by luck.
    Where the model itself is farther from ``exact`` than the square root of its type's precision
    (other random numbers, a chaotic net) nothing is known.
    """
    own = {name: _error(expected[name], exact.get(name)) for name in expected}
    errors = [e for e in own.values() if e is not None]
    typical = statistics.median(errors) if errors else 0.0
    names: set[str] = set()
    for difference in differences:
        name = difference.name
        mine = own.get(name)
        theirs = _error(found.get(name), exact.get(name))
        if mine is None or theirs is None or mine > torch.finfo(expected[name].dtype).eps ** 0.5:
            continue
        if theirs <= _TIMES * max(mine, typical):
            names.add(name)
    return names


def _error(value: Any, exact: Any) -> float | None:
    """RMS of the distance, relative to that of ``exact``; None for anything but two tensors."""
    if not (isinstance(value, Tensor) and isinstance(exact, Tensor)):
        return None
    a, b = strided(value.detach()), strided(exact.detach())
    if a.shape != b.shape or not a.is_floating_point() or not a.numel():
        return None
    b = b.double()
    scale = float(b.square().mean().sqrt())
    distance = float((a.double() - b).square().mean().sqrt())
    error = distance / scale if scale else distance
    return error if error == error else None
