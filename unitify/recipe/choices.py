"""The choices of a recipe: which values it casts, and why it leaves the others.

Takes a capture, a recipe and the rules; gives one ``Choice`` a value. It never changes a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache

from torch import fx

from unitify.capture.whole import Capture
from unitify.diagnostics import Diagnostic, NothingCached, PatternUnmatched
from unitify.formats.powers import exponent_of
from unitify.formats.signal_to_noise import best_scale
from unitify.formats.table import FORMATS, Format
from unitify.recipe.cast import Cast, Place
from unitify.recipe.recipe import Recipe
from unitify.rulebook.contractions import contraction_operands, is_contraction
from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.extremes import extreme_values
from unitify.rulebook.flops import flops
from unitify.rulebook.laws import holds_tensors, is_scalable
from unitify.rulebook.residual import branch_ends
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import operation_name

#: Why a value is not cast itself: it is rounded where it is multiplied, or nothing multiplies it.
TAKEN, _OTHER = "cast as an operand of a contraction", "not a contraction"


@dataclass(frozen=True)
class Choice:
    """What a recipe does with one value, and why.

    - ``casts``: those of the operands and of the gradient of the result, for a contraction; else
      those of the value and of its gradient. Empty where nothing is cast
    - ``is_contraction``: is the value made by linear, matmul, convolution or attention?
      ``has_weight``: is an operand a weight, or made from weights alone?
    - ``flops``: of one forward call of a contraction
    - ``noise``: E[error²] / E[value²] that the casts add to the output which they harm most; zero
      where that was not measured
    - ``runs``: how a contraction with casts runs. "fp8" multiplies FP8 operands; "simulated" rounds
      them and multiplies in the model's own type, and ``runs_because`` says why
    """

    value: str
    operation: str
    casts: tuple[Cast, ...] = ()
    reason: str = ""
    is_contraction: bool = False
    has_weight: bool = False
    flops: int = 0
    noise: float = 0.0
    runs: str = ""
    runs_because: str = ""

    @property
    def is_cast(self) -> bool:
        """Is anything cast?"""
        return bool(self.casts)

    @property
    def forward(self) -> str:
        """The format of the values that are cast, by name; "" where none is."""
        return next((cast.format for cast in self.casts if not cast.is_gradient), "")

    @property
    def backward(self) -> str:
        """The format of the gradient that is cast, by name; "" where none is."""
        return next((cast.format for cast in self.casts if cast.is_gradient), "")

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of the operand whose deviation is cast; empty where none is."""
        return next((cast.mean for cast in self.casts if cast.mean), ())

    def in_format(self, format: str) -> Choice:
        """The same casts to another format, near unit RMS and around no mean."""
        casts = (replace(c, format=format, exponent=0, mean=()) for c in self.casts)
        return replace(self, casts=tuple(casts))


class Choices(tuple[Choice, ...]):
    """Choices, which print as a table: one line for each value."""

    __slots__ = ()

    def __str__(self) -> str:
        rows = [("value", "casts", "why")]
        for choice in self:
            casts = ", ".join(
                f"{cast.value}{' (gradient)' * cast.is_gradient} to {cast.format}"
                for cast in choice.casts
            )
            rows.append((choice.value, casts or "-", choice.reason))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def flop_share(choices: Iterable[Choice], *, weights_only: bool = False, runs: str = "") -> float:
    """The share of the FLOPs of contractions whose operands are cast to eight bits or fewer.

    ``runs`` counts only those that run so. ``weights_only`` leaves out contractions without a
    weight, such as those of attention. NaN where there is no contraction.
    """
    counted = [c for c in choices if c.is_contraction and (c.has_weight or not weights_only)]
    total = sum(c.flops for c in counted)
    cast = sum(
        c.flops
        for c in counted
        # Where only a cache is cast, gradients are not.
        if c.backward
        and c.forward
        and FORMATS[c.forward].bits <= 8
        and (not runs or c.runs == runs)
    )
    return cast / total if total else float("nan")


