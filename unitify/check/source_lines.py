"""The line of the user's own file that made a tensor.

A value has the line that called its operation: the last frame inside the repository. A gradient has
the line of the operation that takes the value, because its backward pass makes the gradient. A
parameter has the line that creates or initializes it. A tensor that no line of the repository made
(a model of an installed library) has the line of the entry: the factory, or the config.
"""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from torch import fx, nn

from unitify.capture.islands import path_of
from unitify.capture.source import Frame, Repository, frames_of, module_of
from unitify.naming import joined

#: Functions that use parameters and do not make them.
_CALLS = {"forward", "__call__"}


class SourceLines:
    """Finds source lines of a model in a repository. ``entry``: the line that names the target."""

    def __init__(self, repository: Repository, model: nn.Module, entry: Frame | None) -> None:
        self.repository = repository
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.entry = self._own_entry(entry)

    def of_node(self, part: str, node: fx.Node) -> Frame:
        """The line that made a value."""
        if node.op == "get_attr":
            path, _, own = joined(path_of(part), str(node.target)).rpartition(".")
            return self._assigned(path, own) or self._used(node) or self.entry
        if node.op == "placeholder":
            return self.of_module(path_of(part))
        own_frame = self.repository.last(frames_of(node))
        return own_frame or self.of_module(joined(path_of(part), module_of(node)[0]))

    def of_gradient(self, part: str, node: fx.Node, consumer: fx.Node | None) -> Frame:
        """The line that made the gradient of a value: that of the operation taking the value."""
        if consumer is None or consumer.op == "output":
            return self.of_node(part, node)
        return self.of_node(part, consumer)

    def of_module(self, path: str) -> Frame:
        """The line of a module's ``forward``, or of what replaced it."""
        module = self.modules.get(path)
        if module is not None:
            forward = getattr(type(module), "forward", None)
            found = self._definition(forward)
            if found is not None:
                return found
        above, _, own = path.rpartition(".")
        return (self._assigned(above, own) if own else None) or self.entry

    def of_frames(self, frames: Iterable[tuple[str, int]], path: str) -> Frame:
        """The last line of a call stack in the repository, else that of the module at ``path``."""
        stack = [Frame(f, line, linecache.getline(f, line).strip()) for f, line in frames]
        return self.repository.last(stack) or self.of_module(path)

    def _own_entry(self, entry: Frame | None) -> Frame:
        if entry is not None:
            relative = self.repository.relative(entry.file)
            if relative is not None:
                return Frame(relative, entry.line)
        for name in ("pyproject.toml", "setup.cfg", "README.md"):
            if self.repository.holds(self.repository.root / name):
                return Frame(name, 1)
        return Frame("", 0)

    def _used(self, node: fx.Node) -> Frame | None:
        found = (self.repository.last(frames_of(user)) for user in node.users)
        return next((frame for frame in found if frame is not None), None)

    def _definition(self, function: object) -> Frame | None:
        code = getattr(inspect.unwrap(function), "__code__", None)  # type: ignore[arg-type]
        if code is None:
            return None
        relative = self.repository.relative(code.co_filename)
        return _with_text(code.co_filename, relative, code.co_firstlineno)

    def _assigned(self, path: str, own: str) -> Frame | None:
        """The line that made ``own`` of the module at ``path``, in its class or outside."""
        chain = [own]
        while True:
            module = self.modules.get(path)
            for cls in type(module).__mro__ if module is not None else ():
                found = self._in_class(cls, tuple(chain))
                if found is not None:
                    return found
            if not path:
                return None
            path, _, last = path.rpartition(".")
            chain.insert(0, last)

    def _in_class(self, cls: type, chain: tuple[str, ...]) -> Frame | None:
        try:
            file = inspect.getsourcefile(cls)
        except (TypeError, OSError):
            return None
        relative = self.repository.relative(file) if file else None
        if relative is None or file is None:
            return None
        line = _line_of(Path(file), cls.__qualname__, chain)
        return _with_text(file, relative, line) if line else None


def _with_text(file: str, relative: str | None, line: int) -> Frame | None:
    if relative is None:
        return None
    return Frame(relative, line, linecache.getline(file, line).strip())


@cache
def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


@cache
def _line_of(path: Path, qualname: str, chain: tuple[str, ...]) -> int:
    """The line of a class body that makes ``self.a.b…``; 0 for none.

    It is the last statement outside ``forward`` that assigns the whole chain, else the one that
    assigns its first name.
    """
    tree = _parsed(path)
    body = _class(tree, qualname.split(".")) if tree is not None else None
    if body is None:
        return 0
    filled = assigned = 0
    for statement in _statements(body):
        if chain in _filled(statement):
            filled = statement.lineno
        if chain[:1] in _filled(statement) and not assigned:
            assigned = statement.lineno
    return filled or assigned


def _class(tree: ast.Module, names: list[str]) -> ast.ClassDef | None:
    """The class with this qualified name, also inside classes and functions."""
    found: ast.AST | None = tree
    for name in names:
        if name != "<locals>" and found is not None:
            inner = (n for n in ast.walk(found) if getattr(n, "name", None) == name)
            found = next(inner, None)
    return found if isinstance(found, ast.ClassDef) else None


def _statements(body: ast.ClassDef) -> Iterator[ast.stmt]:
    for function in body.body:
        if isinstance(function, ast.FunctionDef) and function.name not in _CALLS:
            yield from (n for n in ast.walk(function) if isinstance(n, ast.stmt))


def _filled(statement: ast.stmt) -> set[tuple[str, ...]]:
    """Chains of names after ``self`` that a statement assigns or passes to a call."""
    found: set[tuple[str, ...]] = set()
    if isinstance(statement, ast.Assign):
        roots: list[ast.AST] = list(statement.targets)
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        roots = [statement.target]
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        roots = [statement.value]
        found |= _registered(statement.value)
    else:
        return found
    for root in roots:
        for node in ast.walk(root):
            chain = _chain(node)
            found |= {chain[:end] for end in range(1, len(chain) + 1)}
    return found


def _registered(call: ast.Call) -> set[tuple[str, ...]]:
    """``self.register_parameter("name", …)`` and the like."""
    is_own = isinstance(call.func, ast.Attribute) and _chain(call.func)[-1:] and call.args
    first = call.args[0] if is_own else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        return {(first.value,)}
    return set()


def _chain(node: ast.AST) -> tuple[str, ...]:
    """``("a", "b")`` of ``self.a.b``; () for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return tuple(names) if isinstance(node, ast.Name) and node.id == "self" else ()
