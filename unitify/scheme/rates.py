"""Learning rates of a scheme: by what a parameter's role multiplies the one rate that is tuned.

u-μP, with Adam and its like (Blake et al. 2024, arXiv 2407.17465, table 2): fan_out^-1/2 for an
embedding, fan_in^-1/2 for a hidden matrix, one for readout, gains and biases; depth^-1/2 for what
lies in a branch. A step that is a multiple of the gradient (SGD) has the factors that give the same
change of function: μP's own (Yang et al. 2022, arXiv 2203.03466), carried over to unit weights by
the invariance under A → Aθ, B → B/θ, C → C/θ².

Unit scaling (Blake et al. 2023, arXiv 2303.11257): one rate for all matrices and tables, and n^-1/2
times it for a vector of n gains or biases, as the authors' own training code has it. There an
optimizer is handed gradients of unit RMS: a step that is a multiple of the gradient is divided by
what the gradient's RMS was when the model was transformed.
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
    """What the learning rate of a parameter is multiplied by."""
    if scheme != UMuP.name:
        of_vector = role.fan_out**-0.5 if role.role in ("gain", "bias") and role.fan_out else 1.0
        return of_vector / role.gradient if is_gradient_step else of_vector
    if is_gradient_step:
        return GRADIENT[role.role](role)
    in_branch = role.depth**-0.5 if role.depth else 1.0
    return NORMALIZED[role.role](role) * in_branch
