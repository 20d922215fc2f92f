"""From ``nn.Module`` and example inputs to a ``Capture``: one flat graph and what surrounds it.

``torch.export`` (non-strict) records the operations with the names of the parameters, the
module path and the source line of each. Here the recording becomes a graph that can be
trained: parameters are attributes again, in-place operations are out-of-place, and
what depends on ``.train()``/``.eval()`` follows the module's flag (``modes``).

Nothing here knows scales.
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
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from unitify.capture.aliases import written_arguments
from unitify.capture.composite import open_composites
from unitify.capture.example import distinct, doubled, in_order
from unitify.capture.exporting import ExportError, export, without_cache
from unitify.capture.functional import remove_mutation
from unitify.capture.inline import inline_regions
from unitify.capture.modes import merge_modes
from unitify.capture.signature import CallSignature, Leaf, bind, register_dataclasses
from unitify.capture.source import frames_of_failure
from unitify.diagnostics import (
    CacheLeftOut,
    CheckpointingLost,
    Diagnostic,
    FrozenDimension,
    GradientLost,
    NotCaptured,
    NothingCaptured,
    OneModeOnly,
    UnitifyError,
)
from unitify.reparametrisation import Reparametrisation

_CHECKS = {torch.ops.aten._assert_tensor_metadata.default}


@dataclass(frozen=True)
class Capture:
    """A model as one flat graph.

    ``graph`` names parameters, buffers, constants and mode flags as attributes of ``model``
    (constants of the recording are in ``constants``); its placeholders are the flat inputs and
    its output a flat tuple. ``aliases`` maps every parameter name to the one name that stands
    for its tensor (tied parameters share one). ``mode`` is None where the graph follows
    ``.train()``/``.eval()``, else the only mode that it holds for; ``other`` is then the
    capture of the other mode, where there is one. ``reparametrisation``: the constants in the graph
    that a scheme put there.
    """

    model: nn.Module
    graph: fx.Graph
    call: CallSignature
    example: tuple[Any, ...]
    aliases: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    mode: str | None = None
    other: Capture | None = None
    reparametrisation: Reparametrisation | None = None
    diagnostics: tuple[Diagnostic, ...] = ()

    def attribute(self, target: str) -> Any:
        """The parameter, buffer, constant or flag that a ``get_attr`` node names."""
        if target in self.constants:
            return self.constants[target]
        value: Any = self.model
        for part in target.split("."):
            value = getattr(value, part)
        return value

    @property
    def holds_weights(self) -> bool:
        """Has every parameter data? On the meta device none has."""
        return not any(parameter.is_meta for parameter in self.model.parameters())

    def flat_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The placeholders' values for a call of the model."""
        return self.call.flatten(args, kwargs)


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any = "auto",
) -> Capture:
    """Record ``model`` on example inputs.

    ``dynamic_shapes``: "auto" leaves every size free that the model leaves free; None fixes all
    sizes; anything else is passed to ``torch.export.export``.

    Raises ``UnitifyError`` (U101, U109) where the model cannot be recorded whole.
    """
    args, kwargs = distinct(args, in_order(inspect.signature(model.forward), kwargs))
    register_dataclasses((args, kwargs))
    larger = doubled(args, kwargs) if dynamic_shapes == "auto" else None
    if larger is not None:
        # A size of one is always fixed by a recording; a batch of two stands for any other.
        with contextlib.suppress(UnitifyError):
            return _captured(model, *larger, dynamic_shapes)
    return _captured(model, args, kwargs, dynamic_shapes)


