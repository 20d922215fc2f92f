"""The units of each optimizer's hyperparameters: the table behind ``optim``.

A parameter p is stored as p̂ = p/fwd and gets the gradient ĝ = g/bwd. Every quantity of an
optimizer is a product of powers of the two. A row lists the powers by which each hyperparameter
is multiplied, so that the optimizer takes the original's step, divided by fwd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from unitify.diagnostics import OptimizerUnsupported, UnitifyError
from unitify.plan.scale_plan import Scale


class Units(NamedTuple):
    """The factor of a hyperparameter: fwd to the power ``fwd``, times bwd to the power ``bwd``."""

    fwd: int
    bwd: int

    def of(self, scale: Scale) -> float:
        """The factor for a parameter of this scale, a power of two."""
        return float(scale.fwd**self.fwd * scale.bwd**self.bwd)


@dataclass(frozen=True)
class OptimizerUnits:
    """The units of an optimizer's hyperparameters, by name.

    ``when``: units that replace the first where a flag (itself a hyperparameter) is set.
    ``unscaled``: hyperparameters that must have this value, because the optimizer reads them
    outside its groups.
    """

    units: Mapping[str, Units]
    when: Mapping[str, Mapping[str, Units]] = field(default_factory=dict)
    unscaled: Mapping[str, Any] = field(default_factory=dict)


_COUPLED = Units(1, -1)  # decay · p joins g
_DECOUPLED = Units(1, 0)  # the step is divided by fwd, lr · decay is not
#: The step is a multiple of the gradient.
_GRADIENT_STEP = {"lr": Units(-1, 1), "weight_decay": _COUPLED}
#: The step is normalized: g over the root of its mean square (plus eps), or the sign of g.
_NORMALIZED_STEP = {"lr": Units(-1, 0), "weight_decay": _COUPLED, "eps": Units(0, -1)}
_DECOUPLED_FLAG = {"decoupled_weight_decay": {"weight_decay": _DECOUPLED}}

#: Optimizer class → the units of its hyperparameters; subclasses share the row of their base.
UNITS: Mapping[type[Optimizer], OptimizerUnits] = {
    torch.optim.SGD: OptimizerUnits(_GRADIENT_STEP),
    torch.optim.ASGD: OptimizerUnits({**_GRADIENT_STEP, "lambd": Units(1, -1)}),
    torch.optim.Adam: OptimizerUnits(_NORMALIZED_STEP, when=_DECOUPLED_FLAG),
    torch.optim.AdamW: OptimizerUnits({**_NORMALIZED_STEP, "weight_decay": _DECOUPLED}),
    torch.optim.NAdam: OptimizerUnits(_NORMALIZED_STEP, when=_DECOUPLED_FLAG),
    torch.optim.Adamax: OptimizerUnits(_NORMALIZED_STEP),
    torch.optim.RMSprop: OptimizerUnits(_NORMALIZED_STEP),
    torch.optim.Adagrad: OptimizerUnits(
        _NORMALIZED_STEP, unscaled={"initial_accumulator_value": 0}
    ),
    # Both running averages, of g² and of squared steps, are in units of bwd².
    torch.optim.Adadelta: OptimizerUnits({**_GRADIENT_STEP, "eps": Units(0, -2)}),
    torch.optim.SparseAdam: OptimizerUnits({"lr": Units(-1, 0), "eps": Units(0, -1)}),
    torch.optim.Rprop: OptimizerUnits({"lr": Units(-1, 0), "step_sizes": Units(-1, 0)}),
    torch.optim.Muon: OptimizerUnits({**_NORMALIZED_STEP, "weight_decay": _DECOUPLED}),
}

#: Optimizers that are not exact for any choice of hyperparameters, and why.
_NOT_EXACT: Mapping[type[Optimizer], str] = {
    torch.optim.RAdam: "its first steps are not normalized and its later ones are, under one lr",
    torch.optim.Adafactor: "its first eps bounds g² and g, which have different units",
    torch.optim.LBFGS: "it takes inner products over all parameters, whose scales differ",
}


def units_of(optimizer_class: type[Optimizer]) -> OptimizerUnits:
    """The row of the nearest base class in ``UNITS``.

    Raises ``UnitifyError`` (U007) where there is none, or where no row can be exact.
    """
    for base in optimizer_class.__mro__:
        if base in UNITS:
            return UNITS[base]
        if base in _NOT_EXACT:
            reason = _NOT_EXACT[base]
            break
    else:
        reason = "the units of its hyperparameters are unknown"
    known = ", ".join(sorted(c.__name__ for c in UNITS))
    name = optimizer_class.__name__
    raise UnitifyError(OptimizerUnsupported(where=name, optimizer=name, reason=reason, known=known))
