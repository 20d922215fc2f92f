"""Where a departure from scale begins, and what merely follows from it.

One loss that is divided by a million makes every gradient of a model too small. Each of them is a
finding, and one line is to blame. Forward it is that of the first value whose operands are fine,
backward that of the first gradient whose consumers' gradients are; a value that is far worse than
everything it was made of is a beginning, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

#: Octaves by which a tensor is worse than those before it, to be a cause of its own: more than what
#: a mean over a small batch, or a wide layer, does to a gradient.
STEP = 10.0

#: Value and direction (0 forward, 1 backward).
Key = tuple[str, int]


@dataclass(frozen=True)
class _State:
    """The departure that a tensor carries: where it began, and how far out it is now."""

    cause: Key
    octaves: float


def causes(graph: fx.Graph, outside: Mapping[Key, float], fine: Iterable[Key]) -> dict[Key, Key]:
    """Every tensor that is outside → the tensor in which that begins, perhaps itself.

    ``outside``: octaves outside by value and direction. ``fine``: what was judged and is not. What
    was not judged (a view, a mask) hands on what it is made of.
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
