"""Every format for runtimes, opened by its reader: signal to noise, size, and SmolLM2's perplexity.

    pip install -e '.[serve,onnx]'
    python -m examples.serving

Folders are written to a temporary place. A format that does not hold a model says why. Then the
outer scale of NVFP4 inputs, which is a constant without data, is compared with the one that
calibration finds on the text that is measured. Writes ``docs/results/serving.md``.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from examples.evaluation import perplexity, wikipedia_tokens
from examples.minilm import model_folder
from examples.nets import NETS
from unitify.checkpoint.pretrained import quiet
from unitify.diagnostics import UnitifyError
from unitify.formats.table import NVFP4, quantize
from unitify.recipe.reader import read_recipe
from unitify.serve.decoded import in_modelopt
from unitify.serve.export import export
from unitify.serve.onnx_folder import export_onnx, in_onnxruntime
from unitify.serve.reopened import Reader
from unitify.serve.writing import Export

ROOT = Path(__file__).resolve().parents[1]
#: Label → recipe and ``--format``.
WAYS: Mapping[str, tuple[str, str]] = {
    "static FP8": ("fp8", "compressed-tensors"),
    "static FP8, scales searched": ("fp8-ptq", "compressed-tensors"),
    "FP8, scaled token by token": ("fp8", "fp8-dynamic"),
    "FP8 in tiles of 128": ("fp8", "fp8-block"),
    "NVFP4": ("nvfp4", "compressed-tensors"),
    "MXFP8": ("mxfp8", "compressed-tensors"),
    "MXFP4": ("mxfp4", "compressed-tensors"),
    "static FP8, ModelOpt's layout": ("fp8", "modelopt"),
    "NVFP4, ModelOpt's layout": ("nvfp4", "modelopt"),
    "static FP8, ONNX": ("fp8", "onnx"),
}
SMALL: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512, "vocab_size": 1024,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
#: Types with random weights.
TYPES: Mapping[str, Any] = {
    "Llama type": transformers.LlamaConfig(**SMALL),
    "Qwen2 type": transformers.Qwen2Config(**SMALL),
    "GPT-2 type": transformers.GPT2Config(n_embd=256, n_layer=4, n_head=4, vocab_size=1024),
    "Mixtral type": transformers.MixtralConfig(**SMALL, num_local_experts=4),
}


def sources(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Each model: its label, its folder, and what its recipes leave out."""
    model: Any = NETS["smollm2"].load()[0]
    # What was read from a file of another kind is not saved as it is.
    config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    made.load_state_dict(model.state_dict())
    made.save_pretrained(folder / "smollm2")
    yield "SmolLM2 (135M)", folder / "smollm2", "lm_head"
    yield "MiniLM (23M)", model_folder(), ""
    for label, config in TYPES.items():
        torch.manual_seed(0)
        made = transformers.AutoModelForCausalLM.from_config(config)
        made.save_pretrained(folder / label)
        yield label, folder / label, ""


def written(source: Path, output: Path, recipe: str, format: str, without: str) -> Export | str:
    """The export, or the code and the reason why there is none."""
    read = read_recipe(f"{recipe},exclude={without}" if without else recipe)
    assert read is not None
    try:
        if format == "onnx":
            return export_onnx(source, output, read)
        return export(source, output, read, format)
    except UnitifyError as error:
        found = error.diagnostics[0]
        return f"{found.code}: {getattr(found, 'problem', found.message)}"


