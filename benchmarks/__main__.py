"""``python -m benchmarks``: measure everything, and write docs/results/benchmarks.md."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import transformers

from benchmarks.inference import INFERENCE, inference
from benchmarks.memory import LAYERS, peaks
from benchmarks.models import SIZES
from benchmarks.peers import float8_training, modules, unit_scaled
from benchmarks.training import COMPILED, WAYS, compiled, eager
from benchmarks.transforming import STAGES, by_input, imports, stages
from benchmarks.turns import TURNS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "benchmarks.md"


def table(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    """A table of Markdown, whose columns but the first are numbers."""
    columns = list(head)
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> Iterator[str]:
    """The page, part by part, measured now."""
    torch.set_num_threads(1)
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    cpu = torch.backends.cpu.get_cpu_capability()
    yield "# What a transformed module costs"
    yield (
        f"`make bench`, on {platform.machine()} with {cpu} and one thread; {versions}. Each is a "
        f"median of {TURNS} ratios to the original, which ran in turn with it. "
        "Random weights and inputs."
    )
    for size in SIZES:
        yield (
            f"## A training step in eager mode, {size.name}: width {size.width}, "
            f"{size.layers} layers"
        )
        yield (
            "Time, and in parentheses the bytes that the backward pass keeps. `fp8` keeps codes of "
            "what linear layers take, which a CPU decodes to multiply them. Norms, activations and "
            "attention keep what they take in the model's own type; so do convolutions, whose "
            "rounding is simulated. `fp8-amax` finds its scales at run time."
        )
        yield table(["model", "operations", "rescales", *WAYS], eager(size))
    small, large = SIZES
    yield f"## A training step under Inductor, {large.name}"
    yield (
        "The step, in parentheses the bytes that the backward pass keeps, and the time to compile "
        "it, over the original's; the kernels that are generated for both passes. The compiler "
        "computes again what is cheap, for the original, too."
    )
    yield (
        table(
            [
                "model",
                "kernels of the original",
                *(f"{n}: {what}" for n in COMPILED for what in ("step", "to compile", "kernels")),
            ],
            compiled(large),
        )
    )
    yield f"## A forward pass without gradients, {large.name}, eager"
    yield (
        "What is compiled is over the compiled original. torchao quantizes to INT8, since its "
        "dynamic FP8 asks for a GPU; that is fast on a CPU with AVX-512 alone."
    )
    yield table(["model", *INFERENCE], inference(large))
    yield f"## FP8 training beside torchao, {large.name}, eager"
    yield (
        "Time, and in parentheses saved bytes. torchao finds scales at run time; a CPU runs what "
        "it emulates. It converts `nn.Linear` alone: next to nothing of GPT-2 and of the CNN."
    )
    yield table(["model", "fp8", "fp8, simulated", "torchao"], float8_training(large))
    yield f"## Unit scaling as published, {small.name}, eager"
    yield '`scheme="unit"`, and `unit_scale` of the library unit-scaling on the same model.'
    yield table(["model", "ours", "theirs"], unit_scaled(small))
    yield 'SwiGLU layers: `scheme="unit"`, and the module of the library.'
    yield table(["run", "ours", "theirs"], modules(large))
    yield "## Seconds of `transform` by stage"
    yield "A chain of small layers with a residual stream, weights with data."
    yield table(["nodes", *STAGES], stages())
    yield "A residual CNN, by the pixels along each side of its images:"
    yield table(["pixels", *STAGES], by_input())
    yield "## Peak memory of `transform`"
    yield (
        f"A Llama of {LAYERS} layers. The peak over the model, which is in it. Beside the model "
        "there is the module, at the end; the rest are activations, graphs, code that is imported, "
        "and what the allocator keeps."
    )
    yield table(["width", "MiB of the model", "peak"], peaks())
    yield "## Starting"
    yield "\n".join(
        f"- `{name}`: {ratio:.2f} × `import torch`" for name, ratio in imports().items()
    )


if __name__ == "__main__":
    made = []
    for part in page():
        # One that is measured is seen, whatever comes after it.
        print(part, end="\n\n", flush=True)
        made.append(part)
    PAGE.write_text("\n\n".join(made) + "\n", "utf-8")
