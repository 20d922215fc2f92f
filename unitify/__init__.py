"""unitify: a PyTorch model in, the same function with every tensor near unit scale out."""

import unitify.ops as _ops  # noqa: F401  (registers the operators of emitted graphs)
from unitify import optim
from unitify.capture.whole import Capture
from unitify.checkpoint.folder import load
from unitify.checkpoint.rebuild import rebuild
from unitify.diagnostics import Diagnostic, UnitifyError, UnitifyWarning
from unitify.drift.monitor import Monitor, monitor
from unitify.drift.rebase import Rebase, rebase_
from unitify.estimates import Rms
from unitify.module.unit_scaled import UnitScaledModule
from unitify.ops.registered import decompositions
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.reparametrisation import Reparametrisation
from unitify.report.model_report import ModelReport
from unitify.report.of_module import report as _report
from unitify.scheme import UMuP, UnitScheme
from unitify.transform import estimate, transform, verify
from unitify.verification import Verification
from unitify.version import __version__

UnitScaledModule._report = _report

__all__ = [
    "Capture",
    "Choice",
    "Diagnostic",
    "ModelReport",
    "Monitor",
    "Rebase",
    "Recipe",
    "Reparametrisation",
    "Rms",
    "Scale",
    "ScalePlan",
    "UMuP",
    "UnitScaledModule",
    "UnitScheme",
    "UnitifyError",
    "UnitifyWarning",
    "Verification",
    "__version__",
    "decompositions",
    "estimate",
    "load",
    "monitor",
    "optim",
    "rebase_",
    "rebuild",
    "transform",
    "verify",
]
