"""Is a difference rounding? The model in double precision is the yardstick.

Two ways to sum the same numbers differ in their last digits, and neither is right. A run in double
precision is right to many more digits. A result of the module is as good as the model's own if it
is as near to that run as the model's result is.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.eager_flags import as_compiled
from unitify.capture.equality import strided
from unitify.capture.execution import LossFunction
from unitify.capture.tree import copy_of
from unitify.verification import Difference
from unitify.verifying.calls import Call
from unitify.verifying.results import named
from unitify.verifying.side import Asking, Runnable, run

#: The module's error may be this many times the model's. Both errors are draws of one distribution,
#: and one may be small by luck.
_TIMES = 4.0


@dataclass(frozen=True)
class Yardstick:
    """``exact``: results in double precision; ``own``: the model's error in each, where known.

    An error is the RMS of the difference over the RMS of the exact result.
    """

    exact: Mapping[str, Any]
    own: Mapping[str, float]


def yardstick(
    model: nn.Module,
    call: Call,
    asking: Asking,
    loss_fn: LossFunction | None,
    seed: int,
    expected: Mapping[str, Any],
) -> Yardstick | None:
    """The yardstick for the model's results ``expected``; None where there is none.

    For a model in float64 it is the model itself, and the model's error is that in float32 times
    the ratio of the two precisions.
    """
    is_double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    other = torch.float32 if is_double else torch.float64
    inputs = pytree.tree_map(lambda x: _in(x, other), call.inputs)
    wide = Call(call.name, call.training, inputs, call.times)
    results = None
    # Where a kernel of eager code knows no double precision, that of compiled code may.
    for how in (contextlib.nullcontext, as_compiled):
        with contextlib.suppress(Exception), _by_default(other), how():
            side = Runnable(copy_of(model).to(other))
            results = named(run(side, wide, asking, loss_fn, seed, keeps_gradients=True))
            break
    if results is None:
        return None
    exact = expected if is_double else results
    own = {
        name: _error((results if is_double else expected).get(name), exact[name]) for name in exact
    }
    ratio = torch.finfo(torch.float64).eps / torch.finfo(other).eps if is_double else 1.0
    return Yardstick(exact, {name: e * ratio for name, e in own.items() if e is not None})


@contextlib.contextmanager
def _by_default(dtype: torch.dtype) -> Iterator[None]:
    """Inside, tensors that the model's code makes have this number type unless it names one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _in(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def rounding_among(
    differences: Iterable[Difference], found: Mapping[str, Any], measure: Yardstick
) -> set[str]:
    """Names of the differences in the module's results ``found`` that are rounding.

    The module's error may be a few times the model's in the same result, or the median over all
    results, because one side may be right by luck where there are few numbers. A model whose own
    error exceeds the square root of its type's precision (other random numbers, a chaotic net) is
    no yardstick.
    """
    typical = statistics.median(measure.own.values()) if measure.own else 0.0
    names: set[str] = set()
    for difference in differences:
        name = difference.name
        mine = measure.own.get(name)
        theirs = _error(found.get(name), measure.exact.get(name))
        if mine is None or theirs is None or mine > torch.finfo(found[name].dtype).eps ** 0.5:
            continue
        if theirs <= _TIMES * max(mine, typical):
            names.add(name)
    return names


def _error(value: Any, exact: Any) -> float | None:
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
