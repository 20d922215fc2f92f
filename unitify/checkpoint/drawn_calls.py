"""Random calls for the recordings of a converted folder, drawn from the outlines in it."""

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
    """One call for each recording. ``args`` and ``kwargs``: those of the first, if any.

    Raises ``UnitifyError`` (U002) for a call with values that an outline does not hold.
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
                reason=f"the conversion used a {error.args[0]}, which the folder does not hold",
                call="unitify.load(DIR, model, (x,))",
            )
        ) from None


def sizes_by_name(call: Outline, model: nn.Module) -> Any:
    """The free sizes of the first recording, as ``dynamic_shapes`` of ``rebuild``."""
    sizes = sizes_of(call)
    return bind(inspect.signature(model.forward), *sizes) if isinstance(sizes, tuple) else sizes
