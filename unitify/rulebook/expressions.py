"""The language of rule files: text → monomials, formulas (sympy) and sample arguments.

Text from a file is never evaluated. Python's own parser reads it, a whitelist of syntax nodes
admits arithmetic on known names, and objects are built from these.

Names in a formula:

- ``mean(x)``, ``rms(x)``, ``var(x)`` and ``square(x)`` (mean of x²) of an operand ``x``, or of
  ``grad``, the gradient that arrives at the output
- ``average(e)``: the mean of ``e`` over the dimensions that the operation normalizes (the row's
  ``over``); ``average(e, -2)``: over dimension -2; ``largest(e)``: the maximum over ``over``;
  ``over.numel``: the number of elements in ``over``
- ``participation(var, n)``: E[Σ p²] of a softmax over n logits of variance ``var``;
  ``jacobian(var, n)``: E[Σ (∂p/∂x)²] over all pairs
- the row's ``dims``; numeric arguments of the operation by name
- ``sqrt``, ``exp``, ``log``, ``erf``, ``minimum``, ``maximum``

Binary ``+``, ``-``, ``*`` and ``/`` have spaces around them, and a sign has none after it. Without
this rule, ``n - 2`` that lost its ``n`` would still be a formula.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy

#: log2-exponents by operand name; a string exponent names a numeric argument.
Monomial = Mapping[str, "Fraction | str"]

#: Moments of an operand: undefined functions, so that a formula prints as it was written.
MOMENTS = {name: sympy.Function(name) for name in ("mean", "rms", "var", "square")}
AVERAGE = sympy.Function("average")
LARGEST = sympy.Function("largest")
PARTICIPATION = sympy.Function("participation")
JACOBIAN = sympy.Function("jacobian")
#: sympy compares each argument of a minimum with each other.
_MAX_COMPARED = 16
#: Name → the function, and the least and greatest number of its arguments.
_FUNCTIONS: dict[str, tuple[Any, int, float]] = {
    **{name: (function, 1, 1) for name, function in MOMENTS.items()},
    "average": (AVERAGE, 1, math.inf),
    "largest": (LARGEST, 1, 1),
    "participation": (PARTICIPATION, 2, 2),
    "jacobian": (JACOBIAN, 2, 2),
    "sqrt": (sympy.sqrt, 1, 1),
    "exp": (sympy.exp, 1, 1),
    "log": (sympy.log, 1, 1),
    "erf": (sympy.erf, 1, 1),
    "minimum": (sympy.Min, 2, _MAX_COMPARED),
    "maximum": (sympy.Max, 2, _MAX_COMPARED),
}
#: Names in ``dims`` that a function counts (``analysis.counts``), and the arguments that it needs.
COUNTED: Mapping[str, tuple[str, ...]] = {
    "attended_keys": ("query", "key", "attn_mask", "is_causal"),
    "overlaps": ("stride", "padding"),
    "pixels": ("stride", "padding"),
    "positions": ("stride", "padding"),
    "targets": ("target", "ignore_index"),
}
_MAX_LENGTH = 1000
_MAX_EXPONENT = 64
#: Bits of a number; the argument of ``exp``; and the operations of a formula.
_MAX_BITS, _MAX_POWER, _MAX_OPERATIONS = 1024, 700, 10_000


class ExpressionError(ValueError):
    """The text is not an expression of the language."""


def _parse(text: str) -> ast.expr:
    if not isinstance(text, str):
        raise ExpressionError(f"{text!r} is not an expression in quotes")
    if len(text) > _MAX_LENGTH or not text.isascii():
        raise ExpressionError(f"longer than {_MAX_LENGTH} characters, or not in ASCII")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r} is not an expression ({error})") from None


_SPACED = re.compile(r"[()]* [-+*/] [()]*")


def _parse_spaced(text: str) -> ast.expr:
    """The parsed text. Its spaces must show where a name is missing."""
    tree = _parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.UnaryOp) and text[node.col_offset + 1].isspace():
            raise ExpressionError(f"a sign in {text!r} has a space after it")
        if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Pow):
            between = text[node.left.end_col_offset : node.right.col_offset]
            has_names = any(isinstance(n, ast.Name) for n in ast.walk(node))
            if has_names and not _SPACED.fullmatch(between):
                raise ExpressionError(f"{between.strip('()')!r} in {text!r} has no spaces around")
    return tree


def parse_monomial(text: str) -> dict[str, Fraction | str]:
    """``"bias / (input * weight)"`` → ``{"bias": 1, "input": -1, "weight": -1}``.

    Raises ``ExpressionError`` for anything but products, quotients and powers of names.
    """
    exponents: dict[str, Fraction | str] = {}

    def walk(node: ast.expr, sign: int) -> None:
        match node:
            case ast.Constant(value=int(number)) if number == 1 and number is not True:
                return
            case ast.Name(id=name):
                if isinstance(exponents.get(name), str):
                    raise ExpressionError(f"{name} has two exponents in {text!r}")
                exponents[name] = Fraction(exponents.get(name, 0)) + sign
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                walk(left, sign)
                walk(right, sign)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                walk(left, sign)
                walk(right, -sign)
            case ast.BinOp(left=ast.Name(id=name), op=ast.Pow(), right=ast.Name(id=argument)):
                if sign < 0 or name in exponents:
                    raise ExpressionError(f"{name} has two exponents in {text!r}")
                exponents[name] = argument
            case ast.BinOp(left=ast.Name(id=name), op=ast.Pow(), right=power):
                exponents[name] = Fraction(exponents.get(name, 0)) + sign * _fraction(power, text)
            case _:
                raise ExpressionError(f"{text!r} is not a product of powers of names")

    try:
        walk(_parse_spaced(text), 1)
    except RecursionError:
        raise ExpressionError(f"{text!r} is nested too deeply") from None
    if any(isinstance(p, Fraction) and abs(p) > _MAX_EXPONENT for p in exponents.values()):
        raise ExpressionError(f"an exponent of {text!r} exceeds {_MAX_EXPONENT}")
    return {name: power for name, power in exponents.items() if power != 0}


def _fraction(node: ast.expr, text: str) -> Fraction:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_fraction(operand, text)
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=int(number))) if number:
            return _fraction(left, text) / number
    raise ExpressionError(f"the exponent in {text!r} is not a fraction")


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}


@lru_cache(maxsize=4096)
def parse_formula(text: str) -> sympy.Expr:
    """A formula as a sympy expression; names become symbols, ``x.shape[i]`` and ``x.numel`` too.

    Raises ``ExpressionError`` for syntax outside the language.
    """

    def build(node: ast.expr) -> sympy.Expr:
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int(number)):
                return sympy.Integer(number)
            case ast.Constant(value=float(number)):
                return sympy.Float(number)
            case ast.Name(id=name):
                return sympy.Symbol(name)
            case ast.Attribute() | ast.Subscript():
                return sympy.Symbol(_path(node, text))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -build(operand)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
                power = build(right)
                if isinstance(operator, ast.Pow) and (
                    power.is_Number and abs(power) > _MAX_EXPONENT
                ):
                    raise ExpressionError(f"an exponent of {text!r} exceeds {_MAX_EXPONENT}")
                base = build(left)
                is_number = isinstance(operator, ast.Pow) and base.is_Rational and power.is_Integer
                if is_number and _bits(base) * abs(int(power)) > _MAX_BITS:
                    raise ExpressionError(f"a number of {text!r} exceeds {_MAX_BITS} bits")
                return _BINARY[type(operator)](base, power)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return _called(name, arguments, [build(a) for a in arguments], text)
        raise ExpressionError(f"{ast.unparse(node)!r} in {text!r} is not in the language")

    try:
        found = build(_parse_spaced(text))
    except (ArithmeticError, RecursionError, TypeError) as error:
        raise ExpressionError(f"{text!r} has no value ({error})") from None
    check_bounded(found)
    if found.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
        raise ExpressionError(f"{text!r} has no value")
    return found


def check_bounded(formula: sympy.Expr) -> None:
    """Raises ``ExpressionError`` for a formula of too many operations, or too long numbers."""
    for count, part in enumerate(sympy.preorder_traversal(formula)):
        is_long = part.is_Rational and _bits(part) > _MAX_BITS
        if is_long or count > _MAX_OPERATIONS:
            raise ExpressionError(f"a formula has more than {_MAX_OPERATIONS} operations")


def _bits(number: sympy.Rational) -> int:
    return int(number.p).bit_length() + int(number.q).bit_length()


def _called(
    name: str, written: list[ast.expr], arguments: list[sympy.Expr], text: str
) -> sympy.Expr:
    if name not in _FUNCTIONS:
        raise ExpressionError(f"{text!r} calls {name!r}, which is not in the language")
    function, least, most = _FUNCTIONS[name]
    if not least <= len(arguments) <= most:
        raise ExpressionError(f"{name} in {text!r} has {len(arguments)} arguments")
    if name in MOMENTS and not isinstance(written[0], ast.Name):
        raise ExpressionError(f"{name} in {text!r} takes the name of an operand")
    if function is AVERAGE and not all(a.is_Integer and abs(a) < 64 for a in arguments[1:]):
        raise ExpressionError(f"a dimension of {name} in {text!r} is not an integer")
    if function is sympy.exp and arguments[0].is_number and not abs(arguments[0]) < _MAX_POWER:
        raise ExpressionError(f"exp in {text!r} exceeds the numbers")
    found = function(*arguments)
    if function in (sympy.Min, sympy.Max) and len(found.args) > _MAX_COMPARED:
        raise ExpressionError(f"{name} in {text!r} compares more than {_MAX_COMPARED} values")
    return found


def _path(node: ast.expr, text: str) -> str:
    """``weight.shape[-1]`` or ``output.numel``, as a symbol's name."""
    match node:
        case ast.Attribute(value=ast.Name(id=name), attr="numel"):
            return f"{name}.numel"
        case ast.Subscript(value=ast.Attribute(value=ast.Name(id=name), attr="shape"), slice=index):
            number = int(_fraction(index, text))
            return f"{name}.shape[{number}]"
        case ast.Attribute(value=ast.Name(id=name), attr="ndim"):
            return f"{name}.ndim"
    raise ExpressionError(f"{ast.unparse(node)!r} in {text!r} is not in the language")


def parse_sample(text: str, functions: Mapping[str, Callable[..., Any]]) -> Any:
    """A sample argument: literals, lists, and calls of ``functions`` on literals.

    Raises ``ExpressionError`` for anything else.
    """

    def build(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.List(elts=items):
                return [build(item) for item in items]
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
                if name not in functions:
                    raise ExpressionError(f"{text!r} calls {name!r}, which is not known")
                named = {k.arg: build(k.value) for k in keywords if k.arg}
                try:
                    return functions[name](*(build(a) for a in arguments), **named)
                except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
                    raise ExpressionError(f"{text!r}: {error}") from None
        raise ExpressionError(f"{ast.unparse(node)!r} in {text!r} is not a sample argument")

    return build(_parse(text))
