"""Weights held as codes: casts of frozen weights are done once, not at every call.

Takes a graph with casts and its attributes; gives a graph that reads codes, and the codes. Results
are bitwise the same, because every call rounded the weights to these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unitify.arrival import unwatched
from unitify.capture.execution import GraphRunner
from unitify.formats.powers import exponent_of
from unitify.formats.table import FORMATS, Format, quantize
from unitify.rulebook.schema import named_arguments, operation_name
from unitify.runtime.cast import amax_factor
from unitify.runtime.scaled_mm import DECODE


@dataclass(frozen=True)
class Folded:
    """A graph that reads codes of weights, and the codes by name."""

    graph: fx.Graph
    codes: Mapping[str, Tensor]


def hold_codes(module: Any) -> Any:
    """``module``, with codes instead of the cast weights that take no gradient.

    A graph in which nothing takes a gradient loses all of its backward pass. Parameters that no
    graph uses any more are removed.
    """
    parts = list(module.parts.values())
    used = {id(p) for part in parts for p in part._used_parameters()}
    trains = any(p.requires_grad for p in module.parameters())
    folded = [fold(p.graph, p._attribute, p._is_frozen, trains) for p in parts]
    for part, graph in zip(parts, folded, strict=True):
        for name, codes in graph.codes.items():
            path, _, own = name.rpartition(".")
            part.get_submodule(path).register_buffer(own, codes)
        part.graph, part.is_inference = graph.graph, True
    used -= {id(p) for part in parts for p in part._used_parameters()}
    for child in module.modules():
        for name in [n for n, p in child._parameters.items() if id(p) in used]:
            child._parameters[name] = None
    module.is_inference = True
    return module


def fold(
    graph: fx.Graph,
    attribute: Callable[[str], Any],
    is_weight: Callable[[str], bool],
    trains: bool,
) -> Folded:
    """``graph``, with casts of values that depend on weights alone replaced by their codes.

    ``attribute``: gives the tensor of a ``get_attr`` node; ``is_weight``: is it a frozen parameter?
    ``trains``: will there be a backward pass?
    """
    made = fx.Graph()
    made.output(made.graph_copy(graph if trains else unwatched(graph), {}))
    folder = _Folder(made, attribute, is_weight)
    for node in list(made.nodes):
        folder.visit(node)
    made.eliminate_dead_code()
    return Folded(made, folder.codes)


class _Folder:
    def __init__(
        self,
        graph: fx.Graph,
        attribute: Callable[[str], Any],
        is_weight: Callable[[str], bool],
    ) -> None:
        self.graph, self.attribute = graph, attribute
        #: Node that depends on weights alone → the first of them.
        self.weights: dict[fx.Node, str] = {}
        self.is_weight = is_weight
        self.codes: dict[str, Tensor] = {}
        #: The names of existing codes, by the value, format and exponent of which they are codes.
        self.names: dict[Any, str] = {}

    def visit(self, node: fx.Node) -> None:
        if node.op == "get_attr" and (self.is_weight(str(node.target)) or _is_mean(node)):
            self.weights[node] = str(node.target)
        elif operation_name(node) in ("unitify.fp8_linear.default", "unitify.fp8_linear.watched"):
            weight, format = node.args[1], FORMATS[str(node.args[3])]
            exponent = named_arguments(node)["weight_exponent"]
            if weight in self.weights:
                read = self._codes(weight, format, exponent, node)  # type: ignore[arg-type]
                node.update_arg(1, read)
        elif operation_name(node) == "unitify.cast.default" and node.args[0] in self.weights:
            self._cast(node)
        elif operation_name(node) == "unitify.uncenter.default" and node.args[1] in self.weights:
            # The contraction of a mean is constant, too.
            offset: Any = node.args[1]
            name = f"{node.name}_offset"
            self.codes[name] = self._value(offset)
            with self.graph.inserting_before(node):
                node.update_arg(1, self.graph.get_attr(name))
        elif node.op == "call_function":
            operands = node.all_input_nodes
            if operands and all(n in self.weights for n in operands):
                self.weights[node] = self.weights[operands[0]]

    def _cast(self, node: fx.Node) -> None:
        given = named_arguments(node)
        format = FORMATS.get(given["forward"])
        if format is None or format.dtype is None:
            return
        weight, exponent = given["x"], given["forward_exponent"]
        if given["amax"]:
            factor = amax_factor(self._value(weight).to(torch.float32), format)
            exponent = -exponent_of(float(factor))
        dtype = node.meta["val"].dtype
        with self.graph.inserting_before(node):
            read = self._codes(weight, format, exponent, node, given["saturate"])
            decoded = self.graph.call_function(DECODE, (read, dtype, exponent))
        decoded.meta = dict(node.meta)
        node.replace_all_uses_with(decoded)
        self.graph.erase_node(node)

    def _codes(
        self, weight: fx.Node, format: Format, exponent: int, user: fx.Node, saturate: bool = True
    ) -> fx.Node:
        key = (*_origin(weight), format.name, exponent)
        if key not in self.names:
            path, _, own = self.weights[weight].rpartition(".")
            name = f"{path}.{own}_{format.name}".strip(".")
            while name in self.codes:
                name += "_"
            self.names[key] = name
            self.codes[name] = _coded(self._value(weight), format, exponent, saturate)
        with self.graph.inserting_before(user):
            return self.graph.get_attr(self.names[key])

    def _value(self, node: fx.Node) -> Tensor:
        """The value of a node that depends on weights alone."""
        own = fx.Graph()
        needed: dict[fx.Node, None] = {}
        pending = [node]
        while pending:
            current = pending.pop()
            needed[current] = None
            pending += current.all_input_nodes
        placed: dict[fx.Node, fx.Node] = {}
        for current in self.graph.nodes:
            if current in needed:
                placed[current] = own.node_copy(current, lambda n: placed[n])
        own.output(placed[node])
        with torch.no_grad():
            value: Tensor = GraphRunner(own, self.attribute).run()
        return value


def _is_mean(node: fx.Node) -> bool:
    return any(operation_name(user) == "unitify.center.default" for user in node.users)


def _coded(x: Tensor, format: Format, exponent: int, saturate: bool) -> Tensor:
    assert format.dtype is not None
    return quantize(x / 2.0**exponent, format, saturate).to(format.dtype).contiguous()


def _origin(node: fx.Node) -> tuple[Any, ...]:
    """The node before rescales that change only gradients, and so have its value."""
    while operation_name(node) == "unitify.rescale.default" and node.args[1] == 1.0:
        node = node.args[0]  # type: ignore[assignment]
    if node.op == "get_attr":
        return ("attribute", node.target)
    return ("node", node)
