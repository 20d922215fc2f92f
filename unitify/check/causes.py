"""Causes: the tensor where a departure from scale begins, and the tensors that follow from it.

A loss divided by a million makes every gradient of a model too small. Each gradient is a finding,
but one line is to blame. In the forward pass a cause is a value whose operands are in range. In the
backward pass it is a gradient whose consumers' gradients are in range. A tensor that is far worse
than all its operands is a cause, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

#: A tensor that is worse by this many octaves than those before it is a cause of its own. A mean
#: over a small batch, or a wide layer, moves a gradient by less.
STEP = 10.0

#: Value and direction (0 forward, 1 backward).
Key = tuple[str, int]


@dataclass(frozen=True)
class _State:
    """The departure of a tensor: the cause, and how many octaves it is outside now."""

    cause: Key
    octaves: float


def causes(graph: fx.Graph, outside: Mapping[Key, float], fine: Iterable[Key]) -> dict[Key, Key]:
    """Every tensor that is outside → its cause, which may be itself.

    ``outside``: octaves outside, by value and direction. ``fine``: judged tensors that are inside.
    A tensor that was not judged (a view, a mask) passes on the departure of its operands.
    """
    settled = set(fine)
    found: dict[Key, Key] = {}
    nodes = [node for node in graph.nodes if node.op != "output"]
    for direction, ordered in ((0, nodes), (1, nodes[::-1])):
        states: dict[fx.Node, _State] = {}
        for node in ordered:
            key = node.name, direction
            before = node.users if direction else node.all_input_nodes
            carried = [states[n] for n in before if n in states]
            worst = max(carried, key=lambda state: state.octaves, default=None)
            if key in outside:
                octaves = abs(outside[key])
                is_start = worst is None or octaves > worst.octaves + STEP
                cause = key if is_start or worst is None else worst.cause
                found[key] = cause
                states[node] = _State(cause, octaves)
            elif worst is not None and key not in settled:
                states[node] = worst
    return found
