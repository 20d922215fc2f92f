"""``Recipe``: which values are cast to which format, and by what scale; and the named ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unitify.diagnostics import RecipeInvalid, UnitifyError
from unitify.formats.powers import is_power_of_two
from unitify.formats.table import (
    BF16,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    FP16,
    MXFP4,
    MXFP8,
    NVFP4,
    Format,
)

#: What a field may be, where it is one of a few words.
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "values": ("contractions", "all"),
    "scaling": ("unit", "plain", "amax", "constant"),
    "headroom": ("none", "predicted", "measured"),
    "center": ("none", "predicted", "measured"),
    "simulate": ("auto", True, False),
}
#: Formats that a recipe may leave out.
OPTIONAL = ("branch_ends", "kv_cache")


@dataclass(frozen=True)
class Recipe:
    """Which values are cast to which format, and by what scale.

    - ``forward``, ``backward``: formats of operands and of gradients, as ``Format`` or by name
    - ``values``: "contractions" casts the operands of linear, matmul and convolution, and the
      gradient of their result; "all" every stored value that depends on a weight, with its gradient
    - ``attention``: also cast contractions of two activations, as attention's own are
    - ``kv_cache``: the format of keys and values of attention, which a model that generates keeps
      in a cache; None leaves them as they are. Where the operands of attention are cast anyway,
      these two are cast to this one
    - ``branch_ends``: another format for both directions of the last contraction of every residual
      branch (attention-out and FFN-down); None for the same as the others
    - ``include``, ``exclude``: patterns (``*``, ``?``, ``[…]``) of what to cast, and of what not.
      Each is matched against names of weights (``h.0.fc.weight``), paths of modules (``h.0`` stands
      for all inside), operations (``aten.conv*``) and values
    - ``multiple``: contractions stay out that have a width not divisible by this (16 is what FP8
      hardware multiplies in). One casts all
    - ``scaling``: "unit" uses the scales of the plan. The others are baselines, on the original
      graph (every scale of the plan is one): "plain" casts values as they are, "amax" by the power
      of two at which a tensor's largest element is just in range, found at run time, "constant"
      all by ``scale``. Perez et al. 2023 (arXiv 2309.17224): FP8-AMAX and FP8-CSCALE
    - ``scale``: with "constant": value = scale × what is cast, a power of two
    - ``loss_scale``: with "plain": gradients are stored times this power of two
    - ``saturate``: what is out of range becomes the largest value, not infinity
    - ``headroom``: where within its format an operand is rounded, by a power of two. "none" casts
      it at unit RMS, or at the nearest scale at which the format holds numbers of unit RMS (INT8
      2^-5, E2M1 2^-1); "predicted" where the least error is expected, of a
      weight by its values, of an activation by a scale search on drawn inputs; "measured" by a
      scale search on the batches
    - ``center``: subtract the mean of each channel from the operand before it is rounded, and add
      the contraction of the mean, which is not rounded. "none" does so nowhere; "predicted" where
      running statistics (of batch norms) give the mean; "measured" by the batches
    - ``joint``: one scale for the weights of layers that take the same value, and one for that
      value, as runtimes have that fuse them (q, k and v). ``unitify.export`` requires it
    - ``min_sqnr``: mixed precision. Leave in BF16 as few FLOPs as keep the signal to quantization
      noise of every output above this, in decibels
    - ``simulate``: True rounds, and multiplies in the model's own type; False multiplies FP8
      operands; "auto" multiplies FP8 operands where device and operation can

    Raises ``UnitifyError`` (U402) for values that no recipe can have.
    """

    name: str
    forward: Format = E4M3
    backward: Format = E5M2
    values: str = "contractions"
    attention: bool = False
    kv_cache: Format | None = None
    branch_ends: Format | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    multiple: int = 16
    scaling: str = "unit"
    scale: float = 1.0
    loss_scale: float = 1.0
    saturate: bool = True
    headroom: str = "none"
    center: str = "none"
    joint: bool = False
    min_sqnr: float | None = None
    simulate: str | bool = "auto"

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise UnitifyError(*(RecipeInvalid(where=self.name, problem=p) for p in problems))

    @property
    def is_chosen(self) -> bool:
        """Does it choose by what is known of a model's values?"""
        return (self.headroom, self.center) != ("none", "none") or self.min_sqnr is not None

    def as_table(self) -> dict[str, Any]:
        """Plain data from which ``read_recipe`` makes the same recipe."""
        base = RECIPES.get(self.name, FP8)
        table: dict[str, Any] = {"base": base.name}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != getattr(base, field.name):
                table[field.name] = _as_plain(value)
        return table


