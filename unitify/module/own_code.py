"""A module's own code on the weights that a transformed module holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from unitify.diagnostics import Diagnostic, UnitifyError, UnitifyWarning
from unitify.plan.scale_plan import Scale
from unitify.runtime.rescale import rescale


class _Call(nn.Module):
    """A function that uses the parameters of a module."""

    def __init__(self, of: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.of = of
        self.__dict__["forward"] = function


def run_own_code(
    module: nn.Module,
    code: Callable[..., Any],
    scales: Mapping[str, Scale],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """``code``, which is that of ``module``, on true weights.

    ``scales``: those of the parameters, by name; their gradients come back in stored units.
    """
    held = {n: p for n, p in module.named_parameters() if scales.get(n, Scale()) != Scale()}
    if not held:
        return code(*args, **kwargs)
    true = {f"of.{n}": rescale(p, scales[n].fwd, 1.0 / scales[n].bwd) for n, p in held.items()}
    return torch.func.functional_call(_Call(module, code), true, args, kwargs, tie_weights=True)


def leave_graph(reason: Diagnostic, is_inference: bool) -> None:
    """Warn that a call runs the model's own code, for ``reason``.

    Raises ``UnitifyError`` where there is no such code: codes have taken the place of weights.
    """
    if is_inference:
        raise UnitifyError(reason)
    warnings.warn(UnitifyWarning(str(reason)), stacklevel=4)
