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

    The two graphs differ in more than mode flags (or one could not be captured), so
    the other mode is refused instead of silently wrong.

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

    Example: ``module(input_ids, attention_mask)`` where capture saw ``input_ids`` alone.
    Fix: call it with the same arguments, or transform again with inputs of the new form.
    """

    code: ClassVar[str] = "U104"
    why: ClassVar[str] = "{problem}"
    fix: ClassVar[str] = "The module was captured for {expected}; transform again for other inputs"
    problem: str
    expected: str


@dataclass(frozen=True)
class AliasedMutation(Diagnostic):
    """An in-place operation writes into memory of which not every reader is known.

    What else shows the memory would have to follow, and would not. The module is left as it is;
    its submodules are transformed one by one.

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
    Fix: nothing has to be mended: results are the same, peak memory is higher.
    """

    code: ClassVar[str] = "U107"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "activation checkpointing is not kept in the graph"
    fix: ClassVar[str] = "Results are the same; expect more memory in training"


@dataclass(frozen=True)
class CacheLeftOut(Diagnostic):
    """A generation cache among the outputs was switched off for capture.

    Hugging Face models return ``past_key_values`` when ``config.use_cache`` is set; the
    transformed module returns the other outputs.

    Example: ``transform(GPT2LMHeadModel(config))`` with the default ``config.use_cache``.
    Fix: nothing has to be mended; use the original model for incremental decoding.
    """

    code: ClassVar[str] = "U108"
    why: ClassVar[str] = "config.use_cache was set; the captured graph returns no cache"
    fix: ClassVar[str] = "Use the original model for incremental decoding"


@dataclass(frozen=True)
class GradientLost(Diagnostic):
    """A ``torch.autograd.Function`` of the model would lose its backward pass in the graph.

    ``torch.export`` traces through its forward and drops its own backward, silently, so
    the module that holds it is left out of the capture.

    Example: ``MyFunction.apply(x)`` inside a ``forward``.
    Fix: register it as an operator: torch's ``custom_op`` and its ``register_autograd``.
    """

    code: ClassVar[str] = "U109"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "{function} has a backward pass of its own, which export would drop"
    fix: ClassVar[str] = "Register it with torch's custom_op and register_autograd"
    function: str


@dataclass(frozen=True)
class CaptureDiffers(Diagnostic):
    """The captured graph does not compute what the model computes when it runs by itself.

    Bitwise the result is the captured graph; that one differs from the model by more than other
    kernels round (the square root of the type's precision, relative to a tensor's RMS).

    Example: a model that draws random numbers from NumPy, or looks at how it is being run.
    Fix: compare the two on your data; if they have to be equal, give the model as it is in use
    (its mode, its options) and inputs for which it takes its usual way.
    """

    code: ClassVar[str] = "U110"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "while recorded the model differs in {tensors} tensors, first {first}"
    fix: ClassVar[str] = "Compare module and model on your own data before you rely on it"
    tensors: int
    first: str