def _captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> Capture:
    notes: list[Diagnostic] = []
    signature = inspect.signature(model.forward)
    arguments = tuple(bind(signature, args, kwargs))
    aliases = parameter_aliases(model)

    def recorded() -> _Record:
        return _record(model, args, kwargs, dynamic_shapes, notes)

    def captured(record: _Record, mode: str | None, other: Capture | None = None) -> Capture:
        call = CallSignature(signature, arguments, record.in_spec, record.out_spec, record.leaves)
        frozen = _frozen_dimensions(record.leaves, record.example, dynamic_shapes)
        return Capture(
            model=model,
            graph=record.graph,
            call=call,
            example=record.example,
            aliases=aliases,
            constants=record.constants,
            mode=mode,
            other=other,
            diagnostics=(*dict.fromkeys(notes), *frozen),
        )

    with _quiet_model(model, notes):
        records, reason = _recorded_modes(model, recorded)
        if len(records) == 2 and _are_merged(records[True], records[False]):
            return captured(records[True], None)
        if any(m.training != model.training for m in model.modules()):
            records = {model.training: recorded()}
            reason = "some of its submodules train and some do not"
    mode_of = {True: "train", False: "eval"}
    mode, other = mode_of[model.training], mode_of[not model.training]
    if len(records) == 1:
        notes.append(OneModeOnly(where=type(model).__name__, mode=mode, other=other, reason=reason))
        return captured(records[model.training], mode)
    twin = captured(_with_own_constants(records[not model.training]), other)
    return captured(records[model.training], mode, twin)


def parameter_aliases(model: nn.Module) -> dict[str, str]:
    """Every parameter name → the first name of the same tensor."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases[name] = first.setdefault(id(parameter), name)
    return aliases


@dataclass(frozen=True)
class _Record:
    """One recording: a cleaned graph, and how it is called."""

    graph: fx.Graph
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    example: tuple[Any, ...]
    constants: dict[str, Any]


def _are_merged(training: _Record, evaluation: _Record) -> bool:
    """Make ``training`` follow the mode flag; False where the two modes are two graphs."""
    ours, theirs = training.constants, evaluation.constants
    for name in ours.keys() & theirs.keys():
        if isinstance(ours[name], torch.Tensor) and not _equal(ours[name], theirs[name]):
            return False
    return merge_modes(training.graph, evaluation.graph) is not None


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.is_meta or b.is_meta or (a.dtype == b.dtype and torch.equal(a, b))


def _with_own_constants(record: _Record) -> _Record:
    """The recording with other names for its constants, beside its twin's on the same module."""
    renamed = {name: f"captured_other_{name}" for name in record.constants}
    for node in record.graph.nodes:
        if node.op == "get_attr" and node.target in renamed:
            node.target = renamed[node.target]
    constants = {renamed[name]: constant for name, constant in record.constants.items()}
    return dataclasses.replace(record, constants=constants)


def _recorded_modes(
    model: nn.Module, record: Callable[[], _Record]
) -> tuple[dict[bool, _Record], str]:
    """The recordings in train and eval mode, or in the model's own alone and why."""
    flags = {m: m.training for m in model.modules()}
    records: dict[bool, _Record] = {}
    try:
        for training in (model.training, not model.training):
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
    """Put the model into a mode, as its own ``train`` does. Some models refuse."""
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
    frames = tuple(f.place for f in frames_of_failure(cause.__traceback__))
    found = NotCaptured(where=name, module=name, reason=_first_line(error), frames=frames)
    return UnitifyError(found)


def _first_line(error: Exception) -> str:
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"[:300]


@contextlib.contextmanager
def _quiet_model(model: nn.Module, notes: list[Diagnostic]) -> Iterator[None]:
    """Switch off what a graph cannot keep, and note it."""
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


def _record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    notes: list[Diagnostic],
) -> _Record:
    name = type(model).__name__
    program, noted = export(model, args, kwargs, dynamic_shapes)
    if noted.functions:
        lost = [
            GradientLost(where=name, function=function, frames=tuple(f.place for f in stack))
            for function, stack in noted.functions.items()
        ]
        raise UnitifyError(*lost)
    if noted.saved_hooks:
        notes.append(CheckpointingLost(where=name))
    named = bind(inspect.signature(model.forward), args, kwargs)
    example, in_spec = pytree.tree_flatten(named)
    graph, leaves, constants = _flat_graph(model, program, example)
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    return _Record(graph, in_spec, out_spec, leaves, tuple(example), constants)


