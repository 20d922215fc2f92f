"""Example inputs, inferred from a model that declares them.

Their shapes, types and ranges are those that the model declares. Their numbers are drawn.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from unitify.capture.state import kept, seeded
from unitify.diagnostics import InputsNeeded, NothingCaptured, UnitifyError, UnknownOption

#: Sizes that a model leaves open. They are above one, so that they stay free.
BATCH, LENGTH, EXTENT = 2, 16, 32
#: Sequences that scales are measured on: their length, and how often a language model writes them
#: anew. On 16 tokens one value of SmolLM2 in eight is off by more than 2 × from text of 128
#: tokens, on 64 one in a hundred (docs/results/drawn_inputs.md). A scale search on random tokens
#: raises its perplexity with FP8 from 27.21 to 27.39, where one on text lowers it.
MEASURED_LENGTH, ROUNDS = 64, 2
#: Up to so many numbers are drawn for a call.
MOST_DRAWN = 2**28

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def as_inputs(model: nn.Module, batch: Any) -> Inputs:
    """A batch (a tuple, a list, or one input) as (positional, keyword) inputs of ``model``.

    A mapping holds keyword inputs, unless ``model`` takes one input and has no such names.
    """
    if isinstance(batch, Mapping):
        return ((batch,), {}) if _is_one_input(model, batch) else ((), dict(batch))
    if isinstance(batch, list | tuple):
        return tuple(batch), {}
    return (batch,), {}


def _is_one_input(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    if not batch:
        return False
    if not all(isinstance(name, str) for name in batch):
        return True
    signature = inspect.signature(model.forward)
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len([p for p in signature.parameters.values() if p.kind in places]) != 1:
        return False
    try:
        signature.bind(**batch)
    except TypeError:
        return True
    return False


def as_batches(batches: Iterable[Any]) -> list[Any]:
    """The batches as a list.

    Raises ``UnitifyError`` (U001) for a single batch, or anything else that is no series.
    """
    if isinstance(batches, torch.Tensor | Mapping | str) or not isinstance(batches, Iterable):
        choices = "a list of batches, anything else that gives one after the other"
        raise UnitifyError(UnknownOption(option="batches", value=_shown(batches), choices=choices))
    return list(batches)


def is_given(args: Any, kwargs: Mapping[str, Any] | None) -> bool:
    """Did the user give any inputs? Inferred inputs are drawn."""
    return isinstance(args, torch.Tensor) or bool(args) or bool(kwargs)


def given_or_inferred(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None) -> Inputs:
    """The inputs given, as ``as_inputs`` takes them; inferred where there are none.

    Raises ``UnitifyError``: U102 where ``model`` cannot be called with them, U002 as
    ``infer_inputs``, U001 for something that is no model or no inputs.
    """
    check_usable(model)
    is_given = isinstance(args, torch.Tensor | Mapping | list | tuple)
    if not is_given or not isinstance(kwargs or {}, Mapping):
        value, choices = _shown(args), "a tensor, a tuple of inputs, a dict of keyword inputs"
        raise UnitifyError(UnknownOption(option="example_inputs", value=value, choices=choices))
    args, named = as_inputs(model, args)
    kwargs = {**named, **(kwargs or {})}
    if not (args or kwargs):
        return infer_inputs(model)
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise UnitifyError(
            NothingCaptured(where=type(model).__name__, reason=f"{error} in the example inputs")
        ) from None
    return args, kwargs


def check_usable(model: nn.Module) -> None:
    """Raise ``UnitifyError`` (U001, U102) for what is no model, or none that can be recorded."""
    if not isinstance(model, nn.Module):
        choices = "the instances of torch.nn.Module"
        raise UnitifyError(UnknownOption(option="model", value=_shown(model), choices=choices))
    if isinstance(model, torch.jit.ScriptModule):
        raise _unusable(model, "it is a TorchScript module, which has no Python code to record")
    pending, seen = [model], {id(model)}
    for module in pending:
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if "_modules" not in vars(module):
            raise _unusable(module, f"{kind.__name__}.__init__ does not call super().__init__()")
        if kind.__hash__ is None:
            raise _unusable(module, f"{kind.__name__} defines __eq__ without __hash__")
        children = [m for m in module._modules.values() if m is not None]
        pending += [m for m in children if id(m) not in seen]
        seen.update(map(id, children))


def _unusable(module: nn.Module, reason: str) -> UnitifyError:
    return UnitifyError(NothingCaptured(where=type(module).__name__, reason=reason))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def infer_inputs(model: nn.Module, length: int = LENGTH) -> Inputs:
    """Inputs that ``model`` accepts, as (positional, keyword).

    They follow from a Hugging Face config if there is one, else from the first layer. ``length``:
    that of sequences, where the model leaves it open.

    Raises ``UnitifyError`` (U002), with the call to write, where neither says enough.
    """
    if not inspect.signature(model.forward).parameters:
        return (), {}
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        return (), _from_config(model, length)
    x = _from_first_layer(model, length)
    if x is not None:
        return (x,), {}
    raise UnitifyError(
        InputsNeeded(
            where=type(model).__name__,
            reason="the model has neither a Hugging Face config nor a first layer that implies it",
            call=f"unitify.transform(model, ({', '.join(_required(model)) or 'x'},))",
        )
    )


def written_inputs(model: Any) -> Inputs:
    """Inputs to measure on: long, and for a language model text that it writes itself.

    Tokens are drawn from its own predictions, all positions at once, several times. Values are then
    much as on real text. Raises like ``infer_inputs``.
    """
    args, kwargs = infer_inputs(model, MEASURED_LENGTH)
    ids = kwargs.get("input_ids")
    if ids is None or ids.is_meta or not getattr(model, "can_generate", bool)():
        return args, kwargs
    if model.config.is_encoder_decoder:
        return args, kwargs
    following = (BATCH, ids.shape[1] - 1, _vocabulary(model.config))
    with kept(model), seeded(model), torch.no_grad():
        for _ in range(ROUNDS):
            try:
                logits = model(input_ids=ids).logits[:, :-1].float()
            except Exception:
                # Whatever code of the model's own may raise; capture says so.
                return args, kwargs
            if logits.shape != following or not logits.isfinite().all():
                return args, kwargs
            drawn = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1).reshape(BATCH, -1)
            ids = torch.cat([ids[:, :1], drawn], 1)
    return args, {**kwargs, "input_ids": ids}


def _required(model: nn.Module) -> list[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's tensors."""
    for tensor in [*model.parameters(), *model.buffers()]:
        return tensor.device
    return torch.device("cpu")


