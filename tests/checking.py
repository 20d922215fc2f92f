"""The planted repository and its checks, each made once, for every test that looks at them."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from pathlib import Path

import unitify
from unitify.capture.source import Repository
from unitify.check.checking import check
from unitify.check.outcome import Outcome
from unitify.check.settings import settings_from
from unitify.check.source_lines import SourceLines
from unitify.check.subject import subject_of
from unitify.cli.target import read_target
from unitify.recipe.reader import read_recipe
from unitify.rulebook.rule_table import load_rules

PLANTED = Path(__file__).resolve().parent / "planted"
RULES = load_rules()
#: Faults of the model "everything", the code that says so, and the direction.
FAULTS = {
    "embedding": ("U802", "forward"),
    "overflow": ("U802", "forward"),
    "unknown": ("U202", ""),
    "detached": ("U806", "backward"),
    "logits": ("U802", "forward"),
    "loss": ("U802", "backward"),
}


def plant(folder: Path) -> Path:
    """A repository of its own with the planted models in it."""
    shutil.copytree(PLANTED, folder / "planted", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".git").mkdir()
    return folder


def line_of(fault: str) -> tuple[str, int]:
    """File, from the root of the planted repository, and line of a fault."""
    for path in sorted(PLANTED.glob("*.py")):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if line.endswith(f"# fault: {fault}"):
                return f"planted/{path.name}", number
    raise AssertionError(fault)


@functools.cache
def checked(
    root: Path,
    factory: str,
    *,
    transformed: str = "",
    measured: bool = False,
    recipe: str = "fp8,multiple=1",
    **settings: str,
) -> Outcome:
    """One check of ``planted.models:factory``. ``transformed``: the scales to transform it with."""
    before = os.getcwd()
    os.chdir(root)
    try:
        found = read_target(f"planted.models:{factory}", inputs="planted.models:tokens")
        (batch,) = found.batches
        if transformed:
            module = unitify.transform(found.model, batch, scales=transformed, recipe=recipe)
            found = dataclasses.replace(found, model=module)
        chosen = read_recipe(recipe)
        assert chosen is not None
        subject = subject_of(found.model, batch, None, chosen, RULES)
        lines = SourceLines(Repository.around(root), subject.model, found.entry)
        return check(
            subject,
            settings_from(settings),
            RULES,
            lines,
            target=f"planted.models:{factory}",
            is_measured=measured,
            batches=found.batches,
        )
    finally:
        os.chdir(before)
