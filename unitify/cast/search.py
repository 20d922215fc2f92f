"""Scale search: the scale of each operand at which its contraction loses least, found in one run.

    E[(v · J e)²] = |J e|²  for v of independent signs, and v · J is one backward pass

e is the error of a cast at one scale, J the derivative of the contraction by the operand. One
backward pass of the contraction gives v · J. With it every scale is tried by its cast alone.

Errors are counted by position (token, pixel, frame), each against the signal of that position.
The power of a whole tensor would hide them: a few elements hold most of it, such as the first
token, which all others attend to. The run needs no data of the user's, because weights make the
outliers, and they show on drawn inputs, too. The same run gives the means of operands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import GraphRunner, detached, unchanged
from unitify.capture.whole import Capture
from unitify.cast.means import Known, Sums, centerings, from_input, known_nodes, shift_of
from unitify.formats.table import FORMATS, quantize
from unitify.noise.measured import Correction
from unitify.noise.running_statistics import toward_running_statistics
from unitify.part import Part
from unitify.recipe.cast import Place
from unitify.recipe.recipe import Recipe
from unitify.rulebook.centering import Centering
from unitify.rulebook.contractions import contraction_operands
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.operation import call_by_name
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, operation_name

#: Octaves that are tried: up to where the largest element saturates by 4, and down by 14. E4M3 has
#: 15 octaves of normal numbers, so that a scale further down leaves nothing of an operand.
_UP, _DOWN = 4, 14
#: The most elements of an operand that are tried, and the fewest positions.
_ELEMENTS, _POSITIONS = 2**16, 32

#: log2 of the scale of a cast → the error that it causes.
Errors = dict[int, float]


@dataclass(frozen=True)
class Found:
    """Means of operands, and the error that every scale of a cast would cause."""

    means: Known
    errors: Mapping[Place, Errors]


def searched(
    part: Part,
    rules: RuleTable,
    recipe: Recipe,
    batches: Iterable[list[Any]] | None = None,
) -> Found:
    """Means of operands and errors of their casts, from one run on each of ``batches``.

    ``batches``: lists of flat inputs. Without any the example is run, corrected by the model's
    running statistics. Both are empty where weights hold no data.
    """
    capture = part.capture
    if not capture.holds_weights:
        return Found({}, {})
    correct = toward_running_statistics(capture, rules) if batches is None else None
    run = _Search(part, rules, recipe, correct)
    if run.needed:
        with torch.no_grad(), unchanged(capture.model, 0):
            for inputs in [list(capture.example)] if batches is None else batches:
                run.run(*inputs)
    return Found(run.sums.known(), run.errors)


class _Search(GraphRunner):
    """Runs a graph. At each contraction it also runs its backward pass and tries the casts."""

    def __init__(
        self, part: Part, rules: RuleTable, recipe: Recipe, correct: Correction | None
    ) -> None:
        capture = part.capture
        super().__init__(capture.graph, capture.attribute)
        self.correct = correct
        self.formats = {c.place: FORMATS[c.format] for c in part.casts() if not c.is_gradient}
        self.errors: dict[Place, Errors] = {}
        self.sums = Sums()
        self.generator = torch.Generator().manual_seed(0)
        self.centerings: dict[str, tuple[fx.Node, Centering]] = {}
        if recipe.center != "none":
            known = known_nodes(capture, rules) if recipe.center == "predicted" else None
            self.centerings = {
                name: (operand, how)
                for name, (operand, how) in centerings(part, rules).items()
                if known is None or operand in known
            }
        #: Contraction → the operands whose casts are tried.
        self.operands: dict[fx.Node, list[tuple[str, int, fx.Node]]] = {}
        #: Contractions whose positions lie along all dimensions but the second.
        self.windows: set[fx.Node] = set()
        if recipe.headroom != "none":
            self._take_operands(capture, rules)
        #: The nodes that have to run.
        self.needed: set[fx.Node] = set()
        for node in reversed(capture.graph.nodes):
            is_asked = node in self.operands or node.name in self.centerings
            if is_asked or any(user in self.needed for user in node.users):
                self.needed.add(node)

    def _take_operands(self, capture: Capture, rules: RuleTable) -> None:
        varying = from_input(capture)
        for node in capture.graph.nodes:
            rule = rules.get(operation_name(node))
            if rule is None or not rule.casts:
                continue
            found = [
                (name, index, operand)
                for name, index, operand in contraction_operands(rule, node)
                if (node.name, name, index) in self.formats
                and operand in varying
                and isinstance(named_arguments(node)[name], fx.Node)
            ]
            if found:
                self.operands[node] = found
            if rule.window:
                self.windows.add(node)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and the trials at it. Behind the last trial nothing runs."""
        if n.op == "call_function" and n not in self.needed:
            return None
        if n.name in self.centerings:
            operand, how = self.centerings[n.name]
            self.sums.add(operand.name, how.axis, self.env[operand])
        tried = [o for o in self.operands.get(n, ()) if _has_power(self.env[o[2]])]
        result = self._tried(n, tried) if tried else super().run_node(n)
        if self.correct is not None and isinstance(result, Tensor) and is_scalable(n):
            result = self.correct(n, result)
        return result

    def _tried(self, n: fx.Node, tried: list[tuple[str, int, fx.Node]]) -> Any:
        """The result of the contraction, once its backward pass and its trials have run."""
        given = named_arguments(n)
        leaves = {name: self.env[operand].detach().requires_grad_() for name, _, operand in tried}
        arguments = {
            own: leaves.get(own, fx.node.map_arg(value, self.env.__getitem__))
            for own, value in given.items()
        }
        with torch.enable_grad():
            result = call_by_name(n, arguments)
        axis = 1 if n in self.windows else -1
        starts = [(t, self._signs(t.detach(), axis)) for t in _floating(result)]
        found = torch.autograd.grad(
            [t for t, _ in starts], list(leaves.values()), [s for _, s in starts], allow_unused=True
        )
        for (name, index, operand), gradient in zip(tried, found, strict=True):
            if gradient is not None:
                self._try(n, (n.name, name, index), self.env[operand], gradient, axis)
        return (
            [detached(r) for r in result] if isinstance(result, list | tuple) else detached(result)
        )

    def _signs(self, result: Tensor, axis: int) -> Tensor:
        """Independent signs, divided by the norm of each position; zero where that is zero."""
        signs = torch.randint(0, 2, result.shape, generator=self.generator).to(result) * 2 - 1
        norm = torch.linalg.vector_norm(result, dim=axis, keepdim=True)
        return torch.where(norm > 0, signs / norm, 0.0)

    def _try(self, n: fx.Node, place: Place, value: Tensor, gradient: Tensor, axis: int) -> None:
        format = self.formats[place]
        rows, weights = (_by_position(t.detach(), axis) for t in (value, gradient))
        count = max(_ELEMENTS // rows.shape[-1], _POSITIONS)
        if len(rows) > count:
            chosen = torch.randperm(len(rows), generator=self.generator)[:count]
            rows, weights = rows[chosen.to(rows.device)], weights[chosen.to(rows.device)]
        if (
            n.name in self.centerings
            and named_arguments(n)[self.centerings[n.name][1].operand]
            is (named_arguments(n)[place[1]])
        ):
            operand, how = self.centerings[n.name]
            shift = shift_of(self.sums.known()[operand.name, how.axis], format)
            rows = rows if shift is None else rows - shift.to(rows)
        if place not in self.errors:
            largest = float(rows.abs().max()) or float(value.abs().max())
            just = math.floor(math.log2(largest / format.largest)) + 1
            self.errors[place] = dict.fromkeys(range(just - _UP, just + _DOWN), 0.0)
        held = self.errors[place]
        for exponent in held:
            scale = math.ldexp(1.0, exponent)
            error = quantize(rows / scale, format) * scale - rows
            held[exponent] += float((error * weights).sum(-1).double().square().sum()) / len(rows)


def _by_position(tensor: Tensor, axis: int) -> Tensor:
    """[positions, channels]."""
    return tensor.unsqueeze(0).movedim(axis if axis < 0 else axis + 1, -1).flatten(0, -2)


def _floating(result: Any) -> Iterator[Tensor]:
    for tensor in result if isinstance(result, list | tuple) else [result]:
        if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.dim():
            yield tensor


def _has_power(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or not value.numel():
        return False
    return bool(value.isfinite().all()) and bool(value.any())
