"""unitify: a PyTorch model in, the same function with every tensor near unit scale out."""

import unitify.ops as _ops  # noqa: F401  (registers unitify::rescale)
from unitify import optim
from unitify.capture import Capture
from unitify.choices import Choice
from unitify.diagnostics import Diagnostic, UnitifyError, UnitifyWarning
from unitify.estimates import Rms
from unitify.folder import load
from unitify.module import UnitScaledModule
from unitify.monitor import Monitor, monitor
from unitify.plan import Scale, ScalePlan
from unitify.rebase import Rebase, rebase_
from unitify.rebuild import rebuild
from unitify.recipe import Recipe
from unitify.transform import estimate, transform, verify
from unitify.verification import Verification
from unitify.version import __version__

__all__ = [
    "Capture",
    "Choice",
    "Diagnostic",
    "Monitor",
    "Rebase",
    "Recipe",
    "Rms",
    "Scale",
    "ScalePlan",
    "UnitScaledModule",
    "UnitifyError",
    "UnitifyWarning",
    "Verification",
    "__version__",
    "estimate",
    "load",
    "monitor",
    "optim",
    "rebase_",
    "rebuild",
    "transform",
    "verify",
]
