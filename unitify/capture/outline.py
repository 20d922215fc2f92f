"""Outlines of inputs: structure, names, sizes, types and ranges of a call, without its numbers.

Takes the call of a recording; gives plain data for JSON. From the outline it draws inputs with
which the recording can be made again.

The outline of a tensor holds what a recording and its analysis may depend on. For integers and
booleans that is their range, so that tokens stay within the vocabulary. For floating numbers it is
mean, RMS and range. A few distinct values (masks) keep their shares. Rows that rise or fall
(positions, offsets, padding) still do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from unitify.capture.inputs import MOST_DRAWN, Inputs
from unitify.capture.signature import Leaf
from unitify.capture.sizes import Free

#: ``args``, ``kwargs``: trees of values. ``sizes``: the free sizes of a recording of the call.
Outline = dict[str, Any]

#: Up to so many distinct values are kept, each with its share.
_FEW = 8


def outline_of(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    leaves: Iterable[Leaf] = (),
    sizes: Any = "auto",
) -> Outline:
    """The outline of a call. ``kwargs``: in the order of the signature.

    ``leaves``: the flat inputs of its recording, where that is one graph; ``sizes``: the
    ``dynamic_shapes`` of that.
    """
    flat = iter(leaves)
    if sizes is None:
        sizes = 0
    elif isinstance(sizes, Free):
        sizes = "auto" if sizes.count is None else sizes.count
    elif sizes != "auto":
        sizes = "given"
    return {
        "args": [_described(value, flat) for value in args],
        "kwargs": {name: _described(value, flat) for name, value in kwargs.items()},
        "sizes": sizes,
    }


def drawn_inputs(outline: Outline, device: torch.device) -> Inputs:
    """Inputs of this outline, the same ones every time.

    Raises ``LookupError``, which names the type, where it holds a value that JSON does not, and
    for more numbers than are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    left = MOST_DRAWN

    def drawn(known: Mapping[str, Any]) -> Tensor:
        nonlocal left
        left -= max(math.prod(known["shape"]), sum(n for _, n in known.get("values") or ()))
        if left < 0:
            raise LookupError(f"call with more than {MOST_DRAWN} numbers")
        try:
            return _drawn(known, generator).to(device)
        except (ArithmeticError, RuntimeError, TypeError, ValueError):
            raise LookupError(f"{known['dtype']} tensor with numbers of no such tensor") from None

    return _rebuilt(outline, drawn)


def sizes_of(outline: Outline) -> Any:
    """The free sizes: "auto", a ``Free``, or the sizes of each tensor as (args, kwargs)."""
    if outline["sizes"] == "given":
        return _rebuilt(outline, lambda tensor: dict.fromkeys(tensor.get("free", ()), Dim.AUTO))
    return "auto" if outline["sizes"] == "auto" else Free(int(outline["sizes"]))


def _described(value: Any, leaves: Iterator[Leaf]) -> Any:
    if type(value) in (tuple, list):
        return {type(value).__name__: [_described(item, leaves) for item in value]}
    if type(value) is dict and all(isinstance(name, str) for name in value):
        return {"dict": {name: _described(item, leaves) for name, item in value.items()}}
    leaf = next(leaves, None)
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": str(value)}
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested:
        return {"tensor": _of_tensor(value, leaf)}
    return {"other": f"{type(value).__module__}.{type(value).__qualname__}"}


def _rebuilt(outline: Outline, tensor: Callable[[Mapping[str, Any]], Any]) -> Inputs:
    def value(known: Any) -> Any:
        if not isinstance(known, Mapping):
            return known
        ((kind, held),) = known.items()
        if kind == "tensor":
            return tensor(held)
        if kind == "float":
            try:
                return float(held)
            except ValueError:
                raise LookupError("float of no number") from None
        if kind == "dict":
            return {name: value(item) for name, item in held.items()}
        if kind in ("tuple", "list"):
            items = [value(item) for item in held]
            return tuple(items) if kind == "tuple" else items
        raise LookupError(held)

    args = tuple(value(known) for known in outline["args"])
    return args, {name: value(known) for name, known in outline["kwargs"].items()}


