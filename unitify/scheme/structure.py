"""The facts about a graph on which a scheme rests, each found in one pass over it.

Takes a capture and the rules; gives a frozen ``Structure``. The rules describe operations. This
file describes how values are connected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from unitify.capture.whole import Capture
from unitify.rulebook.laws import holds_tensors, is_number, is_scalable
from unitify.rulebook.residual import Residual, branches, residuals
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import named_arguments, nodes_of, operation_name
from unitify.scheme.meetings import find_meetings


@dataclass(frozen=True)
class Structure:
    """The values of a graph that a scheme changes.

    - ``weights``: value → the parameter of which it is a view
    - ``active``: values that depend on a parameter or a floating input; ``inputs``: those of them
      that depend on no parameter; ``fixed``: on no input (weights computed from weights)
    - ``sums``: residual sums, with the nodes of their branches; ``attentions``: the sums whose
      branch is an attention
    - ``meetings``, ``inside``: those of ``find_meetings``; values inside keep their size
    - ``absolute``: values with a consumer that depends on their size (it adds a number, or takes a
      logarithm, or it is the caller)
    - ``in_loss``: values that lead to a single number (a loss) only, without a contraction
    - ``passed_on``: values whose only consumer multiplies them by a number or adds to them; the
      consumer's result is brought to unit RMS instead
    - ``logits``: operands of a softmax over contractions of activations
    - ``readouts``: contractions with a weight outside of branches, with no further one behind
    """

    weights: Mapping[fx.Node, str]
    active: frozenset[fx.Node]
    inputs: frozenset[fx.Node]
    fixed: frozenset[fx.Node]
    sums: tuple[tuple[Residual, frozenset[fx.Node]], ...]
    attentions: frozenset[fx.Node]
    inside: frozenset[fx.Node]
    absolute: frozenset[fx.Node]
    in_loss: frozenset[fx.Node]
    meetings: frozenset[fx.Node]
    passed_on: frozenset[fx.Node]
    logits: frozenset[fx.Node]
    readouts: frozenset[fx.Node]


def structure(capture: Capture, rules: RuleTable) -> Structure:
    """Read the graph of ``capture``. Linear in its size."""
    return _Reader(capture, rules).read()


def is_view(rule: Rule | None) -> bool:
    """Is the operation a view: does it only move the elements of its one operand?"""
    return rule is not None and rule.moves and len(rule.linear) == 1


def multiplies_by_number(node: fx.Node, rule: Rule | None) -> bool:
    """A product or quotient of one value and a number?"""
    if rule is None or rule.law is None or not rule.unit or rule.contraction:
        return False
    first, *others = list(named_arguments(node).values())[:2]
    is_product = len(rule.law.output) == 2 and all(p in (1, -1) for p in rule.law.output.values())
    second = others[0] if others else None
    return is_product and is_scalable(first) and isinstance(second, int | float)


def adds(rule: Rule | None) -> bool:
    """Is it a sum of two terms, of which a number may weigh the second?"""
    return rule is not None and bool(rule.weighs)


class _Reader:
    def __init__(self, capture: Capture, rules: RuleTable) -> None:
        self.capture = capture
        self.nodes = list(capture.graph.nodes)
        self.rule = {n: rules.get(operation_name(n)) for n in self.nodes}
        self.rules = rules
        self.weights: dict[fx.Node, str] = {}
        self.active: set[fx.Node] = set()
        self.trained: set[fx.Node] = set()
        #: Values that depend on the contents of an input, not only on its size.
        self.given: set[fx.Node] = set()
        for node in self.nodes:
            self._trace(node)

    def read(self) -> Structure:
        found = residuals(self.capture.graph, self.rules)
        found = tuple(r for r in found if adds(self.rule[r.add]))
        values = {n: self._values(n) if n in self.active else [] for n in self.nodes}
        meetings, inside = find_meetings(self.nodes, values, self.rule)
        # The difference within a gated state is not a residual sum.
        found = tuple(r for r in found if r.add not in inside and not r.is_pointwise)
        sums = tuple((r, frozenset(held)) for r, held in branches(self.capture.graph, found))
        adding = {r.add for r, _ in sums}
        logits, attentions = self._attentions()
        return Structure(
            weights=self.weights,
            active=frozenset(self.active),
            inputs=frozenset(self.active - self.trained),
            fixed=frozenset(self.active - self.given),
            sums=sums,
            attentions=frozenset(r.add for r, held in sums if attentions & held),
            inside=inside,
            meetings=meetings,
            absolute=self._absolute(),
            in_loss=self._in_loss(),
            passed_on=self._passed_on(adding),
            logits=logits,
            readouts=self._readouts(frozenset().union(*(held for _, held in sums))),
        )

    def _trace(self, node: fx.Node) -> None:
        """Note whether ``node`` is a parameter, or depends on one or on a floating input."""
        sizes = (torch.SymInt, torch.SymFloat, int, float)
        is_tensor = not isinstance(node.meta.get("val"), sizes)
        if node.op == "placeholder" or any(n in self.given for n in node.all_input_nodes):
            self.given |= {node} if is_tensor else set()
        if node.op == "placeholder":
            self.active |= {node} if is_scalable(node) else set()
        elif node.op == "get_attr":
            if is_scalable(node) and str(node.target) in self.capture.aliases:
                self.weights[node] = self.capture.aliases[str(node.target)]
                self.active.add(node)
                self.trained.add(node)
        elif any(n in self.active for n in node.all_input_nodes):
            if is_scalable(node) or holds_tensors(node):
                self.active.add(node)
                if any(n in self.trained for n in node.all_input_nodes):
                    self.trained.add(node)
            source = node.all_input_nodes[0]
            moves = is_view(self.rule[node]) or (node.target is not None and self._takes(node))
            if moves and source in self.weights:
                self.weights[node] = self.weights[source]

    def _takes(self, node: fx.Node) -> bool:
        source = node.args[0] if node.op == "call_function" and node.args else None
        return isinstance(source, fx.Node) and holds_tensors(source)

    def _values(self, node: fx.Node) -> list[fx.Node]:
        """Operands that are neither weights nor constants."""
        return [n for n in node.all_input_nodes if n in self.active and n not in self.weights]

    def _multiplies_activations(self, node: fx.Node) -> bool:
        rule = self.rule[node]
        if rule is None or not rule.contraction or rule.width:
            return False
        arguments = named_arguments(node)
        operands = [n for name in rule.contraction for n in nodes_of(arguments[name])]
        return len(operands) > 1 and all(
            n in self.active and n not in self.weights for n in operands
        )

    def _attentions(self) -> tuple[frozenset[fx.Node], set[fx.Node]]:
        """The logits of attentions, and the nodes that identify an attention."""
        from_product: dict[fx.Node, bool] = {}
        logits: set[fx.Node] = set()
        softmaxes: set[fx.Node] = set()
        for node in self.nodes:
            rule = self.rule[node]
            if rule is not None and rule.contraction:
                from_product[node] = self._multiplies_activations(node)
                continue
            from_product[node] = any(from_product[n] for n in node.all_input_nodes)
            if rule is not None and rule.logits and not rule.loss and from_product[node]:
                softmaxes.add(node)
                logits.add(named_arguments(node)[rule.logits])
                # Its result is a weighting, not a logit.
                from_product[node] = False
        fused = {n for n in self.nodes if (r := self.rule[n]) and r.width}
        return frozenset(logits), softmaxes | fused

    def _absolute(self) -> frozenset[fx.Node]:
        found: set[fx.Node] = set()
        for node in reversed(self.nodes):
            for user in node.users:
                moves = is_view(self.rule[user]) or self._takes(user)
                handed_on = moves and user in found
                if handed_on or user.op == "output" or self._takes_at_face_value(user):
                    found.add(node)
        return frozenset(found)

    def _in_loss(self) -> frozenset[fx.Node]:
        found: set[fx.Node] = set()
        for node in reversed(self.nodes):
            rule = self.rule[node]
            if node not in self.active or (rule is not None and rule.contraction):
                continue
            if is_number(node) or (node.users and all(user in found for user in node.users)):
                found.add(node)
        return frozenset(found)

    def _takes_at_face_value(self, node: fx.Node) -> bool:
        rule = self.rule[node]
        if self._takes(node):
            return False
        if rule is None:
            return True
        if adds(rule):
            return any(isinstance(a, int | float) for a in list(named_arguments(node).values())[:2])
        return rule.law is None and not rule.unit

    def _passed_on(self, residual: set[fx.Node]) -> frozenset[fx.Node]:
        found: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if len(node.users) != 1:
                continue
            (user,) = node.users
            rule = self.rule[user]
            handed_on = is_view(rule) and user in found
            added_on = adds(rule) and adds(self.rule[node]) and not {node, user} & residual
            if handed_on or added_on or multiplies_by_number(user, rule):
                found.add(node)
        return frozenset(found)

    def _readouts(self, stacked: frozenset[fx.Node]) -> frozenset[fx.Node]:
        followed: dict[fx.Node, bool] = {}
        found: set[fx.Node] = set()
        for node in reversed(self.nodes):
            rule = self.rule[node]
            weighs = rule is not None and bool(rule.contraction) and any(
                n in self.weights for n in node.all_input_nodes
            )  # fmt: skip
            later = any(followed[user] for user in node.users)
            if weighs and not later and node not in stacked:
                found.add(node)
            followed[node] = later or weighs
        return frozenset(found)
