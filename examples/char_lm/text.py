"""English prose: Wikipedia articles that gensim ships as test data, 2.5 million characters.

    pip install --no-deps gensim==4.4.0

Markup goes; every character that is left is a token, as for WikiText-103 in Blake et al. 2023.
"""

from __future__ import annotations

import bz2
import html
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

_MARKUP = (
    r"(?s)<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<math.*?</math>|<[^>]+>",
    r"(?s)\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]",
    r"'''?",
)


def articles() -> str:
    """Paragraphs of articles, one a line."""
    found = find_spec("gensim")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps gensim==4.4.0")
    folder = Path(found.origin).parent / "test" / "test_data"
    (file,) = folder.glob("enwiki-latest-pages-articles1.xml-*.bz2")
    dump = bz2.decompress(file.read_bytes()).decode()
    pages = re.findall(r"<text[^>]*>(.*?)</text>", dump, re.DOTALL)
    return "\n".join(line for page in pages for line in _prose(page))


def _prose(page: str) -> list[str]:
    page = html.unescape(html.unescape(page))
    for pattern in _MARKUP:
        page = re.sub(pattern, "", page)
    # Templates and tables hold one another: the innermost go first.
    count = 1
    while count:
        page, count = re.subn(r"\{\{[^{}]*\}\}|\{\|[^{}]*?\|\}", "", page)
    page = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]|\[\S+ ([^\]]*)\]", r"\1\2", page)
    return [
        line
        for line in page.splitlines()
        if len(line) > 80 and line[0].isalpha() and not re.search(r"[|={}]", line)
    ]


@dataclass(frozen=True)
class Text:
    """Characters as tokens: to train on, and held out. ``vocabulary``: how many there are."""

    training: Tensor
    held_out: Tensor
    vocabulary: int

    @staticmethod
    def read(held_out: float = 0.05) -> Text:
        """The articles; the last share of them is held out."""
        text = articles()
        places = {character: place for place, character in enumerate(sorted(set(text)))}
        tokens = torch.tensor([places[character] for character in text])
        first = round(len(tokens) * (1 - held_out))
        return Text(tokens[:first], tokens[first:], len(places))

    def batch(self, size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Characters from random places, and the characters that follow them: [size, length]."""
        return _cut(self.training, size, length, generator)

    def held_out_batches(self, count: int, size: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Always the same ones."""
        generator = torch.Generator().manual_seed(0)
        return [_cut(self.held_out, size, length, generator) for _ in range(count)]


def _cut(
    tokens: Tensor, size: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(tokens) - length, (size,), generator=generator)
    windows = torch.stack([tokens[start : start + length + 1] for start in starts])
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
