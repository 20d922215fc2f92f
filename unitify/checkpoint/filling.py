"""Fills a model with the weights of a checkpoint: with all of them, unless names may differ.

Takes a model and the state dicts of a checkpoint; gives notes on what was changed to make them fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from unitify.checkpoint.float8 import dequantized
from unitify.checkpoint.rebuild import check_held, materialize
from unitify.checkpoint.renamed import renamings, without
from unitify.checkpoint.state_dict import Fit, StateDict, check_finite, fit
from unitify.diagnostics import (
    CheckpointAdapted,
    Diagnostic,
    KeysDiffer,
    SeveralStateDicts,
    UnitifyError,
)


@dataclass(frozen=True)
class Allowed:
    """Patterns of names (``fnmatch``) that a checkpoint may lack, and that a model may lack."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def missing_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names`` that may be missing."""
        return _matching(names, self.missing)

    def unexpected_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names`` that may be unexpected."""
        return _matching(names, self.unexpected)


NOTHING = Allowed()


def fill(
    model: nn.Module,
    given: Mapping[str, StateDict],
    path: str = "",
    allowed: Allowed = NOTHING,
) -> tuple[Diagnostic, ...]:
    """Load one of the state dicts ``given``, which are named by their entries, into ``model``.

    Prefixes of wrappers are removed from names, codes of eight bits are multiplied by their scales,
    and the average of an ``AveragedModel`` is used, each only if it makes every name fit. Notes
    report these changes, and names that were allowed to differ.

    Raises ``UnitifyError``: U603 where names, shapes or types differ; U613 where several state
    dicts fit; U204 for weights that are not finite.
    """
    # The entry of an optimizer has several tensors for each parameter.
    most = max(map(len, given.values()))
    large = {entry: held for entry, held in given.items() if 2 * len(held) >= most}
    found = [_best(model, entry, held, allowed) for entry, held in large.items()]
    fitting = [reading for reading in found if reading.is_right]
    if not fitting:
        nearest = min(found, key=lambda reading: reading.count)
        where = f"{path}: {nearest.entry}" if nearest.entry else path
        raise UnitifyError(differs(nearest.refused, where))
    fewest = min(reading.count for reading in fitting)
    best, *others = [reading for reading in fitting if reading.count == fewest]
    if others:
        entries = ", ".join(reading.entry for reading in (best, *others))
        raise UnitifyError(SeveralStateDicts(path=path, entries=entries, first=best.entry))
    check_held(model, best.missing)
    materialize(model)
    model.load_state_dict(best.state_dict, strict=False)
    check_finite(model)
    entry = (f"its entry {best.entry!r} was read",) if best.entry else ()
    return adapted(path, *entry, *best.done, kept=best.missing, left_out=best.unexpected)


def differs(found: Fit, where: str) -> KeysDiffer:
    """The diagnostic for names that do not fit, with the options that allow them."""
    if found.differing:
        return KeysDiffer(where=where, problem=found.problem)
    options = [f"--allow-missing {pattern!r}" for pattern in _patterns(found.missing)]
    options += [f"--allow-unexpected {pattern!r}" for pattern in _patterns(found.unexpected)]
    advice = f"{KeysDiffer.advice}, or allow it: {' '.join(options)}"
    return KeysDiffer(where=where, problem=found.problem, advice=advice)


def adapted(
    path: str, *done: str, kept: Iterable[str] = (), left_out: Iterable[str] = ()
) -> tuple[Diagnostic, ...]:
    """Notes on changes to a checkpoint. ``kept``: names that it lacks; ``left_out``: others."""
    changes = [*done]
    if names := ", ".join(kept):
        changes.append(f"not in it, and left at the model's initial values: {names}")
    if names := ", ".join(left_out):
        changes.append(f"not in the model, and left out: {names}")
    return tuple(CheckpointAdapted(where=path, what=what) for what in changes)


@dataclass(frozen=True)
class _Reading:
    """One way to read a state dict, how it fits a model, and which differences are allowed."""

    entry: str
    state_dict: StateDict
    done: tuple[str, ...]
    found: Fit
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def count(self) -> int:
        """The number of names that do not fit."""
        return len(self.found.missing) + len(self.found.unexpected) + len(self.found.differing)

    @property
    def refused(self) -> Fit:
        """The differences that are not allowed."""
        return Fit(
            tuple(name for name in self.found.missing if name not in self.missing),
            tuple(name for name in self.found.unexpected if name not in self.unexpected),
            self.found.differing,
        )

    @property
    def is_right(self) -> bool:
        """Are all differences allowed?"""
        return self.refused == Fit()


def _best(model: nn.Module, entry: str, given: StateDict, allowed: Allowed) -> _Reading:
    """The allowed reading, if any, with the fewest differences; the first of equals."""
    ignored = allowed.unexpected_of(given)
    readings: list[_Reading] = []
    for state_dict, done in _readings(model, without(given, ignored)):
        found = fit(model, state_dict)
        missing = allowed.missing_of(found.missing)
        unexpected = allowed.unexpected_of(found.unexpected)
        found = Fit(found.missing, (*found.unexpected, *ignored), found.differing)
        unexpected = (*unexpected, *ignored)
        readings.append(_Reading(entry, state_dict, done, found, missing, unexpected))
        if readings[-1].is_right and not (missing or found.unexpected):
            break
    return min(readings, key=lambda reading: (not reading.is_right, reading.count))


def _readings(model: nn.Module, given: StateDict) -> Iterator[tuple[StateDict, tuple[str, ...]]]:
    yield from renamings(given)
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.get_default_dtype()
    numbers, names = dequantized(given, dtype)
    if names:
        what = f"{len(names)} tensors of FP8 codes were multiplied by their scales, to {dtype}"
        for state_dict, done in renamings(numbers):
            yield state_dict, (what, *done)


def _patterns(names: Iterable[str]) -> Iterator[str]:
    """A few patterns that match all ``names``: one for each submodule."""
    firsts: dict[str, list[str]] = {}
    for name in sorted(names):
        firsts.setdefault(name.split(".")[0], []).append(name)
    for first, held in firsts.items():
        yield held[0] if len(held) == 1 else f"{first}.*"


def _matching(names: Iterable[str], patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns))