class Read(nn.Module):
    """What the reader of a folder computes, with a loss."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.run = reader

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        """The loss, as a model returns it."""
        logits, *_ = self.run(((), {"input_ids": input_ids}))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss)


def reader_of(folder: Path, format: str = "", source: Path | None = None) -> nn.Module:
    """The model of a written folder, as its runtime computes it."""
    if format == "onnx":
        return Read(in_onnxruntime(folder))
    if format == "modelopt" and source is not None:
        return Read(in_modelopt(reader_of(source), folder))
    with quiet(transformers):
        made: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return made.eval()


def quality(model: nn.Module) -> float:
    """Perplexity on Wikipedia."""
    with torch.no_grad():
        return perplexity(model)


def outer_scales(model: nn.Module, layers: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Layer → decibels of its NVFP4 input on Wikipedia: at our scale, and at the calibrated one.

    ``layers``: layer → scale of its input. The calibrated scale brings the largest element of the
    same text to the largest product of the format.
    """
    inputs: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.__setitem__(name, args[0].detach())
        )
        for name in layers
    ]
    with torch.no_grad():
        model(input_ids=wikipedia_tokens()[:2])
    for handle in handles:
        handle.remove()
    return {
        name: (_decibels(x, layers[name]), _decibels(x, float(x.abs().max()) / NVFP4.largest))
        for name, x in inputs.items()
    }


def _decibels(x: Tensor, scale: float) -> float:
    error = quantize(x / scale, NVFP4) * scale - x
    return 10 * math.log10(float(x.square().sum() / error.square().sum()))


def compared(found: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """What the outer scales lose."""
    lost = {name: calibrated - ours for name, (ours, calibrated) in found.items()}
    within = [name for name, one in lost.items() if one <= 0.1]
    yield f"Within 0.1 dB of calibration, or better: {len(within)} of {len(lost)} inputs"
    yield f"({100 * len(within) / len(lost):.1f} %). Mean difference {_mean(lost):+.3f} dB in"
    yield "favor of calibration (negative: of the constants). Further off:"
    others = sorted((name for name in lost if lost[name] > 0.1), key=lambda n: -lost[n])
    yield "; ".join(f"{name} ({lost[name]:.2f} dB)" for name in others) or "none."


def _mean(lost: Mapping[str, float]) -> float:
    return sum(lost.values()) / len(lost)


def main() -> None:
    """Measure and write."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [
        "# Formats for runtimes",
        "",
        "`python -m examples.serving`",
        "",
        "Each folder is opened by its own reader: transformers with compressed-tensors, or",
        "onnxruntime; for ModelOpt's layout, whose runtimes need a GPU, its tensors are decoded.",
        "Signal to noise of its outputs against the source's, on one call with drawn tokens;",
        "perplexity on 16 windows of 256 tokens of Wikipedia. Scales are constants without data;",
        'only "token by token" and blocks find some at run time. Seconds: of the whole export.',
        "",
        "| model | format | layers | size | dB | perplexity | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    outer: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        for label, source, without in sources(Path(name)):
            size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
            own = f"{quality(reader_of(source)):.3f}" if "SmolLM2" in label else ""
            lines.append(f"| {label} | source | | {size / 2**20:.1f} MiB | | {own} | |")
            print(lines[-1], flush=True)
            for way, (recipe, format) in WAYS.items():
                output = Path(name) / "out" / label / way
                output.parent.mkdir(parents=True, exist_ok=True)
                begin = time.perf_counter()
                found = written(source, output, recipe, format, without)
                seconds = time.perf_counter() - begin
                if isinstance(found, str):
                    lines.append(f"| {label} | {way} | {found} | | | | |")
                else:
                    own = (
                        f"{quality(reader_of(output, format, source)):.3f}"
                        if "SmolLM2" in label
                        else ""
                    )
                    lines.append(
                        f"| {label} | {way} | {len(found.layers)} | {found.size / 2**20:.1f} MiB | "
                        f"{found.sqnr:.1f} | {own} | {seconds:.0f} |"
                    )
                    if own and recipe == "nvfp4":
                        scales = {each.layer: each.input for each in found.layers}
                        outer = list(compared(outer_scales(reader_of(source), scales)))
                print(lines[-1], flush=True)
    lines += ["", "## The outer scale of NVFP4 inputs", "", "SmolLM2 on Wikipedia.", *outer]
    text = "\n".join(lines) + "\n"
    (ROOT / "docs/results/serving.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