class Patterns:
    """A recipe's ``include`` and ``exclude``. Remembers which patterns matched something."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.matched: set[tuple[str, str]] = {("include", "*")}
        #: Was an attention met whose keys and values the recipe casts for a cache?
        self.is_cached = False

    def objection(self, names: Iterable[str]) -> str:
        """Why something with these names is left out; "" where it is not."""
        names = list(names)
        included = [p for p in self.recipe.include if self._matches("include", p, names)]
        excluded = [p for p in self.recipe.exclude if self._matches("exclude", p, names)]
        if excluded:
            return f"excluded by {excluded[0]!r}"
        return "" if included else "included by no pattern"

    def _matches(self, key: str, pattern: str, names: list[str]) -> bool:
        found = any(fnmatchcase(name, pattern) for name in names)
        if found:
            self.matched.add((key, pattern))
        return found

    def unmatched(self) -> tuple[Diagnostic, ...]:
        """A diagnostic for every pattern that matched nothing (U403), and for no cache (U407)."""
        given = [("include", p) for p in self.recipe.include]
        given += [("exclude", p) for p in self.recipe.exclude]
        found: list[Diagnostic] = [
            PatternUnmatched(key=key, pattern=pattern)
            for key, pattern in given
            if (key, pattern) not in self.matched
        ]
        if self.recipe.kv_cache is not None and not self.is_cached:
            found.append(NothingCached(format=self.recipe.kv_cache.name))
        return tuple(found)


def choose(
    capture: Capture,
    recipe: Recipe,
    rules: RuleTable,
    *,
    path: str = "",
    patterns: Patterns | None = None,
) -> tuple[Choice, ...]:
    """What ``recipe`` does with every floating value of ``capture``, in the graph's order.

    ``path``: of the module that was captured, where it is a submodule.
    """
    chooser = _Chooser(capture, recipe, rules, path, patterns or Patterns(recipe))
    choices = tuple(chooser.choices())
    taken = {c.value for choice in choices for c in choice.casts if choice.is_contraction}
    return tuple(
        replace(c, reason=TAKEN) if c.reason == _OTHER and c.value in taken else c for c in choices
    )


@cache
def _of_unit_rms(format: str) -> int:
    """log2 of the scale nearest to one at which a format holds a normal distribution of unit RMS.

    It is zero but for INT8 (2^-5), whose numbers lie at a distance of one, and E2M1 (2^-1).
    """
    return exponent_of(best_scale(FORMATS[format], 1.0))


class _Chooser:
    def __init__(
        self,
        capture: Capture,
        recipe: Recipe,
        rules: RuleTable,
        path: str,
        patterns: Patterns,
    ) -> None:
        self.capture, self.recipe, self.rules = capture, recipe, rules
        self.path, self.patterns = path, patterns
        self.extreme = extreme_values(capture.graph, rules, capture.example, capture.attribute)
        self.ends = branch_ends(capture.graph, rules) if recipe.branch_ends else frozenset()
        #: Value → the weights that it is made from.
        self.weights: dict[fx.Node, frozenset[str]] = {}
        self.from_input: set[fx.Node] = set()
        for node in capture.graph.nodes:
            self._trace(node)

    def _trace(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            first = self.capture.aliases.get(str(node.target))
            self.weights[node] = frozenset({first} if first is not None else ())
            return
        if node.op == "placeholder" or any(n in self.from_input for n in node.all_input_nodes):
            self.from_input.add(node)
            made = any(self.weights[n] for n in node.all_input_nodes)
            # For an activation it matters whether there are weights, not which.
            self.weights[node] = frozenset({""} if made else ())
            return
        self.weights[node] = frozenset().union(*(self.weights[n] for n in node.all_input_nodes))

    def choices(self) -> Iterator[Choice]:
        for node in self.capture.graph.nodes:
            rule = self.rules.get(operation_name(node))
            if rule is not None and is_contraction(rule, node):
                yield self._contraction(node, rule)
            elif is_scalable(node) and (node.op != "call_function" or not holds_tensors(node)):
                yield self._value(node, rule)

    # -- contractions -----------------------------------------------------------------

    def _contraction(self, node: fx.Node, rule: Rule) -> Choice:
        operands = [operand for _, _, operand in contraction_operands(rule, node)]
        weights = [n for n in operands if n not in self.from_input and self.weights[n]]
        forward, backward, reason = self._formats(node, rule, operands, weights)
        taken = None if self.recipe.values == "all" else contraction_operands(rule, node)
        casts = self._casts(node, forward, backward, taken)
        if self.recipe.kv_cache is not None and rule.cached:
            held = self._cached(node, rule, operands, self.recipe.kv_cache)
            reason = "its keys and values are kept in a cache" if held and not casts else reason
            casts = tuple(held.get(c.place, c) for c in casts) or tuple(held.values())
        return Choice(
            value=node.name,
            operation=operation_name(node),
            casts=casts,
            reason=reason,
            is_contraction=True,
            has_weight=bool(weights),
            flops=flops(node),
        )

    def _cached(
        self, node: fx.Node, rule: Rule, operands: list[fx.Node], format: Format
    ) -> dict[Place, Cast]:
        """Casts of the keys and values that a cache keeps, by place."""
        if self.patterns.objection(self._names(node, operands)):
            return {}
        self.patterns.is_cached = True
        made = self._casts(node, format.name, "", contraction_operands(rule, node))
        return {cast.place: cast for cast in made if cast.place[1] in rule.cached}

    def _formats(
        self, node: fx.Node, rule: Rule, operands: list[fx.Node], weights: list[fx.Node]
    ) -> tuple[str, str, str]:
        objection = self.patterns.objection(self._names(node, operands))
        if objection:
            return "", "", objection
        if self.recipe.values == "all":
            is_one = is_scalable(node)
            return self._stored(node) if is_one else ("", "", "each of its results is cast")
        if not any(self.weights[n] for n in operands):
            return "", "", "neither operand depends on a weight"
        if not weights and not self.recipe.attention:
            why = "both operands are activations (`attention=true` in the recipe casts these)"
            return "", "", why
        for operand in weights or operands:
            for width in _widths(operand, rule):
                if width % self.recipe.multiple:
                    return "", "", self._odd(width)
        if self.recipe.branch_ends is not None and node in self.ends:
            return *_both(self.recipe.branch_ends), "the last contraction of a residual branch"
        reason = f"a contraction, all but {rule.inside}" if rule.inside else "a contraction"
        return self.recipe.forward.name, self.recipe.backward.name, reason

    def _odd(self, width: int) -> str:
        return (
            f"a width of {width} is not divisible by {self.recipe.multiple} "
            "(`multiple=1` in the recipe casts it)"
        )

    # -- all other values -----------------------------------------------------------------

    def _value(self, node: fx.Node, rule: Rule | None) -> Choice:
        operation = operation_name(node) if node.op == "call_function" else node.op
        if self.recipe.values != "all":
            return Choice(node.name, operation, reason=_OTHER)
        objection = self.patterns.objection(self._names(node, [node]))
        if not objection and rule is not None and rule.moves and _moves(node):
            objection = "moves a value that is cast already"
        forward, backward, reason = ("", "", objection) if objection else self._stored(node)
        return Choice(node.name, operation, self._casts(node, forward, backward), reason)

    def _casts(
        self,
        node: fx.Node,
        forward: str,
        backward: str,
        operands: Iterable[tuple[str, int, fx.Node]] | None = None,
    ) -> tuple[Cast, ...]:
        """The casts of a value, or of ``operands``, and of the gradient."""
        own = [("", 0, node)] if operands is None else operands
        casts = [
            Cast((node.name, name, index), operand.name, forward, exponent=self._exponent(forward))
            for name, index, operand in own
            if forward
        ]
        if backward:
            place = node.name, "", 0
            casts.append(Cast(place, node.name, backward, True, self._exponent(backward)))
        return tuple(casts)

    def _exponent(self, format: str) -> int:
        if self.recipe.scaling == "unit":
            return _of_unit_rms(format)
        return exponent_of(self.recipe.scale)

    def _stored(self, node: fx.Node) -> tuple[str, str, str]:
        """Formats of a stored value."""
        if node in self.extreme:
            return "", "", "it carries masking constants"
        if not node.meta["val"].dim():
            return "", "", "a single number"
        if not self.weights[node] and node.op != "placeholder":
            return "", "", "it depends on no weight"
        return self.recipe.forward.name, self.recipe.backward.name, "a stored value"

    def _names(self, node: fx.Node, operands: list[fx.Node]) -> Iterator[str]:
        """The names by which a pattern may match a value."""
        yield node.name
        yield operation_name(node)
        held = {w for n in operands if n not in self.from_input for w in self.weights[n]}
        for name, first in self.capture.aliases.items():
            if first in held:
                yield self._full(name)
        stack = node.meta.get("nn_module_stack") or {}
        inner = list(stack.values())[-1][0] if stack else ""
        if node.op == "get_attr":
            inner = str(node.target).rpartition(".")[0]
        parts = self._full(inner).split(".") if inner or self.path else []
        for end in range(1, len(parts) + 1):
            yield ".".join(parts[:end])

    def _full(self, name: str) -> str:
        return f"{self.path}.{name}".strip(".") if self.path else name


def _both(format: Format) -> tuple[str, str]:
    return format.name, format.name


def _widths(operand: fx.Node, rule: Rule) -> tuple[int, ...]:
    """The dimensions that hardware multiplies in blocks: fan-in and fan-out of a weight."""
    shape = shape_of(operand.meta["val"])
    return shape[:2] if rule.window else shape[-2:]


def _moves(node: fx.Node) -> bool:
    """Does the result hold each element of its one operand once, as a view does?"""
    source = node.all_input_nodes[0] if node.all_input_nodes else node
    return is_scalable(source) and shape_numel(source) == shape_numel(node)


def shape_numel(node: fx.Node) -> int:
    """Elements of a value at the example's sizes."""
    count = 1
    for size in shape_of(node.meta["val"]):
        count *= size
    return count
