"""U4: recipes and casts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class UnknownRecipe(Diagnostic):
    """There is no recipe of the given name.

    Example: ``transform(model, recipe="fp9")``.
    Fix: use one of the listed names, or pass a ``unitify.Recipe``.
    """

    code: ClassVar[str] = "U401"
    why: ClassVar[str] = "there is no recipe {name!r}"
    fix: ClassVar[str] = "Known recipes: {known}"
    name: str
    known: str


@dataclass(frozen=True)
class RecipeInvalid(Diagnostic):
    """The recipe is not valid: it has an unknown key, or a value that its key cannot have.

    Example: ``transform(model, recipe="fp8,exlude=lm_head")``.
    Fix: the keys are the fields of ``unitify.Recipe``; their values are described there.
    """

    code: ClassVar[str] = "U402"
    why: ClassVar[str] = "the recipe is not valid: {problem}"
    fix: ClassVar[str] = "The keys are those of unitify.Recipe, described there"
    problem: str


@dataclass(frozen=True)
class PatternUnmatched(Diagnostic):
    """A pattern of the recipe matches nothing in the model, and so has no effect.

    Example: ``transform(model, recipe="fp8,exclude=lmhead")`` where the module is ``lm_head``.
    Fix: use a name as ``named_parameters()`` or ``named_modules()`` has it, or an operation.
    """

    code: ClassVar[str] = "U403"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "the pattern {pattern!r} of the recipe's {key} matches nothing"
    fix: ClassVar[str] = "Use the name of a weight, a module, an operation or a value"
    key: str
    pattern: str


@dataclass(frozen=True)
class NothingCast(Diagnostic):
    """The recipe casts nothing in the model: the module computes what the model computes.

    Example: ``transform(model, recipe="mxfp8")`` where every width is 48, because blocks have 32
    elements; ``recipe="fp8,exclude=*"``.
    Fix: change the recipe, or the widths; ``module.casts`` says why each contraction stays.
    """

    code: ClassVar[str] = "U409"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "the recipe {recipe} casts nothing: {reason}"
    fix: ClassVar[str] = "Change the recipe; module.casts says why each contraction stays"
    recipe: str
    reason: str


@dataclass(frozen=True)
class OutOfRange(Diagnostic):
    """The scale of a cast does not bring the RMS of its value into the format's range.

    The cast saturates the value, or loses it. A prediction can be wrong by any factor, so that one
    more than 42 octaves from the typical RMS is not followed. The gradient of an input is true: its
    scale is one.

    Example: ``transform(model, 1e13 * x, recipe="fp8", scales="analysis")``.
    Fix: leave the value out with ``exclude``; with ``scales="measured"`` casts of other values
    follow any RMS.
    """

    code: ClassVar[str] = "U410"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = (
        "the RMS of {value} is {rms:.2g}, and its scale does not bring that into the range of "
        "{format}{others}"
    )
    fix: ClassVar[str] = "Exclude it; where the RMS was predicted, measure it (scales='measured')"
    value: str
    rms: float
    format: str
    others: str = ""


@dataclass(frozen=True)
class CastNotFinite(Diagnostic):
    """With its casts the module gives infinite or NaN numbers on the example, and the model none.

    A small number that keeps a divisor from zero (the eps of ``h / (h.norm() + 1e-8)``) may vanish
    in a narrow format, or a gradient of an input overflow, which has the true scale.

    Example: ``transform(Ratio(), torch.zeros(4, 8), recipe="fp16")`` with ``x / (x + 1e-12)``.
    Fix: leave that operation out with ``exclude``; ``module.report()`` shows what each value loses.
    Or take a recipe of more range: ``bf16``, or ``fp8``, which casts contractions alone.
    """

    code: ClassVar[str] = "U411"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "with the casts {results} is not finite on the example, as it is without"
    fix: ClassVar[str] = "Exclude what overflows or vanishes; module.report() shows what that is"
    results: str


@dataclass(frozen=True)
class NothingCached(Diagnostic):
    """A recipe has a ``kv_cache``, and the model no attention whose keys and values it casts.

    These are operands of torch's own ``scaled_dot_product_attention``. Attention that is written
    out is two matmuls like any others.

    Example: ``transform(model, recipe="fp8,kv_cache=e4m3")`` of a model that was built with
    ``attn_implementation="eager"``.
    Fix: load the model with ``attn_implementation="sdpa"``, or leave ``kv_cache`` out.
    """

    code: ClassVar[str] = "U407"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "kv_cache={format} casts nothing: no attention is one operation of torch"
    fix: ClassVar[str] = "Load the model with attn_implementation='sdpa', or leave kv_cache out"
    format: str


@dataclass(frozen=True)
class NoCache(Diagnostic):
    """No cache of codes can be made for a module.

    It holds keys and values as the module's recipe casts them: at a constant scale for each
    attention, whose module says by ``layer_idx`` which layer of the cache is its own.

    Example: ``unitify.kv_cache(transform(model, recipe="fp8"))``.
    Fix: transform a decoder of transformers with a recipe that has a ``kv_cache``.
    """

    code: ClassVar[str] = "U408"
    why: ClassVar[str] = "there is no cache of codes for {where}: {problem}"
    fix: ClassVar[str] = "Transform a decoder of transformers with recipe='fp8,kv_cache=e4m3'"
    problem: str


@dataclass(frozen=True)
class BoundMissed(Diagnostic):
    """An output does not keep ``min_sqnr``, even with every contraction in BF16.

    Example: ``transform(model, recipe="fp8-auto,min_sqnr=90")``.
    Fix: lower ``min_sqnr``; the message says the most that the formats leave.
    """

    code: ClassVar[str] = "U405"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = (
        "at most {predicted} dB of signal to noise are left, and min_sqnr is {asked}"
    )
    fix: ClassVar[str] = "Lower min_sqnr"
    asked: float
    predicted: float


@dataclass(frozen=True)
class BoundUnknown(Diagnostic):
    """The recipe bounds the noise, which only a run shows, and no run shows it.

    The weights hold no data to run on, or every output is zero, or one is not a number.

    Example: ``transform(model, recipe="fp8-auto")`` of a model on the meta device.
    Fix: transform the model with its weights, on usual inputs; or use ``fp8-ptq``, which has no
    bound.
    """

    code: ClassVar[str] = "U406"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "min_sqnr = {asked} was not checked: {reason}"
    fix: ClassVar[str] = "Transform the model with its weights, on usual inputs"
    asked: float
    reason: str


@dataclass(frozen=True)
class NotInFP8(Diagnostic):
    """The recipe requires FP8 arithmetic where the device, format or operation has none.

    Example: ``transform(model, recipe="fp8,simulate=false")`` of a model with convolutions.
    Fix: with ``simulate = "auto"`` the casts are made and such operations multiply the rounded
    operands in the model's own type; or leave the operation out with ``exclude``.
    """

    code: ClassVar[str] = "U404"
    why: ClassVar[str] = "{value} ({operation}) cannot run on FP8 operands: {problem}"
    fix: ClassVar[str] = 'Use simulate = "auto", or exclude it from the recipe'
    value: str
    operation: str
    problem: str
