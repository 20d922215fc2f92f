"""A zoo model, captured whole and transformed once, for every test that looks at it.

For a model that may come out in islands, see ``survey``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import random
import warnings
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
import zoo
from strategies import random_plan
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import unitify
from unitify.capture.whole import Capture
from unitify.module.assembly import build
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part
from unitify.plan.scale_plan import Scale, ScalePlan, parameter_units
from unitify.rewrite import rewrite
from unitify.rulebook.rule_table import load_rules
from unitify.verification import Verification

RULES = load_rules()

#: Models that themselves compute otherwise while they are recorded, and why. Their captured graph
#: is the same function, to rounding; every other model must be bitwise its capture.
OTHER_KERNELS = {
    "recurrent_cells": "a weight's gradient is summed within each cell eagerly, not over all steps",
}


#: Models with layers of torch that take a fused kernel in evaluation without gradients, and there
#: alone. A recording, which is made for training, too, has the operations one by one.
FAST_PATHS = {
    "transformer",
    "transformer_encoder",
    "multihead_attention",
    "MultiheadAttention",
    "TransformerEncoderLayer",
}


def is_exact(name: str, found: Verification) -> bool:
    """Bitwise the model, but for the rounding of a fused kernel where torch takes one."""
    if name not in FAST_PATHS:
        return found.exact
    rounded = [d.name for d in found.rounded_otherwise]
    return found.is_accepted and all(n.endswith("without gradients") for n in rounded)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A model, the inputs of one call, its capture and what was made of it."""

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    capture: Capture
    module: UnitScaledModule

    def with_plan(self, chosen: ScalePlan) -> UnitScaledModule:
        return build(Part("", self.capture, chosen, rewrite(self.capture, chosen, RULES)))

    def unscaled(self) -> UnitScaledModule:
        """The captured graph itself: every scale is one, nothing is inserted."""
        ones = {name: Scale() for name in self.module.parts[""].plan.values}
        return self.with_plan(ScalePlan(ones, dict.fromkeys(self.capture.aliases, Scale())))

    def randomly_scaled(self, seed: int, limit: int = 8) -> UnitScaledModule:
        generator = random.Random(seed)
        return self.with_plan(
            random_plan(lambda _: generator.randint(-limit, limit), self.capture, RULES)
        )

    def fresh(self) -> tuple[nn.Module, UnitScaledModule]:
        """Copies of the model and of the module, to train."""
        return copy.deepcopy(self.model), copy.deepcopy(self.module)


def near_unit_plans() -> AbstractContextManager[Any]:
    """Inside, plans hold every value near unit RMS, as where a recipe stores it in FP16.

    By default most values have the scale at which they arrive.
    """
    pipeline = importlib.import_module("unitify.transforming")
    return mock.patch.object(pipeline, "carrier_of", return_value="narrow")


@functools.cache
def conversion(name: str, dtype: torch.dtype = torch.float32) -> Conversion:
    model, args, kwargs = zoo.build(name, dtype)
    with warnings.catch_warnings(), near_unit_plans():
        warnings.simplefilter("ignore")
        module = unitify.transform(model, args, kwargs, scales="measured", verify=False)
    return Conversion(name, model, args, kwargs, module.parts[""].capture, module)


def parameter_scales(module: UnitScaledModule) -> dict[str, Scale]:
    """At which scale a cast rounds each parameter, and the gradient that it receives."""
    return parameter_units(module.capture, module.plan)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equal, NaN for NaN."""
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
