"""``report``: the report of a transformed module in its present state."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from unitify.capture.execution import LossFunction
from unitify.capture.inputs import as_batches
from unitify.module.unit_scaled import UnitScaledModule
from unitify.report.drift_file import read_drift
from unitify.report.gathering import ReportInputs, gather
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
    """The numerics of every value of ``module``, in the original and as transformed.

    - ``batches``: inputs of calls, as for ``transform``. Each runs forward and backward, and RMS,
      magnitudes and noise are measured. Without batches, the recorded inputs are used. On the meta
      device everything is predicted.
    - ``loss_fn``, ``rules``: those passed to ``transform``
    - ``drift``: a file that ``unitify.monitor`` wrote

    The report uses the present weights, also during training. It does not change the module.

    Raises ``UnitifyError``: U001 for a single batch; U104 for a batch that does not fit the
    module; U609 for a file without readings.
    """
    known = ReportInputs(
        rules=load_rules(rules),
        batches=tuple(as_batches(batches)),
        loss_fn=loss_fn,
        drift=() if drift is None else read_drift(drift),
    )
    return ModelReport(gather(module, known))
