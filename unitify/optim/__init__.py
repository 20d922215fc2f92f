"""Train a transformed module with the hyperparameters of the original.

With true weights, the default of ``transform``, plain torch does that: any optimizer on
``module.parameters()``, any clipping, any schedule. Here is what a scheme's learning rates and
``weights="stored"`` need beside it; of a module of true weights each function returns or does what
plain torch would.

A stored parameter p is held as p̂ = p/fwd and receives ĝ = g/bwd. Every quantity that an optimizer
keeps is a product of powers of the two, so the original trajectory is kept, bit for bit, once
each hyperparameter is given in the units in which the optimizer meets it: ``UNITS`` lists them.

Learning-rate schedulers that multiply (``LambdaLR``, ``StepLR``, ``ExponentialLR``, ``LinearLR``,
``PolynomialLR``, ``CosineAnnealingLR`` down to zero) keep it, too. Schedulers that set absolute
rates need one for each group: ``OneCycleLR(optimizer, learning_rates(optimizer, 0.1), …)``.
``CosineAnnealingLR`` takes one ``eta_min`` for all groups, which must be zero for this reason.
"""

from unitify.optim.groups import (
    clip_grad_norm_,
    clip_grad_value_,
    learning_rates,
    param_groups,
    scales_of,
    total_norm,
)
from unitify.optim.optimizers import UNITS, OptimizerUnits, Units, units_of

__all__ = [
    "UNITS",
    "OptimizerUnits",
    "Units",
    "clip_grad_norm_",
    "clip_grad_value_",
    "learning_rates",
    "param_groups",
    "scales_of",
    "total_norm",
    "units_of",
]
