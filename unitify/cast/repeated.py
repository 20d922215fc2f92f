"""Choices that were made before, as they are made again: for a module that is rebuilt.

They may come from a file. So each must be one that the recipe could make for the same value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from unitify.cast.means import centerings
from unitify.diagnostics import PlanMismatch, UnitifyError
from unitify.part import Part, value_name
from unitify.recipe.choices import Choice
from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.rule_table import RuleTable


def repeated(part: Part, made: Iterable[Choice], rules: RuleTable) -> Part:
    """``part`` with the choices ``made`` for its contractions, named as in ``module.casts``.

    Raises ``UnitifyError`` (U301) for casts of other operands, and for a mean of other channels.
    """
    held = {choice.value: choice for choice in made if choice.is_contraction}
    choices = []
    for choice in part.choices:
        own = held.get(value_name(part.name, choice.value), choice)
        for problem in _problems(part, own, choice, rules):
            raise UnitifyError(PlanMismatch(problem=f"the casts of {own.value} {problem}"))
        choices.append(replace(own, value=choice.value, operation=choice.operation))
    return replace(part, choices=tuple(choices))


def _problems(part: Part, own: Choice, choice: Choice, rules: RuleTable) -> Iterator[str]:
    known, found = (
        sorted((cast.place, cast.value, cast.is_gradient) for cast in each.casts)
        for each in (choice, own)
    )
    # A recipe that chooses by evidence may leave a contraction out.
    if found not in (known, []):
        yield "are not those of its operands"
    if own.mean:
        split = centerings(part, rules).get(choice.value)
        if split is None or shape_of(split[0].meta["val"])[split[1].axis] != len(own.mean):
            yield "have a mean that it has no channels for"
