"""Unit scaling at initialization: shares of unit RMS, true gradients, overhead; beside the library.

    pip install -e '.[examples]' && pip install --no-deps unit-scaling==0.3.5
    python -m examples.unit_scale_shares [--time]

Writes ``docs/results/unit_scale_shares.md``. ``--time``: step times, eager and compiled, as well.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from torch import nn

import unitify
from examples.scheme_study.measured_schemes import compare_schemes
from examples.unit_scale.decoders import Decoder, LibraryDecoder, Size
from examples.unit_scale.overhead import flop_overhead, time_ratios
from examples.unit_scale.published import agreement, gradients, stored_rms, true_gradients
from examples.unit_scale.small import Library, Plain, example
from unitify.measure.captured import measure
from unitify.plan.scale_plan import Scale

_HEAD = """# Unit scaling at initialization

`python -m examples.unit_scale_shares --time`, beside the modules of unit-scaling 0.3.5.

## Values and gradients with RMS in [1/2, 2]

Width 128, two layers, 8 × 64 tokens. Of an operation and its multiplier the result counts, ours and
the library's. *Analysis* plans backward scales without data, *measured* from one batch.
"""
_TRUTH = """
## Gradients against autograd's of the same forward pass (float64)
"""
_OVERHEAD = """
## Overhead

Multiplications by constants and rescales, forward and backward, against all contractions of a step
in training; step times against the captured original, by ratio in one run.
"""
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
STYLES = ("gpt", "llama")
KINDS = ("tied", "reused", "gated")


def share(held: list[float]) -> float:
    """Of numbers in [1/2, 2], in percent."""
    return 100 * sum(0.5 <= rms <= 2 for rms in held) / len(held)


def shares() -> list[str]:
    """Decoders of the same size, ours and the library's."""
    lines = [
        "| decoder | made by | values at unit RMS | gradients at unit RMS |",
        "|---|---|---|---|",
    ]
    for style in STYLES:
        size = Size()
        torch.manual_seed(0)
        tokens, model = size.tokens(), Decoder(size, style)
        for row in compare_schemes(model, (tokens,)):
            if row.scheme in ("none", "Glorot initialization"):
                held = [100 * part.unit / part.total for part in (row.forward, row.backward)]
                lines.append(
                    f"| {style} | plain torch, {row.scheme} | {held[0]:.1f} % | {held[1]:.1f} % |"
                )
        forward, backward = stored_rms(LibraryDecoder(size, style), tokens)
        lines.append(f"| {style} | library | {share(forward):.1f} % | {share(backward):.1f} % |")
        for scheme in ("unit", "u-mup"):
            for scales in ("analysis", "measured"):
                forward, backward = _stored(model, tokens, scheme, scales)
                lines.append(
                    f"| {style} | unitify, {scheme}, {scales} | {share(forward):.1f} % | "
                    f"{share(backward):.1f} % |"
                )
    return lines


def _stored(
    model: nn.Module, tokens: torch.Tensor, scheme: str, scales: str
) -> tuple[list[float], list[float]]:
    module = unitify.transform(model, (tokens,), scheme=scheme, scales=scales)
    halves = module.scheme[""].outputs
    forward, backward = [], []
    for name, rms in measure(module.capture).items():
        scale = module.plan.values.get(name, Scale())
        if rms.forward and name not in halves:
            forward.append(rms.forward / scale.fwd)
        if rms.backward:
            backward.append(rms.backward / scale.bwd)
    return forward, backward


def truth() -> list[str]:
    """Gradients against those of the same forward pass."""
    from unit_scaling.transforms import unit_scale

    lines = [
        "| net | made by | worst cosine | spread of ratios, octaves |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        torch.manual_seed(0)
        given = example(kind)
        by_hand, transformed = Library(kind).double(), unit_scale(Plain(kind).double())
        for label, net in (("its modules", by_hand), ("its transform", transformed)):
            found = gradients(net, *given)
            with true_gradients():
                cosine, spread = agreement(found, gradients(net, *given))
            lines.append(f"| {kind} | library, {label} | {cosine:.5f} | {spread:.3f} |")
        model = Plain(kind).double()
        module = unitify.transform(model, given, scheme="unit")
        true = gradients(module.capture.model, *given)
        cosine, spread = agreement(gradients(module, *given), true)
        lines.append(f"| {kind} | unitify | {cosine:.5f} | {spread:.3f} |")
    return lines


def overhead(with_times: bool) -> list[str]:
    """FLOPs counted from the graph, and step times by ratio in one run."""
    lines = [
        "| decoder | width | length | operations added, of all FLOPs of a step |",
        "|---|---|---|---|",
    ]
    for style in STYLES:
        for width, length in ((768, 512), (1024, 512), (4096, 2048)):
            size = Size(width, 1, width // 64, 256, 1, length)
            found = flop_overhead(Decoder(size, style), size)
            lines.append(f"| {style} | {width} | {length} | {100 * found:.3f} % |")
    if with_times:
        lines += ["", "| decoder | eager | compiled |", "|---|---|---|"]
        for style in STYLES:
            size = Size(256, 2, 4, 256, 4, 64)
            eager, compiled = time_ratios(Decoder(size, style), size)
            lines.append(f"| {style} | {eager:.2f} | {compiled:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true", help="measure step times, too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sections = [_HEAD, *shares(), _TRUTH, *truth(), _OVERHEAD, *overhead(options.time)]
    text = "\n".join(sections)
    (RESULTS / "unit_scale_shares.md").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
