"""Does a recording depend on how the elements of the inputs lie in memory?

``x.contiguous()`` does nothing to one tensor and copies another, and ``x.reshape(-1)`` gives a view
of one and a copy of another. A recording holds what happened. So a model that lays tensors anew
runs once more on inputs in other layouts, to see whether such a call meets another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.example import Inputs, call_quietly, copied, mapped
from unitify.capture.reachable import Location
from unitify.capture.state import State
from unitify.capture.surroundings import noted
from unitify.capture.watching import watched

#: What laid tensors anew, in which module, and the strides that it met.
Laid = list[tuple["nn.Module | None", Any, Any]]


def following(model: nn.Module, inputs: Inputs, before: State, laid: Laid) -> set[nn.Module]:
    """The modules whose code meets other layouts where the inputs have some.

    ``laid``: what the example met. ``before``: the state of ``model`` in which a run starts.
    """
    found: set[nn.Module] = set()
    for other in relaid(inputs) if laid else ():
        before.put_back()
        try:
            with (
                watched(model) as watch,
                noted(model, partial(getattr, watch, "innermost")) as around,
            ):
                call_quietly(model, *other)
        except Exception:
            continue  # It refuses such inputs.
        if len(around.laid) != len(laid):
            return {model}
        pairs = zip(laid, around.laid, strict=True)
        found |= {module or model for (module, *was), (_, *now) in pairs if was != now}
    return found


def image_weights(model: nn.Module) -> Iterator[Location]:
    """The memory orders that ``channels_last`` of a whole model changes."""
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() in _BY_PIXELS:
                table = Location(path).then("attribute", "_parameters")
                yield table.then("item", name).then("attribute", "layout")


def relaid(inputs: Inputs) -> Iterator[Inputs]:
    """The inputs in other layouts: cut from wider ones, in reverse order, and images by pixels."""
    tensors = [x for x in pytree.tree_leaves(inputs) if _is_plain(x)]
    if tensors:
        yield mapped(_cut, inputs)
        yield mapped(_reversed, inputs)
    if any(x.dim() in _BY_PIXELS for x in tensors):
        yield mapped(_by_pixels, inputs)


#: The layout of images by pixels, by the number of dimensions.
_BY_PIXELS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _is_plain(x: Any) -> bool:
    is_strided = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested
    return is_strided and x.dim() > 0 and not x.is_meta


def _cut(x: Any) -> Any:
    if not _is_plain(x):
        return copied(x)
    made = x.new_empty((*x.shape[:-1], x.shape[-1] + 1))[..., :-1]
    return made.copy_(x.detach()).requires_grad_(x.requires_grad)


def _reversed(x: Any) -> Any:
    if not _is_plain(x):
        return copied(x)
    order = tuple(range(x.dim()))[::-1]
    sizes = [x.shape[i] for i in order]
    made = x.new_empty((*sizes[:-1], 2 * sizes[-1]))[..., ::2].permute(order)
    return made.copy_(x.detach()).requires_grad_(x.requires_grad)


def _by_pixels(x: Any) -> Any:
    if not _is_plain(x):
        return copied(x)
    form = _BY_PIXELS.get(x.dim(), torch.preserve_format)
    return x.detach().clone(memory_format=form).requires_grad_(x.requires_grad)
