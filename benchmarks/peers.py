"""Libraries that do the like, in turn with ours.

unit-scaling stands beside ``scheme="unit"``, FP8 training of torchao beside ``recipe="fp8"``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import FAMILIES, Size, build
from benchmarks.training import WAYS, times_and_bytes, transformed
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


class Gated(nn.Module):
    """SwiGLU layers, and a loss: what the library has as a module of its own."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.up, self.gate, self.down = (
            nn.ModuleList(nn.Linear(*sizes, bias=False) for _ in range(layers))
            for sizes in ((width, 4 * width), (width, 4 * width), (4 * width, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The loss of x [.., width]."""
        for up, gate, down in zip(self.up, self.gate, self.down, strict=True):
            x = down(F.silu(gate(x)) * up(x))
        return x.square().mean()


def modules(size: Size) -> Iterator[list[str]]:
    """A row a way to run: our step and that of the library's own layers, over torch's."""
    if find_spec("unit_scaling") is None:
        return
    import unit_scaling as uu

    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(uu.MLP(size.width) for _ in range(size.layers)))

        def forward(self, x: Tensor) -> Tensor:
            loss: Tensor = self.layers(x).square().mean()
            return loss

    plain, batch = Gated(size.width, size.layers), {"x": torch.randn(512, size.width)}
    ways = {"original": plain, "ours": transformed(plain, batch, scheme="unit"), "theirs": Theirs()}
    for how, run in (("eager", lambda m: m), ("compiled", torch.compile)):
        torch._dynamo.reset()
        found = ratios({name: step_of(m, run(m), batch) for name, m in ways.items()})
        yield [how, f"{found['ours']:.2f}", f"{found['theirs']:.2f}"]


def float8_training(size: Size) -> Iterator[list[str]]:
    """A row a family: time of a step, and in parentheses saved bytes, over the original's.

    torchao scales by the largest element of each tensor at run time. A CPU runs what it emulates:
    casts and a matmul in the model's type, as our simulated casts are.
    """
    if find_spec("torchao") is None:
        return
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    for family in FAMILIES:
        model, batch = build(family, size)
        theirs = copy.deepcopy(model)
        convert_to_float8_training(theirs, config=Float8LinearConfig(emulate=True))
        ways = {n: transformed(model, batch, **WAYS[n]) for n in ("fp8", "fp8, simulated")}
        ways["torchao"] = theirs
        yield [family, *times_and_bytes(model, ways, batch)]
