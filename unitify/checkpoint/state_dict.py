"""Checks whether a state dict fits a module: names, shapes and types, all at once.

torch itself loads it into a copy of the module on the meta device. So hooks and methods by which a
module accepts older names run as in a real load. Nothing is guessed: a name may be missing only
where the state dict has a tied name of the same tensor.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unitify.capture.tree import copy_of
from unitify.diagnostics import KeysDiffer, NotFinite, UnitifyError, first_of
from unitify.rulebook.dimensions import is_floating

_SHOWN = 3

StateDict = Mapping[str, Any]


@dataclass(frozen=True)
class Fit:
    """How a state dict fits a module: missing and unexpected names, and differing tensors."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """All differences on one line; "" without any."""
        problems = [
            *_listed("missing", self.missing),
            *_listed("unexpected", self.unexpected),
            *_listed("differing", self.differing),
        ]
        return "; ".join(problems)


def fit(module: nn.Module, given: StateDict, *, same_types: bool = False) -> Fit:
    """How ``given`` fits ``module``, which does not change.

    A tensor may have a narrower type than the module's, which holds it exactly, but not a wider
    one. With ``same_types`` it must have the module's.
    """
    loading = _Loading(module, given)
    held = dict(_tensors(module))
    differing = [*loading.errors]
    first: dict[int, str] = {}
    for name, tensor in loading.met.items():
        if name in held:
            differing += _mismatch(name, held[name], tensor, same_types)
            other = first.setdefault(id(held[name]), name)
            if not _same(tensor, loading.met[other]):
                differing.append(f"{name} and {other} differ, but are one tensor of the model")
    missing = [n for n in loading.missing if n not in held or id(held[n]) not in first]
    return Fit(tuple(missing), tuple(loading.unexpected), tuple(differing))


def check_fitting(module: nn.Module, given: StateDict, *, same_types: bool = False) -> None:
    """Check that ``given`` fits ``module``.

    Raises ``UnitifyError`` (U603) with names that are missing, unexpected or differ.
    """
    if problem := fit(module, given, same_types=same_types).problem:
        raise UnitifyError(KeysDiffer(problem=problem))


def check_finite(module: nn.Module) -> None:
    """Check that parameters are finite, and buffers free of NaN (a mask may hold ``-inf``).

    Raises ``UnitifyError`` with one U204 for each tensor that is not.
    """
    findings = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta or not is_floating(tensor):
            continue
        held = tensor.detach()
        # torch has no ``isfinite`` for types of eight bits.
        held = held.float() if held.itemsize == 1 else held
        bad = ~torch.isfinite(held) if isinstance(tensor, nn.Parameter) else torch.isnan(held)
        if count := int(bad.sum()):
            findings.append(NotFinite(name=name, count=count))
    if findings:
        raise UnitifyError(*findings)


class _Loading:
    """A load by torch: the tensors that it uses, by name, and the names that it misses."""

    def __init__(self, module: nn.Module, given: StateDict) -> None:
        self.met: dict[str, Tensor] = {}
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.errors: list[str] = []
        twin = _on_meta(module)
        for part in twin.modules():
            if not isinstance(part, torch.jit.ScriptModule):
                noted = functools.partial(self._load_one, part, part._load_from_state_dict)
                part.__dict__["_load_from_state_dict"] = noted
        with warnings.catch_warnings():
            # torch warns that a copy to the meta device does nothing.
            warnings.simplefilter("ignore")
            try:
                twin.load_state_dict(given, strict=False)
            except RuntimeError as error:
                self.errors.append(" ".join(str(error).split()))

    def _load_one(
        self, part: nn.Module, load: Any, state_dict: Any, prefix: str, *rest: Any
    ) -> None:
        *_, self.missing, self.unexpected, errors = rest
        before = len(errors)
        load(state_dict, prefix, *rest)
        # After its hooks, these are the names and tensors of the load.
        own = {**part._parameters, **part._buffers}
        for name in own:
            tensor = state_dict.get(prefix + name)
            if own[name] is not None and isinstance(tensor, Tensor):
                self.met[prefix + name] = tensor
        # Sizes are compared and reported here.
        errors[before:] = [e for e in errors[before:] if not e.startswith("size mismatch")]


def _on_meta(module: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        if is_lazy(tensor):
            continue
        memo[id(tensor)] = without_numbers(tensor)
    return copy_of(module, memo)


def without_numbers(tensor: Tensor) -> Tensor:
    """A tensor on the meta device like ``tensor``; for a parameter, a parameter."""
    empty = torch.empty_like(tensor.detach(), device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Every parameter and buffer, under each of its names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other or one.is_meta or other.is_meta:
        return True
    return one.shape == other.shape and torch.equal(one, other)


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    names = sorted(names)
    if not names:
        return []
    return [f"{kind}: {first_of(names, _SHOWN)}"]


def _mismatch(name: str, expected: Tensor, given: Tensor, same_types: bool) -> list[str]:
    if is_lazy(expected):
        return []
    if expected.shape != given.shape:
        return [f"{name} is {_shape(given)}, the model's {_shape(expected)}"]
    if given.dtype == expected.dtype:
        return []
    if _is_narrower(given.dtype, expected.dtype) and not same_types:
        return []
    codes = "; its numbers are codes without a scale" if _is_code(given) else ""
    return [f"{name} is {_type(given)}, the model's {_type(expected)}{codes}"]


def _is_narrower(given: torch.dtype, expected: torch.dtype) -> bool:
    if not (given.is_floating_point and expected.is_floating_point) or given.itemsize == 1:
        return False
    return torch.promote_types(expected, given) == expected


def _is_code(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.itemsize == 1


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "()"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def ties_in(given: Mapping[str, Tensor]) -> dict[str, str]:
    """Every further name of one tensor in memory → its first name."""
    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in given.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and not tensor.is_meta and first.setdefault(place, name) != name:
            tied[name] = first[place]
    return tied
