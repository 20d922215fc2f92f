"""``unitify.json``: what a folder for runtimes holds, its recipe, and the hashes of its files."""

from __future__ import annotations

import math
from typing import Any

import torch

from unitify.checkpoint.new_folder import Folder
from unitify.recipe.recipe import Recipe
from unitify.version import __version__

CONTENTS = "unitify.json"
#: The version of its own layout.
FORMAT = 3
#: The layout of a graph, and its file; the weights are in a second file beside it.
ONNX, ONNX_FILE = "onnx", "model.onnx"


def write_contents(
    folder: Folder, layout: str, recipe: Recipe, sqnr: float | None, **rows: list[dict[str, Any]]
) -> None:
    """Describe a folder that is otherwise complete.

    ``sqnr``: signal to noise of its reader's outputs in decibels, infinite where they are equal;
    None where not compared. ``rows``: its layers and caches.
    """
    document = {
        "format": FORMAT,
        "layout": layout,
        "recipe": recipe.as_table(),
        "sqnr": "bitwise" if sqnr == math.inf else sqnr,
        **rows,
        "versions": {"unitify": __version__, "torch": torch.__version__},
        "sha256": folder.hashes(),
    }
    folder.write(CONTENTS, document)
