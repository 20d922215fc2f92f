"""How a flat graph is called: the original's signature, its structure of inputs and outputs.

A captured graph takes a flat list of tensors and returns one. ``CallSignature`` holds what
leads from the arguments of the original ``forward`` to that list, and back from the flat
results to the type that the original returns (a Hugging Face ``ModelOutput`` stays one).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree as pytree

from unitify.capture.aliases import storages, written_arguments
from unitify.capture.effects import Effect, leave
from unitify.capture.guards import Guard, Guards
from unitify.capture.identity import first_of, storage_of
from unitify.capture.layouts import layout
from unitify.capture.reachable import PLAIN, is_same
from unitify.capture.tensor_questions import computes_itself
from unitify.diagnostics import InputMismatch, OutsideGuards, UnitifyError
from unitify.rulebook.dimensions import is_floating

#: Why a recording does not take a call: as it is found (a text and what stands in it, or a guard
#: and the flat inputs), which a compiler can trace, and as a finding.
Refusal = tuple[str | Guard, tuple[Any, ...]]
Misfit = InputMismatch | OutsideGuards


@dataclass(frozen=True)
class Leaf:
    """One flat input: a tensor (free sizes by symbol, fixed ones by number) or a constant.

    ``layout``: how the elements of the tensor lie, where the model's code asks.
    """

    name: str
    shape: tuple[int | str, ...] | None
    dtype: torch.dtype | None
    constant: Any = None
    layout: tuple[bool, ...] | None = None

    def describe(self) -> str:
        """The leaf as a reader would write it, such as ``x: float32[s0, 16]``."""
        if self.shape is None:
            return f"{self.name}={self.constant!r}"
        extents = ", ".join(str(s) for s in self.shape)
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{extents}]"


@dataclass(frozen=True)
class CallSignature:
    """The call that a graph was captured for. ``guards``: of each recording that made the graph."""

    signature: inspect.Signature
    arguments: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    guards: tuple[Guards, ...] = ()
    #: What a call leaves behind; the graph returns it after the result.
    effects: tuple[Effect, ...] = ()
    #: For each flat result, the index of the first one that is the same tensor.
    first_same: tuple[int, ...] = ()
    #: The positions of the flat inputs into which a call writes.
    written: tuple[int, ...] = ()
    #: Parameters and buffers that must share no memory with an input, since a call writes.
    apart: tuple[str, ...] = ()
    #: Names of attributes that the model's code asks tensors for.
    attributes: frozenset[str] = frozenset()
    #: For each flat input the first one that is the same tensor, where the model's code asks.
    same: tuple[int, ...] | None = None

    def describe(self) -> str:
        """All leaves, in order."""
        return "(" + ", ".join(leaf.describe() for leaf in self.leaves) + ")"

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The flat inputs of the graph for this call.

        Raises ``UnitifyError``: U104 where structure, a fixed size or a constant differs, U111 for
        sizes that the recording does not hold for.
        """
        return self._accepted(self.fitted(args, kwargs))

    def fitted(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        held: Callable[[str], Any] | None = None,
    ) -> list[Any] | Refusal:
        """The flat inputs of the graph for this call, or why the graph is not for it.

        It is not where memory into which it writes is that of two inputs, or of an input and a
        parameter or buffer. ``held`` gives those by name.
        """
        found = self.fitted_apart(args, kwargs)
        if not isinstance(found, list):
            return found
        shared = self._shared(found, held) if self.written or self.apart else None
        return shared or found

    def _shared(self, found: list[Any], held: Callable[[str], Any] | None) -> Refusal | None:
        """The refusal of inputs that share memory into which a call writes."""
        problem, names = "{} and {} share memory, and a call writes into it", self.leaves
        memory = [_memory_of(value) for value in found]
        for position in self.written:
            others = [i for i, m in enumerate(memory) if m == memory[position] and i != position]
            if others:
                return problem, (names[position].name, names[others[0]].name)
        for target in self.apart:
            if held is not None and (own := _memory_of(held(target))) in memory:
                return problem, (names[memory.index(own)].name, target)
        return None

    def fitted_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | Refusal:
        """``fitted`` of these inputs, each in memory of its own."""
        try:
            given = bind(self.signature, args, kwargs)
        except TypeError as error:
            return "{}", (error,)
        expected = dict.fromkeys(self.arguments)
        for name, value in given.items():
            if name not in expected and not _is_default(self.signature, name, value):
                return "the argument {!r} was not part of the captured call", (name,)
        for name in self.arguments:
            if name not in given:
                return "the argument {!r} is missing", (name,)
        # Code may go through ``**kwargs`` in their order.
        free = [name for name in self.arguments if name not in self.signature.parameters]
        if free != [name for name in given if name in free]:
            return "the keyword arguments are in another order", ()
        return self._fitted_values([given[name] for name in self.arguments])

    def flatten_values(self, values: Sequence[Any]) -> list[Any]:
        """The flat inputs of the graph for these values of ``arguments``, in their order.

        Raises ``UnitifyError`` as ``flatten``.
        """
        return self._accepted(self._fitted_values(values))

    def _fitted_values(self, values: Sequence[Any]) -> list[Any] | Refusal:
        if len(values) != len(self.arguments):
            return "{} arguments, captured {}", (len(values), len(self.arguments))
        leaves, spec = pytree.tree_flatten(dict(zip(self.arguments, values, strict=True)))
        if spec != self.in_spec:
            return "the arguments have another structure", ()
        if self.same is not None and first_of(leaves) != self.same:
            return "other arguments are one tensor", ()
        refusal = self._refusal(leaves)
        return leaves if refusal is None else refusal

    def unflatten(self, results: Any) -> Any:
        """The original's own output structure around flat results."""
        flat = self._identical(results)
        return pytree.tree_unflatten(flat[: self.out_spec.num_leaves], self.out_spec)

    def _identical(self, results: Any) -> list[Any]:
        """The results, what is one tensor in the model being one here."""
        return [results[i] for i in self.first_same] if self.first_same else list(results)

    def leave(self, results: Any, tree: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Put what a call leaves behind where it belongs, in the modules of ``tree`` and in the
        arguments, which ``inputs`` has by name.
        """
        if self.effects:
            leave(self.effects, self._identical(results)[self.out_spec.num_leaves :], tree, inputs)

    def _refusal(self, leaves: list[Any]) -> Refusal | None:
        for leaf, value in zip(self.leaves, leaves, strict=True):
            if leaf.shape is None:
                if not _is_equal(value, leaf.constant):
                    return "{} is {!r}, captured {!r}", (leaf.name, value, leaf.constant)
                continue
            is_tensor = isinstance(value, torch.Tensor) and not value.is_nested
            if not is_tensor or value.dim() != len(leaf.shape):
                return "{} is not a tensor of {} dimensions", (leaf.name, len(leaf.shape))
            if (odd := _odd(value, self.attributes)) is not None:
                return odd[0], (leaf.name, odd[1])
            if value.dtype != leaf.dtype:
                return "{} is {}, captured {}", (leaf.name, value.dtype, leaf.dtype)
            for dimension, expected in enumerate(leaf.shape):
                size = value.shape[dimension]
                if isinstance(expected, int) and size != expected:
                    return "dimension {} of {} is {}, expected {}", (
                        dimension, leaf.name, size, expected,
                    )  # fmt: skip
            if leaf.layout is not None and layout(value) != leaf.layout:
                return "the elements of {} lie in another order in memory", (leaf.name,)
        for guards in self.guards:
            broken = guards.broken(leaves)
            if broken is not None:
                return broken, tuple(leaves)
        return None

    def _accepted(self, found: list[Any] | Refusal) -> list[Any]:
        if isinstance(found, list):
            return found
        raise UnitifyError(self.misfit(found))

    def misfit(self, refusal: Refusal) -> Misfit:
        """Why the graph is not for a call, as a finding."""
        problem, details = refusal
        if isinstance(problem, str):
            return InputMismatch(problem=problem.format(*details), expected=self.describe())
        sizes = ", ".join(
            f"{leaf.name}: {tuple(value.shape)}"
            for leaf, value in zip(self.leaves, details, strict=True)
            if leaf.shape is not None
        )
        line = problem.line
        return OutsideGuards(
            guard=problem.text,
            sizes=sizes,
            frames=() if line is None else (line,),
            where="" if line is None else f"{line[0]}:{line[1]}",
        )


def kind_of(refusal: Refusal) -> Hashable:
    """The reason of a refusal without the sizes of the call: equal for calls of one kind."""
    problem, details = refusal
    if isinstance(problem, Guard):
        return problem.text
    return problem, *(detail for detail in details if isinstance(detail, str))


def leaf_of(node: fx.Node, argument: Any, value: Any) -> Leaf:
    """The flat input of a placeholder of a recording; ``value``: the example's."""
    if isinstance(argument, ConstantArgument):
        return Leaf(argument.name, None, None, argument.value)
    held = node.meta["val"]
    if not isinstance(held, torch.Tensor):
        return Leaf(argument.name, None, None, value)
    return Leaf(argument.name, leaf_shape(held), held.dtype)


def leaf_shape(value: torch.Tensor) -> tuple[int | str, ...]:
    """The shape of a recorded tensor: fixed sizes as numbers, free ones as expressions."""
    return tuple(_extent(size) for size in value.shape)


def _odd(value: torch.Tensor, attributes: frozenset[str]) -> tuple[str, str] | None:
    """What a recording does not know of a tensor: why, and the name. Compilers guard both."""
    if torch.compiler.is_compiling():
        return None
    if type(value) is not torch.Tensor and computes_itself(type(value)):
        return "{} is a {}, whose class decides what torch computes", type(value).__name__
    held = attributes.intersection(vars(value)) if attributes else ()
    return ("{} has the attribute {}", min(held)) if held else None


def _memory_of(value: Any) -> Any:
    """What is the same for tensors that share memory; compilers know tensors alone."""
    is_tensor = isinstance(value, torch.Tensor) and not torch.compiler.is_compiling()
    return storage_of(value) if is_tensor else id(value)


def written_by(graph: fx.Graph) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The positions of the inputs into which a graph writes, also through a view; and the
    attributes that must not share memory with an input, whose numbers are of a like type.
    """
    written = {s for node in graph.nodes for to in written_arguments(node) for s in storages(to)}

    def is_written(node: fx.Node) -> bool:
        return not written.isdisjoint(storages(node))

    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    positions = tuple(i for i, node in enumerate(inputs) if is_written(node))
    kinds = {is_floating(node.meta["val"]) for node in inputs if storages(node)}
    held = (node for node in graph.nodes if node.op == "get_attr" and storages(node))
    state = [node for node in held if is_floating(node.meta["val"]) in kinds]
    apart = state if positions else filter(is_written, state)
    return positions, tuple(dict.fromkeys(str(node.target) for node in apart))


def first_same(graph: fx.Graph) -> tuple[int, ...]:
    """For each flat result of a graph, the index of the first one that is the same value."""
    (results,) = next(node for node in graph.nodes if node.op == "output").args
    assert isinstance(results, list | tuple)
    first: dict[Any, int] = {}
    return tuple(
        first.setdefault(result, index) if isinstance(result, fx.Node) else index
        for index, result in enumerate(results)
    )


def laid_out(leaves: Sequence[Leaf], example: Sequence[Any]) -> tuple[Leaf, ...]:
    """The leaves with the layouts of the example."""
    return tuple(
        dataclasses.replace(leaf, layout=layout(value)) if isinstance(value, torch.Tensor) else leaf
        for leaf, value in zip(leaves, example, strict=True)
    )


def _extent(size: int | torch.SymInt) -> int | str:
    """A size as a number where the graph fixes it, else as its symbol."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else str(expression)


def bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments by parameter name; ``*args`` and ``**kwargs`` are spread out by position and key.

    Raises ``TypeError`` as the call itself would.
    """
    bound = signature.bind(*args, **kwargs).arguments
    flat: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            flat.update({f"{name}_{i}": item for i, item in enumerate(value)})
        elif kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        else:
            flat[name] = value
    return flat


def unbind(
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    named: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call ``(args, kwargs)`` with the values of ``named``, by the names of ``bind``.

    Positional arguments stay positional, because some models check how they are called.
    """
    order: list[str] = []
    for name, value in signature.bind_partial(*args).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            order.extend(f"{name}_{i}" for i in range(len(value)))
        else:
            order.append(name)
    return tuple(named[name] for name in order), {name: named[name] for name in kwargs}


def _is_default(signature: inspect.Signature, name: str, value: Any) -> bool:
    parameter = signature.parameters.get(name)
    if parameter is None:
        return value is None
    (mine, spec), (theirs, other) = (
        pytree.tree_flatten(value),
        pytree.tree_flatten(parameter.default),
    )
    return bool(spec == other) and all(map(_is_equal, mine, theirs))


def _is_equal(value: Any, constant: Any) -> bool:
    """Does code compute the same with ``value``: not 1.0 for 1, nor another kind of number?"""
    if type(value) is not type(constant) or isinstance(value, torch.Tensor):
        return False
    if isinstance(value, PLAIN):
        return is_same(value, constant)
    return value is constant or bool(value == constant)


def register_dataclasses(value: Any) -> None:
    """Make every dataclass inside ``value`` known to pytree, so that capture can take it apart."""
    seen: list[Any] = [value]
    while seen:
        item = seen.pop()
        if isinstance(item, dict):
            seen.extend(item.values())
        elif isinstance(item, list | tuple):
            seen.extend(item)
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            if type(item) not in pytree.SUPPORTED_NODES and not isinstance(item, dict):
                torch.export.register_dataclass(type(item))
            seen.extend(getattr(item, f.name) for f in dataclasses.fields(item))
