"""Every model of the zoo under ``scheme="unit"``: shares of values and gradients at unit RMS.

    python -m examples.scheme_shares [NAMES]

Writes ``docs/results/schemes.md``. Not part of ``make test``: it takes some minutes.
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import torch

import unitify
from examples.estimates import without_rounding, zoo
from unitify.analysis.analyze import analyze
from unitify.capture.islands import Recording
from unitify.capture.whole import Capture
from unitify.measure.captured import measure
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.rulebook.rule_table import load_rules

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "schemes.md"
RULES = load_rules()
#: [values, at unit RMS, gradients, at unit RMS]
Counts = list[int]


def count(captured: Capture, plan: ScalePlan | None) -> Counts:
    """Measured on the example, as stored. Zeros and infinite values (masks) are left out."""
    made = captured.reparametrization
    predicted = analyze(captured, RULES, weight_rms=None if made is None else 1.0).estimates
    measured = without_rounding(measure(captured), predicted)
    halves = made.outputs if made is not None else {}
    found = [0, 0, 0, 0]
    for name, rms in measured.items():
        scale = plan.values.get(name, Scale()) if plan is not None else Scale()
        for place, value, factor in ((0, rms.forward, scale.fwd), (2, rms.backward, scale.bwd)):
            if value and math.isfinite(value) and (place or name not in halves):
                found[place] += 1
                found[place + 1] += 0.5 <= value / factor <= 2
    return found


def added(rows: list[Counts]) -> Counts:
    return [sum(column) for column in zip(*rows, strict=True)]


def shares(name: str) -> tuple[list[Counts], bool]:
    """Before, after by analysis, after by measurement; and whether both are exact."""
    rows: list[Counts] = []
    exact = True
    for scales in ("analysis", "measured"):
        model, args, kwargs = zoo.build(name)
        seen: list[Capture | Recording] = []

        def observe(stage: str, made: object, seen: list[Capture | Recording] = seen) -> None:
            if stage == "capture":
                seen.append(made)  # type: ignore[arg-type]

        module = unitify.transform(
            model, args, kwargs, scheme="unit", scales=scales, on_stage=observe
        )
        if not rows:
            first = seen[0]
            parts = first.parts.values() if isinstance(first, Recording) else [first]
            rows.append(added([count(captured, None) for captured in parts]))
        rows.append(added([count(part.capture, part.plan) for part in module.parts.values()]))
        exact = exact and module.verification is not None and module.verification.exact
    return rows, exact


def percent(counts: Counts, digits: int = 0) -> str:
    shares = [100 * counts[i + 1] / counts[i] if counts[i] else None for i in (0, 2)]
    return " | ".join("" if share is None else f"{share:.{digits}f}" for share in shares)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(zoo.MODELS)
    lines = [
        '# Models at initialization, before and after `scheme="unit"`',
        "",
        "`python -m examples.scheme_shares`. Percent of values (f) and gradients (b) with measured",
        "RMS in [1/2, 2], as stored. Of an operation and its multiplier the result counts; masks,",
        "zeros and gradients that are zero but for rounding (of biases before a batch norm, or of",
        "keys) do not; gradients of inputs, which stay true, and losses do. A model without a",
        "loss has noise of unit RMS for the gradient of its outputs. *Analysis* plans backward",
        "scales without data, *measured* from the example.",
        "",
        "| model | before f | b | analysis f | b | measured f | b | exact |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total: list[list[Counts]] = []
    for name in names:
        rows, exact = shares(name)
        total.append(rows)
        cells = " | ".join(percent(row) for row in rows)
        lines.append(f"| {name} | {cells} | {'yes' if exact else 'NO'} |")
        print(lines[-1], flush=True)
    columns = [added([rows[i] for rows in total]) for i in range(3)]
    lines.append("| **all values** | " + " | ".join(percent(c, 1) for c in columns) + " | |")
    print(lines[-1])
    if not sys.argv[1:]:
        PAGE.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
