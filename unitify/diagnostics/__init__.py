"""What unitify says when something is wrong or was left alone.

Every message has a stable code, and four fields: *where*, *why*, *fix* and the class
docstring, which ``unitify explain U101`` prints (what it means, an example, a fix). Codes are
grouped by stage, one file a stage, and never used again for something else. The text of a class
is static; what varies is held in typed fields, so that terminal, JSON and CI views agree.
"""

from __future__ import annotations

from types import ModuleType

from unitify.diagnostics import (
    capturing,
    casting,
    checking,
    estimating,
    files,
    planning,
    schemes,
    use,
    verifying,
)
from unitify.diagnostics.capturing import (
    AliasedMutation,
    AttributeTurned,
    CacheLeftOut,
    CaptureDiffers,
    CheckpointingLost,
    FrozenDimension,
    GradientLost,
    InputMismatch,
    NotCaptured,
    NothingCaptured,
    OneModeOnly,
    OutsideGuards,
    RecordedAnew,
    RecordedAsCompiled,
    SizesFixed,
)
from unitify.diagnostics.casting import (
    BoundMissed,
    NotInFP8,
    PatternUnmatched,
    RecipeInvalid,
    UnknownRecipe,
)
from unitify.diagnostics.checking import (
    FlushedToZero,
    GradientStops,
    OutsideUnitBand,
    PlanDiffers,
    PrecisionLost,
    Saturated,
    ScaleDrift,
    ValueNotFinite,
)
from unitify.diagnostics.diagnostic import (
    Diagnostic,
    UnitifyError,
    UnitifyWarning,
    warn_of_losses,
)
from unitify.diagnostics.estimating import (
    EstimateFellBack,
    ImportFailed,
    NoRule,
    NotFinite,
    OperationUnknown,
    RuleInvalid,
    UnknownValue,
)
from unitify.diagnostics.files import (
    BaselineUnreadable,
    CheckpointUnreadable,
    FactoryFailed,
    FolderDamaged,
    KeysDiffer,
    NotPickled,
    NotWritten,
    OutputExists,
    ReadingsUnreadable,
    UnsafeCheckpoint,
)
from unitify.diagnostics.planning import PlanMismatch, ScaleNotAllowed
from unitify.diagnostics.schemes import (
    DecayNotIndependent,
    NoOriginal,
    SchemeNeedsGraph,
    TiedRoles,
    TrainableGains,
)
from unitify.diagnostics.use import (
    AlreadyTransformed,
    BatchesNeeded,
    InputsNeeded,
    LossUnusable,
    ModelNeeded,
    NothingTransformed,
    OptimizerUnsupported,
    OtherPlan,
    OtherWeights,
    PackageMissing,
    ParametersRenamed,
    SchedulerNeeded,
    SettingsInvalid,
    StateNotMoved,
    UnknownCode,
    UnknownOption,
)
from unitify.diagnostics.verifying import (
    GradientsUnderflow,
    NotExact,
    RoundsOtherwise,
    Underflow,
    WrongFactor,
)

__all__ = [
    "AliasedMutation",
    "AlreadyTransformed",
    "AttributeTurned",
    "BaselineUnreadable",
    "BatchesNeeded",
    "BoundMissed",
    "CacheLeftOut",
    "CaptureDiffers",
    "CheckpointUnreadable",
    "CheckpointingLost",
    "DecayNotIndependent",
    "Diagnostic",
    "EstimateFellBack",
    "FactoryFailed",
    "FlushedToZero",
    "FolderDamaged",
    "FrozenDimension",
    "GradientLost",
    "GradientStops",
    "GradientsUnderflow",
    "ImportFailed",
    "InputMismatch",
    "InputsNeeded",
    "KeysDiffer",
    "LossUnusable",
    "ModelNeeded",
    "NoOriginal",
    "NoRule",
    "NotCaptured",
    "NotExact",
    "NotFinite",
    "NotInFP8",
    "NotPickled",
    "NotWritten",
    "NothingCaptured",
    "NothingTransformed",
    "OneModeOnly",
    "OperationUnknown",
    "OptimizerUnsupported",
    "OtherPlan",
    "OtherWeights",
    "OutputExists",
    "OutsideGuards",
    "OutsideUnitBand",
    "PackageMissing",
    "ParametersRenamed",
    "PatternUnmatched",
    "PlanDiffers",
    "PlanMismatch",
    "PrecisionLost",
    "ReadingsUnreadable",
    "RecipeInvalid",
    "RecordedAnew",
    "RecordedAsCompiled",
    "RoundsOtherwise",
    "RuleInvalid",
    "Saturated",
    "ScaleDrift",
    "ScaleNotAllowed",
    "SchedulerNeeded",
    "SchemeNeedsGraph",
    "SettingsInvalid",
    "SizesFixed",
    "StateNotMoved",
    "TiedRoles",
    "TrainableGains",
    "Underflow",
    "UnitifyError",
    "UnitifyWarning",
    "UnknownCode",
    "UnknownOption",
    "UnknownRecipe",
    "UnknownValue",
    "UnsafeCheckpoint",
    "ValueNotFinite",
    "WrongFactor",
    "all_diagnostics",
    "warn_of_losses",
]

#: The stages' files, in the order of their codes.
_STAGES: tuple[ModuleType, ...] = (
    use,
    capturing,
    estimating,
    planning,
    casting,
    verifying,
    files,
    schemes,
    checking,
)


def all_diagnostics() -> dict[str, type[Diagnostic]]:
    """Every diagnostic class by its code, in order of the codes."""
    found = [
        item
        for stage in _STAGES
        for item in vars(stage).values()
        if isinstance(item, type) and issubclass(item, Diagnostic) and item.code
    ]
    return {item.code: item for item in sorted(found, key=lambda item: item.code)}
