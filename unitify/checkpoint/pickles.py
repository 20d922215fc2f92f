"""Checks a pickle before it is read: follows its operations, and makes nothing.

torch and the unpicklers of this package admit only classes and functions from a list. Some of these
still take memory or time without bound from a few bytes: ``bytearray(10**12)``, tuples of tuples
whose hash is exponential, a memo with the index 2^31, attributes of a class. These are refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from unitify.documents import MalformedError

#: Values in one tuple, counting those of tuples in it; and tuples inside each other.
_MOST, _DEEPEST = 2**22, 100
#: Bytes of a line, which holds a name or a number.
_LINE = 4096
#: What torch.save writes for tensors. Its other functions make sparse, nested and quantized ones,
#: or reserve memory.
_OF_TORCH = frozenset(
    {
        *(f"torch._utils _rebuild_{name}" for name in (
            "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state",
        )),
        "torch._tensor _rebuild_from_type_v2", "torch.nn.parameter Parameter", "torch Size",
        "torch device", "torch.serialization _get_layout",
    }
)  # fmt: skip
#: A function of these that takes another one of them, and its arguments.
_OF_ANOTHER, _REBUILDS = "torch._tensor _rebuild_from_type_v2", "torch._utils _rebuild_"
#: Functions that are given to torch by default, and take a sequence or a number.
_BUILTINS = frozenset(
    {
        *(f"{module} {name}" for module in ("builtins", "__builtin__")
          for name in ("bytearray", "set", "complex")),
        "collections OrderedDict", "collections Counter",
    }
)  # fmt: skip
_ENCODE = "_codecs encode"
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_CALLS = ("REDUCE", "NEWOBJ")
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")
_GETS, _PUTS = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")
_NEVER = (
    "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER",
    "READONLY_BUFFER",
)  # fmt: skip


class NeedsCodeError(MalformedError):
    """The file can only be read by running code in it, or functions that may do anything."""


@dataclass(frozen=True)
class _Value:
    """A value that a pickle would make. ``name``: of a global, or the function that made it."""

    kind: str
    name: str = ""
    size: int = 1
    depth: int = 1
    items: tuple[_Value, ...] = ()


def check_pickle(file: IO[bytes], is_call_allowed: Callable[[str], bool] | None = None) -> None:
    """Check the next pickle in ``file``, which stands after it then.

    ``is_call_allowed`` takes "module name". Raises ``MalformedError``; ``NeedsCodeError`` for
    other calls.
    """
    try:
        _Reading(is_call_allowed or _is_allowed_by_torch).run(_Bounded(file))
    except MalformedError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise MalformedError(f"not a whole pickle ({type(error).__name__})") from None


def _is_allowed_by_torch(name: str) -> bool:
    """Functions outside of torch are those of the list of torch and of the user."""
    return name in _OF_TORCH or not name.startswith("torch")


class _Bounded:
    """A file of which no more is asked than it has: a read reserves memory for all it asks."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, start = file, file.tell()
        self.size = file.seek(0, 2)
        file.seek(start)

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()))

    def readline(self) -> bytes:
        return self.file.readline(_LINE)

    def tell(self) -> int:
        return self.file.tell()


class _Reading:
    """The stack and the memo of an unpickler, with values that are only described."""

    def __init__(self, is_call_allowed: Callable[[str], bool]) -> None:
        self.is_call_allowed = is_call_allowed
        self.stack: list[_Value] = []
        self.memo: dict[int, _Value] = {}

    def run(self, file: Any) -> None:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name, index = opcode.name, argument if isinstance(argument, int) else -1
            if name in _NEVER:
                raise NeedsCodeError(f"the operation {name}")
            if name in _GETS:
                self.stack.append(self.memo[index])
            elif name in _PUTS or name == "MEMOIZE":
                index = len(self.memo) if name == "MEMOIZE" else index
                if not 0 <= index <= count:
                    raise MalformedError(f"its pickle has a memo of {index} entries")
                self.memo[index] = self.stack[-1]
            elif name == "MARK":
                self.stack.append(_Value("mark"))
            elif name == "POP":
                self.stack.pop()
            elif name == "DUP":
                self.stack.append(self.stack[-1])
            else:
                self._step(opcode, argument)

    def _step(self, opcode: Any, argument: Any) -> None:
        before = opcode.stack_before
        marked = pickletools.markobject in before
        items: list[_Value] = []
        if marked:
            while (value := self.stack.pop()).kind != "mark":
                items.append(value)
            before = before[: before.index(pickletools.markobject)]
        fixed = [self.stack.pop() for _ in before]
        taken = (*reversed(fixed), *reversed(items))
        if any(value.kind == "mark" for value in taken):
            raise MalformedError("its pickle takes a mark for a value")
        if opcode.stack_after:
            self.stack.append(self._made(opcode.name, argument, taken))

    def _made(self, name: str, argument: Any, taken: tuple[_Value, ...]) -> _Value:
        if name == "GLOBAL":
            return _Value("global", str(argument))
        if name == "STACK_GLOBAL":
            return _Value("global", " ".join(value.name for value in taken))
        if name in _TUPLES:
            return _together("tuple", "", taken)
        if name in _CALLS:
            return self._call(*taken)
        if name == "BUILD":
            if taken[0].kind == "global":
                raise MalformedError(f"its pickle changes {taken[0].name}")
            return taken[0]
        if name in _FILLS:
            return taken[0]
        if isinstance(argument, str | bytes):
            return _Value("text", argument if isinstance(argument, str) else "")
        return _Value("tuple" if name == "EMPTY_TUPLE" else "value")

    def _call(self, function: _Value, given: _Value) -> _Value:
        is_named = function.kind == "global" and given.kind == "tuple"
        if not is_named or not self.is_call_allowed(function.name):
            raise _calls(function)
        if function.name == _OF_ANOTHER:
            other = given.items[0]
            if other.kind != "global" or not other.name.startswith(_REBUILDS):
                raise _calls(other)
            self._call(other, given.items[2])
        elif function.name in _BUILTINS:
            is_buffer = function.name.endswith("bytearray")
            for value in given.items:
                # A tensor would be taken for a number, or for a sequence of any length.
                is_bytes = value.kind == "text" or (value.kind, value.name) == ("result", _ENCODE)
                if not is_bytes and (is_buffer or value.kind == "result"):
                    raise _calls(function)
        return _together("result", function.name, (given,))


def _calls(function: _Value) -> NeedsCodeError:
    return NeedsCodeError(f"a call of {function.name.replace(' ', '.') or function.kind}")


def _together(kind: str, name: str, parts: tuple[_Value, ...]) -> _Value:
    size = 1 + sum(part.size for part in parts)
    depth = 1 + max((part.depth for part in parts), default=0)
    if size > _MOST or depth > _DEEPEST:
        raise MalformedError("its pickle has tuples in tuples without bound")
    return _Value(kind, name, size, depth, parts[:8])
