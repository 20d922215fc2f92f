"""A first row for an operation that has none."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload

from unitify.diagnostics import OperationUnknown, UnitifyError
from unitify.rulebook.row_forms import close_to
from unitify.rulebook.rule_table import load_rules
from unitify.rulebook.schema import find_operation, overloads_of

_HEAD = """\
# A rule for {operation}:
#
#     {schema}
#
# This row restores: the operation runs on true operands, which is always right, and its moments are
# sampled. Add keys, check them by `unitify rules verify FILE`, and pass the file as rules=["FILE"]
# or --rules FILE. docs/design.md describes the grammar.
"""

#: Samples for tensors that must be integers or truth values, by their names. Schemas do not say.
_INTEGERS = {
    "mask": '"booleans(16, 16)"',
    "condition": '"booleans(16, 16)"',
    "index": '"integers(16, 16)"',
    "indices": '"integers(16, 16)"',
}


def skeleton(operation: str) -> str:
    """A rule file with one row for ``operation``, which already verifies.

    Raises ``UnitifyError`` (U205) where torch has no operator of this name.
    """
    found = find_operation(operation)
    if not isinstance(found, OpOverload):
        close = close_to(operation, overloads_of(operation))
        hint = close or "; a name looks like aten.cumsum.default"
        raise UnitifyError(OperationUnknown(operation=operation, hint=hint))
    schema = found._schema
    tensors = [a.name for a in schema.arguments if str(a.type) == "Tensor"]
    sample = ", ".join(
        f"{a.name} = {_sample(a)}" for a in schema.arguments if not a.has_default_value()
    )
    first = tensors[0] if tensors else "self"
    lines = [
        _HEAD.format(operation=operation, schema=schema),
        f'["{operation}"]',
        *(["replaces = true"] if operation in load_rules() else []),
        "# How it runs on scaled operands. Homogeneous of degree one:",
        f'# law         = {{ out = "{first}" }}',
        "# How moments follow: one of these ways.",
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
