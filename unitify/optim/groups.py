"""Parameter groups and gradient clipping in the units of stored parameters.

With true weights these are the original's units, and plain torch does the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from unitify.diagnostics import (
    DecayNotIndependent,
    Diagnostic,
    ParametersRenamed,
    UnitifyError,
    UnknownOption,
    warn_of_losses,
)
from unitify.module.unit_scaled import UnitScaledModule
from unitify.optim.optimizers import OptimizerUnits, Units, units_of
from unitify.plan.scale_plan import Scale
from unitify.scheme.options import UMuP
from unitify.scheme.rates import learning_rate_factor


def scales_of(module: nn.Module) -> dict[str, Scale]:
    """Name → ``Scale`` of every parameter of ``module``, within any wrappers.

    A tied parameter has one entry, under its first name. True parameters, and those outside
    transformed parts, have scale one.

    Raises ``UnitifyError`` (U019) where stored parameters have other names than in their plan.
    """
    inside: dict[int, Scale] = {}
    for part in module.modules():
        if isinstance(part, UnitScaledModule):
            _check_names(part)
            for name, parameter in part.named_parameters():
                inside[id(parameter)] = part.plan.parameters.get(name, Scale())
    return {name: inside.get(id(p), Scale()) for name, p in module.named_parameters()}


def _check_names(part: UnitScaledModule) -> None:
    """Check that no wrapper renamed stored parameters, whose scales are found by name."""
    if part.plan.weights == "true" or part.is_inference:
        return
    held = {name for name, _ in part.named_parameters(remove_duplicate=False)}
    lost = [name for name in part.plan.parameters if name not in held]
    if lost:
        where = type(part.original).__name__
        raise UnitifyError(ParametersRenamed(where=where, count=len(lost), name=lost[0]))


def has_stored_weights(module: nn.Module) -> bool:
    """Does ``module``, or a module in it, have stored parameters?"""
    parts = [m for m in module.modules() if isinstance(m, UnitScaledModule)]
    return any(part.plan.weights == "stored" for part in parts)


def has_scheme(module: nn.Module) -> bool:
    """Is ``module``, or a module in it, the model of a scheme, which has its own learning rates?"""
    return any(isinstance(part, UnitScaledModule) and part.scheme for part in module.modules())


def rates_of(module: nn.Module, row: OptimizerUnits) -> tuple[dict[str, float], set[str]]:
    """Name → a scheme's factor of a parameter's learning rate; and the names under u-μP."""
    is_gradient_step = row.units["lr"] == Units(-1, 1)
    inside: dict[int, float] = {}
    transferred: set[int] = set()
    for part in module.modules():
        made = part.scheme if isinstance(part, UnitScaledModule) else {}
        for name, parameter in part.named_parameters(remove_duplicate=False) if made else ():
            for chosen in made.values():
                if name in chosen.parameters:
                    inside[id(parameter)] = learning_rate_factor(
                        chosen.scheme, chosen.parameters[name], is_gradient_step=is_gradient_step
                    )
                    if chosen.scheme == UMuP.name:
                        transferred.add(id(parameter))
    named = list(module.named_parameters())
    rates = {name: inside[id(p)] for name, p in named if id(p) in inside}
    return rates, {name for name, p in named if id(p) in transferred}


def param_groups(
    module: nn.Module,
    optimizer_class: type[Optimizer],
    *,
    params: Iterable[Mapping[str, Any]] | None = None,
    units: OptimizerUnits | None = None,
    independent_decay: bool = True,
    **options: Any,
) -> list[dict[str, Any]]:
    """Groups with which ``optimizer_class`` trains ``module`` as ``options`` would the original.

    With true weights, the default of ``transform``, they are plain torch's: ``params`` with
    ``options``. Only stored weights, and the learning rates of a scheme, need more.

    ``options``: the hyperparameters of the original (``lr``, ``weight_decay``, ``betas``, …); the
    others have the optimizer's defaults. ``params``: groups as in torch, each with ``"params"``
    (parameters of ``module``, or (name, parameter) pairs) and overrides; None takes all parameters.
    ``units``: a row for an optimizer that is not in ``UNITS``.

    For the model of a scheme, ``lr`` is the one tuned rate, for unit weights. Each parameter's rate
    is multiplied by its factor (``scheme.rates``). ``independent_decay``: with u-μP the decay of a
    step is ``weight_decay`` times the factor of the schedule, not times ``lr``. False warns (U704).

    Each group then has ``params`` (in the order of ``module.parameters()``), ``param_names``, every
    hyperparameter that depends on a scale, the other options and ``lr_factor`` (see
    ``learning_rates``).

    Raises ``UnitifyError``: U007 for an unknown optimizer; U001 for an unknown option.
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        choices = "the classes of torch.optim"
        value = repr(optimizer_class)
        raise UnitifyError(UnknownOption(option="optimizer_class", value=value, choices=choices))
    defaults = _defaults(optimizer_class)
    given_groups: Iterable[Mapping[str, Any]] = (
        [{"params": module.parameters()}] if params is None else params
    )
    if not (has_stored_weights(module) or has_scheme(module)):
        if problems := _unknown(optimizer_class, defaults, options):
            raise UnitifyError(*problems)
        return [{**options, **group, "params": _as_list(group["params"])} for group in given_groups]
    row = units if units is not None else units_of(optimizer_class)
    names = {id(p): name for name, p in module.named_parameters()}
    scales, (rates, transferred) = scales_of(module), rates_of(module, row)
    order = {id(p): index for index, p in enumerate(module.parameters())}
    groups: list[dict[str, Any]] = []
    for given in given_groups:
        own = {
            name: value for name, value in given.items() if name not in ("params", "param_names")
        }
        asked = {**options, **own}
        _check_options(optimizer_class, defaults, row, options, asked)
        merged: dict[tuple[float, ...], dict[str, Any]] = {}
        if transferred and {**defaults, **asked}.get("weight_decay"):
            is_decoupled = _is_decoupled(row, {**defaults, **asked})
            if not (independent_decay and is_decoupled):
                warn_of_losses([DecayNotIndependent(optimizer=optimizer_class.__name__)])
        for parameter in sorted(
            _tensors(given["params"]), key=lambda p: order.get(id(p), len(order))
        ):
            name = names.get(id(parameter), "")
            rate = rates.get(name, 1.0)
            wanted = {**defaults, **asked}
            if name in rates:
                is_independent = independent_decay and name in transferred
                wanted |= _at_rate(wanted, rate, is_independent and _is_decoupled(row, wanted))
            scaled, key = _scaled_options(row, wanted, scales.get(name, Scale()))
            scaled["lr_factor"] *= rate
            empty: dict[str, Any] = {"params": [], "param_names": []}
            group = merged.setdefault((*key, rate), {**empty, **asked, **scaled})
            group["params"].append(parameter)
            group["param_names"].append(name)
        groups.extend(merged.values())
    return groups


