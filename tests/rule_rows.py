"""Shipped rows as text, to be put into files of their own and damaged."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import resources

from unitify.rulebook.formula_names import slips
from unitify.rulebook.row_lines import lines_of

#: Twenty rows that have every key of the grammar between them, but for a few.
TWENTY = (
    "aten.linear.default",
    "aten.conv2d.default",
    "aten.einsum.default",
    "aten.add.Tensor",
    "aten.mul.Tensor",
    "aten.pow.Tensor_Scalar",
    "aten.relu.default",
    "aten.leaky_relu.default",
    "aten.layer_norm.default",
    "aten.batch_norm.default",
    "aten.softmax.int",
    "aten.scaled_dot_product_attention.default",
    "aten.cross_entropy_loss.default",
    "aten.embedding.default",
    "aten.dropout.default",
    "aten.avg_pool2d.default",
    "aten.lstm.input",
    "aten.binary_cross_entropy.default",
    "aten.cat.default",
    "aten.full.default",
)

_NAME = re.compile(r"[A-Za-z_]\w*")
#: Text that is no name: what operations take as text, and remarks.
_PROSE = re.compile(r"'[^'\n]*'|(?:source|inside)\s*=\s*\"[^\"\n]*\"|#.*")


def shipped_texts() -> dict[str, str]:
    """Every shipped row as it is written, without remarks, by its operation."""
    found: dict[str, str] = {}
    for entry in sorted(resources.files("unitify.rules").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".toml"):
            continue
        text = entry.read_text("utf-8")
        starts = sorted((n, path[0]) for path, n in lines_of(text).items() if len(path) == 1)
        lines = text.splitlines(keepends=True)
        for (first, name), (end, _) in zip(
            starts, [*starts[1:], (len(lines) + 1, "")], strict=True
        ):
            held = [line for line in lines[first - 1 : end - 1] if not line.startswith("#")]
            found[name] = "".join(held)
    return found


def with_parents(name: str, texts: dict[str, str]) -> str:
    """A row after those that it takes over."""
    (row,) = tomllib.loads(texts[name]).values()
    before = with_parents(row["like"], texts) if "like" in row else ""
    return before + texts[name]


def damaged(text: str) -> Iterator[str]:
    """``text`` with one slip in one of its names: a character less, or two exchanged."""
    plain = _PROSE.sub(lambda found: " " * len(found.group()), text)
    for name in _NAME.finditer(plain):
        for wrong in sorted(slips(name.group())):
            yield text[: name.start()] + wrong + text[name.end() :]
