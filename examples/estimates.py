"""How good are the estimates? Analysis against measurement, and what is stored near unit scale.

    python -m examples.estimates

writes ``docs/results/estimates.md``. Models without a loss of their own are given the mean squared
distance to a fixed random target.
"""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import AutoModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import zoo  # noqa: E402

from examples import real_inputs  # noqa: E402
from examples.minilm import model_folder, sentences  # noqa: E402
from examples.nets import NETS  # noqa: E402
from unitify.analysis.analyze import analyze  # noqa: E402
from unitify.capture.execution import unchanged  # noqa: E402
from unitify.capture.whole import Capture, capture  # noqa: E402
from unitify.estimates import Estimates, Rms  # noqa: E402
from unitify.measure.captured import measure  # noqa: E402
from unitify.plan.bands import PREDICTED_TOLERANCE  # noqa: E402
from unitify.plan.fixed import true_weights  # noqa: E402
from unitify.plan.planner import plan  # noqa: E402
from unitify.plan.scale_plan import ScalePlan  # noqa: E402
from unitify.rulebook.rule_table import load_rules  # noqa: E402

DIRECTIONS = ("forward", "backward")
LISTED = (
    "mlp", "residual_cnn", "lstm", "gpt2", "llama", "bert", "t5", "vit", "mixed_convolutions",
    "experts", "mixtral", "shared_layers",
)  # fmt: skip

#: What the figures do not say.
REMARKS = (
    "Statistics that batch norms keep count as knowledge. What is left in nets at initialization",
    "are parameters of a few elements, whose gradient is one draw. In a trained net like MiniLM",
    "gradients at many positions have much in common, which moments of independent elements do not",
    "show: sums over positions (biases, gains, weights) come out larger than predicted. A bias of",
    "keys is predicted to have no gradient, and has none: a softmax does not change when all its",
    "logits move together. What is measured there is rounding, and does not count.",
    "",
    "[What each mechanism of the analysis buys](mechanisms.md)",
    "",
)

#: A gradient below this share of the typical one may be rounding alone.
_ROUNDING = 2.0**-16


def target_loss(output: Any) -> Tensor:
    """Mean squared distance of every floating output to a fixed random target of its size."""
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        if tensor.is_floating_point():
            generator = torch.Generator().manual_seed(1)
            target = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            total = total + nn.functional.mse_loss(tensor, target)
    return total


def cases() -> Iterator[tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """The list, then pretrained nets on real data: MiniLM in train mode, the rest in eval mode."""
    for name in LISTED:
        yield name, *zoo.build(name)
    minilm = AutoModel.from_pretrained(model_folder(), local_files_only=True).train()
    yield "minilm (pretrained)", minilm, (), sentences()
    for name, net in NETS.items():
        if name != "minilm" and net.folder is not None:
            try:
                model, inputs = real_inputs.load(name)
            except SystemExit as missing:
                print(f"{name}: {missing}")
                continue
            yield f"{name} (pretrained)", model, (), inputs


def stored(rms: float | None, scale: float) -> float | None:
    """An RMS in stored units; None for a value that is zero, absent or not finite."""
    return rms / scale if rms and math.isfinite(rms) else None


def shares(
    captured: Capture, measured: Estimates, chosen: ScalePlan
) -> dict[str, tuple[int, int, dict[str, float]]]:
    """By direction: values within [1/2, 2], all values, and the stored RMS of the others.

    Weights that stay true on purpose are no stored values.
    """
    true = {node.name for node in true_weights(captured)}
    measured = {name: rms for name, rms in measured.items() if name not in true}
    found = {}
    for direction, factor in zip(DIRECTIONS, ("fwd", "bwd"), strict=True):
        held = {
            name: value
            for name, rms in measured.items()
            if (value := stored(getattr(rms, direction), getattr(chosen.values[name], factor)))
        }
        outside = {n: v for n, v in held.items() if not 0.5 <= v <= 2.0}
        found[direction] = (len(held) - len(outside), len(held), outside)
    return found


def within(
    measured: Estimates, predicted: Estimates, bound: float = 2.0
) -> dict[str, tuple[int, int, dict[str, float]]]:
    """By direction: predictions within ``bound`` × of the measured RMS, all, and the others."""
    found = {}
    for direction in DIRECTIONS:
        ratios = {}
        for name, rms in measured.items():
            true = stored(getattr(rms, direction), 1.0)
            if true is not None:
                ratios[name] = (getattr(predicted[name], direction) or 0.0) / true
        outside = {n: r for n, r in ratios.items() if not 1 / bound <= r <= bound}
        found[direction] = (len(ratios) - len(outside), len(ratios), outside)
    return found


def without_rounding(measured: Estimates, predicted: Estimates) -> Estimates:
    """``measured`` in which gradients are zero that are zero but for rounding.

    They are predicted to be exactly zero (a bias before a batch norm, a key's bias), and are small
    beside the median of all gradients: what was measured of them says nothing of a scale.
    """
    sizes = [rms.backward for rms in measured.values() if rms.backward]
    limit = _ROUNDING * statistics.median(sizes) if sizes else 0.0
    return {
        name: replace(rms, backward=0.0)
        if rms.backward is not None
        and rms.backward <= limit
        and predicted.get(name, Rms()).backward == 0
        else rms
        for name, rms in measured.items()
    }


def evaluate(
    captured: Capture, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, dict[str, tuple[int, int, dict[str, float]]]]:
    """All shares of one model."""
    rules = load_rules()
    with unchanged(model):
        # Statistics of a batch norm that have seen one batch predict nothing yet.
        output = model(*args, **kwargs)
    scalars = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and not t.dim()]
    loss: Callable[[Any], Tensor] | None = None if scalars else target_loss
    predicted = analyze(captured, rules, loss).estimates
    measured = without_rounding(measure(captured, None, loss), predicted)
    return {
        "measured": shares(captured, measured, plan(captured, measured, rules)),
        "analysis": shares(
            captured, measured, plan(captured, predicted, rules, PREDICTED_TOLERANCE)
        ),
        "predicted": within(measured, predicted),
    }


