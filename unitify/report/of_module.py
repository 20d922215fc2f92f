"""``report``: the report of a transformed module, as it is now."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from unitify.capture.execution import LossFunction
from unitify.module.unit_scaled import UnitScaledModule
from unitify.report.drift_file import read_drift
from unitify.report.gathering import Known, gather
from unitify.report.model_report import ModelReport
from unitify.rulebook.rule_table import load_rules


def report(
    module: UnitScaledModule,
    batches: Iterable[Any] = (),
    *,
    loss_fn: LossFunction | None = None,
    rules: Iterable[Any] = (),
    drift: str | os.PathLike[str] | None = None,
) -> ModelReport:
    """What every value of ``module`` is like, in the original and as transformed.

    - ``batches``: inputs of calls, as for ``transform``; each is run forward and backward, and RMS,
      magnitudes and noise are measured on them; on the inputs of the recording without any. On
      the meta device all is predicted.
    - ``loss_fn``, ``rules``: as ``transform`` was given
    - ``drift``: a file that ``unitify.monitor`` wrote

    Weights are those of now: a module in training is reported as it is. Nothing of it changes.

    Raises ``UnitifyError``: U104 for a batch that the module cannot take, U609 for a file of
    readings that is none.
    """
    known = Known(
        rules=load_rules(rules),
        batches=tuple(batches),
        loss_fn=loss_fn,
        drift=() if drift is None else read_drift(drift),
    )
    return ModelReport(gather(module, known))