def _dtype(model: nn.Module) -> torch.dtype:
    for tensor in model.parameters():
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def _from_first_layer(model: nn.Module, length: int) -> torch.Tensor | None:
    if len(_required(model)) != 1:
        return None
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if any(is_lazy(p) for p in layer.parameters(recurse=False)):
            return None
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            ids = torch.randint(0, layer.num_embeddings, (BATCH, length), generator=generator)
            return ids.to(device_of(model))
        sizes = _sizes(layer, length)
        if sizes is not None:
            x = torch.randn(BATCH, *sizes, generator=generator)
            return x.to(device_of(model), _dtype(model))
        if any(True for _ in layer.parameters(recurse=False)):
            return None
    return None


def _sizes(layer: nn.Module, length: int) -> tuple[int, ...] | None:
    """The sizes behind the batch that a layer takes, if it says so."""
    if isinstance(layer, nn.Linear):
        return (layer.in_features,)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.in_channels, *[EXTENT] * len(layer.kernel_size)
    if isinstance(layer, nn.RNNBase):
        return length, layer.input_size
    if isinstance(layer, nn.RNNCellBase):
        return (layer.input_size,)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return length, *layer.normalized_shape
    if isinstance(layer, nn.MultiheadAttention):
        return length, layer.embed_dim
    for kind, extents in ((nn.BatchNorm1d, 0), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3)):
        if isinstance(layer, kind):
            return layer.num_features, *[EXTENT] * extents
    return None


def _from_config(model: nn.Module, length: int) -> dict[str, Any]:
    config: Any = model.config
    name = str(model.main_input_name)
    device, dtype = device_of(model), _dtype(model)
    generator = torch.Generator().manual_seed(0)
    if name == "input_ids":
        text = getattr(config, "text_config", None) or config
        vocabulary = _vocabulary(config)
        longest = int(getattr(text, "max_position_embeddings", None) or length)
        size = BATCH, max(2, min(length, longest))

        def ids() -> torch.Tensor:
            return torch.randint(0, vocabulary, size, generator=generator).to(device)

        inputs = {"input_ids": ids()}
        accepted = inspect.signature(model.forward).parameters
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
            inputs["decoder_input_ids"] = ids()
        return inputs
    try:
        shape = _main_input_shape(config, name)
    except (TypeError, ValueError, LookupError):
        shape = None
    if shape is None or min(shape) < 1 or math.prod(shape) > MOST_DRAWN:
        raise UnitifyError(
            InputsNeeded(
                where=type(model).__name__,
                reason=f"its main input is {name!r}, whose shape the config does not give",
                call=f"unitify.transform(model, example_kwargs={{{name!r}: tensor}})",
            )
        )
    return {name: torch.randn(*shape, generator=generator).to(device, dtype)}


def _vocabulary(config: Any) -> int:
    text = getattr(config, "text_config", None) or config
    return int(getattr(text, "vocab_size", 2) or 2)


def _main_input_shape(config: Any, name: str) -> tuple[int, ...] | None:
    vision = getattr(config, "vision_config", None) or config
    if name == "pixel_values":
        size = getattr(vision, "image_size", None) or 224
        height, width = _pair(size)
        return BATCH, int(getattr(vision, "num_channels", 3)), height, width
    if name == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * int(getattr(config, "max_source_positions", 8 * LENGTH))
        return BATCH, int(config.num_mel_bins), frames
    if name == "input_values":
        strides = getattr(config, "conv_stride", (320,))
        samples = LENGTH
        for stride in strides:
            samples *= int(stride)
        return BATCH, samples
    return None


def _pair(size: Any) -> Iterator[int]:
    if isinstance(size, int):
        return iter((size, size))
    if isinstance(size, Mapping):
        return iter((int(size["height"]), int(size["width"])))
    return iter((int(size[0]), int(size[-1])))
