"""The calls that the module of a converted folder was recorded in, drawn anew from outlines."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from unitify.capture.inputs import Inputs, as_inputs, device_of
from unitify.capture.outline import Outline, drawn_inputs, sizes_of
from unitify.capture.signature import bind
from unitify.diagnostics import InputsNeeded, UnitifyError


def drawn_calls(
    calls: Sequence[Outline], model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None
) -> list[Inputs]:
    """One call for each recording. ``args`` and ``kwargs``: those of the first, where given.

    Raises ``UnitifyError`` (U002) for a call with values that an outline does not keep.
    """
    given = as_inputs(model, args)
    first = [(given[0], {**given[1], **(kwargs or {})})]
    if not any(first[0]):
        first = []
    try:
        return first + [drawn_inputs(call, device_of(model)) for call in calls[len(first) :]]
    except LookupError as error:
        raise UnitifyError(
            InputsNeeded(
                where=type(model).__name__,
                reason=f"the folder keeps no {error.args[0]}, which the conversion was given",
                call="unitify.load(DIR, model, (x,))",
            )
        ) from None


def sizes_by_name(call: Outline, model: nn.Module) -> Any:
    """What the first recording left free, as ``dynamic_shapes`` of ``rebuild``."""
    sizes = sizes_of(call)
    return bind(inspect.signature(model.forward), *sizes) if isinstance(sizes, tuple) else sizes