def _is_decoupled(row: OptimizerUnits, hyperparameters: Mapping[str, Any]) -> bool:
    """Is weight decay decoupled: subtracted from the parameter, not added to the gradient?"""
    units = dict(row.units)
    for flag, replaced in row.when.items():
        if hyperparameters.get(flag):
            units.update(replaced)
    return units.get("weight_decay") == Units(1, 0)


def _at_rate(
    hyperparameters: Mapping[str, Any], rate: float, independent_decay: bool
) -> dict[str, Any]:
    """Learning rate and weight decay of a parameter whose rate is ``rate`` times the given one."""
    lr = hyperparameters["lr"] * rate
    changed = {"lr": lr}
    if independent_decay and hyperparameters.get("weight_decay") and float(lr):
        changed["weight_decay"] = hyperparameters["weight_decay"] / float(lr)
    return changed


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _tensors(params: Any) -> Iterator[Tensor]:
    for item in _as_list(params):
        yield item[1] if isinstance(item, tuple) else item


def _scaled_options(
    row: OptimizerUnits, hyperparameters: Mapping[str, Any], scale: Scale
) -> tuple[dict[str, Any], tuple[float, ...]]:
    """The hyperparameters that depend on the scale, and their factors (equal ones share a group).

    ``lr_factor``, the factor of a learning rate, is among the hyperparameters.
    """
    units = dict(row.units)
    for flag, replaced in row.when.items():
        if hyperparameters.get(flag):
            units.update(replaced)
    scaled: dict[str, Any] = {"lr_factor": units["lr"].of(scale)}
    for name, unit in units.items():
        value = hyperparameters.get(name)
        if value is None or (not isinstance(value, Tensor | tuple) and value == 0):
            continue
        factor = unit.of(scale)
        is_many = isinstance(value, tuple)
        scaled[name] = tuple(v * factor for v in value) if is_many else value * factor
    key = tuple(unit.of(scale) for name, unit in units.items() if name == "lr" or name in scaled)
    return scaled, key


