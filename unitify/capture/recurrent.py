"""Recurrent layers of any length: their sizes, without a run through time.

torch finds the sizes of ``aten.lstm`` and similar operations by running every step on tensors
without data. That fixes the number of steps to the example's. Inside ``free_length`` the sizes
follow from the documentation of ``torch.nn.LSTM`` ("Outputs").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

#: Whole recurrent layers: all their steps in one operation.
LAYERS = (
    torch.ops.aten.lstm.input,
    torch.ops.aten.gru.input,
    torch.ops.aten.rnn_tanh.input,
    torch.ops.aten.rnn_relu.input,
)
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


@contextlib.contextmanager
def free_length() -> Iterator[None]:
    """Inside, recurrent layers on tensors without data leave their number of steps free."""
    saved = [
        (operation, key, operation.py_kernels.get(key)) for operation in LAYERS for key in _KEYS
    ]
    try:
        for operation, key, _ in saved:
            operation.py_kernels[key] = _sizes
            operation._dispatch_cache.clear()
        yield
    finally:
        for operation, key, kernel in saved:
            del operation.py_kernels[key]
            if kernel is not None:
                operation.py_kernels[key] = kernel
            operation._dispatch_cache.clear()


def _sizes(
    input: Tensor,
    state: Tensor | Sequence[Tensor],
    parameters: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Results of a recurrent layer with the right sizes, strides and need of a gradient."""
    states = [state] if isinstance(state, Tensor) else list(state)
    steps = input.transpose(0, 1) if batch_first else input
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    # Something of every operand, so that the result needs a gradient where one of them does.
    touched: Any = sum(t.sum() for t in (*states, *parameters))
    output = steps.new_empty((*steps.shape[:-1], width)) + (steps.sum() + touched)
    last = [s.new_empty(s.shape) + (steps.sum() + touched) for s in states]
    return (output.transpose(0, 1) if batch_first else output, *last)
