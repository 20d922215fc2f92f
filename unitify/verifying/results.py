"""Everything that a call does: its results, its gradients, and the state that it leaves.

A model and its module run in the same way: from the same state, under the same seeds, with a call
and a backward pass as in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.compiled import eagerly
from unitify.capture.effects import INPUTS
from unitify.capture.equality import same
from unitify.capture.example import Inputs, copied
from unitify.capture.execution import LossFunction, backward_starts, is_floating, unchanged
from unitify.capture.exporting import without_cache
from unitify.capture.reachable import MISSING, PLAIN, Cell, Location, cells
from unitify.capture.state import State, modes_kept
from unitify.capture.watching import HOOKS
from unitify.module.unit_scaled import UnitScaledModule
from unitify.verifying.calls import Call

#: Attributes that only a transformed module has: constants of recordings, and the code of islands.
_OURS = ("captured_", "forward")


@dataclass
class Results:
    """Results of one call by name. ``left``: every entry of the model's containers afterwards;
    ``changed``: those that the call changed.
    """

    named: dict[str, Any] = field(default_factory=dict)
    left: dict[Location, Any] = field(default_factory=dict)
    changed: set[Location] = field(default_factory=set)

    def share(self, other: Results) -> None:
        """Hold the tensors of ``other`` where they are bitwise the same, in place of its own."""
        pairs: Any = (self.named, other.named), (self.left, other.left)
        for own, theirs in pairs:
            for name, value in own.items():
                held = theirs.get(name)
                if isinstance(value, Tensor) and isinstance(held, Tensor) and same(value, held):
                    own[name] = held


@dataclass(frozen=True)
class Asking:
    """Positions of the input tensors that require a gradient; None where nothing has gradients."""

    positions: frozenset[int] | None


def run(
    target: nn.Module,
    call: Call,
    asking: Asking,
    loss_fn: LossFunction | None,
    seed: int = 0,
    twin: nn.Module | None = None,
    earlier: Sequence[Results] = (),
) -> list[Results]:
    """The results of each call in a row. Restores ``target`` afterwards.

    ``twin``: that of ``State.of``. ``earlier``: the results of the other side, whose tensors stand
    for the same ones of these: gradients take the memory of one model, not of four.

    Raises whatever ``target`` raises.
    """
    tree, other = tree_of(target), None if twin is None else tree_of(twin)
    found: list[Results] = []
    spec = pytree.tree_structure(call.inputs)
    given = [_leaves(call, asking) for _ in range(call.times)]
    inputs = [pytree.tree_unflatten(leaves, spec) for leaves in given]
    with (
        without_cache(tree),
        _in_mode(target, tree, call.training),
        _untrained(tree),
        _uncompiled(target),
        unchanged(tree, seed, wholly=True, inputs=inputs[0], twin=other) as state,
    ):
        for i, leaves in enumerate(given):
            before = State.of(tree, inputs[i], numbers=False) if i else state
            made = _run_once(target, tree, before, inputs[i], asking, loss_fn)
            made.named |= _of_inputs(leaves, call)
            for same_call in earlier[i : i + 1] or found[-1:]:
                made.share(same_call)
            found.append(made)
    return found


def _leaves(call: Call, asking: Asking) -> list[Any]:
    """Flat inputs of one call: each tensor in its own memory, some with ``requires_grad``."""
    return [
        x.detach().clone().requires_grad_(i in (asking.positions or ()))
        if isinstance(x, Tensor)
        else copied(x)
        for i, x in enumerate(pytree.tree_leaves(call.inputs))
    ]


def _of_inputs(leaves: list[Any], call: Call) -> dict[str, Any]:
    """What a call leaves at its flat inputs: gradients, new numbers, and attributes."""
    found: dict[str, Any] = {}
    pairs = zip(leaves, pytree.tree_leaves(call.inputs), strict=True)
    for i, (x, given) in enumerate(pairs):
        if isinstance(x, Tensor) and x.grad is not None:
            found[f"gradient of input {i}"] = x.grad
        elif isinstance(x, Tensor) and not same(x.detach(), given.detach()):
            found[f"input {i} as the call leaves it"] = x.detach().clone()
        if isinstance(x, Tensor):
            found |= {f"input {i}: {name}": held for name, held in _attached(x)}
    return found


@contextlib.contextmanager
def _untrained(tree: nn.Module) -> Iterator[None]:
    """Inside, no hook runs after a gradient is accumulated; some would step an optimizer."""
    held = [(hooks, dict(hooks)) for p in tree.parameters() if (hooks := _hooks_behind(p))]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in held:
            hooks.update(own)


def _hooks_behind(parameter: Tensor) -> dict[int, Any]:
    hooks: dict[int, Any] | None = parameter._post_accumulate_grad_hooks
    return hooks or {}


def _uncompiled(target: nn.Module) -> Any:
    """Inside, a model or module that was compiled in place runs eagerly.

    A module that ``torch.compile`` returned is compared as it is compiled.
    """
    if not any(isinstance(m, UnitScaledModule) for m in target.modules()):
        return eagerly(target)
    if target._compiled_call_impl is not None:
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def asking_of(
    model: nn.Module,
    call: Call,
    loss_fn: LossFunction | None,
    seed: int = 0,
    twin: nn.Module | None = None,
) -> tuple[Asking, list[Results]]:
    """The inputs that can require a gradient, and the model's results with these.

    Usually every floating input can. An input that is written into cannot, nor can the target of a
    loss without that derivative. Then those that require one by themselves are tried, then none.
    Raises what the model raises where it does not run at all.
    """
    leaves = pytree.tree_leaves(call.inputs)
    floating = frozenset(i for i, x in enumerate(leaves) if is_floating(x))
    own = frozenset(i for i in floating if leaves[i].requires_grad)
    for positions in dict.fromkeys((floating, own, None)) if call.has_gradients else (None,):
        asking = Asking(positions)
        try:
            return asking, run(model, call, asking, loss_fn, seed, twin)
        except RuntimeError:
            if positions is None:
                raise
    raise AssertionError


def tree_of(target: nn.Module) -> nn.Module:
    """The modules of a model, or of the model inside a transformed module."""
    return target._tree if isinstance(target, UnitScaledModule) else target


def _run_once(
    target: nn.Module,
    tree: nn.Module,
    state: State,
    inputs: Inputs,
    asking: Asking,
    loss_fn: LossFunction | None,
) -> Results:
    args, kwargs = inputs
    held = _trained(tree, state)
    for tensor in held.values():
        tensor.grad = None
    found = Results()
    with torch.set_grad_enabled(asking.positions is not None):
        output = target(*args, **kwargs)
        _note_output(found, output)
        starts = _starts(found, state, output, loss_fn)
        _differentiate(found, starts)
    scales = target.plan.parameters if isinstance(target, UnitScaledModule) else {}
    for name, tensor in held.items():
        if tensor.grad is not None:
            factor = scales[name].bwd if name in scales else 1.0
            gradient = tensor.grad * factor if factor != 1.0 else tensor.grad
            found.named[f"gradient of {name}"] = gradient.detach()
            tensor.grad = None
    for name, buffer in tree.named_buffers():
        if not name.rpartition(".")[2].startswith(_OURS[0]):
            found.named[f"buffer {name}"] = buffer.detach().clone()
    return found


def _note_output(found: Results, output: Any) -> None:
    leaves, spec = pytree.tree_flatten(output)
    found.named["structure of the output"] = str(spec)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            found.named[f"output {i}"] = leaf.detach().clone()
            found.named |= {f"output {i}: {name}": x for name, x in _attached(leaf)}
        elif isinstance(leaf, PLAIN) or not hasattr(leaf, "__dict__"):
            found.named[f"output {i}"] = leaf
        else:
            found.named |= {f"output {i}: {name}": x for name, x in _held_by(leaf)}


def _attached(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """What Python code has set on a tensor under a public name."""
    if not isinstance(tensor, nn.Parameter):
        for name, held in vars(tensor).items():
            if not name.startswith("_") and isinstance(held, (Tensor, *PLAIN)):
                yield name, held.detach().clone() if isinstance(held, Tensor) else held


def _held_by(value: Any) -> Iterator[tuple[str, Any]]:
    """The class of an object, such as a cache, and the tensors and numbers that it holds."""
    yield "class", type(value)
    for cell in cells(nn.Module(), value):
        for key, held in cell.entries().items() if cell.location.root == INPUTS else ():
            if isinstance(held, (Tensor, *PLAIN)):
                held = held.detach().clone() if isinstance(held, Tensor) else held
                yield str(cell.location.then(cell.step, key)), held


def _starts(
    found: Results, state: State, output: Any, loss_fn: LossFunction | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors where gradients start: in the output, and among those that the call kept."""
    starts, gradients = backward_starts(output, loss_fn)
    known = {id(t) for t in pytree.tree_leaves(output) if isinstance(t, Tensor)}
    for change in state.changes():
        found.changed.add(_place(change.cell, change.key))
        for leaf in pytree.tree_leaves(change.after):
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None and id(leaf) not in known:
                known.add(id(leaf))
                starts.append(leaf)
                gradients.append(torch.ones_like(leaf))
    for cell, _ in state.entries:
        for key, value in cell.entries().items():
            found.left[_place(cell, key)] = _value(value)
    return starts, gradients


