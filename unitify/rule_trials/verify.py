"""``verify``: tests a row of the rule table. Its law must hold bitwise, its moments on samples.

These are the trials of unitify's own tests, for any row, also the user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from unitify.rule_trials.laws import differences, has_kernel
from unitify.rule_trials.moments import LIMIT, is_predicted, predicted, sampled, z_scores
from unitify.rulebook.expressions import ExpressionError
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import find_operation

#: Type → the seeds of trials of the law.
SEEDS = {torch.float32: (0, 1, 2), torch.float64: (3,), torch.bfloat16: (4,)}


@dataclass(frozen=True)
class Verdict:
    """The result for one row.

    - ``location``: the file and line of the row
    - ``law``: the number of trials in which the law held bitwise; 0 where the row has no sample
    - ``moments``: the number of mean squares that agree with the prediction
    - ``problems``: failures, a line each; ``notes``: trials that were left out, and why
    """

    operation: str
    location: str = ""
    law: int = 0
    moments: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Did all trials hold?"""
        return not self.problems


def verify(rules: RuleTable, patterns: Iterable[str] = ("*",)) -> Iterator[Verdict]:
    """The verdict on every row whose operation matches one of ``patterns``, sorted by name."""
    patterns = list(patterns)
    for operation in sorted(rules):
        if any(fnmatchcase(operation, pattern) for pattern in patterns):
            yield verify_row(rules[operation])


def verify_row(rule: Rule) -> Verdict:
    """Test one row. Any exception becomes a problem of the row."""
    if find_operation(rule.operation) is None:
        problem = "torch has no operation of this name"
        return Verdict(rule.operation, rule.location, problems=(problem,))
    if not rule.sample:
        return Verdict(rule.operation, rule.location, notes=("it has no sample",))
    try:
        law, of_law, notes = _law(rule)
        moments, of_moments = _moments(rule)
    except (ExpressionError, RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        return Verdict(rule.operation, rule.location, problems=(f"it does not run: {first[0]}",))
    if not is_predicted(rule):
        notes.append("its moments are sampled, not predicted")
    problems = (*of_law, *of_moments)
    return Verdict(rule.operation, rule.location, law, moments, problems, tuple(notes))


def _law(rule: Rule) -> tuple[int, list[str], list[str]]:
    held, problems, notes = 0, [], []
    for dtype, seeds in SEEDS.items():
        if dtype != torch.float32 and not has_kernel(rule, dtype):
            notes.append(f"it does not run in {str(dtype).removeprefix('torch.')}")
            continue
        for sample in (rule.sample, *rule.variants):
            for seed in seeds:
                wrong = differences(rule, sample, seed, dtype)
                held += not wrong
                if wrong:
                    problems.append(f"the law is not bitwise in {', '.join(wrong)} of {sample}")
    return held, list(dict.fromkeys(problems)), notes


def _moments(rule: Rule) -> tuple[int, list[str]]:
    if not is_predicted(rule):
        return 0, []
    estimates, _, fallbacks = predicted(rule)
    found = sampled(rule)
    problems = [
        f"its {one.direction} moments are {one.way}, not predicted: {one.reason}"
        for one in fallbacks
    ]
    for (name, direction), score in z_scores(estimates, found).items():
        if abs(score) >= LIMIT:
            squares = found[name, direction]
            rms = (sum(squares) / len(squares)) ** 0.5
            what = "the result" if direction == "forward" else f"the gradient of {_argument(name)}"
            expected = getattr(estimates[name], direction) or 0.0
            problems.append(
                f"{what} has RMS {rms:.4g} on samples, predicted {expected:.4g} "
                f"({score:+.1f} standard errors)"
            )
    return len(found) - len(problems) + len(fallbacks), problems


def _argument(name: str) -> str:
    return name.removesuffix("_operand")
