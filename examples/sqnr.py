"""Signal to quantization noise of every layer: no data, measurement and dynamic amax side by side.

    python -m examples.sqnr

writes ``docs/results/sqnr.md`` for small models of every kind and for pretrained nets on real data.
A layer is an operation whose operands are cast; its noise is that of all casts up to it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import unitify
from examples import real_inputs
from examples.estimates import LISTED
from examples.nets import NETS
from unitify.cast.mean_subtraction import UNCENTER
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import zoo  # noqa: E402

_CAST = torch.ops.unitify.cast.default

#: Label → recipe and where its scales come from.
VARIANTS: Mapping[str, tuple[str, str]] = {
    "plain": ("fp8-plain", "analysis"),
    "dynamic amax": ("fp8-amax", "analysis"),
    "unit, no data": ("fp8", "analysis"),
    "unit, measured": ("fp8", "measured"),
}


def simulated(name: str, **changes: Any) -> Recipe:
    """A recipe that rounds, and multiplies in float32, so that every cast is a node."""
    recipe = read_recipe(name)
    assert recipe is not None
    return dataclasses.replace(recipe, simulate=True, **changes)


class _Recorder(fx.Interpreter):
    """Runs a module's graph with its casts or without; keeps results of some operations."""

    def __init__(self, module: fx.GraphModule, kept: frozenset[str], is_exact: bool) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.kept, self.is_exact = kept, is_exact
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is _CAST and self.is_exact:
            return self.env[n.args[0]]  # type: ignore[index]
        result = super().run_node(n)
        if n.name in self.kept:
            # Of a recurrent layer, its results at every step.
            first = result if isinstance(result, Tensor) else result[0]
            self.found[n.name] = first.double()
        if n.target is UNCENTER:
            # What a contraction makes of a mean is part of its result.
            contraction = n.args[0].args[0]  # type: ignore[union-attr]
            self.found[contraction.name] = result.double()  # type: ignore[union-attr]
        return result


def cast_values(graph: fx.Graph) -> tuple[str, ...]:
    """Names of the operations whose operands a graph casts."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.target is _CAST and node.args[1]:
            found.update(dict.fromkeys(user.name for user in node.users))
    return tuple(found)


def layer_sqnr(module: unitify.UnitScaledModule, args: Any, kwargs: Any) -> dict[str, float]:
    """SQNR in dB of each operation whose operands ``module`` casts: Σx² / Σ(x - x̂)²."""
    kept = frozenset(cast_values(module.graph))
    runs = []
    for is_exact in (True, False):
        recorder = _Recorder(module, kept, is_exact)
        run = functools.partial(recorder.run, enable_io_processing=False)
        with torch.no_grad(), module.running(lambda _, *flat, run=run: run(*flat)):
            torch.manual_seed(0)
            module(*args, **kwargs)
        runs.append(recorder.found)
    exact, noisy = runs
    return {name: decibels(exact[name], noisy[name]) for name in exact}


class _Alone(fx.Interpreter):
    """Runs a module's graph without casts; beside some operations what their own casts make."""

    def __init__(self, module: fx.GraphModule, kept: frozenset[str]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.kept = kept
        self.rounded: dict[fx.Node, Tensor] = {}
        #: Operation → its result, and the error of that.
        self.found: dict[str, tuple[Tensor, Tensor]] = {}
        self.levels: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is _CAST:
            if n.args[1]:
                self.rounded[n] = super().run_node(n)
            return self.env[n.args[0]]  # type: ignore[index]
        result = super().run_node(n)
        if n.name in self.kept:
            args, kwargs = fx.node.map_arg(
                (n.args, n.kwargs), lambda o: self.rounded.get(o, self.env[o])
            )
            noisy = n.target(*args, **kwargs)  # type: ignore[operator]
            pair = [r if isinstance(r, Tensor) else r[0] for r in (result, noisy)]
            self.found[n.name] = pair[0].double(), (pair[1] - pair[0]).double()
            self.levels[n.name] = _level(*self.found[n.name])
        if n.target is UNCENTER:
            contraction = n.args[0].args[0].name  # type: ignore[union-attr]
            self.levels[contraction] = _level(result.double(), self.found[contraction][1])
        for operand in self.user_to_last_uses.get(n, ()):
            self.rounded.pop(operand, None)
        return result


def alone_sqnr(module: unitify.UnitScaledModule, args: Any, kwargs: Any) -> dict[str, float]:
    """SQNR in dB of each operation that ``module`` casts, on exact operands: of its own casts."""
    runner = _Alone(module, frozenset(cast_values(module.graph)))
    run = functools.partial(runner.run, enable_io_processing=False)
    with torch.no_grad(), module.running(lambda _, *flat: run(*flat)):
        torch.manual_seed(0)
        module(*args, **kwargs)
    return runner.levels


def decibels(exact: Tensor, noisy: Tensor) -> float:
    """10 log10 of signal power over the power of the error; infinite for none."""
    return _level(exact, noisy - exact)


def _level(exact: Tensor, difference: Tensor) -> float:
    error, signal = float(difference.square().sum()), float(exact.square().sum())
    return 10 * math.log10(signal / error) if error and signal else math.inf


def summary(levels: Mapping[str, float]) -> str:
    """Median and worst."""
    return f"{statistics.median(levels.values()):.1f} / {min(levels.values()):.1f}"


def compared(
    model: nn.Module, args: Any, kwargs: Any, **changes: Any
) -> dict[str, dict[str, float]]:
    """SQNR of every layer, by variant."""
    found = {}
    for label, (recipe, scales) in VARIANTS.items():
        chosen = simulated(recipe, **changes)
        module = unitify.transform(
            model, args, kwargs, recipe=chosen, scales=scales, verify=False
        ).train(model.training)
        found[label] = layer_sqnr(module, args, kwargs)
    return found


def cases() -> Iterator[tuple[str, nn.Module, Any, Any]]:
    """Small models, then pretrained nets with real data, all in eval mode."""
    for name in LISTED:
        model, args, kwargs = zoo.build(name)
        yield name, model.eval(), args, kwargs
    for name in NETS:
        model, inputs = real_inputs.load(name)
        yield f"{name} (pretrained)", model, (), inputs


def main() -> None:
    """Compare the list and write the table."""
    warnings.simplefilter("ignore")
    lines = [
        "# Noise of every layer",
        "",
        "`python -m examples.sqnr`",
        "",
        "SQNR in dB of the results of all operations whose operands are cast to E4M3, accumulated",
        "from the inputs: median / worst. Every dimension is cast, divisible by 16 or not.",
        "Pretrained nets take real data, on which scales are measured, too.",
        "",
        "| model | layers | " + " | ".join(VARIANTS) + " |",
        "|---|---|" + "---|" * len(VARIANTS),
    ]
    for name, model, args, kwargs in cases():
        found = compared(model, args, kwargs, multiple=1)
        count = len(next(iter(found.values())))
        cells = [name, str(count), *(summary(levels) for levels in found.values())]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    (ROOT / "docs" / "results" / "sqnr.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
