"""Alarms on the transformed models of the zoo: ``python tests/alarms.py analysis [MODEL …]``.

Each model is transformed with scales of that kind (analysis or measured) and the recipe fp8,
checked on measured values, and printed: tensors judged, those outside, the worst one.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import zoo

import unitify
from unitify.check.asserting import check_model


def row(name: str, scales: str) -> str:
    model, args, kwargs = zoo.build(name)
    module = unitify.transform(
        model, args, kwargs, scales=scales, verify=False, recipe="fp8,multiple=1"
    )
    # Parts of a model are measured as it runs; a graph alone on its example.
    inputs = [kwargs or args] if len(module.parts) > 1 else ()
    outcome = check_model(module, inputs, scales="measured", root=Path(zoo.__file__).parent)
    outside = [f for f in outcome.findings if f.code in ("U802", "U803", "U804", "U805")]
    worst = max(outside, key=lambda f: f.level or 0.0, default=None)
    said = f"{worst.code} {worst.message}" if worst is not None else ""
    return f"| {name} | {len(outcome.cases)} | {len(outside)} | {said} |"


def main() -> None:
    warnings.simplefilter("ignore")
    scales, *names = sys.argv[1:]
    for name in names or zoo.MODELS:
        print(row(name, scales), flush=True)


if __name__ == "__main__":
    main()
