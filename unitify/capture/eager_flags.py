"""Lets a model run eagerly while it is recorded.

During an export ``torch.compiler.is_compiling()`` is True, and libraries then take another branch:
an explicit mask in place of ``is_causal``, other kernels, other rounding. Inside ``as_in_eager``
the model's code gets False. torch's own machinery, which needs the truth to record, still gets it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
import torch._subclasses
import torch.compiler

#: The questions, each with the flag that answers it.
_FLAGS = {"is_compiling": "_is_compiling_flag", "is_exporting": "_is_exporting_flag"}


@contextlib.contextmanager
def as_in_eager() -> Iterator[None]:
    """Inside, code outside torch's machinery does not see that it is being recorded.

    Neither torch's flags nor the class of its tensors show it.
    """
    compiler = torch.compiler
    held = {flag: getattr(compiler, flag) for flag in _FLAGS.values()}
    asked = {question: getattr(compiler, question) for question in _FLAGS}
    for question, flag in _FLAGS.items():
        # Code that imported the function reads the flag; code that looks it up gets this answer.
        setattr(compiler, flag, False)
        setattr(compiler, question, _answer(held[flag], asked[question]))
    own = torch._subclasses.__class__
    torch._subclasses.__class__ = _Subclasses
    try:
        yield
    finally:
        torch._subclasses.__class__ = own
        for flag, value in held.items():
            setattr(compiler, flag, value)
        for question, function in asked.items():
            setattr(compiler, question, function)


@contextlib.contextmanager
def as_compiled() -> Iterator[None]:
    """Inside, code takes the branches that it takes while it is compiled; nothing is compiled."""
    held = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = held


class _Nothing:
    """A class of no tensor at all."""


class _Subclasses(ModuleType):
    """``torch._subclasses`` whose fake tensors torch alone finds."""

    @property
    def FakeTensor(self) -> type:
        name = str(sys._getframe(1).f_globals.get("__name__", ""))
        return self.__dict__["FakeTensor"] if _is_machinery(name) else _Nothing

    @FakeTensor.setter
    def FakeTensor(self, value: type) -> None:
        self.__dict__["FakeTensor"] = value


def _answer(recorded: bool, original: Callable[[], bool]) -> Callable[[], bool]:
    def answer() -> bool:
        name = str(sys._getframe(1).f_globals.get("__name__", ""))
        return recorded if _is_machinery(name) else original()

    return answer


def _is_machinery(module: str) -> bool:
    """Is this file torch's machinery, other than the layers and functions that models use?"""
    return module.partition(".")[0] == "torch" and not module.startswith("torch.nn.")
