"""unitify: a PyTorch model in, the same function with every tensor near unit scale out.

An import of the package registers the operators of emitted graphs, and no more; on the command line
each command does that. The object of each public name is imported at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

import unitify_command as _command
from unitify.version import __version__ as __version__

if not _command.RUNS:
    import unitify.runtime as _runtime  # noqa: F401  (registers the operators of emitted graphs)

if TYPE_CHECKING:
    from unitify import optim as optim
    from unitify.capture.whole import Capture as Capture
    from unitify.checkpoint.folder import load as load
    from unitify.checkpoint.rebuild import rebuild as rebuild
    from unitify.diagnostics import Diagnostic as Diagnostic
    from unitify.diagnostics import UnitifyError as UnitifyError
    from unitify.diagnostics import UnitifyWarning as UnitifyWarning
    from unitify.drift.monitor import Monitor as Monitor
    from unitify.drift.monitor import monitor as monitor
    from unitify.drift.rebase import Rebase as Rebase
    from unitify.drift.rebase import rebase_ as rebase_
    from unitify.estimates import Rms as Rms
    from unitify.module.gathered import gather_codes_ as gather_codes_
    from unitify.module.unit_scaled import UnitScaledModule as UnitScaledModule
    from unitify.plan.scale_plan import Scale as Scale
    from unitify.plan.scale_plan import ScalePlan as ScalePlan
    from unitify.recipe.cast import Cast as Cast
    from unitify.recipe.choices import Choice as Choice
    from unitify.recipe.recipe import Recipe as Recipe
    from unitify.reparametrization import Reparametrization as Reparametrization
    from unitify.report.model_report import ModelReport as ModelReport
    from unitify.runtime.registered import decompositions as decompositions
    from unitify.scheme import UMuP as UMuP
    from unitify.scheme import UnitScheme as UnitScheme
    from unitify.serve.kv_cache import kv_cache as kv_cache
    from unitify.serve.trained import export as export
    from unitify.transforming import estimate as estimate
    from unitify.transforming import transform as transform
    from unitify.transforming import verify as verify
    from unitify.verification import Verification as Verification

#: Module → its public names, the same as those for type checkers above.
_HOMES = {
    "capture.whole": "Capture",
    "checkpoint.folder": "load",
    "checkpoint.rebuild": "rebuild",
    "diagnostics": "Diagnostic UnitifyError UnitifyWarning",
    "drift.monitor": "Monitor monitor",
    "drift.rebase": "Rebase rebase_",
    "estimates": "Rms",
    "module.gathered": "gather_codes_",
    "module.unit_scaled": "UnitScaledModule",
    "runtime.registered": "decompositions",
    "plan.scale_plan": "Scale ScalePlan",
    "recipe.cast": "Cast",
    "recipe.choices": "Choice",
    "recipe.recipe": "Recipe",
    "reparametrization": "Reparametrization",
    "report.model_report": "ModelReport",
    "scheme": "UMuP UnitScheme",
    "serve.kv_cache": "kv_cache",
    "serve.trained": "export",
    "transforming": "estimate transform verify",
    "verification": "Verification",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted([*_HOME, "__version__", "optim"])


def __getattr__(name: str) -> Any:
    if name == "optim":
        return importlib.import_module("unitify.optim")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f"unitify.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
