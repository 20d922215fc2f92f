"""One call of ``torch.export`` on a model: any signature, no caches, nothing lost unnoticed.

Takes a model and the inputs of a call; gives an ``ExportedProgram`` whose placeholders have the
names of the call's arguments, and the parts of the backward pass that it lost.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from unitify.capture.autograd_functions import Noted, noted_backward
from unitify.capture.boundaries import SubmoduleCalls, marked
from unitify.capture.computed import ReadData
from unitify.capture.eager_flags import as_in_eager
from unitify.capture.effects import Effect, effects_of
from unitify.capture.grouped import Grouped
from unitify.capture.identity import Tensors, by_table
from unitify.capture.reachable import Location
from unitify.capture.recurrent import free_length
from unitify.capture.signature import bind, unbind
from unitify.capture.sizes import Free
from unitify.capture.state import State, kept, seeded
from unitify.capture.tree import share_tables
from unitify.diagnostics import UnitifyError, UnknownOption


class ExportError(Exception):
    """``torch.export`` failed; the cause is its own exception."""


@dataclass(frozen=True)
class Exported:
    """A recording: the program, which returns the model's results, then those of ``effects``; the
    lost parts of the backward pass; the model's own tensors that it met; the calls of submodules.
    """

    program: ExportedProgram
    noted: Noted
    effects: tuple[Effect, ...]
    tensors: Tensors
    calls: SubmoduleCalls


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    touched: Iterable[Location] = (),
    same: Sequence[int] | None = None,
) -> Exported:
    """``model`` as it is called by ``args`` and ``kwargs``, recorded in its present mode.

    ``dynamic_shapes``: "auto" leaves every size free, ``Free`` some; else as for
    ``torch.export.export``. ``touched``: what calls of the model change beside returning. ``same``:
    for each flat input the first one that is the same tensor, where code asks. The model runs
    eagerly where it can be recorded so. It is restored afterwards, also after a failure.

    Raises ``ExportError``; ``UnitifyError`` (U001) for shapes of inputs that do not exist.
    """
    signature = inspect.signature(model.forward)
    named = bind(signature, args, kwargs)
    _check_shapes(dynamic_shapes, signature, named)
    tensors = Tensors.of(model)
    effects: list[Effect] = []
    subject = _subject(model)

    def exported(surroundings: Callable[[], AbstractContextManager[Any]]) -> Any:
        shapes = _by_name(dynamic_shapes, signature, named)
        with (
            kept(model),
            seeded(model),
            _called_by_name(
                model, subject, (args, kwargs), same, tensors, touched, effects, surroundings
            ),
            _silence(),
            free_length(),
            noted_backward() as noted,
            marked(model) as calls,
        ):
            program = torch.export.export(subject, (), named, dynamic_shapes=shapes, strict=False)
        return program, noted, calls

    data = ReadData()
    try:
        program, noted, calls = exported(functools.partial(_in_eager, data))
        noted.computed = data.found
    except Exception as error:
        try:
            program, noted, calls = exported(contextlib.nullcontext)
        except Exception:
            raise ExportError from error
        noted.as_compiled = True
    _forget_this_file(program.graph_module)
    return Exported(program, noted, tuple(effects), tensors, calls)


def _subject(model: nn.Module) -> nn.Module:
    """The module to record. torch calls a module of a graph by that graph's own signature, so that
    a plain module with the same tables takes its place.
    """
    if not isinstance(model, fx.GraphModule):
        return model
    plain = nn.Module()
    share_tables(model, plain)
    plain.training = model.training
    return plain


@contextlib.contextmanager
def _in_eager(data: ReadData) -> Iterator[None]:
    with as_in_eager(), data, Grouped():
        yield


def _check_shapes(shapes: Any, signature: inspect.Signature, named: dict[str, Any]) -> None:
    known = ["auto"]
    is_known = isinstance(shapes, dict | list | tuple | Free | None) or shapes in known
    unknown = [] if is_known else [shapes]
    if isinstance(shapes, dict):
        known = [*signature.parameters, *named]
        unknown = [name for name in shapes if name not in known]
    if unknown:
        choices = ", ".join(dict.fromkeys(known))
        raise UnitifyError(
            UnknownOption(option="dynamic_shapes", value=str(unknown[0]), choices=choices)
        )


def _by_name(shapes: Any, signature: inspect.Signature, named: dict[str, Any]) -> Any:
    """``dynamic_shapes`` by the names of ``bind``, from any of the forms that torch takes."""
    if isinstance(shapes, str):
        shapes = Free()
    if isinstance(shapes, Free):
        return {name: _freed(name, value, shapes) for name, value in named.items()}
    if isinstance(shapes, list | tuple):
        return dict(zip(named, shapes, strict=False))
    if not isinstance(shapes, dict):
        return shapes
    # Of *args and **kwargs torch takes the shapes together; each has a name of its own here.
    spread: dict[str, Any] = {}
    for name, shape in shapes.items():
        parameter = signature.parameters.get(name)
        if parameter is not None and parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            spread |= {f"{name}_{i}": item for i, item in enumerate(shape or ())}
        elif parameter is not None and parameter.kind is inspect.Parameter.VAR_KEYWORD:
            spread |= shape or {}
        else:
            spread[name] = shape
    return {name: spread.get(name) for name in named}


def _freed(name: str, value: Any, which: Free) -> Any:
    """The argument with a free size in place of those sizes of its tensors."""

    def free(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return None
        return dict.fromkeys(which.of(leaf.dim()), Dim.AUTO)

    try:
        return pytree.tree_map(free, value)
    except Exception as error:
        problem = f"the argument {name}, a {type(value).__name__}, holds nothing but tensors"
        raise TypeError(problem) from error


def _forget_this_file(graph_module: torch.fx.GraphModule) -> None:
    """Source lines are the model's: take out the frame of the call that was made from here."""
    frame = re.compile(rf'\s*File "{re.escape(__file__)}", line \d+, in .+\n.*\n?')
    for module in graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if trace := node.meta.get("stack_trace"):
                node.meta["stack_trace"] = frame.sub("", trace).lstrip()


