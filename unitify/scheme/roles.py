"""The role of each parameter, from the rules of the operations that use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import fx

from unitify.capture.whole import Capture
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, nodes_of, operation_name
from unitify.scheme.structure import Structure, is_view


def parameter_roles(
    capture: Capture, read: Structure, rules: RuleTable, given: Mapping[str, str]
) -> dict[str, str]:
    """First name of every parameter → its role, as ``ParameterRole`` lists them.

    ``given``: patterns of names → roles, which have priority. A tied embedding is an embedding.
    """
    uses: dict[str, set[str]] = {name: set() for name in capture.aliases.values()}
    for node, name in read.weights.items():
        for user in node.users:
            uses[name] |= set(_uses(user, node, capture.attribute(name), read, rules))
    names: dict[str, list[str]] = {}
    for name, first in capture.aliases.items():
        names.setdefault(first, []).append(name)
    return {
        first: _matched(names[first], given) or _role(capture.attribute(first), held)
        for first, held in uses.items()
    }


def unmatched(capture: Capture, given: Mapping[str, str]) -> list[str]:
    """Patterns that match no parameter."""
    return [p for p in given if not any(fnmatchcase(n, p) for n in capture.aliases)]


def _uses(
    user: fx.Node, node: fx.Node, tensor: torch.Tensor, read: Structure, rules: RuleTable
) -> Iterable[str]:
    rule = rules.get(operation_name(user))
    if user in read.weights:
        return
    for name, argument in named_arguments(user).items():
        if node not in nodes_of(argument):
            continue
        if rule is not None and name in rule.contraction:
            yield "readout" if user in read.readouts else "hidden"
            continue
        kind = rule.parameters.get(name, "other") if rule is not None else "other"
        # An addend that varies along more than one dimension is a table (of positions).
        varies = sum(size > 1 for size in tensor.shape) > 1
        is_table = kind == "table" or (kind == "bias" and varies and not is_view(rule))
        yield "embedding" if is_table else kind


def _role(tensor: torch.Tensor, uses: set[str]) -> str:
    """The one role of a parameter. A use that no rule knows makes it "other"."""
    for role in ("embedding", "hidden", "readout", "other", "gain", "bias"):
        if role in uses:
            return role
    return "other"


def _matched(names: list[str], given: Mapping[str, str]) -> str | None:
    for pattern, role in given.items():
        if any(fnmatchcase(name, pattern) for name in names):
            return role
    return None