def _problems(recipe: Recipe) -> list[str]:
    found = []
    for name in ("forward", "backward", *OPTIONAL):
        value = getattr(recipe, name)
        if not (isinstance(value, Format) or (value is None and name in OPTIONAL)):
            found.append(f"{name} is {value!r}, not a format")
    for name, choices in CHOICES.items():
        if getattr(recipe, name) not in choices:
            found.append(f"{name} is {getattr(recipe, name)!r}, not one of {choices}")
    for name in ("attention", "saturate", "joint"):
        if not isinstance(getattr(recipe, name), bool):
            found.append(f"{name} is {getattr(recipe, name)!r}, not true or false")
    for name in ("include", "exclude"):
        patterns = getattr(recipe, name)
        if not (isinstance(patterns, tuple) and all(isinstance(p, str) for p in patterns)):
            found.append(f"{name} is {patterns!r}, not patterns")
    if not (isinstance(recipe.multiple, int) and recipe.multiple >= 1):
        found.append(f"multiple is {recipe.multiple!r}, not a count")
    if not isinstance(recipe.name, str):
        found.append(f"name is a {type(recipe.name).__name__}, not text")
    sqnr = recipe.min_sqnr
    if sqnr is not None and not (isinstance(sqnr, float) and math.isfinite(sqnr)):
        found.append(f"min_sqnr is {recipe.min_sqnr!r}, not a number of decibels")
    for name, scaling in (("scale", "constant"), ("loss_scale", "plain")):
        value = getattr(recipe, name)
        if not _is_power_of_two(value):
            found.append(f"{name} is {value!r}, not a power of two")
        elif value != 1.0 and recipe.scaling != scaling:
            found.append(f"{name} goes with scaling = {scaling!r}, not {recipe.scaling!r}")
    cache = recipe.kv_cache
    if isinstance(cache, Format) and (cache.dtype is None or cache.dtype.itemsize > 1):
        found.append(f"kv_cache is {cache.name!r}, not a format of eight bits an element")
    if cache is not None and recipe.values == "all":
        found.append("kv_cache goes with values = 'contractions'")
    if recipe.is_chosen and (recipe.scaling != "unit" or recipe.values == "all"):
        keys = "headroom, center and min_sqnr"
        found.append(f"{keys} go with scaling = 'unit' and values = 'contractions'")
    return found


def _is_power_of_two(value: Any) -> bool:
    return isinstance(value, float) and is_power_of_two(value)


def _as_plain(value: Any) -> Any:
    if isinstance(value, Format):
        return value.name
    return list(value) if isinstance(value, tuple) else value


#: E4M3 where precision matters, E5M2 where range does (Micikevicius et al. 2022, section 3).
FP8 = Recipe("fp8", E4M3, E5M2)
_FP8_PTQ = Recipe("fp8-ptq", E4M3, E5M2, headroom="predicted", center="predicted")
_FP16 = Recipe("fp16", FP16, FP16, values="all", saturate=False)
_FP8_PLAIN = Recipe("fp8-plain", E4M3, E5M2, scaling="plain")

#: Named recipes; the last five are baselines.
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        FP8,
        Recipe("fp8-fnuz", E4M3FNUZ, E5M2FNUZ),
        # Blake et al. 2024 (arXiv 2407.17465): the operands of these two grow while training.
        Recipe("fp8-mixed", E4M3, E5M2, branch_ends=BF16),
        _FP8_PTQ,
        dataclasses.replace(_FP8_PTQ, name="fp8-auto", min_sqnr=20.0),
        _FP16,
        Recipe("bf16", BF16, BF16, values="all", saturate=False),
        # Mishra et al. 2025 (arXiv 2506.08027): gradients need no wider range in blocks.
        Recipe("mxfp8", MXFP8, MXFP8, multiple=MXFP8.size),
        Recipe("mxfp4", MXFP4, MXFP8, multiple=MXFP4.size),
        Recipe("nvfp4", NVFP4, NVFP4, multiple=NVFP4.size),
        _FP8_PLAIN,
        dataclasses.replace(_FP8_PLAIN, name="fp8-amax", scaling="amax"),
        dataclasses.replace(_FP8_PLAIN, name="fp8-cscale", scaling="constant", scale=2.0**-4),
        dataclasses.replace(_FP16, name="fp16-plain", scaling="plain"),
        dataclasses.replace(_FP16, name="fp16-loss-scaled", scaling="plain", loss_scale=2.0**11),
    )
}
