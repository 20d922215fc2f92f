"""The published library of unit scaling beside ``scheme="unit"``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.models import FAMILIES, Size, build
from benchmarks.training import transformed
from benchmarks.turns import ratios, step_of


def unit_scaled(size: Size) -> Iterator[list[str]]:
    """A row a family: our step, and that of the library's ``unit_scale``, over the original's."""
    if find_spec("unit_scaling") is None:
        return
    from unit_scaling.transforms import unit_scale

    for family in FAMILIES:
        model, batch = build(family, size)
        ours = transformed(model, batch, scheme="unit")
        steps = {"original": step_of(model, model, batch), "ours": step_of(ours, ours, batch)}
        try:
            torch._dynamo.reset()
            theirs: Any = unit_scale(copy.deepcopy(model))
            steps["theirs"] = step_of(theirs, theirs, batch)
            steps["theirs"]()
        except Exception as error:
            steps.pop("theirs", None)
            failed = type(error).__name__
        found = ratios(steps)
        last = f"{found['theirs']:.2f}" if "theirs" in found else f"does not run: {failed}"
        yield [family, f"{found['ours']:.2f}", last]
