"""Means and scales of the operands of products, by one run: where each product suffers least.

    E[(v · J e)²] = |J e|²  for v of independent signs, and v · J is one backward pass

e is what a cast at one scale does to an operand, J how the product depends on the operand. So one
backward pass of the product tells what every scale would do to its result, and the casts alone are
tried. Errors are counted by position (token, pixel, frame), each against its own signal: power is
held by a few elements, in the first token that all others attend to, in the loud moments of a
sound, and what is small beside it falls below the range of the format without a trace in that
figure. That needs no data: outliers are made by the weights, and show on drawn inputs, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import GraphRunner, unchanged
from unitify.capture.whole import Capture
from unitify.cast.means import Known, Sums, centerings, from_input, shift_of, told
from unitify.formats.powers import exponent_of
from unitify.formats.table import FORMATS, quantize
from unitify.noise.measured import Correction
from unitify.noise.toward_stated import toward_stated
from unitify.part import Part
from unitify.recipe.cast import Cast, Place
from unitify.recipe.recipe import Recipe
from unitify.rulebook.centering import Centering
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.operation import call_by_name
from unitify.rulebook.products import product_operands
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, operation_name

#: Octaves that are tried from where the largest element is just in range: further up, and down.
_UP, _DOWN = 4, 14
#: How many octaves the RMS of a value may be off what it is on inputs that were tried.
OCTAVES = 1.0
#: Decibels by which the expected error may be above the least.
_TOLERANCE = 0.1
#: Elements of an operand that are tried, in whole positions, and no fewer positions than this.
_ELEMENTS, _POSITIONS = 2**16, 32

#: log2 of the scale of a cast → what it costs.
Errors = dict[int, float]


@dataclass(frozen=True)
class Found:
    """Means of operands, and what every scale of the cast of an operand would cost."""

    means: Known
    errors: Mapping[Place, Errors]


def searched(
    part: Part,
    rules: RuleTable,
    recipe: Recipe,
    batches: Iterable[list[Any]] | None = None,
) -> Found:
    """What one run on each of ``batches`` (lists of flat inputs) tells of the operands of products.

    Without batches the example is run, and what the model states of a value counts more than that.
    Where weights hold no data nothing is found.
    """
    capture = part.capture
    if not capture.holds_weights:
        return Found({}, {})
    correct = toward_stated(capture, rules) if batches is None else None
    run = _Search(part, rules, recipe, correct)
    if run.needed:
        with torch.no_grad(), unchanged(capture.model, 0):
            for inputs in [list(capture.example)] if batches is None else batches:
                run.run(*inputs)
    return Found(run.sums.known(), run.errors)


def with_scales(part: Part, found: Found) -> Part:
    """``part`` with the exponents of operands that are no weights: where products suffer least.

    The middle of the powers of two within a tenth of a decibel of the least expected error; what is
    expected is that the RMS on other inputs is an octave off.
    """
    best = {place: _middle(errors) for place, errors in found.errors.items()}

    def moved(cast: Cast) -> Cast:
        if cast.place not in best:
            return cast
        unit = exponent_of(part.plan.unit(cast.value).fwd)
        return replace(cast, exponent=best[cast.place] - unit)

    return part.with_casts(moved)


def _middle(errors: Errors) -> int:
    weights = {u: math.exp(-((u / OCTAVES) ** 2) / 2) for u in range(-3, 4)}
    expected = {
        e: math.fsum(w * errors[e + u] for u, w in weights.items())
        for e in errors
        if all(e + u in errors for u in weights)
    }
    limit = min(expected.values()) * 10 ** (_TOLERANCE / 10)
    near = sorted(e for e, error in expected.items() if error <= limit)
    return near[len(near) // 2]


class _Search(GraphRunner):
    """Runs a graph; beside a product its own backward pass, and the casts of its operands."""

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
            known = told(capture, rules) if recipe.center == "predicted" else None
            self.centerings = {
                name: (operand, how)
                for name, (operand, how) in centerings(part, rules).items()
                if known is None or operand in known
            }
        #: Product → what of it is tried.
        self.operands: dict[fx.Node, list[tuple[str, int, fx.Node]]] = {}
        #: Products whose positions lie along all dimensions but the second.
        self.windows: set[fx.Node] = set()
        if recipe.headroom != "none":
            self._take_operands(capture, rules)
        #: What has to be run.
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
                for name, index, operand in product_operands(rule, node)
                if (node.name, name, index) in self.formats
                and operand in varying
                and isinstance(named_arguments(node)[name], fx.Node)
            ]
            if found:
                self.operands[node] = found
            if rule.window:
                self.windows.add(node)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node as it is, and what is tried beside it; nothing behind the last trial."""
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
        """The product's result, after its backward pass and the casts of its operands."""
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
            [_detached(r) for r in result]
            if isinstance(result, list | tuple)
            else _detached(result)
        )

    def _signs(self, result: Tensor, axis: int) -> Tensor:
        """Independent signs over the signal of each position; nothing where there is none."""
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


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _has_power(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or not value.numel():
        return False
    return bool(value.isfinite().all()) and bool(value.any())