#: Loggers by which torch warns of fixed sizes and prints what it cannot record; diagnostics say
#: both.
_LOGGERS = (
    "torch._export.non_strict_utils",
    "torch._subclasses.fake_tensor",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    # A user who enabled these logs gets them.
    muted = [log for log in loggers if not (log.disabled or log.isEnabledFor(logging.INFO))]
    for log in muted:
        log.disabled = True
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # Recurrent layers list their own parameters; nothing is assigned that could be lost.
            warnings.filterwarnings("ignore", r"The tensor attributes? self\..*_flat_weights")
            yield
    finally:
        for log in muted:
            log.disabled = False


@contextlib.contextmanager
def _called_by_name(
    model: nn.Module,
    subject: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    same: Sequence[int] | None,
    tensors: Tensors,
    touched: Iterable[Location],
    effects: list[Effect],
    surroundings: Callable[[], AbstractContextManager[Any]],
) -> Iterator[None]:
    """Let ``subject`` take each argument of this call by a name of its own, ``*args`` included.

    Its code is that of ``model``, and runs inside ``surroundings``. It returns what its call leaves
    behind, too, which ``effects`` then lists.
    """
    args, kwargs = inputs
    original, was_set = model.forward, "forward" in vars(subject)
    signature = inspect.signature(original)
    paths = {name for name, _ in model.named_modules()}

    def forward(**named: Any) -> Any:
        if same is not None:
            leaves, spec = pytree.tree_flatten(named)
            named = pytree.tree_unflatten([leaves[i] for i in same], spec)
        given, keywords = unbind(signature, args, kwargs, named)
        before = State.of(model, named, numbers=False)
        # What a call assigns is a result here; export would write into the old object.
        with surroundings(), by_table(tensors), _buffers_assigned():
            result = original(*given, **keywords)
        effects[:], values = effects_of(before, paths, touched)
        before.put_back()
        return result, values

    names = bind(signature, args, kwargs)
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    )
    subject.__dict__["forward"] = forward
    try:
        yield
    finally:
        del subject.__dict__["forward"]
        if was_set:
            subject.__dict__["forward"] = original


@contextlib.contextmanager
def _buffers_assigned() -> Iterator[None]:
    """Inside, torch does not note which buffers the model's code assigns, to write into them."""
    hooks = nn.modules.module._global_buffer_registration_hooks
    of_torch = {key: h for key, h in hooks.items() if h.__module__.startswith("torch.")}
    for key in of_torch:
        del hooks[key]
    try:
        yield
    finally:
        hooks.update(of_torch)


@contextlib.contextmanager
def without_cache(model: nn.Module) -> Iterator[bool]:
    """Inside, generation caches (``config.use_cache``) are off. Yields whether any was on."""
    caching = caching_configs(model)
    with switched_off(caching):
        yield bool(caching)


@contextlib.contextmanager
def switched_off(configs: Sequence[Any]) -> Iterator[None]:
    """Inside, the caches of ``configs`` are off."""
    were = [config.use_cache for config in configs]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config, was in zip(configs, were, strict=True):
            config.use_cache = was


def caching_configs(model: nn.Module) -> list[Any]:
    """The configs in ``model`` that make it return generation caches, which no graph does."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [c for c in configs.values() if getattr(c, "use_cache", False) is True]