def _place(cell: Cell, key: Any) -> Location:
    """The place of an entry, the same in a model and its copy.

    Hooks have numbers that no two modules share: their order counts.
    """
    steps = cell.location.steps
    if steps and steps[-1].key in HOOKS:
        keys = list(cell.entries())
        key = keys.index(key) if key in keys else key
    return cell.location.then(cell.step, key if isinstance(key, PLAIN) else repr(key))


def _value(value: Any) -> Any:
    """The comparable content of an entry: numbers and tensors, in their structure."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        # A later call may write into it, but not into a parameter.
        return value.detach() if isinstance(value, nn.Parameter) else value.detach().clone()
    if isinstance(value, dict | list | tuple) and not value:
        return [f"an empty {type(value).__name__}"]
    leaves, spec = pytree.tree_flatten(value)
    if not all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves):
        return type(value).__name__
    return [str(spec), *(leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves)]


def _differentiate(found: Results, starts: tuple[list[Tensor], list[Tensor]]) -> None:
    """A backward pass as in training: Python code may add to ``.grad`` itself."""
    if not starts[0] or not torch.is_grad_enabled():
        return
    try:
        torch.autograd.backward(*starts)
    except Exception as error:
        # Some models refuse a backward pass in evaluation. Then the module has to refuse it, too.
        found.named["backward pass"] = f"refused: {type(error).__name__}"


def _trained(tree: nn.Module, state: State) -> dict[str, Tensor]:
    """Every tensor that accumulates a gradient, by name: parameters, and other kept tensors."""
    named: dict[str, Tensor] = dict(tree.named_parameters())
    known = {id(tensor) for tensor in named.values()}
    for cell, entries in state.entries:
        if cell.location.root == "the inputs":
            continue
        for key, value in entries.items():
            is_leaf = isinstance(value, Tensor) and value.requires_grad and value.is_leaf
            if is_leaf and id(value) not in known and not str(key).startswith(_OURS[0]):
                known.add(id(value))
                named[str(cell.location.then(cell.step, key))] = value
    return named


@contextlib.contextmanager
def _in_mode(target: nn.Module, tree: nn.Module, training: bool) -> Iterator[None]:
    """Inside, ``target`` is in a mode. Submodules that mix modes keep theirs."""
    with modes_kept(target, tree):
        if target.training != training:
            target.train(training)
        yield


def named(results: list[Results]) -> dict[str, Any]:
    """The results of calls in a row, by name; names of the second call say so."""
    return {
        (f"{name}, call {i + 1}" if i else name): value
        for i, one in enumerate(results)
        for name, value in one.named.items()
    }


def left(mine: list[Results], theirs: list[Results]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of both runs that either run changed."""
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        for place in sorted(a.changed | b.changed, key=str):
            name = f"{place} as the call leaves it{f', call {i + 1}' if i else ''}"
            for one, held in zip((a, b), found, strict=True):
                _spread(held, name, one.left.get(place, MISSING))
    return found


def _spread(held: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, list):
        held.update({f"{name} ({i})": item for i, item in enumerate(value)})
    elif value is not MISSING:
        held[name] = value


def results_of(mine: list[Results], theirs: list[Results]) -> tuple[Mapping[str, Any], ...]:
    """The results of two runs, by name, ready to compare."""
    ours, others = left(mine, theirs)
    return {**named(mine), **ours}, {**named(theirs), **others}
