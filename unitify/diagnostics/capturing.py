"""U1: what a graph cannot hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class NotCaptured(Diagnostic):
    """A module could not be captured as a graph and was left as it is.

    Its capturable submodules are transformed one by one; they are exact at their
    boundaries, so the whole still computes the same function.

    Example: ``if x.sum() > 0: x = self.a(x)`` inside a ``forward``.
    Fix: rewrite the data-dependent part with ``torch.where`` or ``torch.cond``, or leave it.
    """

    code: ClassVar[str] = "U101"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "{module} cannot be captured whole: {reason}"
    fix: ClassVar[str] = "Its submodules are transformed one by one; this part is left alone"
    module: str
    reason: str


@dataclass(frozen=True)
class NothingCaptured(Diagnostic):
    """Neither the model nor any of its submodules could be captured.

    Example: ``transform(nn.Linear(4, 4), torch.ones(2, 5))``.
    Fix: look at the reason given; the usual ones are inputs that do not fit the model and
    data-dependent Python control flow.
    """

    code: ClassVar[str] = "U102"
    why: ClassVar[str] = "no part of the model could be captured: {reason}"
    fix: ClassVar[str] = (
        "Check that model(*example_inputs, **example_kwargs) runs by itself; pass the inputs if "
        "they were inferred"
    )
    reason: str


@dataclass(frozen=True)
class OneModeOnly(Diagnostic):
    """The graph follows one of ``.train()`` and ``.eval()`` only.

    The two graphs differ in more than mode flags (or one could not be captured). In the other
    mode the model's own code runs, as for every call that no recording takes (U118).

    Example: ``if self.training: return self.a(x)`` inside a ``forward``.
    Fix: put the model into the mode that you need before ``transform``.
    """

    code: ClassVar[str] = "U103"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "only {mode} mode was captured: {reason}"
    fix: ClassVar[str] = "Call model.{other}() first and transform again to use that mode"
    mode: str
    other: str
    reason: str


@dataclass(frozen=True)
class InputMismatch(Diagnostic):
    """The transformed module was called with inputs unlike those it was captured with.

    Where no more than some casts is lost by that, the model's own code takes the call (U118, U117).
    It is refused where all of them would be: with stored weights or values, and casts.

    Example: ``module(input_ids, attention_mask)`` where capture saw ``input_ids`` alone.
    Fix: give an example of the other form, too: ``transform(model, example, batches=[other])``.
    """

    code: ClassVar[str] = "U104"
    why: ClassVar[str] = "{problem}"
    fix: ClassVar[str] = (
        "The module was captured for {expected}; add an example of the other form: "
        "transform(model, example, batches=[other])"
    )
    problem: str
    expected: str


@dataclass(frozen=True)
class AliasedMutation(Diagnostic):
    """An in-place operation writes into memory, and not every view of that memory is known.

    A view that is not known would keep its old contents. The module is left as it is; its
    submodules are transformed one by one.

    Example: ``x.unfold(1, 4, 2).mul_(2)``, which writes some elements twice.
    Fix: write ``y = x.clone(); y[...] = v`` on the tensor itself, or use ``torch.where``.
    """

    code: ClassVar[str] = "U105"
    why: ClassVar[str] = "{operation} writes into {view}: {reason}"
    fix: ClassVar[str] = "Write into the tensor itself, or use an out-of-place operation"
    operation: str
    view: str
    reason: str


@dataclass(frozen=True)
class FrozenDimension(Diagnostic):
    """A dimension that one might expect to be free was fixed by the model itself.

    Example: example inputs with a batch of one: ``transform(model, torch.ones(1, 8))``.
    Fix: pass ``dynamic_shapes`` as for ``torch.export.export``, or accept the fixed size.
    """

    code: ClassVar[str] = "U106"
    why: ClassVar[str] = "the graph holds for {dimension} = {size} only"
    fix: ClassVar[str] = "Give example inputs with sizes above one, or pass dynamic_shapes"
    dimension: str
    size: int


@dataclass(frozen=True)
class CheckpointingLost(Diagnostic):
    """The model uses activation checkpointing, which a captured graph does not keep.

    Example: ``model.gradient_checkpointing_enable()`` before ``transform``.
    Fix: nothing has to be fixed: results are the same, peak memory is higher.
    """

    code: ClassVar[str] = "U107"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "activation checkpointing is not kept in the graph"
    fix: ClassVar[str] = "Results are the same; expect more memory in training"


@dataclass(frozen=True)
class CacheLeftOut(Diagnostic):
    """A generation cache among the outputs was switched off for capture.

    Hugging Face models return ``past_key_values`` when ``config.use_cache`` is set; the
    transformed module returns the other outputs. It returns a cache where a call asks for one, as
    those of ``generate`` do.

    Example: ``transform(GPT2LMHeadModel(config))`` with the default ``config.use_cache``.
    Fix: nothing has to be fixed; ``module.generate`` has its cache.
    """

    code: ClassVar[str] = "U108"
    why: ClassVar[str] = "config.use_cache was set; the captured graph returns no cache"
    fix: ClassVar[str] = "Pass use_cache=True, as generate does, where a call is to return one"


@dataclass(frozen=True)
class GradientLost(Diagnostic):
    """A backward pass in Python would be lost in the graph.

    ``torch.export`` records operations of the forward pass. It drops the backward of a
    ``torch.autograd.Function``, silently, and hooks on gradients. So the module that holds one is
    left out of the capture, and runs as it is.

    Example: ``MyFunction.apply(x)`` inside a ``forward``; ``checkpoint(block, x,
    use_reentrant=True)``.
    Fix: register your own operator with torch's ``custom_op`` and its ``register_autograd``; pass
    ``use_reentrant=False`` to activation checkpointing; hook a parameter in place of a result,
    because hooks of parameters are kept.
    """

    code: ClassVar[str] = "U109"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "{function} has a backward pass of its own, which export would drop"
    fix: ClassVar[str] = "{advice}"
    function: str
    advice: str = "Register it with torch's custom_op and register_autograd"


@dataclass(frozen=True)
class CaptureDiffers(Diagnostic):
    """The recording of a model does not compute what the model computes.

    The difference is more than rounding. It also exists where each submodule is recorded by itself.
    So no graph can replace the model.

    Example: a model whose results differ between two runs, because it draws random numbers by
    itself; a model whose code depends on whether it is being recorded.
    Fix: put the model into the mode and options in which you use it, and pass usual inputs. With
    ``verify=False`` the module is returned regardless.
    """

    code: ClassVar[str] = "U110"
    why: ClassVar[str] = "the recording does not compute what the model computes: {differences}"
    fix: ClassVar[str] = "Make every run of the model the same, or transform its submodules"
    differences: str


@dataclass(frozen=True)
class AttributeChanged(Diagnostic):
    """Something that the model's code reads has changed since the model was recorded.

    It is an attribute, a global, a variable of the environment, or a switch of torch such as
    autocast. The graph holds the old value. So the call runs the model's own code, which reads the
    new one: exact, but without scales and casts. A module for inference has no such code, and
    refuses the call, as does a module one of whose stored weights was replaced. A new number type
    of the weights also counts, where no new recording can be made (U116): with stored weights,
    codes, or several graphs.

    Example: ``module.get_submodule("drop").p = 0.0`` on the transformed module; a hook registered
    on one of its submodules; a submodule that was exchanged.
    Fix: change the model, and transform it again; or set the attribute back.
    """

    code: ClassVar[str] = "U115"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "{attribute} has changed since the model was recorded"
    fix: ClassVar[str] = (
        "The model's own code runs instead of its graph; change the model and transform it again"
    )
    attribute: str


@dataclass(frozen=True)
class RecordedAnew(Diagnostic):
    """The weights have another number type than when the model was recorded, or ``autocast`` is on.

    A recording holds for its number types. So the model is recorded again in the new types, on the
    same example, and transformed with the same options: the call has scales and casts. Both
    recordings are kept, so that a return to the old types costs nothing.

    Example: ``module.bfloat16()``; ``fully_shard(module, mp_policy=MixedPrecisionPolicy(
    param_dtype=torch.bfloat16))``, which hands out weights in bfloat16; a call under
    ``torch.autocast("cpu", torch.bfloat16)``.
    Fix: nothing has to be fixed; to save the time, transform the model in the types of its use.
    """

    code: ClassVar[str] = "U116"
    why: ClassVar[str] = "the type of {tensor} is {dtype} now: the model was recorded again"
    fix: ClassVar[str] = "To save the time, transform the model in the types in which it runs"
    tensor: str
    dtype: str


@dataclass(frozen=True)
class CastsLeftOut(Diagnostic):
    """A submodule runs its own code, without the casts of its graph.

    Where values between submodules are true, each submodule has its own graph. If one is wrapped,
    replaced or hooked, the modules around it run their own code, and all others run their graphs.
    Contractions in the code of the modules around it are then not cast.

    The same holds for calls that fit no recording, such as those of ``generate`` with a cache. One
    warning for each kind of call names the first of its modules.

    Example: a hook on a part of an attention block whose own forward multiplies by ``F.linear``; a
    submodule called with inputs of another type; a deep copy of a submodule alone.
    Fix: change the model, and transform it again. For another form of call give an example of it:
    ``transform(model, example, batches=[other])``.
    """

    code: ClassVar[str] = "U117"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "{module} runs its own code, without the casts of its graph: {reason}"
    fix: ClassVar[str] = "Wrap, change, copy or call it so in the model, and transform that again"
    module: str
    reason: str


@dataclass(frozen=True)
class OwnCodeRuns(Diagnostic):
    """A call of the module fits no recording, so the model's own code runs.

    It has other arguments than the example, or sizes for which its recording does not hold, or the
    module is in a mode that was not recorded. Results and gradients are bitwise the model's.
    Values are true in that call, and not near unit scale. Each kind of call warns once.

    Example: ``module.generate(input_ids)``, whose calls pass a cache; ``module(ids, mask)``
    where the example was ``ids`` alone.
    Fix: give an example of the other kind, too: ``transform(model, example, batches=[other])``.
    """

    code: ClassVar[str] = "U118"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "a call runs the model's own code, not the graph: {reason}"
    fix: ClassVar[str] = "Add an example of it: transform(model, example, batches=[other])"
    reason: str


@dataclass(frozen=True)
class OutsideGuards(Diagnostic):
    """The transformed module was called with sizes for which its recording does not hold.

    A recording takes one side of every branch on a size. torch keeps the condition of that side.
    ``where`` is the line that made the condition.
    The model's own code takes such a call, as it takes one of another form (U104).

    Example: ``if x.shape[1] > 16: ...`` in a ``forward``, an example of length 8 and a call of
    length 32.
    Fix: add an example of the other side: ``transform(model, example, batches=[other])`` records
    both, and the module runs the one that holds.
    """

    code: ClassVar[str] = "U111"
    why: ClassVar[str] = "the recording holds where {guard}; the call has {sizes}"
    fix: ClassVar[str] = "Add an example of such sizes: transform(model, example, batches=[other])"
    guard: str
    sizes: str


@dataclass(frozen=True)
class SizesFixed(Diagnostic):
    """Recording with free sizes took too long, so fewer sizes are free.

    torch computes with free sizes as formulas, which grow where reshapes depend on one another.
    Sizes that are not free are those of the example.

    Example: ``transform(model, example, recording_seconds=0.001)``.
    Fix: give more time with ``recording_seconds``, or name the sizes that vary in
    ``dynamic_shapes``.
    """

    code: ClassVar[str] = "U112"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "recording with more free sizes takes over {seconds:g} s; {free} stay free"
    fix: ClassVar[str] = "Raise recording_seconds, or name the sizes that vary in dynamic_shapes"
    seconds: float
    free: str


@dataclass(frozen=True)
class RecordedAsCompiled(Diagnostic):
    """The model could only be recorded as it runs under a compiler, not as it runs eagerly.

    Its code asks ``torch.compiler.is_compiling()``, and its eager branch looks at data. The two
    branches may round differently.

    Example: ``if not torch.compiler.is_compiling() and mask.all(): mask = None``.
    Fix: nothing has to be fixed. Where the last bit counts, pass inputs with which both branches do
    the same, such as no mask in place of a mask of ones.
    """

    code: ClassVar[str] = "U113"
    why: ClassVar[str] = "the model was recorded as it runs under a compiler"
    fix: ClassVar[str] = "Its eager code may round differently; verification says whether it does"
