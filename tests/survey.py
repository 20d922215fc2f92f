"""One architecture, transformed and compared with the model itself: a row of the survey.

Whole captures and islands alike: whatever ``transform`` makes of a model is compared with the model
as it runs by itself, twice in a row, in both modes and on other sizes.
"""

from __future__ import annotations

import contextlib
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
from unitify.verification import Verification

#: Findings that name what was not transformed.
_LEFT_ALONE = (NotCaptured, GradientLost, AliasedMutation, OneModeOnly)


@dataclass(frozen=True)
class Row:
    """What became of one architecture. ``refused``: the code and reason of an error.

    ``outputs`` and ``gradients``: how many outputs one call of the eager model has, and to how many
    parameters it gives a gradient.
    """

    name: str
    seconds: float
    islands: tuple[str, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    found: Verification | None = None
    outputs: int = 0
    gradients: int = 0
    refused: str = ""

    @property
    def is_accepted(self) -> bool:
        """Is it the model but for rounding, and was nothing left out of the count?"""
        if self.found is None:
            return False
        with_gradients = [c for c in self.found.calls if not c.endswith("without gradients")]
        least = self.outputs * len(self.found.calls) + self.gradients * len(with_gradients)
        return self.found.is_accepted and self.found.compared >= least

    @property
    def is_exact(self) -> bool:
        """Is it bitwise the model in everything?"""
        return self.is_accepted and self.found is not None and self.found.exact

    @property
    def left_alone(self) -> list[Diagnostic]:
        """What was not transformed, and why."""
        return [d for d in self.diagnostics if isinstance(d, _LEFT_ALONE)]

    @property
    def result(self) -> str:
        """Bitwise, or how many results differ, and by how much of their RMS at most."""
        if self.found is None:
            return "–"
        if self.found.exact:
            return "bitwise"
        kinds = {"rounding": self.found.rounding, "subnormal": self.found.underflows}
        return ", ".join(
            f"{kind}: {len(held)}, up to {max(d.relative for d in held):.1g}"
            for kind, held in kinds.items()
            if held
        )

    @property
    def form(self) -> str:
        """Whole or in islands, in how many graphs."""
        if self.refused:
            return self.refused.split(maxsplit=1)[0]
        return f"{len(self.islands)} islands" if self.islands else "whole"


def surveyed(name: str, scales: str = "measured") -> Row:
    """Transform and compare the architecture of this name; an error becomes part of the row."""
    model, args, kwargs = zoo.build(name)
    settle(model, args, kwargs)
    start = time.process_time()

    def row(**found: Any) -> Row:
        return Row(name, time.process_time() - start, **found)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = unitify.transform(model, args, kwargs, scales=scales)
        except unitify.UnitifyError as error:
            return row(refused=str(error), diagnostics=error.diagnostics)
        except Exception as error:  # A crash is a row, too: nothing is left out of the count.
            return row(refused=f"{type(error).__name__}: {error}")
        outputs, gradients = results_of_a_call(model, args, kwargs)
    islands = tuple(sorted({path_of(part) for part in module.parts} - {""}))
    return row(
        islands=islands,
        diagnostics=module.diagnostics,
        found=module.verification,
        outputs=outputs,
        gradients=gradients,
    )


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


def results_of_a_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, int]:
    """How many outputs, and parameters with a gradient, an ordinary run of the model has."""
    with unchanged(model, wholly=True), without_cache(model):
        output = model(*args, **kwargs)
        starts, gradients = backward_starts(output, None)
        # Some models refuse a backward pass in evaluation.
        with contextlib.suppress(AssertionError):
            torch.autograd.backward(starts, gradients)
        with_gradient = sum(p.grad is not None for p in model.parameters())
    return len(tensors(output)), with_gradient


def table(rows: Iterable[Row]) -> str:
    """The survey as a page of Markdown."""
    rows = sorted(rows, key=lambda row: row.name)
    whole = [row for row in rows if row.found and not row.islands]
    islands = [row for row in rows if row.islands]
    exact = [row for row in rows if row.is_exact]
    rounded = [row for row in rows if row.found and row.found.rounding]
    subnormal = [row for row in rows if row.found and row.found.underflows]
    lines = [
        "# Architectures",
        "",
        f"Written by `make survey`: transformers {transformers.__version__}, torch "
        f"{torch.__version__}, float32, one thread.",
        "",
        "Every architecture of the zoo (`tests/zoo_transformers.py`, `zoo_language.py` and"
        " `zoo_senses.py`), tiny, from its config alone, as `unitify.transform(model, ...)` takes"
        " it. Compared with the model as it runs by itself: the example twice in a row in train"
        " mode, once in eval mode, in both without gradients, and larger and smaller inputs where"
        " sizes are free; outputs,"
        " gradients of every parameter and floating input, buffers, inputs and attributes"
        " afterwards. What is not bitwise is rounded otherwise, as near to the model in float64 as"
        " the model is itself (U504), or differs in subnormal numbers alone (U503); how far, is"
        " relative to a result's RMS.",
        "",
        f"{len(rows)} architectures: {len(whole)} whole, {len(islands)} in islands, "
        f"{len(rows) - len(whole) - len(islands)} refused; {len(exact)} exact, {len(rounded)} "
        f"with results that are rounded otherwise, {len(subnormal)} with subnormal ones.",
        "",
        "| model | captured | calls | results compared | equal | CPU s |",
        "|---|---|--:|--:|---|--:|",
    ]
    for row in rows:
        calls = len(row.found.calls) if row.found else 0
        compared = row.found.compared if row.found else 0
        lines.append(
            f"| {row.name} | {row.form} | {calls} | {compared} | {row.result} | {row.seconds:.0f} |"
        )
    lines += ["", "## What was left alone, and why", ""]
    for row in rows:
        reasons: dict[tuple[str, str], list[str]] = {}
        for note in row.left_alone:
            why = getattr(note, "reason", "") or note.message
            reasons.setdefault((note.code, why), []).append(note.where)
        if row.refused and not reasons:
            lines.append(f"- **{row.name}**: {row.refused.splitlines()[0]}")
        for (code, why), places in reasons.items():
            where = f"`{places[0]}`" + (f" and {len(places) - 1} more" if places[1:] else "")
            lines.append(f"- **{row.name}** {code} {where}: {' '.join(why.split())}")
    lines += ["", "## What is not bitwise", ""]
    for row in rows:
        for difference in (*row.found.rounding[:1], *row.found.underflows[:1]) if row.found else ():
            lines.append(f"- **{row.name}**: first {difference}")
    lines += ["", "## Calls that the module refuses", ""]
    for row in rows:
        if row.found and row.found.refused:
            lines.append(f"- **{row.name}**: {'; '.join(row.found.refused)}")
    return "\n".join(lines) + "\n"
