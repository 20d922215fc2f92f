"""Codes of a tensor that several layers take one after another, such as q, k and v: made once.

The layers are modules of their own, and what passes between modules is a true value. So the codes
cannot be one value of a graph. They are kept beside the tensor instead, as long as it lives and is
not written to, or until another tensor is encoded. Only results that a backward pass needs have
shared codes: what a user holds can be written to in ways that torch does not see (NumPy).
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from unitify.formats.table import FORMATS
from unitify.runtime.registered import is_plain
from unitify.runtime.scaled_mm import encode


class _Latest(threading.local):
    """The tensor that this thread encoded last: a weak reference, its state, and its codes."""

    of: weakref.ref[Tensor] | None = None
    state: tuple[Any, ...] = ()
    codes: Tensor | None = None

    def forget(self, reference: weakref.ref[Tensor]) -> None:
        if self.of is reference:
            self.of = self.codes = None


_LATEST = _Latest()


def shared_codes(x: Tensor, format: str, exponent: int) -> Tensor:
    """Codes [M, K] of ``x`` [.., K] / 2^exponent. A tensor of codes is returned as it is."""
    flat = x.flatten(0, -2)
    if x.dtype == FORMATS[format].dtype:
        return flat
    if x.grad_fn is None or not is_plain(x):
        return encode(flat, FORMATS[format], exponent)
    stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
    state = x._version, format, exponent, stream
    latest = _LATEST
    if latest.of is not None and latest.of() is x and latest.state == state:
        assert latest.codes is not None
        return latest.codes
    latest.codes = codes = encode(flat, FORMATS[format], exponent)
    latest.state = state
    latest.of = weakref.ref(x, latest.forget)
    return codes
