"""An optimiser, moved to other scales of its parameters: state, groups and schedules.

``UNITS`` says by which powers of fwd and bwd everything that an optimiser keeps differs from what
it would keep for the original. So a change of scales, a power of two for each direction, is a
multiplication, and the next step is the one that would have been taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from unitify.diagnostics import SchedulerNeeded, StateNotMoved, UnitifyError
from unitify.optim.groups import scaled_options
from unitify.optim.optimizers import OptimizerUnits
from unitify.plan.scale_plan import Scale

#: New over old scale, by ``id`` of the parameter; what is not there does not change.
Changes = Mapping[int, Scale]

#: Where schedulers of torch keep learning rates in a group.
_RATES_OF_GROUP = ("initial_lr", "max_lr", "min_lr")
#: Their lists with one entry a group: of learning rates, and of other things.
_RATES = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")
_OTHERS = ("lr_lambdas", "base_momentums", "max_momentums")


def check_movable(
    optimizer: Optimizer, row: OptimizerUnits, *, needs_scheduler: bool = False
) -> None:
    """Are the units of all that ``optimizer`` keeps known, and its schedulers at hand?

    ``needs_scheduler``: none is given. Raises ``UnitifyError``: U008, one finding a name; U010
    where a scheduler has left its mark.
    """
    kept = {name: None for state in optimizer.state.values() for name in state}
    unknown = [name for name in kept if name not in row.state]
    name = type(optimizer).__name__
    if needs_scheduler and any("initial_lr" in group for group in optimizer.param_groups):
        raise UnitifyError(SchedulerNeeded(where=name, optimizer=name))
    if unknown:
        raise UnitifyError(*(StateNotMoved(where=name, optimizer=name, name=n) for n in unknown))


def multiply_(tensor: Tensor, factor: float) -> int:
    """``tensor`` times a power of two, in place.

    Returns how many elements lost digits: those that left the normal range of their type.
    """
    if factor == 1.0:
        return 0
    held = tensor._values() if tensor.is_sparse else tensor
    before = held.clone()
    held.mul_(factor)
    return int((held / factor != before).logical_and(before.isfinite()).sum())


def move_state(optimizer: Optimizer, row: OptimizerUnits, changes: Changes) -> int:
    """Multiply what ``optimizer`` keeps for each parameter. Returns as ``multiply_``."""
    lost = 0
    for parameter, state in optimizer.state.items():
        change = changes.get(id(parameter), Scale())
        for name, value in state.items():
            factor = row.state[name].of(change)
            if isinstance(value, Tensor) and value.is_floating_point():
                lost += multiply_(value, factor)
            elif isinstance(value, float):
                state[name] = value * factor
    return lost


@dataclass(frozen=True)
class _Member:
    """A parameter with the options that it needs, and the entries of schedulers beside them."""

    parameter: Tensor
    name: str | None
    options: Mapping[str, Any]
    entries: tuple[Any, ...]
    #: Which groups it may share: those with the same first item, its rank among them.
    origin: tuple[Any, ...]
    rank: int

    def shares_group_with(self, other: _Member) -> bool:
        """Would one group do for both?"""
        return (
            self.origin == other.origin
            and self.options.keys() == other.options.keys()
            and all(_alike(value, other.options[name]) for name, value in self.options.items())
            and all(_alike(a, b) for a, b in zip(self.entries, other.entries, strict=True))
        )


def regroup(
    optimizer: Optimizer,
    row: OptimizerUnits,
    changes: Changes,
    order: Mapping[int, int],
    schedulers: Iterable[Any] = (),
) -> None:
    """Give every parameter the hyperparameters of its new scale.

    Groups of ``unitify.optim.param_groups`` come out as it would make them now, so that a
    checkpoint fits an optimiser that is built anew; other groups are split where they have to be.
    ``order``: place of each parameter in its module, by ``id``. ``schedulers``: learning-rate
    schedulers of ``optimizer``, whose lists follow its groups.
    """
    lists = [(owner, name) for owner in _each(schedulers) for name in (*_RATES, *_OTHERS)]
    count = len(optimizer.param_groups)
    lists = [(s, n) for s, n in lists if len(getattr(s, n, None) or ()) == count]
    shared: list[list[_Member]] = []
    for member in sorted(
        _members(optimizer, row, changes, order, lists), key=lambda m: (m.origin[0], m.rank)
    ):
        group = next((g for g in shared if member.shares_group_with(g[0])), None)
        if group is None:
            shared.append([member])
        else:
            group.append(member)
    optimizer.param_groups[:] = [_group(members) for members in shared]
    for index, (owner, name) in enumerate(lists):
        kind = type(getattr(owner, name))
        setattr(owner, name, kind(members[0].entries[index] for members in shared))


def _members(
    optimizer: Optimizer,
    row: OptimizerUnits,
    changes: Changes,
    order: Mapping[int, int],
    lists: list[tuple[Any, str]],
) -> Iterator[_Member]:
    first: dict[Any, int] = {}
    for index, group in enumerate(optimizer.param_groups):
        given = group.get("given_group")
        # Groups that something else made are only ever split, and keep their order.
        key = ("own", index) if given is None else ("given", given)
        origin = (first.setdefault(key, index),)
        names = group.get("param_names", [None] * len(group["params"]))
        for position, (parameter, name) in enumerate(zip(group["params"], names, strict=True)):
            change = changes.get(id(parameter), Scale())
            options, rate = _options(row, group, change)
            held = [(n, getattr(owner, n)[index]) for owner, n in lists]
            entries = tuple(entry * rate if n in _RATES else entry for n, entry in held)
            rank = position if given is None else order.get(id(parameter), len(order))
            yield _Member(parameter, name, options, entries, origin, rank)


def _options(
    row: OptimizerUnits, group: Mapping[str, Any], change: Scale
) -> tuple[dict[str, Any], float]:
    """The hyperparameters of a group after a change of scale, and the factor of learning rates."""
    options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    if change == Scale():
        return options, 1.0
    scaled, _ = scaled_options(row, options, change)
    rate: float = scaled.pop("lr_factor")
    options |= scaled
    for name in ("lr_factor", *_RATES_OF_GROUP):
        if name in options:
            options[name] = options[name] * rate
    return options, rate


def _group(members: list[_Member]) -> dict[str, Any]:
    group = {"params": [m.parameter for m in members], **members[0].options}
    if members[0].name is not None:
        group["param_names"] = [m.name for m in members]
    return group


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)


def _each(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Every scheduler, those that others chain included."""
    for scheduler in schedulers:
        yield scheduler
        yield from _each(getattr(scheduler, "_schedulers", ()))


def change_of(old: Scale, new: Scale) -> Scale:
    """New over old: by what a scale is multiplied."""
    return Scale(new.fwd / old.fwd, new.bwd / old.bwd)
