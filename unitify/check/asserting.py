"""Checks from Python: ``check_model``, ``assert_unit_scaled`` and the pytest fixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from unitify.capture.inputs import as_inputs
from unitify.capture.source import Frame, Repository, frames_of_call
from unitify.check.baseline import against, read_baseline
from unitify.check.checking import check
from unitify.check.outcome import Outcome
from unitify.check.outputs import rendered
from unitify.check.settings import read_settings
from unitify.check.source_lines import SourceLines
from unitify.check.subject import subject_of
from unitify.estimating import measures
from unitify.recipe.reader import configured_recipe, read_recipe
from unitify.recipe.recipe import FP8
from unitify.rulebook.rule_table import load_rules


def check_model(
    model: nn.Module,
    inputs: Any = (),
    *,
    scales: str = "auto",
    recipe: Any = None,
    rules: Any = (),
    root: Path | None = None,
    entry: Frame | None = None,
    **settings: Any,
) -> Outcome:
    """The findings of ``unitify check`` in ``model``, original or transformed.

    - ``inputs``: those of one call (a tensor, a tuple or a dict), or a list of calls. None infers
      them from the model
    - ``scales``: the RMS to judge. "measured" takes it from a run on ``inputs``, "analysis"
      predicts it, and "auto" measures where weights hold data
    - ``recipe``: what is cast, as for ``transform``. None takes that of ``pyproject.toml``,
      else "fp8"
    - ``root``: the folder whose ``[tool.unitify.check]`` is read. None is the working folder
    - ``settings``: keys that override those of that table

    Raises ``UnitifyError``: U001 for other scales, U002 or U102 for inputs, U011 for settings.
    """
    folder = root or Path()
    chosen = read_settings(folder, **settings)
    casts = read_recipe(recipe) if recipe is not None else configured_recipe(folder)
    table = load_rules(rules)
    batches = inputs if isinstance(inputs, list) else [inputs]
    is_given = isinstance(batches[0], Mapping) or not isinstance(batches[0], tuple) or batches[0]
    batches = batches if is_given else []
    args, kwargs = as_inputs(model, batches[0]) if batches else ((), None)
    subject = subject_of(model, args, kwargs, casts or FP8, table)
    return check(
        subject,
        chosen,
        table,
        SourceLines(Repository.around(folder), subject.model, entry),
        target=type(model).__name__,
        is_measured=measures(scales, (part.capture for part in subject.parts)),
        batches=batches,
    )


def assert_unit_scaled(model: nn.Module, inputs: Any = (), **options: Any) -> None:
    """Assert that every stored tensor of ``model``, and its gradient, has an RMS in the unit band.

    This is ``check_model`` with ``format="unit"``. With another ``format`` it asserts that this
    format holds every stored tensor. The ``AssertionError`` names each tensor, its line and why.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    options.setdefault("format", "unit")
    options.setdefault("entry", _caller())
    outcome = check_model(model, inputs, **options)
    if not outcome.is_clean:
        raise AssertionError(
            f"{type(model).__name__} is not unit-scaled\n{rendered(outcome, 'text')}"
        )


@dataclass(frozen=True)
class CheckFixture:
    """The fixture ``unitify_check``: ``check_model`` with the options and baseline of a project."""

    root: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline: Path | None = None

    def __call__(self, model: nn.Module, inputs: Any = (), **options: Any) -> Outcome:
        """The findings in ``model``. Those of the baseline are in ``known``."""
        given = {"root": self.root, "entry": _caller(), **self.options, **options}
        outcome = check_model(model, inputs, **given)
        if self.baseline is None:
            return outcome
        return against(outcome, read_baseline(self.baseline))

    def assert_clean(self, model: nn.Module, inputs: Any = (), **options: Any) -> None:
        """Raises ``AssertionError`` with every finding in ``model`` that is not known."""
        __tracebackhide__ = True
        outcome = self(model, inputs, **{"entry": _caller(), **options})
        if not outcome.is_clean:
            raise AssertionError(rendered(outcome, "text"))


def _caller() -> Frame:
    """The line that called the function of this module."""
    return frames_of_call()[-2]
