"""The class of a transformed module: a subclass of the model's class, too.

``isinstance`` and methods of the model's class work on the module. A method runs on the module, so
a call in it (``self(...)``) runs the graph. Attributes are the model's. Where unitify and the model
both use a name (``plan``), the module has unitify's. The model's own methods find the model's: they
run on a view of the model that passes calls to the module.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Hashable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn


def class_of(kind: type, model: nn.Module, own: Collection[str]) -> type:
    """A class for one module: a subclass of ``kind`` and of the class of ``model``.

    ``own``: the names that ``kind`` adds to a module of torch.
    """
    of = type(model)
    if issubclass(kind, of) or isinstance(model, torch.jit.ScriptModule):
        return type(of.__name__, (kind,), {"__module__": of.__module__, "__new__": _plain(kind)})
    # Some format ``self.__dict__``, where a module has no attributes of the model.
    names = [n for n in dict.fromkeys(_names(of)) if n not in own and n != "extra_repr"]
    has_names_of_ours = any(n in own for n in (*_names(of), *vars(model), *model._modules))
    namespace: dict[str, Any] = {n: _OfModel(of, n, has_names_of_ours) for n in names}
    # A property of the model's class would hide an attribute of the module.
    namespace |= dict.fromkeys(n for n in _names(of) if n in own and not hasattr(kind, n))
    namespace |= {"__module__": of.__module__, "__qualname__": of.__qualname__}
    # ``type(self)(...)`` must make a model: a slice of a ``Sequential`` does that.
    namespace["__new__"] = _plain(of)
    made: type = type(of)(of.__name__, (kind, of), namespace)  # type: ignore[misc]
    return made


def _plain(of: type) -> Any:
    def new(_cls: type, *args: Any, **kwargs: Any) -> Any:
        return of(*args, **kwargs)

    return new


def _names(of: type) -> Iterator[str]:
    """The names that a class of modules adds to ``nn.Module``."""
    for base in of.__mro__:
        if base not in nn.Module.__mro__:
            yield from (n for n in vars(base) if not hasattr(nn.Module, n) and n[:2] != "__")


class _OfModel:
    """A name of the model's class: the model's own attribute, else that of the class."""

    def __init__(self, of: type, name: str, has_names_of_ours: bool) -> None:
        self.of, self.name, self.has_names_of_ours = of, name, has_names_of_ours

    def __get__(self, module: Any, kind: type | None = None) -> Any:
        tree = None if module is None else module._tree
        if self.name in getattr(tree, "__dict__", ()):
            return vars(tree)[self.name]
        for base in self.of.__mro__:
            if self.name in base.__dict__:
                held = base.__dict__[self.name]
                break
        get = getattr(type(held), "__get__", None)
        if get is None:
            return held
        if module is not None and keeps_values(held):
            module = tree
        elif module is not None and self.has_names_of_ours:
            module = _view(module)
        return get(held, module, kind)

    def __set__(self, module: Any, value: Any) -> None:
        setattr(module._tree, self.name, value)

    def __delete__(self, module: Any) -> None:
        delattr(module._tree, self.name)


def keeps_values(held: Any) -> bool:
    """Is it a slot, or a descriptor that keeps values elsewhere? A property's code says where."""
    return hasattr(type(held), "__set__") and not isinstance(held, property)


class _View:
    """A view of the model of ``module``, with its class and attributes. A call runs ``module``."""

    module: Any

    def __init_subclass__(cls) -> None:
        """Do not call the hook of the model's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.module.training = self.training  # type: ignore[attr-defined]
        return self.module(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def _view(module: Any) -> Any:
    of = type(module._tree)
    namespace = {"module": module, "__module__": of.__module__, "__qualname__": of.__qualname__}
    view = object.__new__(type(of)(of.__name__, (_View, of), namespace))  # type: ignore[misc]
    view.__dict__ = vars(module._tree)
    return view


@lru_cache(maxsize=4096)
def runs_as(now: Hashable, kind: Hashable) -> bool:
    """Does a class have the members of ``kind``, apart from those of ``nn.Module``?

    The class of a wrapped block (``fully_shard``) does.
    """
    if now is kind:
        return True
    assert isinstance(now, type)
    assert isinstance(kind, type)
    own = {name for base in kind.__mro__ if base not in nn.Module.__mro__ for name in vars(base)}
    return issubclass(now, kind) and all(
        inspect.getattr_static(now, name) is inspect.getattr_static(kind, name)
        for name in {*own, "forward"}
        if not name.startswith("__")
    )


def properties_of(kind: type, before: type) -> dict[str, Any]:
    """The properties that ``kind`` adds to its base ``before``.

    To parametrize a tensor, torch puts a module into a new class, with a property for the tensor.
    """
    added = kind.__mro__[: kind.__mro__.index(before)]
    held = (item for of in reversed(added) for item in vars(of).items())
    return {name: value for name, value in held if isinstance(value, property)}


def follow_class(tree: nn.Module, added: Mapping[str, Any]) -> None:
    """Give the class of ``tree`` the properties ``added``, and none of earlier calls."""
    own = type(tree)
    base: type = vars(own).get(_FOLLOWS, own)
    if {n: v for n, v in vars(own).items() if own is not base and isinstance(v, property)} != added:
        made = type(base.__name__, (base,), {**added, _FOLLOWS: base}) if added else base
        tree.__class__ = made


#: Where a class that follows another holds the model's.
_FOLLOWS = "_unitify_follows"