def _of_tensor(tensor: Tensor, leaf: Leaf | None) -> dict[str, Any]:
    known: dict[str, Any] = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }
    if leaf is not None and leaf.shape is not None:
        known["free"] = [d for d, extent in enumerate(leaf.shape) if isinstance(extent, str)]
    if tensor.requires_grad:
        known["requires_grad"] = True
    # Of a distributed tensor the numbers that lie here.
    numbers: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    if numbers.is_meta or not numbers.numel():
        return known
    numbers = numbers.detach()
    if tensor.is_complex():
        numbers = torch.view_as_real(numbers.resolve_conj())
    is_floating = numbers.is_floating_point()
    # Float8 has no arithmetic of its own, and half of the smaller types none on every device.
    numbers = numbers.to("cpu", torch.float64 if is_floating else torch.int64)
    values, counts = numbers.unique(return_counts=True)
    if len(values) <= _FEW or not numbers.isfinite().all():
        held = zip(values[:_FEW].tolist(), counts[:_FEW].tolist(), strict=True)
        known["values"] = [[_number(value), count] for value, count in held]
    else:
        known["range"] = [values[0].item(), values[-1].item()]
    if is_floating and "range" in known:
        known["mean"], known["rms"] = numbers.mean().item(), numbers.square().mean().sqrt().item()
    elif numbers.dim() and numbers.shape[-1] > 1 and len(values) > 1:
        steps = numbers.diff(dim=-1)
        if (steps >= 0).all() or (steps <= 0).all():
            known["order"] = "rising" if (steps >= 0).all() else "falling"
    return known


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _read(number: float | str) -> float:
    return float(number) if isinstance(number, str) else number


def _drawn(known: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, known["dtype"])
    shape = (*known["shape"], 2) if dtype.is_complex else tuple(known["shape"])
    count = math.prod(shape)
    if "values" in known:
        kind = torch.float64 if dtype.is_floating_point or dtype.is_complex else torch.int64
        levels = torch.tensor([_read(value) for value, _ in known["values"]], dtype=kind)
        shares = torch.tensor([n for _, n in known["values"]])
        numbers = levels.repeat_interleave(shares)
        # Only the finite numbers count.
        numbers = numbers.repeat(-(-count // len(numbers)))[:count]
        numbers = numbers[torch.randperm(count, generator=generator)]
    elif "rms" in known:
        numbers = _normal(count, known, generator)
    elif "range" in known:
        low, high = known["range"]
        # No number is above the largest of 64 bits.
        above = min(high, torch.iinfo(torch.int64).max - 1) + 1
        numbers = torch.randint(low, above, (count,), generator=generator)
    else:
        numbers = torch.zeros(count)
    numbers = numbers.reshape(shape)
    if "order" in known:
        numbers = _in_order(numbers, known)
    if dtype.is_complex:
        numbers = torch.view_as_complex(numbers.contiguous())
    return numbers.to(dtype).requires_grad_(bool(known.get("requires_grad")))


def _normal(count: int, known: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Normal numbers with the mean, RMS and range of the outline."""
    (low, high), mean, rms = known["range"], known["mean"], known["rms"]
    numbers = torch.randn(count, generator=generator, dtype=torch.float64)
    numbers[:2] = torch.tensor([low, high])
    for _ in range(20):
        rest = numbers[2:]
        # The power that the two ends of the range leave to the others.
        own_mean = (mean * count - low - high) / (count - 2)
        own_square = max((rms**2 * count - low**2 - high**2) / (count - 2) - own_mean**2, 0.0)
        others = (rest - rest.mean()) / rest.std(correction=0) * math.sqrt(own_square)
        numbers[2:] = (others.nan_to_num() + own_mean).clamp(low, high)
    return numbers


def _in_order(numbers: Tensor, known: Mapping[str, Any]) -> Tensor:
    """Rows that rise or fall through the whole range, or over few drawn values.

    Each row holds the largest value, because a mask must not hide everything.
    """
    is_falling = known["order"] == "falling"
    if "range" in known:
        low, high = known["range"]
        last = numbers.shape[-1] - 1
        steps = [low + (high - low) * step // last for step in range(last + 1)]
        return torch.tensor(steps[::-1] if is_falling else steps).expand(numbers.shape).clone()
    rows: Tensor = numbers.sort(dim=-1, descending=is_falling).values
    rows[..., 0 if is_falling else -1] = numbers.max()
    return rows
