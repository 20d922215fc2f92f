"""The moments of every row: predicted against sampled, without a tolerance.

Operands are drawn as the row's sample declares, 32 times; the operation runs forward and
backward with a normal gradient. The mean squares of results and gradients must agree with
the prediction within four standard errors, and must not if the predicted RMS is 5 % off.
"""

from __future__ import annotations

from functools import cache

import pytest

from unitify.rule_trials import moments
from unitify.rule_trials.moments import LIMIT, is_predicted
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()
PREDICTED = sorted(name for name, rule in RULES.items() if is_predicted(rule))


@cache
def predicted(operation: str) -> tuple[dict[str, moments.Rms], str]:
    return moments.predicted(RULES[operation])


@cache
def sampled(operation: str) -> moments.Sampled:
    return moments.sampled(RULES[operation])


def z_scores(operation: str, factor: float = 1.0) -> dict[tuple[str, str], float]:
    return moments.z_scores(predicted(operation)[0], sampled(operation), factor)


@pytest.mark.parametrize("operation", PREDICTED)
def test_prediction_holds(operation: str) -> None:
    scores = z_scores(operation)
    assert scores
    assert {k: z for k, z in scores.items() if abs(z) >= LIMIT} == {}


@pytest.mark.parametrize("operation", PREDICTED)
def test_prediction_is_not_sampled(operation: str) -> None:
    assert predicted(operation)[1] in ("run", "quadrature", "formula", "exact")


@pytest.mark.parametrize("factor", [1 / 1.05, 1.05])
@pytest.mark.parametrize("operation", PREDICTED)
def test_wrong_prediction_is_caught(operation: str, factor: float) -> None:
    scores = z_scores(operation, factor)
    assert {k: z for k, z in scores.items() if abs(z) < LIMIT} == {}