def _flat_graph(
    model: nn.Module, program: ExportedProgram, example: list[Any]
) -> tuple[fx.Graph, tuple[Leaf, ...], dict[str, Any]]:
    graph = program.graph_module.graph
    graph.owning_module = None
    if any(_is_transform(node) for node in graph.nodes):
        name, reason = type(model).__name__, "it runs a transform of torch.func, such as vmap"
        raise UnitifyError(NotCaptured(where=name, module=name, reason=reason))
    constants: dict[str, Any] = {}
    aliases = parameter_aliases(model)
    placeholders = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    leaves: list[Leaf] = []
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        node = placeholders[name]
        if spec.kind is InputKind.USER_INPUT:
            leaves.append(_leaf(node, spec.arg, example[len(leaves)]))
            continue
        target = str(spec.target)
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
            target = "captured_" + target.replace(".", "_")
            constants[target] = program.constants[str(spec.target)]
        _to_attribute(graph, node, aliases.get(target, target))
    inline_regions(graph, program.graph_module, constants)
    for node in list(graph.nodes):
        if node.target in _CHECKS:
            graph.erase_node(node)
    open_composites(graph)
    remove_mutation(graph)
    for node in graph.nodes:
        for written in written_arguments(node):
            if written.op == "get_attr" and written.target in aliases:
                # A weight of another scale would be written, behind the back of the optimiser.
                name, reason = (
                    type(model).__name__,
                    f"it writes into its parameter {written.target}",
                )
                raise UnitifyError(NotCaptured(where=name, module=name, reason=reason))
    graph.eliminate_dead_code()
    graph.lint()
    return _with_portable_names(graph), tuple(leaves), constants


def _is_transform(node: fx.Node) -> bool:
    """Does the node begin or end a region whose tensors are not what they seem?"""
    return str(getattr(node.target, "__module__", "")).startswith("torch._functorch")


def _with_portable_names(graph: fx.Graph) -> fx.Graph:
    """A copy of ``graph``, whose names every further copy keeps (export calls a node ``input``)."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _to_attribute(graph: fx.Graph, node: fx.Node, target: str) -> None:
    name, users = node.name, bool(node.users)
    with graph.inserting_after(node):
        attribute = graph.get_attr(target) if users else None
    if attribute is not None:
        attribute.meta = dict(node.meta)
        node.replace_all_uses_with(attribute)
    graph.erase_node(node)
    if attribute is not None:
        attribute._rename(name)


def _leaf(node: fx.Node, argument: Any, value: Any) -> Leaf:
    if isinstance(argument, ConstantArgument):
        return Leaf(argument.name, None, None, argument.value)
    held = node.meta["val"]
    if not isinstance(held, torch.Tensor):
        return Leaf(argument.name, None, None, value)
    shape = tuple(_extent(size) for size in held.shape)
    return Leaf(argument.name, shape, held.dtype)


def _extent(size: int | torch.SymInt) -> int | str:
    """A size as a number where the graph fixes it, else as its symbol."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else str(expression)


def _frozen_dimensions(
    leaves: tuple[Leaf, ...], example: tuple[Any, ...], dynamic_shapes: Any
) -> list[Diagnostic]:
    if dynamic_shapes != "auto":
        return []
    notes: list[Diagnostic] = []
    for leaf in leaves:
        if leaf.shape and isinstance(leaf.shape[0], int):
            notes.append(
                FrozenDimension(
                    where=leaf.name, dimension=f"dimension 0 of {leaf.name}", size=leaf.shape[0]
                )
            )
    return notes


def nothing_captured(reason: str) -> UnitifyError:
    """The error for a model of which no part can be captured."""
    return UnitifyError(NothingCaptured(reason=reason))
