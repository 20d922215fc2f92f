"""Learning rates of a scheme: the factor by which each role multiplies the one tuned rate.

u-μP with Adam and similar optimizers (Blake et al. 2024, arXiv 2407.17465, table 2): fan_out^-1/2
for an embedding, fan_in^-1/2 for a hidden matrix, one for readout, gains and biases; depth^-1/2
within a branch. A step that is a multiple of the gradient (SGD) has the factors that give the same
change of function: those of μP (Yang et al. 2022, arXiv 2203.03466), converted to unit weights by
the invariance under A → Aθ, B → B/θ, C → C/θ².

Unit scaling (Blake et al. 2023, arXiv 2303.11257): one rate for all matrices and tables, and n^-1/2
times it for a vector of n gains or biases, as in the authors' training code. There an optimizer
receives gradients of unit RMS. So a step that is a multiple of the gradient is divided by the RMS
that the gradient had when the model was transformed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unitify.reparametrization import ParameterRole
from unitify.scheme.options import UMuP

Factor = Callable[[ParameterRole], float]


def _one(_role: ParameterRole) -> float:
    return 1.0


NORMALIZED: Mapping[str, Factor] = {
    "embedding": lambda role: role.fan_out**-0.5,
    "hidden": lambda role: role.fan_in**-0.5,
    "readout": _one,
    "gain": _one,
    "bias": _one,
    "other": _one,
}
GRADIENT: Mapping[str, Factor] = {
    "embedding": lambda role: role.fan_out,
    "hidden": lambda role: role.fan_in,
    "readout": lambda role: role.fan_in,
    "gain": lambda role: role.fan_out,
    "bias": lambda role: role.fan_out,
    "other": _one,
}


def learning_rate_factor(scheme: str, role: ParameterRole, *, is_gradient_step: bool) -> float:
    """The factor of the learning rate of a parameter."""
    if scheme != UMuP.name:
        of_vector = role.fan_out**-0.5 if role.role in ("gain", "bias") and role.fan_out else 1.0
        return of_vector / role.gradient if is_gradient_step else of_vector
    if is_gradient_step:
        return GRADIENT[role.role](role)
    in_branch = role.depth**-0.5 if role.depth else 1.0
    return NORMALIZED[role.role](role) * in_branch
