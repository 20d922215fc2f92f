"""Reads the folder that ``unitify convert`` writes: hashes, plan, weights and calls.

Everything in it may be damaged or made up. What cannot be a part of a converted folder is U607; a
plan that is none is U301.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from unitify.capture.outline import Outline
from unitify.capture.outline_form import check_outlines
from unitify.checkpoint.codes import Coded, decoded
from unitify.checkpoint.new_folder import sha256
from unitify.checkpoint.safe_file import read_safetensors
from unitify.diagnostics import FolderDamaged, UnitifyError
from unitify.documents import first_line, inside, parse_json, read_json
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice
from unitify.reparametrization import Reparametrization
from unitify.rows import made

FORMAT = 5
WEIGHTS, PLAN, REPORT, HUGGINGFACE = (
    "model.safetensors", "plan.json", "report.json", "huggingface",
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A converted folder, read and checked: its plan, weights, options and calls."""

    path: Path
    plan: ScalePlan
    weights: Mapping[str, Tensor]
    recipe: Mapping[str, Any] | None
    casts: tuple[Choice, ...] | None = None
    scheme: Mapping[str, Reparametrization] = field(default_factory=dict)
    calls: Sequence[Outline] = ()
    scales: str = ""
    codes: Mapping[str, Coded] = field(default_factory=dict)

    @property
    def huggingface(self) -> Path | None:
        """The folder with the Hugging Face config; None for other models."""
        folder = self.path / HUGGINGFACE
        return folder if folder.is_dir() else None


def read(path: Path) -> Converted:
    """Read a converted folder, and check every hash.

    Raises ``UnitifyError``: U607 where it changed since it was written; U301 for an invalid plan.
    """
    document = _read_plan(path)
    _check_hashes(path, document)
    recipe, calls = document.get("recipe"), document.get("calls", [])
    casts, source = document.get("casts"), document.get("source", {})
    with _damaged_as(path, "its calls are invalid"):
        check_outlines(calls)
    with _damaged_as(path, "its casts are invalid"):
        made_casts = None if casts is None else tuple(_cast(row) for row in casts)
    with _damaged_as(path, "its codes are invalid"):
        codes = {n: made(Coded, row).checked() for n, row in document.get("codes", {}).items()}
    with _damaged_as(path, f"{PLAN} is invalid"):
        scheme, scales = dict(document.get("scheme", {})), source.get("scales", "")
        if not isinstance(scales, str) or not isinstance(recipe, Mapping | None):
            raise ValueError("its recipe is not an object, or its scales are not text")
    return Converted(
        path=path,
        plan=ScalePlan.from_json(document),
        weights=_read_weights(path, codes),
        codes=codes,
        recipe=recipe,
        casts=made_casts,
        scheme={part: Reparametrization.from_json(row) for part, row in scheme.items()},
        calls=calls,
        scales=scales,
    )


def digest_of_plan(document: Mapping[str, Any]) -> str:
    """The hash of the data in plan.json without the hash itself, independent of its layout."""
    hashes = {k: v for k, v in document["sha256"].items() if k != PLAN}
    text = json.dumps({**document, "sha256": hashes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_document(folder: Path, name: str) -> Any:
    """The JSON document ``name`` of a folder. Raises ``UnitifyError`` (U607)."""
    try:
        return read_json(inside(folder, name))
    except FileNotFoundError:
        raise damaged(folder, f"it has no {name}") from None
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{name}: {first_line(error)}") from None


def was_exact(folder: Path) -> bool | None:
    """Was the module bitwise the original before casts, by the report of its conversion?

    None where they were not compared, or the report is gone.
    """
    try:
        found = read_document(folder, REPORT)["verification"]["exact_before_casts"]
    except (UnitifyError, KeyError, TypeError):
        return None
    return found if isinstance(found, bool) else None


def damaged(path: Path, problem: str) -> UnitifyError:
    """The error for a folder with this problem."""
    return UnitifyError(FolderDamaged(path=str(path), problem=problem))


@contextlib.contextmanager
def _damaged_as(path: Path, what: str) -> Iterator[None]:
    """A context in which data of another form than it has to have are damage."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, f"{what} ({first_line(error)})") from None


def _read_plan(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise damaged(path, "there is no such folder")
    document = read_document(path, PLAN)
    if not isinstance(document, dict):
        raise damaged(path, f"{PLAN} is not an object")
    return document


def _check_hashes(path: Path, document: Mapping[str, Any]) -> None:
    hashes, found = document.get("sha256"), document.get("format")
    if found != FORMAT or not isinstance(hashes, Mapping):
        problem = f"{PLAN} has the format {found}, and this version of unitify reads {FORMAT}"
        raise damaged(path, problem)
    if hashes.get(PLAN) != digest_of_plan(document):
        raise damaged(path, f"{PLAN} has changed")
    for name, digest in {WEIGHTS: None, **hashes}.items():
        with _damaged_as(path, f"{name} cannot be read"):
            file = path / PLAN if name == PLAN else inside(path, name)
            is_same = name == PLAN or (file.is_file() and sha256(file) == digest)
        if not is_same:
            raise damaged(path, f"{name} is missing or has changed")
    with _damaged_as(path, f"{HUGGINGFACE} cannot be read"):
        added = sorted(inside(path, HUGGINGFACE).rglob("*"))
    for file in added:
        name = file.relative_to(path).as_posix()
        if name not in hashes:
            raise damaged(path, f"{name} was added later")


def _read_weights(path: Path, coded: Mapping[str, Coded]) -> dict[str, Tensor]:
    with _damaged_as(path, f"{WEIGHTS} cannot be read"):
        held, metadata = read_safetensors(inside(path, WEIGHTS))
        for name in coded:
            coded[name].check(held[name])
        weights = decoded(held, coded)
        tied = parse_json(metadata.get("tied", "{}"))
        return {**weights, **{name: weights[of] for name, of in tied.items()}}


def _cast(row: Any) -> Choice:
    """A choice of a recipe, whose numbers fit a format."""
    choice = made(Choice, row)
    for cast in choice.casts:
        cast.check()
    return choice
