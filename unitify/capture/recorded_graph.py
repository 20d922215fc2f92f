"""One recording of a model in one mode, as a flat graph that can be trained.

Parameters are attributes again, and in-place operations are out-of-place. A part of the backward
pass that the recording lost is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from unitify.capture.aliases import written_arguments
from unitify.capture.boundaries import Marks, Regions, regions_of
from unitify.capture.composite import open_composites
from unitify.capture.decisions import Decisions
from unitify.capture.effects import Effect
from unitify.capture.exporting import Exported, export
from unitify.capture.functional import remove_mutation
from unitify.capture.guards import Guards, guards_of
from unitify.capture.identity import view_of_own
from unitify.capture.inline import inline_regions
from unitify.capture.reachable import Location
from unitify.capture.signature import Leaf, bind, leaf_of
from unitify.capture.sizes import Free
from unitify.capture.tensor_questions import Asks
from unitify.diagnostics import (
    CheckpointingLost,
    Diagnostic,
    GradientLost,
    NotCaptured,
    RecordedAsCompiled,
    UnitifyError,
)

_CHECKS = {torch.ops.aten._assert_tensor_metadata.default}


@dataclass(frozen=True)
class How:
    """How a model is recorded.

    - ``dynamic_shapes``: "auto" leaves every size free that the model leaves free; None fixes all
      sizes; anything else goes to ``torch.export.export``
    - ``seconds``: the time limit of a recording with free sizes, after which fewer are free. None
      sets no limit
    - ``carried``: tensors that a call takes over from the call before, by identity, with their
      names. No graph may hold one
    - ``touched``: what calls change beside returning
    - ``asks_layout``: does the recording depend on the memory layout of inputs?
    - ``asks``: what else code asks tensors
    - ``same``: for each flat input the first one that is the same tensor, where code asks
    - ``has_modes``: may train and eval mode differ?
    """

    dynamic_shapes: Any = "auto"
    seconds: float | None = None
    carried: Mapping[int, str] = field(default_factory=dict)
    touched: tuple[Location, ...] = ()
    asks_layout: bool = False
    asks: Asks = field(default_factory=Asks)
    same: tuple[int, ...] | None = None
    has_modes: bool = True


#: The defaults.
EXPECTED = How()


@dataclass(frozen=True)
class RecordedGraph:
    """One recording: a cleaned graph, and how it is called."""

    graph: fx.Graph
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    example: tuple[Any, ...]
    constants: dict[str, Any]
    guards: tuple[Guards, ...]
    effects: tuple[Effect, ...]
    regions: Regions


def record_once(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: How,
    notes: list[Diagnostic],
    decisions: Decisions,
) -> RecordedGraph:
    """Record ``model`` in its present mode. ``notes`` receives what the recording loses.

    Raises ``ExportError``; ``UnitifyError`` (U101, U109) for what no graph can hold.
    """
    name = type(model).__name__
    exported = export(model, args, kwargs, how.dynamic_shapes, how.touched, how.same)
    decisions.is_over = True
    program, noted = exported.program, exported.noted
    if noted.functions:
        found = [
            GradientLost(
                where=name,
                function=function,
                advice=lost.advice,
                frames=tuple(f.at for f in lost.frames),
            )
            for function, lost in noted.functions.items()
        ]
        raise UnitifyError(*found)
    if noted.saved_hooks:
        notes.append(CheckpointingLost(where=name))
    if noted.as_compiled:
        notes.append(RecordedAsCompiled(where=name))
    named = bind(inspect.signature(model.forward), args, kwargs)
    example, in_spec = pytree.tree_flatten(named)
    graph, leaves, constants = _flat_graph(model, exported, example, how.carried)
    if any(isinstance(held, torch.Generator) for held in constants.values()):
        reason = "it draws from a generator of its own"
        raise UnitifyError(NotCaptured(where=name, module=name, reason=reason))

    def guards_for(values: Sequence[tuple[str, Any]]) -> Guards | None:
        return guards_of(values, decisions, has_bounds, noted.computed)

    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    children = out_spec.children() if hasattr(out_spec, "children") else out_spec.children_specs
    if len(children) != 2:
        name, reason = type(model).__name__, "torch records another call than its own forward"
        raise UnitifyError(NotCaptured(where=name, module=name, reason=reason))
    result = children[0]
    has_bounds = not (isinstance(how.dynamic_shapes, str | Free) or how.dynamic_shapes is None)
    values = (n.meta.get("val") for n in graph.nodes if n.op == "placeholder")
    inputs = [(leaf.name, value) for leaf, value in zip(leaves, values, strict=True)]
    guards = guards_for(inputs)
    regions = regions_of(graph, exported.calls, guards_for, how.asks_layout)
    graph.eliminate_dead_code()
    return RecordedGraph(
        graph, in_spec, result, leaves, tuple(example), constants,
        () if guards is None else (guards,), exported.effects, regions,
    )  # fmt: skip


def _flat_graph(
    model: nn.Module, exported: Exported, example: list[Any], carried: Mapping[int, str]
) -> tuple[fx.Graph, tuple[Leaf, ...], dict[str, Any]]:
    program = exported.program
    graph = program.graph_module.graph
    graph.owning_module = None
    for node in graph.nodes:
        for source in node.all_input_nodes:
            # Passes of export may remove a user that has no user itself.
            source.users.setdefault(node)
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
            leaves.append(leaf_of(node, spec.arg, example[len(leaves)]))
            continue
        target = str(spec.target)
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
            value = program.constants[target]
            if isinstance(value, torch.Tensor):
                value = exported.tensors.original(value)
                if id(value) in carried:
                    name = type(model).__name__
                    reason = f"it takes {carried[id(value)]} over from the call before"
                    raise UnitifyError(NotCaptured(where=name, module=name, reason=reason))
                if (shown := view_of_own(graph, node, value, model)) is not None:
                    node.replace_all_uses_with(shown)
                    graph.erase_node(node)
                    continue
            target = "captured_" + target.replace(".", "_")
            constants[target] = value
        _to_attribute(graph, node, aliases.get(target, target))
    inline_regions(graph, program.graph_module, constants)
    for node in list(graph.nodes):
        if node.target in _CHECKS:
            graph.erase_node(node)
    open_composites(graph)
    marks = Marks(graph)
    remove_mutation(graph, marks)
    marks.put_back()
    for node in graph.nodes:
        for written in written_arguments(node):
            if written.op == "get_attr" and written.target in aliases:
                # The write would change a scaled weight, unseen by the optimizer.
                name, reason = (
                    type(model).__name__,
                    f"it writes into its parameter {written.target}",
                )
                raise UnitifyError(NotCaptured(where=name, module=name, reason=reason))
    graph.eliminate_dead_code()
    graph.lint()
    return _with_portable_names(graph), tuple(leaves), constants


def _is_transform(node: fx.Node) -> bool:
    """Does the node begin or end a ``vmap``, whose tensors have other sizes than they show?"""
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


def parameter_aliases(model: nn.Module) -> dict[str, str]:
    """Every parameter name → the first name of the same tensor."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases[name] = first.setdefault(id(parameter), name)
    return aliases
