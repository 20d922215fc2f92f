"""From ``nn.Module`` and example inputs to a ``Capture``: one flat graph and what surrounds it.

``torch.export`` (non-strict) records the operations with the names of the parameters, and with the
module path and source line of each. Here the recording becomes a graph that can be trained:
parameters are attributes again, in-place operations are out-of-place, and values that depend on
``.train()`` or ``.eval()`` follow the module's flag (``modes``).

Capture knows no scales.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from unitify.capture.boundaries import Regions
from unitify.capture.decisions import OutOfTime, observed
from unitify.capture.example import distinct, doubled, in_order
from unitify.capture.exporting import ExportError, without_cache
from unitify.capture.identity import first_of
from unitify.capture.modes import merge_modes
from unitify.capture.named import Read
from unitify.capture.outline import Outline, outline_of
from unitify.capture.reachable import Location
from unitify.capture.recorded_graph import (
    EXPECTED,
    How,
    RecordedGraph,
    parameter_aliases,
    record_once,
)
from unitify.capture.signature import (
    CallSignature,
    bind,
    first_same,
    laid_out,
    register_dataclasses,
    written_by,
)
from unitify.capture.sizes import Free, fewer_and_fewer, frozen_dimensions
from unitify.capture.source import frames_of_failure
from unitify.diagnostics import (
    CacheLeftOut,
    Diagnostic,
    NotCaptured,
    NothingCaptured,
    OneModeOnly,
    SizesFixed,
    UnitifyError,
)
from unitify.reparametrization import Reparametrization


@dataclass(frozen=True)
class Capture:
    """A model as one flat graph.

    - ``graph``: names parameters, buffers, constants and mode flags as attributes of ``model``. Its
      placeholders are the flat inputs, its output is a flat tuple
    - ``constants``: those of the recording, by attribute
    - ``aliases``: every parameter name → the first name of the same tensor (tied parameters)
    - ``mode``: the only mode that the graph holds for; None where it follows ``.train()`` and
      ``.eval()``. ``other``: the capture of the other mode, if there is one
    - ``reparametrization``: the constants that a scheme put into the graph
    - ``made``: what the model's first call makes for good, and the graph needs
    - ``reads``: what the model's code read, with the paths of the reading modules. The graph holds
      while these values stay the same
    - ``has_hooks``: are the model's own hooks in the graph, and not around it?
    - ``true_parameters``: first names of the parameters that stay at true scale
    - ``regions``: for each call of a submodule that a graph can hold, its part of this graph
    - ``calls``: outlines of the calls of the whole model, from which it can be recorded again
    """

    model: nn.Module
    graph: fx.Graph
    call: CallSignature
    example: tuple[Any, ...]
    aliases: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    mode: str | None = None
    other: Capture | None = None
    reparametrization: Reparametrization | None = None
    true_parameters: frozenset[str] = frozenset()
    regions: Regions = field(default_factory=Regions)
    diagnostics: tuple[Diagnostic, ...] = ()
    made: tuple[tuple[Location, Any], ...] = ()
    reads: Mapping[Location | Read, frozenset[str]] = field(default_factory=dict)
    has_hooks: bool = True
    calls: tuple[Outline, ...] = ()

    def attribute(self, target: str) -> Any:
        """The parameter, buffer, constant or flag that a ``get_attr`` node names."""
        if target in self.constants:
            return self.constants[target]
        for location, made in self.made:
            if location.names_tensor(target):
                return made
        value: Any = self.model
        for part in target.split("."):
            value = getattr(value, part)
        return value

    @property
    def holds_weights(self) -> bool:
        """Do parameters, buffers and the example hold data? On the meta device they do not."""
        held = [*self.model.parameters(), *self.model.buffers(), *self.example]
        return not any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in held)

    def with_true_parameters(self) -> Capture:
        """The capture with every parameter kept at true scale."""
        return dataclasses.replace(self, true_parameters=frozenset(self.aliases.values()))

    def flat_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The placeholders' values for a call of the model."""
        return self.call.flatten(args, kwargs)


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: How = EXPECTED,
) -> Capture:
    """Record ``model`` on example inputs.

    Raises ``UnitifyError`` (U101, U109) where the model cannot be recorded whole.
    """
    signature = inspect.signature(model.forward)
    kwargs = in_order(signature, kwargs)
    if how.asks.identity:
        flat = pytree.tree_leaves(bind(signature, args, kwargs))
        how = dataclasses.replace(how, same=first_of(flat))
    given = args, kwargs
    args, kwargs = distinct(args, kwargs)
    register_dataclasses((args, kwargs))
    is_auto = how.dynamic_shapes == "auto" or isinstance(how.dynamic_shapes, Free)
    larger = doubled(args, kwargs) if is_auto else None
    if larger is not None:
        # A recording fixes a size of one. A batch of two keeps the size free.
        with contextlib.suppress(UnitifyError):
            found = _captured(model, *larger, how)
            # A model with another branch for one element has to be recorded with one.
            if isinstance(found.call.fitted_apart(*given), list):
                return found
    return _captured(model, args, kwargs, how)


