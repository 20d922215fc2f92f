"""The decisions that a recording made by sizes, and its time limit.

While torch records, every comparison of sizes goes through its ``ShapeEnv``, and ``observed``
listens there. It learns three things that torch does not keep: the line of the user's code that
made a decision; the guards that concern only the memory layout of a value; and the decisions that
torch did not guard because it assumes that a free size is at least two. A call with a size of one
or zero has to agree with these, too.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import sympy
import torch
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

#: A file and a line of it.
SourceLine = tuple[str, int]

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = str(Path(__file__).parent.parent)
#: Where torch computes with sizes. The frame above it is the one that asks.
_ARITHMETIC = ("/fx/experimental/", "/__init__.py", "/utils/_sympy/", "/utils/_stats.py")
#: Files of torch that models are written with; its others run and record operations.
_FOR_MODELS = ("/nn/", "/functional.py")
#: Functions of torch that find strides; what they decide changes no size and no operation.
_LAYOUT = ("contiguous", "stride", "channels_last", "non_overlapping", "should_swap", "view_helper")
_COMPARISONS = {
    "_eq": sympy.Eq, "_ne": sympy.Ne, "_lt": sympy.Lt,
    "_le": sympy.Le, "_gt": sympy.Gt, "_ge": sympy.Ge,
}  # fmt: skip

#: Numbers that are free while torch records, and the number of each for the example.
_NUMBERS: dict[Any, Callable[[Any], Any]] = {
    torch.SymInt: int,
    torch.SymFloat: float,
    torch.SymBool: bool,
}
_TEXTS = ("__str__", "__repr__")


class OutOfTime(BaseException):
    """A recording exceeded its time. No ``Exception``, so that no code on the way catches it."""


@dataclass
class Decisions:
    """Conditions on sizes that held while a model was recorded.

    ``lines``: each condition that torch guards, with the line of the user's code. ``layout``:
    those that matter only for strides. ``by_code``: those that Python code decided, guarded or not.
    """

    lines: dict[sympy.Basic, SourceLine | None] = field(default_factory=dict)
    layout: set[sympy.Basic] = field(default_factory=set)
    by_code: dict[sympy.Basic, SourceLine | None] = field(default_factory=dict)
    #: Has the model's code ended? Later passes over the recording do not count.
    is_over: bool = False


@contextlib.contextmanager
def observed(seconds: float | None = None) -> Iterator[Decisions]:
    """Listen to every decision inside.

    Raises ``OutOfTime`` from the first one after ``seconds``.
    """
    found = Decisions()
    deadline = None if seconds is None else time.monotonic() + seconds
    evaluate = ShapeEnv.evaluate_expr
    compare = {name: getattr(SymNode, name) for name in _COMPARISONS}
    ShapeEnv.evaluate_expr = _evaluating(evaluate, found, deadline)  # type: ignore[method-assign]
    texts = {(kind, name): getattr(kind, name) for kind in _NUMBERS for name in _TEXTS}
    for name, method in compare.items():
        setattr(SymNode, name, _comparing(method, _COMPARISONS[name], found, deadline))
    for (kind, name), method in texts.items():
        setattr(kind, name, _as_text(method, _NUMBERS[kind], found))
    try:
        yield found
    finally:
        for (kind, name), method in texts.items():
            setattr(kind, name, method)
        ShapeEnv.evaluate_expr = evaluate  # type: ignore[method-assign]
        for name, method in compare.items():
            setattr(SymNode, name, method)


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise OutOfTime


def _evaluating(
    original: Callable[..., Any], found: Decisions, deadline: float | None
) -> Callable[..., Any]:
    @functools.wraps(original)
    def evaluate_expr(env: ShapeEnv, expression: Any, *args: Any, **kwargs: Any) -> Any:
        _check(deadline)
        known = len(env.guards)
        result = original(env, expression, *args, **kwargs)
        if getattr(expression, "free_symbols", None):
            asker, line, is_layout = _asker(sys._getframe(1))
            for guard in env.guards[known:]:
                found.lines.setdefault(guard.expr, line)
                if is_layout or found.is_over:
                    found.layout.add(guard.expr)
            if _is_code(asker) and not found.is_over:
                found.by_code.setdefault(_holding(expression, result), line)
        return result

    return evaluate_expr


def _holding(expression: Any, result: Any) -> Any:
    """The condition that the expression had this value."""
    if isinstance(expression, sympy.logic.boolalg.Boolean):
        return expression if result else sympy.Not(expression)
    return sympy.Eq(expression, result, evaluate=False)


def _comparing(
    original: Callable[..., Any], relation: Any, found: Decisions, deadline: float | None
) -> Callable[..., Any]:
    @functools.wraps(original)
    def compare(node: SymNode, other: Any) -> Any:
        _check(deadline)
        result = original(node, other)
        outcome = getattr(result, "expr", None)
        # Decided because every size is positive.
        is_decided = outcome in (sympy.true, sympy.false) and isinstance(other, SymNode)
        if is_decided and node.expr != other.expr and _is_free(node.expr, other.expr):
            asker, line, _ = _asker(sys._getframe(1))
            if _is_code(asker):
                held = relation(node.expr, other.expr, evaluate=False)
                is_so = outcome is sympy.true
                found.by_code.setdefault(held if is_so else sympy.Not(held, evaluate=False), line)
        return result

    return compare


def _as_text(
    original: Callable[[Any], str], number: Callable[[Any], Any], found: Decisions
) -> Callable[[Any], str]:
    """Text of a size, in the user's code: code may decide by it, so that the size is fixed."""

    @functools.wraps(original)
    def text(size: Any) -> str:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") == "logging":
            frame = frame.f_back
        file = frame.f_code.co_filename if frame is not None else _PACKAGE
        if found.is_over or file.startswith(_PACKAGE) or not _is_code(file):
            return original(size)
        return str(number(size))

    return text


def _is_free(*expressions: sympy.Basic) -> bool:
    return any(expression.free_symbols for expression in expressions)


def _asker(frame: FrameType | None) -> tuple[str, SourceLine | None, bool]:
    """The file that asks, the innermost line of the user's code, and: is it about strides?"""
    asker, is_layout = "", None
    while frame is not None:
        file = frame.f_code.co_filename
        own = file.removeprefix(_TORCH) if file.startswith(_TORCH) else ""
        if not (own.startswith(_ARITHMETIC) or file.startswith(_PACKAGE)):
            asker = asker or file
            if is_layout is None:
                is_layout = _concerns_layout(frame.f_code, own)
            if not own:
                return asker, (file, frame.f_lineno), bool(is_layout)
        frame = frame.f_back
    return asker, None, bool(is_layout)


def _concerns_layout(code: CodeType, own: str) -> bool | None:
    """Does this function find strides? None if its caller decides."""
    if not own.startswith(("/_prims_common/", "/_refs/", "/_prims/")):
        return False if own else None
    if code.co_name == "infer_size":
        return False
    return True if any(word in code.co_name for word in _LAYOUT) else None


def _is_code(file: str) -> bool:
    own = file.removeprefix(_TORCH)
    return own == file or own.startswith(_FOR_MODELS)
