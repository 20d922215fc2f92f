"""Does a state dict fit a module? Names, shapes and types, all findings at once.

Nothing is loaded here, and nothing is guessed: a name may be missing only where a tied name of
the same tensor is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from unitify.diagnostics import KeysDiffer, NotFinite, UnitifyError

_SHOWN = 3


def fitting(
    module: nn.Module, given: Mapping[str, Tensor], *, same_types: bool = False
) -> dict[str, Tensor]:
    """``given`` with every name of ``module.state_dict()``: tied names are filled in.

    A tensor may have a narrower type than the module's (it is then held exactly), never a
    wider one; with ``same_types`` it has the module's.
    Raises ``UnitifyError`` (U603), naming what is missing, unexpected or differs.
    """
    expected = module.state_dict(keep_vars=True)
    complete = _with_tied_names(expected, given)
    differing = [
        text
        for name in expected.keys() & complete.keys()
        for text in _mismatch(name, expected[name], complete[name], same_types)
    ]
    problems = [
        *_listed("missing", expected.keys() - complete.keys()),
        *_listed("unexpected", complete.keys() - expected.keys()),
        *_listed("differing", differing),
    ]
    if problems:
        raise UnitifyError(KeysDiffer(problem="; ".join(problems)))
    return complete


def check_finite(module: nn.Module) -> None:
    """Is every parameter finite, and every buffer free of NaN (a mask may hold ``-inf``)?

    Raises ``UnitifyError`` (U204), one finding a tensor.
    """
    findings = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        held = tensor.detach()
        bad = ~torch.isfinite(held) if isinstance(tensor, nn.Parameter) else torch.isnan(held)
        if count := int(bad.sum()):
            findings.append(NotFinite(name=name, count=count))
    if findings:
        raise UnitifyError(*findings)


def _with_tied_names(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    complete = dict(given)
    by_tensor = {id(expected[name]): given[name] for name in expected if name in given}
    for name, tensor in expected.items():
        if name not in complete and id(tensor) in by_tensor:
            complete[name] = by_tensor[id(tensor)]
    return complete


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    names = sorted(names)
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{kind}: {shown}{more}"]


def _mismatch(name: str, expected: Tensor, given: Tensor, same_types: bool) -> list[str]:
    if expected.shape != given.shape:
        return [f"{name} is {_shape(given)}, the model's {_shape(expected)}"]
    if given.dtype == expected.dtype:
        return []
    widened = (
        given.is_floating_point()
        and expected.is_floating_point()
        and torch.promote_types(expected.dtype, given.dtype) == expected.dtype
    )
    if widened and not same_types:
        return []
    return [f"{name} is {_type(given)}, the model's {_type(expected)}"]


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "()"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
