"""A module with the model's own ``Parameter`` objects."""

from __future__ import annotations

from torch import nn

from unitify.module.unit_scaled import UnitScaledModule


def adopt_parameters(model: nn.Module, module: UnitScaledModule) -> None:
    """Put the ``Parameter`` objects of ``model`` into ``module``.

    They keep their values where these equal those of ``module``; else they take its values.
    """
    keeps = module.plan.weights == "true" and not module.scheme
    held = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not keeps:
            parameter.data = held[name].data
        path, _, own = name.rpartition(".")
        module.get_submodule(path)._parameters[own] = parameter