def _captured(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: How,
) -> Capture:
    shapes = fewer_and_fewer(how.dynamic_shapes, (args, kwargs))
    free = next(shapes)
    notes: list[Diagnostic] = []
    signature = inspect.signature(model.forward)
    arguments = tuple(bind(signature, args, kwargs))
    aliases = parameter_aliases(model)

    def recorded() -> RecordedGraph:
        nonlocal free
        while True:
            is_last = free is None or free == Free(0)
            try:
                with observed(None if is_last else how.seconds) as decisions:
                    asked = dataclasses.replace(how, dynamic_shapes=free)
                    return record_once(model, args, kwargs, asked, notes, decisions)
            except OutOfTime:
                assert how.seconds is not None
                free = next(shapes)
                name = type(model).__name__
                notes[:] = [note for note in notes if not isinstance(note, SizesFixed)]
                notes.append(SizesFixed(where=name, seconds=how.seconds, free=str(free)))

    def captured(record: RecordedGraph, mode: str | None, other: Capture | None = None) -> Capture:
        call = CallSignature(
            signature,
            arguments,
            record.in_spec,
            record.out_spec,
            laid_out(record.leaves, record.example) if how.asks_layout else record.leaves,
            record.guards,
            record.effects,
            first_same(record.graph),
            *written_by(record.graph),
            how.asks.attributes,
            how.same,
        )
        frozen = frozen_dimensions(record.leaves) if free == "auto" else []
        return Capture(
            model=model,
            graph=record.graph,
            call=call,
            example=record.example,
            aliases=aliases,
            constants=record.constants,
            regions=record.regions,
            mode=mode,
            other=other,
            diagnostics=(*dict.fromkeys(notes), *frozen),
            calls=(outline_of(args, kwargs, record.leaves, free),),
        )

    with _quiet_model(model, notes):
        records, reason = _recorded_modes(model, recorded, how.has_modes)
        if not how.has_modes:
            return captured(records[model.training], None)
        merged = _merged(records[True], records[False]) if len(records) == 2 else None
        if merged is not None:
            return captured(merged, None)
        if any(m.training != model.training for m in model.modules()):
            records = {model.training: recorded()}
            reason = "some of its submodules train and some do not"
    mode_of = {True: "train", False: "eval"}
    mode, other = mode_of[model.training], mode_of[not model.training]
    if len(records) == 1:
        notes.append(OneModeOnly(where=type(model).__name__, mode=mode, other=other, reason=reason))
        return captured(records[model.training], mode)
    twin = captured(records[not model.training], other)
    return captured(records[model.training], mode, twin)


def _merged(training: RecordedGraph, evaluation: RecordedGraph) -> RecordedGraph | None:
    """One recording that follows the mode flag; None where the two modes are two graphs."""
    if training.effects != evaluation.effects or _sizes(training) != _sizes(evaluation):
        return None
    ours, theirs = training.constants, evaluation.constants
    for name in ours.keys() & theirs.keys():
        if isinstance(ours[name], torch.Tensor) and not _equal(ours[name], theirs[name]):
            return None
    graph = merge_modes(training.graph, evaluation.graph)
    if graph is None:
        return None
    guards = tuple(dict.fromkeys(training.guards + evaluation.guards))
    regions = training.regions.common(evaluation.regions)
    return dataclasses.replace(training, graph=graph, guards=guards, regions=regions)


def _sizes(record: RecordedGraph) -> list[str]:
    """The sizes of every input, free ones by their symbols."""
    given = (n.meta.get("val") for n in record.graph.nodes if n.op == "placeholder")
    return [str(list(v.shape)) if isinstance(v, torch.Tensor) else "" for v in given]


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.is_meta or b.is_meta or (a.dtype == b.dtype and torch.equal(a, b))


def _recorded_modes(
    model: nn.Module, record: Callable[[], RecordedGraph], has_modes: bool
) -> tuple[dict[bool, RecordedGraph], str]:
    """The recordings in train and eval mode, or in the model's own alone and why.

    One recording is that of both where the model has no modes.
    """
    flags = {m: m.training for m in model.modules()}
    records: dict[bool, RecordedGraph] = {}
    try:
        for training in (model.training, not model.training)[: 1 + has_modes]:
            _switch(model, training)
            records[training] = record()
    except (UnitifyError, ExportError) as error:
        if not records:
            raise _not_captured(model, error) from error.__cause__
        return records, f"the other mode cannot be captured ({_first_line(error)})"
    finally:
        for module, flag in flags.items():
            module.training = flag
    return records, ""


def _switch(model: nn.Module, training: bool) -> None:
    """Put the model into a mode by its own ``train``. Some models refuse."""
    if all(flag == training for flag in (m.training for m in model.modules())):
        return
    try:
        model.train(training)
    except Exception as error:
        raise ExportError from error


def _not_captured(model: nn.Module, error: Exception) -> UnitifyError:
    if isinstance(error, UnitifyError):
        return error
    name = type(model).__name__
    cause = error.__cause__ or error
    frames = tuple(f.at for f in frames_of_failure(cause.__traceback__))
    found = NotCaptured(where=name, module=name, reason=_first_line(error), frames=frames)
    return UnitifyError(found)


def _first_line(error: Exception) -> str:
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"[:300]


@contextlib.contextmanager
def _quiet_model(model: nn.Module, notes: list[Diagnostic]) -> Iterator[None]:
    """Switch off features that a graph cannot keep, and note them."""
    name = type(model).__name__
    try:
        handle = model.register_forward_hook(lambda _module, _args, out: register_dataclasses(out))
    except RuntimeError as error:
        raise _not_captured(model, error) from error
    try:
        with without_cache(model) as cached:
            if cached:
                notes.append(CacheLeftOut(where=name))
            yield
    finally:
        handle.remove()


def nothing_captured(reason: str) -> UnitifyError:
    """The error for a model of which no part can be captured."""
    return UnitifyError(NothingCaptured(reason=reason))
