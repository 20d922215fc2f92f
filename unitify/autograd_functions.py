"""Does a model call a ``torch.autograd.Function`` of its own?

Export traces through the forward of such a function and loses its backward, silently. The
model is run once on fake tensors (shapes without data), and its backward graph is searched
for nodes that Python code defined.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree


def custom_backwards(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, ...]:
    """Names of the Python-defined autograd functions that a call of ``model`` records.

    Empty where the model does not run on fake tensors: it cannot be captured either.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    states = {
        name: fake(value) for name, value in [*model.named_parameters(), *model.named_buffers()]
    }
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log_disabled, log.disabled = log.disabled, True
    try:
        with mode, torch.enable_grad(), torch.random.fork_rng(devices=[]):
            fakes = pytree.tree_map(fake, (args, kwargs))
            results = torch.func.functional_call(model, states, *fakes, tie_weights=True)
    except Exception:
        # Whatever stops the fake run stops the export as well, which reports it.
        return ()
    finally:
        log.disabled = log_disabled
    return _python_nodes(results)


def _python_nodes(results: Any) -> tuple[str, ...]:
    leaves = pytree.tree_leaves(results)
    stack = [t.grad_fn for t in leaves if isinstance(t, torch.Tensor) and t.grad_fn is not None]
    seen: set[Any] = set(stack)
    names: dict[str, None] = {}
    while stack:
        node = stack.pop()
        if isinstance(node, BackwardCFunction):
            names[node.name().removesuffix("Backward")] = None
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return tuple(names)
