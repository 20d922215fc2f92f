"""Train a transformed module with the hyperparameters of the original.

With true weights, the default of ``transform``, plain torch is enough: any optimizer on
``module.parameters()``, any clipping, any schedule. Only a scheme's learning rates and
``weights="stored"`` need the functions of this package. For true weights each of them does what
plain torch would do.

A stored parameter p is held as p̂ = p/fwd and gets the gradient ĝ = g/bwd. Every quantity of an
optimizer is a product of powers of the two. So the trajectory is bitwise the original's if each
hyperparameter is converted to the optimizer's units, which ``UNITS`` lists.

Learning-rate schedulers that multiply (``LambdaLR``, ``StepLR``, ``ExponentialLR``, ``LinearLR``,
``PolynomialLR``, ``CosineAnnealingLR`` to zero) need no conversion. Schedulers that set absolute
rates need one for each group: ``OneCycleLR(optimizer, learning_rates(optimizer, 0.1), …)``.
``CosineAnnealingLR`` has one ``eta_min`` for all groups, so it must be zero.
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
