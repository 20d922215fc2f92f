"""Convert real checkpoints from the command line: exact before the casts? How long, how large?

    python -m examples.pretrained

runs ``unitify convert … --recipe fp8`` once for each net, and writes
``docs/results/pretrained.md``.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer

from examples.minilm import model_folder
from examples.nets import NETS, SMOLLM2_FILE

ROOT = Path(__file__).resolve().parents[1]


def smollm2_inputs() -> dict[str, Any]:
    """Example inputs of SmolLM2."""
    return NETS["smollm2"].load()[1]


def mobilenet_v2() -> nn.Module:
    """The definition that MobileNetV2's state dict is loaded into."""
    return NETS["mobilenet_v2"].load()[0]


def mobilenet_v2_inputs() -> dict[str, Any]:
    """Example inputs of MobileNetV2."""
    return NETS["mobilenet_v2"].load()[1]


def crepe() -> nn.Module:
    """The definition that CREPE's state dict is loaded into."""
    return NETS["crepe"].load()[0]


def crepe_inputs() -> dict[str, Any]:
    """Example inputs of CREPE."""
    return NETS["crepe"].load()[1]


def checkpoint(name: str, folder: Path) -> list[str]:
    """The checkpoint as users have it, written below ``folder``: the command's arguments."""
    here = f"examples.pretrained:{name}"
    if name == "minilm":
        return [str(model_folder()), "--inputs", "examples.minilm:sentences"]
    model, _ = NETS[name].load()
    if name == "smollm2":
        # As a folder of plain weights: one that was read from GGUF refuses to be written.
        config = copy.deepcopy(model.config)
        del config.quantization_config
        plain = type(model)(config)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder / name)
        tokenizer = AutoTokenizer.from_pretrained(NETS[name].folder, gguf_file=SMOLLM2_FILE)
        tokenizer.save_pretrained(folder / name)
        return [str(folder / name), "--inputs", f"{here}_inputs"]
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    return [str(folder / f"{name}.safetensors"), "--model", here, "--inputs", f"{here}_inputs"]


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory (GiB) of a command. Raises ``SystemExit`` where it fails."""
    start = time.perf_counter()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "unitify", *command])
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"unitify {' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def main() -> None:
    """Convert the nets and write the table."""
    lines = [
        "# Pretrained checkpoints, converted",
        "",
        "`python -m examples.pretrained`: `unitify convert … --recipe fp8`, from the command to",
        "the folder, Python's start included. Exact: bitwise the captured original before",
        "casts, outputs and gradients, on the example inputs.",
        "",
        "| net | parameters | operations cast | exact before casts | seconds | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("minilm", "smollm2", "mobilenet_v2", "crepe"):
            arguments = checkpoint(name, Path(scratch))
            target = Path(scratch) / f"{name}-unit"
            seconds, memory = run(["convert", *arguments, "--recipe", "fp8", "-o", str(target)])
            report = json.loads((target / "report.json").read_text("utf-8"))
            parameters = sum(p.numel() for p in NETS[name].load()[0].parameters())
            exact = report["verification"]["exact_before_casts"]
            lines.append(
                f"| {name} | {parameters / 1e6:.1f} M | {len(report['casts'])} | {exact} "
                f"| {seconds:.0f} | {memory:.1f} |"
            )
            print(lines[-1], flush=True)
    (ROOT / "docs" / "results" / "pretrained.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
