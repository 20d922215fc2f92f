"""What ``unitify check`` finds in a model as it is, and in what unitify made of it.

Takes the parts of a module with what is known of them; gives ``Checked`` by graph. Nothing runs
again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from unitify.analysis.analyze import Analysis
from unitify.check.checking import outcome_of
from unitify.check.outcome import Outcome
from unitify.check.plan_faults import Comparison
from unitify.check.settings import Settings
from unitify.check.source_lines import SourceLines
from unitify.check.subject import Subject, as_it_is
from unitify.measure.tally import Tally
from unitify.module.unit_scaled import UnitScaledModule
from unitify.naming import stable_names
from unitify.part import Part, value_name
from unitify.recipe.recipe import Recipe
from unitify.report.numerics import GRAPHS, Checked
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class Judge:
    """The limits and the lines by which parts are judged."""

    settings: Settings
    rules: RuleTable
    lines: SourceLines

    def both(
        self,
        module: UnitScaledModule,
        recipe: Recipe,
        parts: tuple[Part, ...],
        analyses: Iterable[Analysis],
        tallies: Iterable[Tally | None],
    ) -> dict[str, Checked]:
        """The findings in the original and in the transformed parts."""
        analyses, tallies = list(analyses), list(tallies)
        figures = "analysis" if None in tallies else "measured"
        subjects = (
            (as_it_is(module.original, parts, recipe, self.rules), Comparison()),
            (
                Subject(module.original, parts, recipe, (), module, is_transformed=True),
                Comparison(drift=module.scales == figures),
            ),
        )
        return {
            graph: _checked(
                outcome_of(
                    subject, analyses, tallies, self.settings, self.rules, self.lines, "", against
                ),
                parts,
            )
            for graph, (subject, against) in zip(GRAPHS, subjects, strict=True)
        }


def _checked(outcome: Outcome, parts: Iterable[Part]) -> Checked:
    names = {
        stable: value_name(part.name, node)
        for part in parts
        for node, stable in stable_names(part.name, part.capture).items()
    }
    return Checked(outcome, names)
