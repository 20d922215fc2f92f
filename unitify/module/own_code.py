"""Runs a module's own code on the weights of a transformed module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import nn

from unitify.diagnostics import AttributeChanged, Diagnostic, UnitifyError, UnitifyWarning
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
    """Call ``code``, the code of ``module``, with true weights.

    ``scales``: those of stored parameters, by name. Their gradients are in stored units. Raises
    ``UnitifyError`` (U115) where one is gone: what replaced it is made of stored numbers.
    """
    stored = {name for name, scale in scales.items() if scale != Scale()}
    if not stored:
        return code(*args, **kwargs)
    if gone := sorted(stored - dict(module.named_parameters(remove_duplicate=False)).keys()):
        raise UnitifyError(AttributeChanged(attribute=f"the stored parameter {gone[0]}"))
    held = {n: p for n, p in module.named_parameters() if n in stored}
    true = {f"of.{n}": rescale(p, scales[n].fwd, 1.0 / scales[n].bwd) for n, p in held.items()}
    return torch.func.functional_call(_Call(module, code), true, args, kwargs, tie_weights=True)


def warn_once(lost: Diagnostic, kind: Hashable, warned: set[Hashable]) -> None:
    """Warn once for each ``kind`` of call of what a call by the model's own code leaves out."""
    if torch.compiler.is_compiling():
        _warn_compiled(str(lost))
    elif kind not in warned:
        warned.add(kind)
        warnings.warn(UnitifyWarning(str(lost)), stacklevel=6)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _warn_compiled(lost: str) -> None:
    """Compiled code warns once, when it is compiled."""
    warnings.warn(UnitifyWarning(lost), stacklevel=2)
