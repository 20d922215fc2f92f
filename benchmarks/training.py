"""Training steps and what they keep for the backward pass, as ratios to the original."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch._inductor.config
from torch import nn
from torch._inductor import metrics

import unitify
from benchmarks.models import FAMILIES, Size, build
from benchmarks.turns import ratios, saved_bytes, step_of

#: Way → options of ``transform``. "fp8-amax" finds scales at run time, as dynamic recipes do.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "everywhere": {},
    "casts, no cast": {"placement": "casts"},
    "stored weights": {"weights": "stored"},
    "fp16": {"recipe": "fp16"},
    "fp8": {"recipe": "fp8"},
    "fp8, simulated": {"recipe": "fp8,simulate=true"},
    "fp8-amax, simulated": {"recipe": "fp8-amax,simulate=true"},
}


def transformed(model: nn.Module, batch: Mapping[str, Any], **options: Any) -> Any:
    """The module; what a recipe leaves alone is not of interest here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        return unitify.transform(
            copy.deepcopy(model), example_kwargs=dict(batch), verify=False, **options
        )


def times_and_bytes(
    model: nn.Module, ways: Mapping[str, nn.Module], batch: Mapping[str, Any]
) -> list[str]:
    """For each way the time of a step, and in parentheses saved bytes, over the original's."""
    steps = {"original": step_of(model, model, batch)}
    times = ratios(steps | {name: step_of(m, m, batch) for name, m in ways.items()})
    base = saved_bytes(model, batch)
    return [f"{times[n]:.2f} ({saved_bytes(m, batch) / base:.2f})" for n, m in ways.items()]


def eager(size: Size) -> Iterator[list[str]]:
    """A row a family: operations, rescales, and for each way its time and its saved bytes."""
    for family in FAMILIES:
        model, batch = build(family, size)
        modules = {name: transformed(model, batch, **options) for name, options in WAYS.items()}
        graph = modules["everywhere"].graph
        names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        rescales = sum("unitify.rescale" in name for name in names)
        yield [
            family, str(len(names) - rescales), str(rescales),
            *times_and_bytes(model, modules, batch),
        ]  # fmt: skip


#: Ways to run a compiled step; the columns are about each.
COMPILED = ("everywhere", "fp8", "fp8, simulated")


def compiled(size: Size) -> Iterator[list[str]]:
    """A row a family: the step, what it saves and the time to compile it, over the original's.

    And the kernels of the two passes. All for each of ``COMPILED``.

    Nothing is cached. What runs first also starts the compiler, so it is compiled twice.
    """
    for family in FAMILIES:
        model, batch = build(family, size)
        steps, saved, seconds, kernels = {}, {}, {}, {}
        ways = {"start": model, "original": model}
        ways |= {name: transformed(model, batch, **WAYS[name]) for name in COMPILED}
        with torch._inductor.config.patch(force_disable_caches=True):
            for name, own in ways.items():
                torch._dynamo.reset()
                metrics.reset()
                run = torch.compile(own)
                step = step_of(own, run, batch)
                started = time.perf_counter()
                step()
                seconds[name] = time.perf_counter() - started
                kernels[name] = metrics.generated_kernel_count
                saved[name] = saved_bytes(run, batch)
                steps[name] = step
            del steps["start"]
            torch._dynamo.reset()
            found = ratios(steps)
        yield [
            family,
            str(kernels["original"]),
            *(
                cell
                for n in COMPILED
                for cell in (
                    f"{found[n]:.3f} ({saved[n] / saved['original']:.2f})",
                    f"{seconds[n] / seconds['original']:.2f}",
                    str(kernels[n]),
                )
            ),
        ]
