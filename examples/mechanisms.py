"""What does each mechanism of the analysis buy? Predictions and seconds without one at a time.

    python -m examples.mechanisms

writes ``docs/results/mechanisms.md``. A mechanism is off while a function or number of the package
is replaced; the package has no switches.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from examples import real_inputs
from examples.estimates import DIRECTIONS, LISTED, percent, target_loss, within, without_rounding
from examples.minilm import model_folder, sentences
from unitify.analysis import softmax
from unitify.analysis.analyze import analyze
from unitify.analysis.moments import Moment, limited
from unitify.analysis.ranges import EVERYTHING
from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture, capture
from unitify.estimates import Estimates
from unitify.measure.captured import measure
from unitify.rulebook.rule_table import load_rules

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import zoo  # noqa: E402

TITLES = ("initialized", "others", "MiniLM", "MobileNetV2", "images", "wide")
PAGE = ROOT / "docs" / "results" / "mechanisms.md"
RUNS = 2
PIXELS, WIDTH = 512, 4096
#: Nets of the zoo that are not in the list, where single mechanisms matter: poles of functions,
#: probabilities, short attention masks, and a recurrence without a formula.
OTHERS = ("functions", "unet", "transformer", "qwen3_next")


def _one_dimension(moment: Moment, elements: int) -> Moment:
    return limited(moment, min(elements, max(moment.square.shape, default=1)))


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def _first(value: Any, *_: Any) -> Any:
    return value


def _both(name: str, replaced: Any, *modules: str) -> Mapping[str, Any]:
    return {f"{module}.{name}": replaced for module in modules}


#: Mechanism → what stands in the package's place while it is off.
OFF: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "balances": {"backward.BackwardMoments._balance": _always(None)},
    "balances tried on draws": {"backward.passed_on": _always(None)},
    "one draw of what repeats": {"backward.repeats": _always(False)},
    "common parts of gradients": {"formulas._with_common": lambda *given: given[4]},
    "ranges": _both("near_bounds", _always(None), "quadrature", "sampled"),
    "ranges of sums and products": {"forward.range_of": _always(EVERYTHING)},
    "positions beside channels": _both("limited", _one_dimension, "forward", "backward"),
    "channels": _both("limited", lambda m, _: limited(m, 1), "forward", "backward"),
    "counted gradients of weights": {"backward.summed_gradient": _always(None)},
    "small images": _both("on_small_image", _first, "forward", "backward", "on_arrays"),
    "one row of those alike": {"on_arrays.Run._free_rows": _always({})},
    "statistics of batch norms": {"forward.running_statistics": _always({})},
    "interpolation of softmax": {"softmax._FEW": math.inf},
    "keys query by query": {"counts._GROUPS": 1},
    "channels of samples": _both("varying", _always([]), "forward", "sampled"),
    "counts in place of large arrays": {"linear._is_counted": _always(False)},
    "float32 for large arrays": {"on_arrays._SINGLE": math.inf, "moments._LARGE": math.inf},
}


@dataclass
class Case:
    """A captured net, its loss, and its measurement where it has weights."""

    held: Capture
    loss: LossFunction | None
    measured: Estimates | None

    def predicted(self) -> tuple[Estimates, float]:
        """Predictions, and the least processor time of them."""
        seconds = []
        for _ in range(RUNS):
            softmax._COMPUTED.clear()
            start = time.process_time()
            found = analyze(self.held, load_rules(), self.loss).estimates
            seconds.append(time.process_time() - start)
        return found, min(seconds)


def case(model: nn.Module, args: Any, kwargs: Any) -> Case:
    held = capture(model, args, kwargs)
    outputs = [n.meta["val"] for n in held.graph.output_node().args[0] if n is not None]
    loss = None if any(not v.dim() for v in outputs) else target_loss
    return Case(held, loss, measure(held, None, loss))


def images() -> Case:
    model, (images, labels), _ = zoo.build("residual_cnn")
    return case(model, (torch.randn(2, images.shape[1], PIXELS, PIXELS), labels[:2]), {})


def wide() -> Case:
    config = LlamaConfig(num_hidden_layers=1, hidden_size=WIDTH, num_key_value_heads=8)
    with torch.device("meta"):
        model, tokens = LlamaForCausalLM(config), torch.zeros(1, 2048, dtype=torch.long)
    return Case(capture(model, (), {"input_ids": tokens, "labels": tokens}), None, None)


def groups() -> Iterator[list[Case]]:
    """The nets of each column of the table, in their order."""
    yield [case(*zoo.build(name)) for name in LISTED if name != "t5"]
    minilm = AutoModel.from_pretrained(model_folder(), local_files_only=True).train()
    yield [case(*zoo.build(name)) for name in OTHERS]
    yield [case(minilm, (), sentences())]
    model, inputs = real_inputs.load("mobilenet_v2")
    yield [case(model, (), inputs)]
    yield [images()]
    yield [wide()]


def true_zeros(measured: Estimates, real: Estimates) -> list[str]:
    """Gradients that are zero but for rounding."""
    return [n for n, rms in measured.items() if rms.backward and not real[n].backward]


def rows() -> dict[str, list[str]]:
    """Cells by mechanism: those of each column, and the zeros found in all of them."""
    found: dict[str, list[str]] = {name: [] for name in OFF}
    zeros = dict.fromkeys(OFF, 0)
    for title, cases in zip(TITLES, groups(), strict=True):
        reals: list[Estimates | None] = []
        for name, replaced in OFF.items():
            with contextlib.ExitStack() as stack:
                for target, value in replaced.items():
                    stack.enter_context(mock.patch(f"unitify.analysis.{target}", value))
                predictions = [c.predicted() for c in cases]
            if not reals:
                pairs = zip(cases, predictions, strict=True)
                reals = [c.measured and without_rounding(c.measured, p) for c, (p, _) in pairs]
            counts = {direction: [0, 0] for direction in DIRECTIONS}
            for c, real, (predicted, _) in zip(cases, reals, predictions, strict=True):
                if c.measured and real:
                    zeros[name] += sum(
                        predicted[n].backward == 0 for n in true_zeros(c.measured, real)
                    )
                    for direction, (inside, total, _) in within(real, predicted).items():
                        counts[direction][0] += inside
                        counts[direction][1] += total
            shares = " / ".join(percent(*counts[d]) for d in DIRECTIONS) if reals[0] else ""
            seconds = f"{sum(s for _, s in predictions):.2f} s"
            found[name].append(f"{shares}, {seconds}" if shares else seconds)
            print(f"{title:24} {name:34} {found[name][-1]}", flush=True)
    for name, cells in found.items():
        cells.append(str(zeros[name]))
    return found


def main() -> None:
    """Measure all, and write the page."""
    warnings.simplefilter("ignore")
    titles = ["without", *TITLES, "zeros found"]
    lines = [
        "# What each mechanism of the analysis buys",
        "",
        "`python -m examples.mechanisms`: percent of predictions within 2 × of the measured RMS,"
        f" forward / backward, and seconds of processor time of the analysis (the best of {RUNS}"
        " runs), without one mechanism at a time. *Initialized*: the nets of"
        f" [Estimates](estimates.md) but T5. *Others*: {', '.join(OTHERS)}, of the tests' zoo."
        " *MiniLM* and *MobileNetV2* are pretrained, on real data. *Images*: the small residual"
        f" net on images of {PIXELS} × {PIXELS} pixels. *Wide*: one layer of a Llama of width"
        f" {WIDTH} on the meta device, where nothing can be measured. *Zeros*: gradients that"
        " measure as rounding alone, and that are predicted to be zero; they count nowhere else.",
        "",
        f"| {' | '.join(titles)} |",
        f"|---|{' --: |' * (len(titles) - 1)}",
        *(f"| {' | '.join([name, *cells])} |" for name, cells in rows().items()),
        "",
    ]
    PAGE.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
