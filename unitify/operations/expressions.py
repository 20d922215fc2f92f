"""The language of rule files: text → monomials, formulas (sympy) and sample arguments.

Text from a file is never evaluated: Python's own parser reads it, a whitelist of syntax nodes
lets through arithmetic on known names, and objects are built from what is left.

Names in a formula:

- ``mean(x)``, ``rms(x)``, ``var(x)`` and ``square(x)`` (mean of x²) of an operand ``x``, or of
  ``grad``, the gradient that arrives at the output
- ``average(e)``: the mean of ``e`` over the dimensions that the operation normalises (the row's
  ``over``); ``average(e, -2)`` over that dimension; ``largest(e)`` the maximum in their place;
  ``over.numel``, how many elements that is
- ``participation(var, n)``: E[Σ p²] of a softmax over n logits of variance ``var``;
  ``jacobian(var, n)``: E[Σ (∂p/∂x)²] over all pairs
- the row's ``dims``; numeric arguments of the operation by name
- ``sqrt``, ``exp``, ``log``, ``erf``, ``minimum``, ``maximum``
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from fractions import Fraction
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
_FUNCTIONS: dict[str, Any] = {
    **MOMENTS,
    "average": AVERAGE,
    "largest": LARGEST,
    "participation": PARTICIPATION,
    "jacobian": JACOBIAN,
    "sqrt": sympy.sqrt,
    "exp": sympy.exp,
    "log": sympy.log,
    "erf": sympy.erf,
    "minimum": sympy.Min,
    "maximum": sympy.Max,
}
_MAX_LENGTH = 1000
_MAX_EXPONENT = 64


class ExpressionError(ValueError):
    """The text is not an expression of the language."""


def _parse(text: str) -> ast.expr:
    if len(text) > _MAX_LENGTH:
        raise ExpressionError(f"longer than {_MAX_LENGTH} characters")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r} is not an expression ({error})") from None


def parse_monomial(text: str) -> dict[str, Fraction | str]:
    """``"bias / (input * weight)"`` → ``{"bias": 1, "input": -1, "weight": -1}``.

    Raises ``ExpressionError`` for anything but products, quotients and powers of names.
    """
    exponents: dict[str, Fraction | str] = {}

    def walk(node: ast.expr, sign: int) -> None:
        match node:
            case ast.Constant(value=1):
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

    walk(_parse(text), 1)
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
                return _BINARY[type(operator)](build(left), power)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                if name not in _FUNCTIONS:
                    raise ExpressionError(f"{text!r} calls {name!r}, which is not in the language")
                return _FUNCTIONS[name](*(build(a) for a in arguments))
        raise ExpressionError(f"{ast.unparse(node)!r} in {text!r} is not in the language")

    return build(_parse(text))


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
                return functions[name](*(build(a) for a in arguments), **named)
        raise ExpressionError(f"{ast.unparse(node)!r} in {text!r} is not a sample argument")

    return build(_parse(text))
