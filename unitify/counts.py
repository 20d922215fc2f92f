"""Numbers that a rule's ``dims`` may name and that no shape tells: they take a function to count.

Each is computed from an ``Operation`` (its shapes, its numbers, the masks and indices that the
example leads to) and the moments of its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unitify.extremes import LIMIT
from unitify.moments import Moment
from unitify.operation import Operation


def attended_keys(operation: Operation, operands: Mapping[str, Any]) -> float:
    """Harmonic mean, over queries, of how many keys an attention mask leaves to attend to.

    The harmonic mean, because uniform attention over k keys divides the variance by k.
    """
    queries, keys = operation.shape("query")[-2], operation.shape("key")[-2]
    mask = operation.number("attn_mask")
    moment = operands.get("attn_mask")
    if isinstance(moment, Moment) and "attn_mask" in operation.operands:
        mask = moment.mean > -LIMIT
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        allowed = mask.sum(-1) * (keys if mask.shape[-1] == 1 else 1)
    elif operation.number("is_causal"):
        allowed = torch.ones(queries, keys).tril().sum(-1)
    else:
        return float(keys)
    return float(1.0 / (1.0 / allowed.double().clamp_min(1.0)).mean())


#: Name in a rule file → how it is counted.
COUNTS: dict[str, Callable[[Operation, Mapping[str, Any]], float]] = {
    "attended_keys": attended_keys,
}
