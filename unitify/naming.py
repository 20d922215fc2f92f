"""Stable names: they stay the same while other parts of a model change.

A graph numbers its values (``linear_12``), so that one more layer renames all that follow. A
finding is named by module path and operation instead: ``h.3.mlp.fc/linear``, with a number where a
module runs the operation more than once. A parameter has its own name.
"""

from __future__ import annotations

from unitify.capture.source import module_of
from unitify.capture.whole import Capture
from unitify.rulebook.schema import operation_name


def stable_names(part: str, capture: Capture) -> dict[str, str]:
    """Name of each node in a part's graph → its stable name, unique in the part."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for node in capture.graph.nodes:
        if node.op == "output":
            continue
        if node.op in ("get_attr", "placeholder"):
            base = joined(part, str(node.target if node.op == "get_attr" else node.name))
        else:
            path = joined(part, module_of(node)[0])
            base = f"{path}/{_operation(operation_name(node))}".lstrip("/")
        name, number = base, 0
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        found[node.name] = name
    return found


def joined(part: str, path: str) -> str:
    """A path inside a part, as a path of the whole model."""
    return f"{part}.{path}" if part and path else part or path


def _operation(name: str) -> str:
    """``linear`` for ``aten.linear.default``; operations of other libraries keep their prefix."""
    parts = name.split(".")
    return parts[1] if parts[0] in ("aten", "operator") and len(parts) > 1 else ".".join(parts[:2])
