"""The modules of a model, copied: instances of the same classes with tensors of their own.

The tree of a transformed module is such a copy. Code that looks for a class of modules, or for an
attribute, finds in it what the model has.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from unitify.capture.copy_on_write import shared_until_written
from unitify.capture.reachable import cells, namespaces

_TABLES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
#: Objects of these types are shared.
_SHARED = (type, torch.device, torch.dtype)


def copy_of(
    model: nn.Module, memo: dict[int, Any] | None = None, on_write: bool = False
) -> nn.Module:
    """A copy of ``model``, with modules of the same classes, and its own tensors and containers.

    Tied parameters, shared modules and other objects that are held twice are held twice in the
    copy. Objects that cannot be copied are shared. ``memo`` receives the copies by identity.
    ``on_write``: both share the memory of a parameter until one of them writes to it, or until
    ``take_own_memory``. Whoever writes first moves to other memory, so it is for a model that does
    not write into its parameters.
    """
    copies = _Copies(memo or {})
    modules = list(model.modules())
    tensors = (*model.parameters(), *model.buffers())
    copies.own = {id(value) for value in (*modules, *tensors)}
    for module in modules:
        copies[id(module)] = module if _is_opaque(module) else _empty(module)
    storages: dict[Any, torch.UntypedStorage] = {}
    for cell in cells(model):
        for value in cell.entries().values():
            if isinstance(value, Tensor) and id(value) not in copies:
                is_shared = on_write and isinstance(value, nn.Parameter)
                copies[id(value)] = _copy_of_tensor(value, storages, is_shared)
    for module in modules:
        if not _is_opaque(module):
            namespace = {n: _copied(value, copies) for n, value in vars(module).items()}
            copies[id(module)].__dict__.update(namespace)
            for slots in namespaces(module)[1:]:
                for name, value in slots.items():
                    object.__setattr__(copies[id(module)], name, _copied(value, copies))
    if memo is not None:
        memo.update(copies)
    made: nn.Module = copies[id(model)]
    return made


def copy_hooks(owner: nn.Module, made: nn.Module, memo: dict[int, Any], but: nn.Module) -> None:
    """Give ``made`` copies of all hooks of ``owner``, apart from tables that ``but`` has, too.

    ``memo``: the copies by identity, of ``copy_of``; hooks refer to these.
    """
    copies = _Copies(memo)
    copies.own = set(memo)
    for name, table in vars(owner).items():
        if "hook" in name and table is not vars(but).get(name):
            made.__dict__[name] = _copied(table, copies)


class _Copies(dict[int, Any]):
    """Copies by the identity of what was copied. ``own``: the model's modules and tensors."""

    own: set[int]


def _empty(module: nn.Module) -> nn.Module:
    """A new instance of the module's class. A module of a graph has a class, and code, alone."""
    kind = type(module)
    made = kind.__new__(kind)
    if isinstance(module, fx.GraphModule):
        type(made).forward = kind.forward  # type: ignore[method-assign]
    return made


def _is_opaque(module: nn.Module) -> bool:
    """Is it compiled code, which only its own ``deepcopy`` can copy?"""
    return isinstance(module, torch.jit.ScriptModule)


def _copy_of_tensor(
    tensor: Tensor, storages: dict[Any, torch.UntypedStorage], is_shared: bool
) -> Tensor:
    if is_lazy(tensor):
        return copy.deepcopy(tensor)
    made = _copy_of_numbers(tensor.detach(), storages, is_shared)
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        made.__dict__.update(vars(tensor))
    elif tensor.requires_grad:
        made.requires_grad_()
    if tensor.is_leaf and tensor.requires_grad:
        for hook in (tensor._backward_hooks or {}).values():
            made.register_hook(hook)
        for hook in (tensor._post_accumulate_grad_hooks or {}).values():
            made.register_post_accumulate_grad_hook(hook)
    return made


def _copy_of_numbers(
    tensor: Tensor, storages: dict[Any, torch.UntypedStorage], is_shared: bool
) -> Tensor:
    """A copy in the strides of ``tensor``; of tensors that share memory, copies that do."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_meta:
        return tensor.clone()
    held = tensor.untyped_storage()
    if held._cdata not in storages:
        storages[held._cdata] = shared_until_written(held) if is_shared else held.clone()
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    made.set_(storages[held._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
    # Such a view has the memory of another tensor, and a flag.
    made = made.conj() if tensor.is_conj() else made
    return torch._neg_view(made) if tensor.is_neg() else made


def _copied(value: Any, memo: _Copies) -> Any:
    """A copy of an attribute, in which modules and tensors of the model are their copies."""
    if isinstance(value, MethodType):
        # A method of a module of the model becomes that of its copy; any other stays.
        owner = memo.get(id(value.__self__))
        return value if owner is None else MethodType(value.__func__, owner)
    if isinstance(value, FunctionType):
        return _rebound(value, memo)
    if type(value) is weakref.ref and (of := memo.get(id(value()))) is not None:
        return weakref.ref(of)
    if isinstance(value, _SHARED) or type(value).__module__.startswith("unitify."):
        return value
    if type(value) in (dict, OrderedDict, list, set):
        # Entry by entry, so that one that cannot be copied does not keep the others from it.
        made: Any = type(value)()
        if id(value) in memo:
            return memo[id(value)]
        memo[id(value)] = made
        if isinstance(value, dict):
            made.update({k: _copied(v, memo) for k, v in value.items()})
        elif isinstance(value, list):
            made.extend(_copied(v, memo) for v in value)
        else:
            made.update(_copied(v, memo) for v in value)
        return made
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        memo[id(value)] = value
        return value


def _rebound(function: FunctionType, memo: _Copies) -> FunctionType:
    """``function``, whose closure holds the copies of what it holds of the model.

    All else in it stays: a hook appends to the user's own list.
    """
    if id(function) in memo:
        known: FunctionType = memo[id(function)]
        return known
    memo[id(function)] = function
    cells = [(cell, _of_copy(cell, memo)) for cell in function.__closure__ or ()]
    if all(held is None for _, held in cells):
        return function
    closure = tuple(cell if held is None else held for cell, held in cells)
    made = FunctionType(function.__code__, function.__globals__, closure=closure)
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__defaults__"):
        setattr(made, name, getattr(function, name))
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(vars(function))
    memo[id(function)] = made
    return made


def _of_copy(cell: CellType, memo: _Copies) -> CellType | None:
    """A cell with the copy of what ``cell`` holds of the model; None where it holds nothing."""
    try:
        held = cell.cell_contents
    except ValueError:
        return None
    if isinstance(held, FunctionType | MethodType):
        made = _copied(held, memo)
    else:
        made = memo[id(held)] if id(held) in memo.own else held
    return None if made is held else CellType(made)


def share_tables(owner: nn.Module, user: nn.Module) -> None:
    """Give ``user`` the very tables of ``owner``: one tree of modules on one set of weights."""
    for table in _TABLES:
        user.__dict__[table] = owner.__dict__[table]
