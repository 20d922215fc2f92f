"""Checks that a config describes a model of about the size of its weights, before one is made.

A config of a few bytes may ask for any number of layers of any width.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unitify.documents import MalformedError

#: Names of numbers of a config that make so many objects before there is a tensor.
_COUNTS = re.compile(r"(layers?|depths?|blocks|num_labels)$")
_MOST_OBJECTS = 2**16
#: What a model may have beyond the multiple of its checkpoint: tensors, and elements.
_TENSORS, _ELEMENTS, _MULTIPLE = 4096, 2**28, 16


def check_counts(config: Any) -> None:
    """Check the numbers of layers in a config. Raises ``MalformedError``."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            numbers = value if isinstance(value, list) else [value]
            if _COUNTS.search(str(name)):
                for number in numbers:
                    if isinstance(number, int | float) and not number <= _MOST_OBJECTS:
                        raise MalformedError(f"its {name} is {str(number)[:40]}")
            check_counts(value)


def check_size(make: Callable[[], Any], weights: Mapping[str, Tensor]) -> None:
    """Make a model without memory, and check its size against that of its ``weights``.

    Raises ``MalformedError``. A model that cannot be made is not judged here.
    """
    try:
        with torch.device("meta"), _counted(weights):
            make()
    except MalformedError:
        raise
    except Exception:  # Configs are checked by the library that makes the model.
        return


@contextlib.contextmanager
def _counted(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which the parameters and buffers of all new modules are counted."""
    size = sum(weight.nbytes for weight in weights.values())
    left = [_TENSORS + _MULTIPLE * len(weights), _ELEMENTS + _MULTIPLE * size]

    def counting(register: Callable[..., None]) -> Callable[..., None]:
        def registered(self: nn.Module, name: str, tensor: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(tensor, Tensor):
                left[0] -= 1
                left[1] -= tensor.numel()
                if min(left) < 0:
                    raise MalformedError("its config describes a model far larger than its weights")
            register(self, name, tensor, *args, **kwargs)

        return registered

    held = nn.Module.register_parameter, nn.Module.register_buffer
    nn.Module.register_parameter = counting(held[0])  # type: ignore[method-assign]
    nn.Module.register_buffer = counting(held[1])  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter, nn.Module.register_buffer = held  # type: ignore[method-assign]
