"""Moments of the error that casts leave in every value of a graph, from its inputs to its outputs.

An operation passes on its operands' errors (``passage``) and the casts of its operands add theirs
(``cast_error``). Errors of different operands and casts are taken to be independent, so that their
squares add up. A known error (that of a weight) has a mean: it is the same for every token, and
does not average out as noise does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from unitify.analysis.forward import ForwardMoments
from unitify.analysis.moments import Moment, limited
from unitify.noise.cast_error import OperandCast, cast_error
from unitify.noise.passage import ErrorPassage, Errors, added
from unitify.operations.laws import holds_tensors, is_complex, is_scalable
from unitify.operations.operation import Operation
from unitify.operations.schema import nodes_of, operation_name

#: Which operand is cast: the operation's name, the argument's, and the index among its tensors.
Place = tuple[str, str, int]
#: An argument's name, the values in it, and what their errors make of the results.
Arrival = tuple[str, list[fx.Node], Errors]


@dataclass(frozen=True)
class Step:
    """How the error of an operation's results comes about, in sums of squares over whole tensors.

    ``passed``: by operand, how often its error's sum of squares is found in the results';
    ``added``: by argument, the sum of squares that its cast adds to the results'.
    """

    passed: Mapping[str, float]
    added: Mapping[str, float]


class NoiseMoments:
    """Errors of every floating value under ``casts``; both are there after ``run``."""

    def __init__(self, forward: ForwardMoments, casts: Mapping[Place, OperandCast]) -> None:
        self.of = forward
        self.casts = casts
        self.errors: dict[fx.Node, Errors] = {}
        self.steps: dict[str, Step] = {}
        #: Complex values have no moments: the mean square of their error over that of the value.
        self.relative: dict[fx.Node, float] = {}

    def run(self) -> None:
        """Walk the graph from its inputs to its output."""
        for position, node in enumerate(self.of.capture.graph.nodes):
            if node.op != "call_function":
                continue
            if is_scalable(node) or holds_tensors(node):
                self._call(node, position)
            elif is_complex(node):
                self._complex(node)

    def rms(self, node: fx.Node) -> float:
        """RMS of the error of a value, at true scale."""
        error = self.errors.get(node, [None])[0]
        return error.rms if error is not None else 0.0

    def _call(self, node: fx.Node, position: int) -> None:
        operation = Operation(node, self.of.known)
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and holds_tensors(source):
            self._take(node, source, int(node.args[1]))  # type: ignore[arg-type]
            return
        rule = self.of.rules.get(operation_name(node))
        passage = ErrorPassage(self.of, operation, rule, position)
        rounding = passage.between(self._deviations(node, operation))
        arrived: list[Arrival] = []
        cast: dict[str, Errors] = {}
        for name, argument in operation.operands.items():
            operands = nodes_of(argument)
            errors = [self.errors.get(n, [None])[0] for n in operands]
            if any(e is not None for e in errors):
                arrived.append((name, operands, passage.through(name, errors)))
            own = [self._cast(n, (node.name, name, i)) for i, n in enumerate(operands)]
            if any(e is not None for e in own):
                cast[name] = rounding.through(name, own)
        for operand in node.all_input_nodes:
            if self.relative.get(operand):
                errors = passage.in_ratio(self.relative[operand])
                arrived.append((operand.name, [operand], errors))
        self._settle(node, operation, _coherent(passage, arrived), cast)

    def _complex(self, node: fx.Node) -> None:
        ratios = {n: self._relative(n) for n in node.all_input_nodes}
        self.relative[node] = math.fsum(ratios.values())
        passed = {n.name: r / self._energy(n) for n, r in ratios.items() if r}
        self.steps[node.name] = Step(passed, {})

    def _relative(self, node: fx.Node) -> float:
        signal = self.of.rms(node) if is_scalable(node) else None
        return (self.rms(node) / signal) ** 2 if signal else self.relative.get(node, 0.0)

    def _take(self, node: fx.Node, source: fx.Node, index: int) -> None:
        held = self.errors.get(source)
        if held is None or held[index] is None:
            return
        self.errors[node] = [held[index]]
        shapes = Operation(source, self.of.known).result_shapes
        share = energy([held[index]], [shapes[index]]) / energy(held, shapes)
        self.steps[node.name] = Step({source.name: share}, {})

    def _deviations(self, node: fx.Node, operation: Operation) -> dict[str, Moment]:
        """Operands that are centred before they are cast: what is left of them, by argument."""
        found = {}
        for name, argument in operation.operands.items():
            cast = self.casts.get((node.name, name, 0))
            moment = self.of.moment(argument) if isinstance(argument, fx.Node) else None
            if cast is not None and cast.mean and moment is not None:
                found[name] = cast.deviation(moment)
        return found

    def _cast(self, operand: fx.Node, place: Place) -> Moment | None:
        cast = self.casts.get(place)
        moment = self.of.moment(operand) if cast is not None else None
        if cast is None or moment is None:
            return None
        return cast_error(moment, cast)

    def _settle(
        self, node: fx.Node, operation: Operation, arrived: list[Arrival], cast: dict[str, Errors]
    ) -> None:
        shapes = operation.result_shapes
        parts = [errors for _, _, errors in arrived] + list(cast.values())
        if not parts:
            return
        total: Errors = [None] * len(shapes)
        for errors in parts:
            total = added(total, errors)
        kept = [e and limited(e, self.of.elements) for e in total]
        whole = energy(kept, shapes)
        if not whole:
            return
        self.errors[node] = kept
        # Means add up before they are squared: each part's share is of the sum of the parts.
        ratio = whole / math.fsum(energy(errors, shapes) for errors in parts)
        passed: dict[str, float] = {}
        for _, operands, errors in arrived:
            before = math.fsum(self._energy(n) for n in operands)
            gain = ratio * energy(errors, shapes) / before if before else 0.0
            for operand in operands:
                passed[operand.name] = passed.get(operand.name, 0.0) + gain
        own = {name: ratio * energy(errors, shapes) for name, errors in cast.items()}
        self.steps[node.name] = Step(passed, own)

    def _energy(self, node: fx.Node) -> float:
        """The error's sum of squares; of a complex value, whose size is not known, its ratio."""
        if node in self.relative:
            return self.relative[node]
        return energy(self.errors.get(node, [None])[:1], [Operation.shape_of(node)])


def _coherent(passage: ErrorPassage, arrived: list[Arrival]) -> list[Arrival]:
    """A value multiplied with itself: its error is the same twice, and amplitudes add up."""
    shapes = passage.operation.result_shapes
    found: list[Arrival] = []
    for name, operands, errors in arrived:
        alike = [
            energy(e, shapes)
            for n, o, e in arrived
            if o == operands and passage.is_product(n) and passage.is_product(name)
        ]
        if len(alike) > 1 and (total := math.fsum(alike)):
            factor = math.fsum(math.sqrt(a) for a in alike) / math.sqrt(total)
            errors = [e and Moment(e.mean * factor, e.square * factor**2) for e in errors]
        found.append((name, operands, errors))
    return found


def energy(errors: Errors, shapes: list[tuple[int, ...]]) -> float:
    """The sum of squares over whole tensors."""
    return math.fsum(
        float(e.square.mean()) * math.prod(s)
        for e, s in zip(errors, shapes, strict=True)
        if e is not None
    )
