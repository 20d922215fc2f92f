"""The tree of a model's modules and tensors, held by two modules at once.

A transformed module has the tree of the original, and attributes of its own. Where the two share a
name (a model may have a submodule ``graph`` or ``plan``) each is found by whom it belongs to: the
graph runs on ``bare``, which has nothing but the tree.
"""

from __future__ import annotations

from torch import nn

_TABLES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


def share_tables(owner: nn.Module, user: nn.Module) -> None:
    """Give ``user`` the very tables of ``owner``: one tree of modules on one set of weights."""
    for table in _TABLES:
        user.__dict__[table] = owner.__dict__[table]


def bare(module: nn.Module) -> nn.Module:
    """A module with the tree of ``module`` and no other attribute than its mode flag."""
    made = nn.Module()
    share_tables(module, made)
    made.training = module.training
    return made