def _defaults(optimizer_class: type[Optimizer]) -> dict[str, Any]:
    """Options of the class, and of the bases of its ``**kwargs``. ``...``: one without default."""
    found: dict[str, Any] = {}
    for base in optimizer_class.__mro__:
        if base is Optimizer or "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                missing = parameter.default is parameter.empty
                found.setdefault(parameter.name, ... if missing else parameter.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _unknown(
    optimizer_class: type[Optimizer], defaults: Mapping[str, Any], options: Mapping[str, Any]
) -> list[Diagnostic]:
    """A diagnostic for every option that the class does not have."""
    where, known = optimizer_class.__name__, ", ".join(defaults)
    return [
        UnknownOption(where=where, option=where, value=name, choices=known)
        for name in options
        if name not in defaults
    ]


def _check_options(
    optimizer_class: type[Optimizer],
    defaults: Mapping[str, Any],
    row: OptimizerUnits,
    options: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> None:
    """Check ``options``. Groups, unlike options, may have further keys of the user."""
    where = optimizer_class.__name__
    problems = _unknown(optimizer_class, defaults, options)
    for name, value in asked.items():
        if name in row.unscaled and value != row.unscaled[name]:
            only = f"{row.unscaled[name]} (it is one for all groups, which have units of their own)"
            problems.append(UnknownOption(where=where, option=name, value=str(value), choices=only))
    for name in row.units:
        if defaults.get(name) is ... and name not in asked:
            problems.append(UnknownOption(where=where, option=name, value="", choices="a number"))
    if problems:
        raise UnitifyError(*problems)


def learning_rates(groups: Optimizer | Iterable[Mapping[str, Any]], lr: float) -> list[float]:
    """The original's absolute learning rate ``lr`` in the units of each group, in their order.

    With true weights and without a scheme, it is ``lr`` for all.

    For schedulers that take a list of rates: ``OneCycleLR(optimizer, max_lr=learning_rates(…))``.
    """
    if isinstance(groups, Optimizer):
        groups = groups.param_groups
    return [lr * float(group.get("lr_factor", 1.0)) for group in groups]


#: Norms that commute bitwise with a power of two; others are computed from true gradients.
_EXACT_NORMS = (1.0, 2.0, float("inf"))


@torch.no_grad()
def total_norm(module: nn.Module, norm_type: float = 2.0) -> Tensor:
    """The norm of all true gradients of ``module`` as one vector, a 0-d tensor.

    Parameters without gradient are left out. The norm is zero without any gradient.
    """
    norm_type = float(norm_type)
    scales = scales_of(module)
    norms: list[Tensor] = []
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            gradient = gradient.coalesce().values()
        bwd = scales[name].bwd
        if norm_type in _EXACT_NORMS:
            norms.append(torch.linalg.vector_norm(gradient, norm_type) * bwd)
        else:
            norms.append(torch.linalg.vector_norm(gradient * bwd, norm_type))
    if not norms:
        return torch.tensor(0.0)
    together = torch.stack([norm.to(norms[0].device) for norm in norms])
    norm: Tensor = torch.linalg.vector_norm(together, norm_type)
    return norm


def clip_grad_norm_(
    module: nn.Module,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients so that the norm of the true ones is at most ``max_norm``.

    Like ``torch.nn.utils.clip_grad_norm_`` on the original. Returns the norm before clipping, a 0-d
    tensor.

    Raises ``RuntimeError``, as torch does, for a norm that is not finite if
    ``error_if_nonfinite``.
    """
    norm = total_norm(module, norm_type)
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise RuntimeError(
            f"The total norm of order {norm_type} of the true gradients is non-finite, so they "
            "cannot be clipped. To scale them by it anyway, set `error_if_nonfinite=False`"
        )
    clip_grads_with_norm_(module.parameters(), max_norm, norm)
    return norm


@torch.no_grad()
def clip_grad_value_(module: nn.Module, clip_value: float) -> None:
    """Clamp every element of the true gradients to [-``clip_value``, ``clip_value``]."""
    scales = scales_of(module)
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            limit = float(clip_value) / scales[name].bwd
            parameter.grad.clamp_(-limit, limit)