def percent(count: int, total: int) -> str:
    """A share as text."""
    return f"{100 * count / total:.1f}" if total else "-"


def main() -> None:
    """Evaluate the list and write the table."""
    warnings.simplefilter("ignore")
    lines = [
        "# Estimates",
        "",
        "`python -m examples.estimates`",
        "",
        "Percent of values (fwd) and gradients (bwd) that are stored with an RMS in [1/2, 2] when",
        "planned by measurement (M) and by analysis (A), and of predictions by analysis within 2 ×",
        "of the measured RMS (P). Values that are zero, and gradients that are absent or zero but",
        "for rounding, are not counted.",
        "",
        "| model | values | M fwd | M bwd | A fwd | A bwd | P fwd | P bwd |",
        "|---|---|---|---|---|---|---|---|",
    ]
    #: Of the models as they are initialized, of the pretrained nets, and of all together.
    sums: dict[tuple[str, str, str], list[int]] = {}
    strays: list[str] = []
    for name, model, args, kwargs in cases():
        found = evaluate(capture(model, args, kwargs), model, args, kwargs)
        row = [name, str(found["predicted"]["forward"][1] + found["predicted"]["backward"][1])]
        for kind, by_direction in found.items():
            for direction, (count, total, outside) in by_direction.items():
                row.append(percent(count, total))
                for group in ("all", "pretrained" if "(pretrained)" in name else "initialized"):
                    entry = sums.setdefault((group, kind, direction), [0, 0])
                    entry[0] += count
                    entry[1] += total
                if kind != "analysis" and outside:
                    worst = sorted(outside.items(), key=lambda o: -abs(math.log2(o[1] or 1e-30)))
                    text = ", ".join(f"{n} ({v:.2g})" for n, v in worst[:6])
                    more = f" and {len(worst) - 6} more" if len(worst) > 6 else ""
                    strays.append(f"- {name}, {kind}, {direction}: {text}{more}")
        print(" ".join(f"{cell:>12}" for cell in row), flush=True)
        lines.append("| " + " | ".join(row) + " |")
    for group in ("initialized", "pretrained", "all"):
        total = [
            percent(*sums[group, kind, d])
            for kind in ("measured", "analysis", "predicted")
            for d in DIRECTIONS
        ]
        print(" ".join(f"{cell:>12}" for cell in [group, "", *total]))
        lines.append(f"| **{group}** | | " + " | ".join(total) + " |")
    lines += ["", "Outside (stored RMS, or predicted over measured):", "", *strays, "", *REMARKS]
    (ROOT / "docs" / "results" / "estimates.md").write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
