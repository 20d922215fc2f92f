"""Five small models, and what becomes of each: captured, planned, emitted. Writes docs/graphs.md.

python tests/graphs.py > docs/graphs.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import unitify
from unitify.plan.scale_plan import ScalePlan


@dataclass(frozen=True)
class Shown:
    """A model, its inputs, the options of ``transform``, and a sentence about what to look at."""

    title: str
    about: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    options: Mapping[str, Any]


class Loss(nn.Module):
    """Two linear layers and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self.down(F.gelu(self.up(x))), target)


class Attention(nn.Module):
    """One block of a transformer, without its FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 4)).movedim(-3, 0)
        query, key, value = heads.transpose(-2, -3)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.out(mixed.transpose(-2, -3).flatten(-2))


class Written(nn.Module):
    """Code that writes into a view."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.clone().chunk(2, -1)
        second.mul_(first.sigmoid())
        return torch.cat([first, second], -1)


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())


SHOWN = (
    Shown(
        "FP8",
        "Values stay true between the casts. A cast divides by 2^e, rounds, and multiplies by 2^e; "
        "e comes from the plan. `fp8_linear` is a linear layer with the casts of its operands and "
        "of its gradient.",
        Loss,
        lambda: (torch.randn(8, 16), torch.randn(8, 16)),
        {"recipe": "fp8"},
    ),
    Shown(
        "Stored weights",
        "Weights are kept in a narrow format, divided by scales of their own, so every value and "
        "gradient has a scale near its RMS. A `rescale` multiplies a value on its way forward by "
        "one power of two, and its gradient on the way back by another.",
        Attention,
        lambda: (0.1 * torch.randn(2, 8, 16),),
        {"weights": "stored"},
    ),
    Shown(
        "No recipe",
        "float32 holds any scale: nothing has to be rescaled, and the graph is the model's own.",
        _convolutions,
        lambda: (torch.randn(4, 3, 8, 8),),
        {},
    ),
    Shown(
        "Writes into views",
        "A write becomes a new value: `written` replays the views on a copy and writes there.",
        Written,
        lambda: (torch.randn(4, 6),),
        {},
    ),
    Shown(
        "A unit scaling scheme",
        "Another model, for training from scratch: weights are drawn with unit RMS, and constants "
        "bring the result of each operation there.",
        lambda: nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)),
        lambda: (torch.randn(32, 64),),
        {"scheme": "unit"},
    ),
)


def module_of(shown: Shown) -> unitify.UnitScaledModule:
    """The transformed model; all numbers are drawn anew, from one seed."""
    torch.manual_seed(0)
    model = shown.build()
    return unitify.transform(model, shown.inputs(), **shown.options)


def page() -> str:
    """The page."""
    lines = [
        "# What unitify does to a model",
        "",
        "`python tests/graphs.py`. Five small models: the graph that is captured, with the scales",
        "planned for each value and its gradient where they are not one, and the graph that is",
        "emitted. True value = scale × stored value. The [glossary](glossary.md) has the words.",
    ]
    for shown in SHOWN:
        module = module_of(shown)
        given = ", ".join(f"{key}={value!r}" for key, value in shown.options.items())
        call = f"transform(model, inputs{', ' if given else ''}{given})"
        lines += ["", f"## {shown.title}", "", f"`{call}`", "", shown.about, ""]
        lines += ["```text", "captured and planned"]
        lines += _lines(module.capture.graph, module.plan)
        lines += ["", "emitted", *_lines(module.graph, None), "```"]
    return "\n".join(lines) + "\n"


def _lines(graph: fx.Graph, plan: ScalePlan | None) -> Iterator[str]:
    """A line a node."""
    for node in graph.nodes:
        if node.op == "output":
            yield f"    return {_text(node.args[0])}"
        elif node.op in ("placeholder", "get_attr"):
            kind = "input" if node.op == "placeholder" else f"self.{node.target}"
            yield _with_scale(f"    {node.name} = {kind}", node, plan)
        else:
            arguments = [_text(a) for a in node.args]
            arguments += [f"{key}={_text(value)}" for key, value in node.kwargs.items()]
            is_torch_s = isinstance(node.target, torch._ops.OpOverload)
            name = str(node.target) if is_torch_s else node.target.__name__
            name = name.removesuffix(".default")
            yield _with_scale(f"    {node.name} = {name}({', '.join(arguments)})", node, plan)


def _with_scale(line: str, node: fx.Node, plan: ScalePlan | None) -> str:
    scale = plan.values.get(node.name) if plan is not None else None
    if scale is None or scale.exponents == (0, 0):
        return line
    forward, backward = scale.exponents
    return f"{line:<72}  # 2^{forward}, gradient 2^{backward}"


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


if __name__ == "__main__":
    print(page(), end="")
