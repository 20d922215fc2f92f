"""One architecture, transformed and compared with the original: a row of the survey.

Whole captures and islands alike: whatever ``transform`` makes of a model has to be bitwise the
captured original, in both modes, with every parameter that gets a gradient among what is compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import zoo
from conversion import tensors
from torch import nn

import unitify
from unitify.capture.execution import backward_starts, unchanged
from unitify.capture.exporting import without_cache
from unitify.capture.islands import path_of
from unitify.diagnostics import AliasedMutation, Diagnostic, GradientLost, NotCaptured, OneModeOnly
from unitify.verification import Difference, Verification

MODES = {"train": True, "eval": False}

#: Findings that name what was not transformed.
_LEFT_ALONE = (NotCaptured, GradientLost, AliasedMutation, OneModeOnly)


@dataclass(frozen=True)
class Compared:
    """A model and its module in one mode: what verification found, and what there is to find.

    ``expected``: outputs, and parameters to which the eager model gives a gradient.
    """

    found: Verification
    expected: int

    @property
    def is_exact(self) -> bool:
        """Bitwise the captured original, and nothing left out of the count."""
        return self.found.exact and self.found.compared >= self.expected


@dataclass(frozen=True)
class Row:
    """What became of one architecture. ``refused``: the code and reason of an error."""

    name: str
    seconds: float
    islands: tuple[str, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    modes: dict[str, Compared] = dataclasses.field(default_factory=dict)
    refused: str = ""

    @property
    def is_exact(self) -> bool:
        """Was it transformed, and is it bitwise the captured original in every mode it has?"""
        return bool(self.modes) and all(mode.is_exact for mode in self.modes.values())

    @property
    def differences(self) -> list[Difference]:
        """Every tensor that is not bitwise that of the captured original."""
        return [d for mode in self.modes.values() for d in mode.found.differences]

    @property
    def left_alone(self) -> list[Diagnostic]:
        """What was not transformed, and why."""
        return [d for d in self.diagnostics if isinstance(d, _LEFT_ALONE)]

    @property
    def underflows(self) -> list[Difference]:
        """Tensors that differ in subnormal numbers, which the original rounds (U503)."""
        return [d for mode in self.modes.values() for d in mode.found.underflows]

    def same(self, kind: str) -> str:
        """Are all tensors of this kind ("output", "gradient") bitwise those of the capture?"""
        if not self.modes:
            return "–"
        if any(kind in difference.name for difference in self.differences):
            return "no"
        return "to 2^-126" if any(kind in lost.name for lost in self.underflows) else "yes"

    @property
    def eagerly(self) -> str:
        """How far what is rounded otherwise is from the model."""
        if not self.modes:
            return "–"
        found = [d for mode in self.modes.values() for d in mode.found.rounding]
        return f"{max(d.relative for d in found):.1g}" if found else "bitwise"

    @property
    def form(self) -> str:
        """Whole or in islands, in how many graphs."""
        if self.refused:
            return self.refused.split(maxsplit=1)[0]
        return f"{len(self.islands)} islands" if self.islands else "whole"


def surveyed(name: str, scales: str = "analysis") -> Row:
    """Transform and compare the architecture of this name; an error becomes part of the row."""
    model, args, kwargs = zoo.build(name)
    settle(model, args, kwargs)
    start = time.process_time()

    def row(**found: Any) -> Row:
        return Row(name, time.process_time() - start, **found)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = unitify.transform(model, args, kwargs, scales=scales, verify=False)
            modes = {
                mode: compared(model, module, args, kwargs, training)
                for mode, training in MODES.items()
                if holds_for(module, mode)
            }
        except unitify.UnitifyError as error:
            return row(refused=str(error), diagnostics=error.diagnostics)
        except Exception as error:  # A crash is a row, too: nothing is left out of the count.
            return row(refused=f"{type(error).__name__}: {error}")
    islands = tuple(sorted({path_of(part) for part in module.parts} - {""}))
    return row(islands=islands, diagnostics=module.diagnostics, modes=modes)


def settle(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give batch norms the statistics of the inputs.

    With those that they start with, the values of a deep untrained network leave the range of
    float32 in evaluation; there the original rounds, and is no measure of anything.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            model.train()(*args, **kwargs)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def holds_for(module: unitify.UnitScaledModule, mode: str) -> bool:
    """Was this mode captured? Where it was not, the module refuses it (U103)."""
    parts = module.parts
    return tuple(parts) != ("",) or parts[""].capture.mode in (None, mode)


def compared(
    model: nn.Module,
    module: unitify.UnitScaledModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training: bool,
) -> Compared:
    """Verification in one mode, beside what an ordinary run of the model has to show."""
    model.train(training)
    module.train(training)
    found = unitify.verify(model, module, args, kwargs)
    with unchanged(model, wholly=True), without_cache(model):
        output = model(*args, **kwargs)
        starts, gradients = backward_starts(output, None)
        # Some models refuse a backward pass in evaluation.
        with contextlib.suppress(AssertionError):
            torch.autograd.backward(starts, gradients)
        with_gradient = sum(p.grad is not None for p in model.parameters())
    return Compared(found, len(tensors(output)) + with_gradient)


def table(rows: Iterable[Row]) -> str:
    """The survey as a page of Markdown."""
    rows = sorted(rows, key=lambda row: row.name)
    whole = [row for row in rows if row.modes and not row.islands]
    islands = [row for row in rows if row.islands]
    exact = [row for row in rows if row.is_exact]
    rounded = [row for row in exact if row.underflows]
    lines = [
        "# Architectures",
        "",
        f"Written by `make survey`: transformers {transformers.__version__}, torch "
        f"{torch.__version__}, float32, one thread.",
        "",
        "Every architecture of the zoo (`tests/zoo_transformers.py`, `zoo_language.py` and"
        " `zoo_senses.py`), tiny, from its config alone, as `unitify.transform(model, ...)` takes"
        " it. Compared bitwise with the captured model, in train and in eval mode: outputs,"
        " gradients of every parameter and floating input, and buffers. *Eagerly* compares with the"
        " model as it runs by itself, which may take other kernels than while it is recorded: the"
        " largest difference, relative to the tensor's RMS.",
        "",
        f"{len(rows)} architectures: {len(whole)} whole, {len(islands)} in islands, "
        f"{len(rows) - len(whole) - len(islands)} refused; {len(exact)} exact, {len(rounded)} of "
        "them *to 2^-126*: they differ in subnormal numbers, which the original rounds (U503).",
        "",
        "| model | captured | tensors | outputs bitwise | gradients bitwise | eagerly | CPU s |",
        "|---|---|--:|---|---|---|--:|",
    ]
    for row in rows:
        tensors_compared = sum(mode.found.compared for mode in row.modes.values())
        only = "" if len(row.modes) != 1 else f", {next(iter(row.modes))} only"
        lines.append(
            f"| {row.name} | {row.form}{only} | {tensors_compared} | {row.same('output')} "
            f"| {row.same('gradient')} | {row.eagerly} | {row.seconds:.0f} |"
        )
    lines += ["", "## What was left alone, and why", ""]
    for row in rows:
        reasons: dict[tuple[str, str], list[str]] = {}
        for note in row.left_alone:
            why = getattr(note, "reason", "") or note.message
            reasons.setdefault((note.code, why), []).append(note.where)
        if row.refused and not reasons:
            lines.append(f"- **{row.name}**: {row.refused.splitlines()[0]}")
        if row.underflows:
            first = row.underflows[0]
            lines.append(f"- **{row.name}** U503: {len(row.underflows)} tensors, first {first}")
        for (code, why), places in reasons.items():
            where = f"`{places[0]}`" + (f" and {len(places) - 1} more" if places[1:] else "")
            lines.append(f"- **{row.name}** {code} {where}: {' '.join(why.split())}")
    return "\n".join(lines) + "\n"
