"""A row to start from, for an operation that has none."""

from __future__ import annotations

from typing import Any

from unitify.diagnostics import RuleInvalid, UnitifyError
from unitify.rulebook.calls import is_known, overload

_HEAD = """\
# A rule for {operation}:
#
#     {schema}
#
# As it stands the operation is restored: it runs on true operands, which is always right, and its
# moments are sampled. `unitify rules verify FILE` says whether what you add holds; then pass the
# file as rules=["FILE"] or --rules FILE. The grammar is in docs/design.md.
"""

#: What a schema does not say of its tensors, but their names do.
_INTEGERS = {
    "mask": '"booleans(16, 16)"',
    "condition": '"booleans(16, 16)"',
    "index": '"integers(16, 16)"',
    "indices": '"integers(16, 16)"',
}


def skeleton(operation: str) -> str:
    """A rule file with one row for ``operation``, which verifies as it is.

    Raises ``UnitifyError`` (U201) where torch has no operation of this name.
    """
    if not is_known(operation):
        problem = "torch has no operation of this name; write it as aten.cumsum.default"
        raise UnitifyError(RuleInvalid(operation=operation, problem=problem))
    schema = overload(operation)._schema
    tensors = [a.name for a in schema.arguments if str(a.type) == "Tensor"]
    sample = ", ".join(
        f"{a.name} = {_sample(a)}" for a in schema.arguments if not a.has_default_value()
    )
    first = tensors[0] if tensors else "self"
    lines = [
        _HEAD.format(operation=operation, schema=schema),
        f'["{operation}"]',
        "# How it runs on scaled operands. Homogeneous of degree one:",
        f'# law         = {{ out = "{first}" }}',
        "# What it does to moments: one of these ways.",
        f'# elementwise = "{first}"',
        f'# forward     = {{ mean = "mean({first})", square = "square({first})" }}',
        f'# backward    = {{ {first} = {{ mean = "mean(grad)", square = "square(grad)" }} }}',
        "# Arguments on which the row is verified.",
        f"sample = {{ {sample} }}",
    ]
    return "\n".join(lines) + "\n"


def _sample(argument: Any) -> str:
    kind = str(argument.type)
    if argument.name in _INTEGERS:
        return _INTEGERS[argument.name]
    if "List[Tensor]" in kind:
        return '["normal(16, 16)", "normal(16, 16)"]'
    if "Tensor" in kind:
        return '"normal(16, 16)"'
    if "bool" in kind:
        return "false"
    if "List[int]" in kind:
        return "[1]"
    if "int" in kind or "Scalar" in kind or "number" in kind:
        return "1"
    if "float" in kind:
        return "0.5"
    return '"?"'
