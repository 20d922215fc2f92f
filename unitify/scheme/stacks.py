"""Stacks of residual branches, and the weights of their sums under each residual scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from unitify.reparametrization import WeightedSum
from unitify.rulebook.residual import Residual
from unitify.scheme.options import UnitScheme
from unitify.scheme.structure import Structure


@dataclass(frozen=True)
class Stack:
    """Residual sums along one trunk, in order, each with its kind."""

    sums: tuple[Residual, ...]
    kinds: tuple[str, ...]


def stacks(graph: fx.Graph, read: Structure) -> tuple[Stack, ...]:
    """The residual sums of a graph by trunk.

    A sum continues the trunk of its skip. Other inputs of its branch (an encoder's output) do not
    belong to the trunk.
    """
    by_add = {residual.add: residual for residual, _ in read.sums}
    level: dict[fx.Node, int] = {}
    trunk: dict[fx.Node, int] = {}
    found: list[list[Residual]] = []
    for node in graph.nodes:
        source = by_add[node].skip if node in by_add else None
        if source is None:
            source = max(node.all_input_nodes, key=lambda n: level[n], default=None)
        level[node] = level[source] if source is not None else 0
        if source is not None and source in trunk:
            trunk[node] = trunk[source]
        if node in by_add:
            if node not in trunk:
                trunk[node] = len(found)
                found.append([])
            found[trunk[node]].append(by_add[node])
            level[node] += 1
    return tuple(
        Stack(
            tuple(sums), tuple("attention" if r.add in read.attentions else "other" for r in sums)
        )
        for sums in found
    )


def weighted_sums(stack: Stack, scheme: UnitScheme) -> list[WeightedSum]:
    """The weights of every sum of a stack, which keep unit variance.

    A branch of amplitude ratio t to its skip gets t/√(1 + t²), the skip 1/√(1 + t²).
    """
    depth = scheme.depth or len(stack.sums)
    found = []
    for index, (residual, kind) in enumerate(zip(stack.sums, stack.kinds, strict=True)):
        ratio = _RATIOS[scheme.residual](scheme, stack.kinds[:index], kind, depth)
        skip = 1 / math.hypot(1.0, ratio)
        found.append(WeightedSum(residual.add.name, kind, index, depth, skip, ratio * skip))
    return found


def _running_mean(scheme: UnitScheme, before: tuple[str, ...], kind: str, _depth: int) -> float:
    """τ_l = 1/(l + 1): the l-th branch has the share of the input and of each earlier branch."""
    return _alpha(scheme, kind) / math.sqrt(len(before) + 1)


def _fixed(scheme: UnitScheme, _before: tuple[str, ...], kind: str, _depth: int) -> float:
    is_attention = kind == "attention" and scheme.attention_tau is not None
    tau = scheme.attention_tau if is_attention else scheme.tau
    assert tau is not None
    return _alpha(scheme, kind) * math.sqrt(tau / (1 - tau))


def _alpha(scheme: UnitScheme, kind: str) -> float:
    return scheme.alpha_res * (scheme.alpha_res_attn_ratio if kind == "attention" else 1.0)


def _u_mup(scheme: UnitScheme, before: tuple[str, ...], kind: str, depth: int) -> float:
    """The amplitude ratio of Blake et al. 2024 (arXiv 2407.17465), appendix on residuals."""
    ratio = scheme.alpha_res_attn_ratio
    other = scheme.alpha_res * math.sqrt(2 / (1 + ratio**2))
    amplitude = {"attention": ratio * other, "other": other}
    return amplitude[kind] / math.sqrt(depth / 2 + sum(amplitude[k] ** 2 for k in before))


_RATIOS: Mapping[str, Callable[[UnitScheme, tuple[str, ...], str, int], float]] = {
    "running-mean": _running_mean,
    "fixed": _fixed,
    "u-mup": _u_mup,
}
