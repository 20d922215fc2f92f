"""How far is the transformed module from the original when Inductor compiles both?

    python -m examples.inductor_ulps [MODEL ...]

writes ``docs/results/inductor.md``. Inductor fuses a rescale into its neighbors and may then
vectorize a kernel otherwise. The yardstick is what the compiler does to the original: its
distance from the original in double precision.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from compiled import distance, results  # noqa: E402
from conversion import conversion  # noqa: E402

from examples.estimates import LISTED  # noqa: E402

#: Models whose kernels do not exist in double precision have no yardstick.
NO_DOUBLE = ("mixtral",)


def ulps(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units in the last place of the tensor's largest element."""
    top = float(a.abs().max())
    if not top:
        return 0.0 if torch.equal(a, b) else float("inf")
    place = torch.finfo(a.dtype).eps * 2.0 ** torch.tensor(top).log2().floor().item()
    return float((a.double() - b.double()).abs().max()) / place


def relative(a: Tensor, b: Tensor) -> float:
    """RMS of the difference over RMS of ``a``."""
    scale = float(a.double().square().mean().sqrt())
    return distance(a, b) / scale if scale else distance(a, b)


def row(name: str) -> str:
    """One line of the table."""
    case = conversion(name)
    expected = results(case.unscaled(), case, "inductor", training=False)
    found = results(case.module, case, "inductor", training=False)
    equal = sum(torch.equal(expected[key], found[key]) for key in expected)
    worst = max(expected, key=lambda key: ulps(expected[key], found[key]))
    line = [
        name, str(len(expected)), str(equal), f"{ulps(expected[worst], found[worst]):.2g}",
        "-" if equal == len(expected) else worst,
        f"{max(relative(expected[key], found[key]) for key in expected):.1e}",
    ]  # fmt: skip
    if name in NO_DOUBLE:
        return "| " + " | ".join([*line, "-"]) + " |"
    double = conversion(name, torch.float64)
    true = results(double.unscaled(), double, "eager", training=False)
    top = max(float(t.abs().max()) for t in true.values())
    # A gradient that is zero but for rounding (a key's bias) has no digits to compare.
    held = [key for key, t in true.items() if float(t.abs().max()) > 1e-9 * top]
    line.append(f"{max(relative(true[key], expected[key]) for key in held):.1e}")
    return "| " + " | ".join(line) + " |"


def main() -> None:
    """Compile the list and write the table."""
    warnings.simplefilter("ignore")
    chosen = sys.argv[1:] or LISTED
    lines = [
        "# Under Inductor",
        "",
        "`python -m examples.inductor_ulps`",
        "",
        "The transformed module, compiled, against the captured graph, compiled: outputs and",
        "gradients in eval mode. Ulps are those of a tensor's largest element; relative is RMS of",
        "the difference over RMS. The last column is the compiler's own rounding: the compiled",
        "original against the original in double precision, worst tensor.",
        "",
        "| model | tensors | bitwise | max ulps | where | max relative | original's rounding |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in chosen:
        torch._dynamo.reset()
        lines.append(row(name))
        print(lines[-1], flush=True)
    if not sys.argv[1:]:
        (ROOT / "docs" / "results" / "inductor.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
