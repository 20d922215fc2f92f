"""The two sides of a comparison, and one call of a side: with a backward pass, as in training.

A model and its module run in the same way: from the same state and under the same seeds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.compiled import eagerly
from unitify.capture.digests import gradients_as_digests
from unitify.capture.equality import same
from unitify.capture.example import Inputs, copied, mapped
from unitify.capture.execution import LossFunction, backward_starts, unchanged
from unitify.capture.exporting import without_cache
from unitify.capture.identity import first_of
from unitify.capture.reachable import Location
from unitify.capture.state import State, held_twice, modes_kept
from unitify.module.unit_scaled import UnitScaledModule
from unitify.rulebook.dimensions import is_floating
from unitify.verifying.calls import Call
from unitify.verifying.results import Results, attached, note_output, place_of, value_of

#: Begins the names of attributes that only a transformed module has: constants of recordings.
_OURS = "captured_"
#: The name of a result where there is no backward pass.
BACKWARD = "backward pass"


@dataclass(frozen=True)
class Asking:
    """Positions of the input tensors that require a gradient; None where nothing has gradients."""

    positions: frozenset[int] | None


class Runnable:
    """A model or its module: what is called, and its states before the calls of both modes."""

    def __init__(self, target: nn.Module, copies: Mapping[Tensor, Tensor] | None = None) -> None:
        """``copies``: of parameters, where they exist already."""
        self.target, self.tree = target, tree_of(target)
        self._copies = copies
        self._states: dict[bool, State] = {}

    def state(self, training: bool) -> State:
        """The state in a mode, in which the modules are. Every run restores it."""
        if training not in self._states:
            self._states[training] = State.of(self.tree, weights=True, copies=self._copies)
        return self._states[training]


def sides_of(model: nn.Module, module: nn.Module) -> tuple[Runnable, Runnable]:
    """Both sides of a comparison. The parameters of each serve as copies of the other's."""
    pairs = held_twice(tree_of(model), tree_of(module))
    return Runnable(model, dict(pairs)), Runnable(module, {b: a for a, b in pairs})


def run(
    side: Runnable,
    call: Call,
    asking: Asking,
    loss_fn: LossFunction | None,
    seed: int = 0,
    earlier: Sequence[Results] = (),
    *,
    keeps_gradients: bool = False,
) -> list[Results]:
    """The results of each call in a row. Restores the side afterwards.

    ``earlier``: the results of the other side, whose tensors stand for the same ones of these.
    ``keeps_gradients``: of parameters, too; else their digests are the results.

    Raises whatever the side raises.
    """
    target, tree = side.target, side.tree
    found: list[Results] = []
    spec = pytree.tree_structure(call.inputs)
    given = [_leaves(call, asking) for _ in range(call.times)]
    inputs = [pytree.tree_unflatten(leaves, spec) for leaves in given]
    with (
        without_cache(tree),
        _in_mode(target, tree, call.training),
        _untrained(tree),
        _uncompiled(target),
        unchanged(tree, seed, wholly=True, state=side.state(call.training)) as first,
    ):
        for i, leaves in enumerate(given):
            before = State.of(tree, numbers=False) if i else first
            states = before, State.of(nn.Module(), inputs[i])
            same_call = next(iter(earlier[i : i + 1] or found[-1:]), Results())
            made = _run_once(target, tree, states, inputs[i], asking, loss_fn, keeps_gradients)
            made.named |= _of_inputs(leaves, call)
            made.left |= _written(tree, states, first)
            made.share(same_call)
            found.append(made)
    return found


def _written(tree: nn.Module, states: Sequence[State], first: State) -> dict[Location, Any]:
    """Entries of plain tensors and arrays that were written into.

    Buffers are results of their own, and a module that writes into its parameters stays Python.
    """
    apart = {id(tensor) for tensor in (*tree.buffers(), *tree.parameters())}
    held = {id(h.holder): h for state in (*states, first) for h in state.contents}
    written = {name for name, h in held.items() if name not in apart and h.is_changed()}
    return {
        place_of(cell, key): value_of(value)
        for state in states
        for cell, _ in (state.entries if written else ())
        for key, value in cell.entries().items()
        if id(value) in written
    }


def _leaves(call: Call, asking: Asking) -> list[Any]:
    """Flat inputs of one call: each tensor in its own memory, some with ``requires_grad``."""
    given: list[Any] = mapped(copied, pytree.tree_leaves(call.inputs))
    for i, first in enumerate(first_of(given)):
        if isinstance(given[i], Tensor) and i == first:
            given[i].requires_grad_(i in (asking.positions or ()))
    return given


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
            found |= {f"input {i}: {name}": held for name, held in attached(x)}
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
    side: Runnable,
    call: Call,
    loss_fn: LossFunction | None,
    seed: int = 0,
    *,
    keeps_gradients: bool = False,
) -> tuple[Asking, list[Results]]:
    """The inputs that can require a gradient, and the results of ``side`` with these.

    Usually every floating input can. An input that is written into cannot, nor can the target of a
    loss without that derivative. Then those that require one by themselves are tried, then none.
    Raises what the side raises where it does not run at all.
    """
    leaves = pytree.tree_leaves(call.inputs)
    floating = frozenset(i for i, x in enumerate(leaves) if is_floating(x))
    own = frozenset(i for i in floating if leaves[i].requires_grad)
    for positions in dict.fromkeys((floating, own, None)) if call.has_gradients else (None,):
        asking = Asking(positions)
        try:
            found = run(side, call, asking, loss_fn, seed, keeps_gradients=keeps_gradients)
            return asking, found
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
    states: tuple[State, ...],
    inputs: Inputs,
    asking: Asking,
    loss_fn: LossFunction | None,
    keeps_gradients: bool,
) -> Results:
    args, kwargs = inputs
    held = _trained(tree, states)
    for tensor in held.values():
        tensor.grad = None
    found = Results(entries=tuple(entry for state in states for entry in state.entries))
    scales = target.plan.parameters if isinstance(target, UnitScaledModule) else {}

    def true(name: str, gradient: Tensor) -> Tensor:
        factor = scales[name].bwd if name in scales else 1.0
        return gradient * factor if factor != 1.0 else gradient

    with torch.set_grad_enabled(asking.positions is not None):
        output = target(*args, **kwargs)
        note_output(found, output)
        starts = _starts(found, states, output, loss_fn)
        # What the forward pass left in ``.grad`` stays there: its code may read it.
        with gradients_as_digests({} if keeps_gradients else held, true) as read:
            _differentiate(found, starts)
    for name, tensor in held.items():
        if name in read:
            found.named[f"gradient of {name}"] = read[name]
        if tensor.grad is not None:
            more = f"gradient of {name}" + (" afterwards" if name in read else "")
            found.named[more] = true(name, tensor.grad.detach())
            tensor.grad = None
    for name, buffer in tree.named_buffers():
        if not name.rpartition(".")[2].startswith(_OURS):
            found.named[f"buffer {name}"] = buffer.detach().clone()
    return found


def _starts(
    found: Results, states: Sequence[State], output: Any, loss_fn: LossFunction | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors where gradients start: in the output, and among those that the call kept.

    Of several losses in the output each starts one.
    """
    starts, gradients = backward_starts(output, loss_fn)
    returned = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
    if loss_fn is None and starts and not starts[0].dim():
        more = (t for t in returned if t.requires_grad and not t.dim())
        starts = list({id(t): t for t in (*starts, *more)}.values())
        gradients = [torch.ones_like(t) for t in starts]
    known = {id(t) for t in returned}
    for change in (c for state in states for c in state.changes()):
        found.left[place_of(change.cell, change.key)] = value_of(change.after)
        for leaf in pytree.tree_leaves(change.after):
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None and id(leaf) not in known:
                known.add(id(leaf))
                starts.append(leaf)
                gradients.append(torch.ones_like(leaf))
    return starts, gradients


def _differentiate(found: Results, starts: tuple[list[Tensor], list[Tensor]]) -> None:
    """A backward pass as in training: Python code may add to ``.grad`` itself."""
    if not starts[0] or not torch.is_grad_enabled():
        return
    try:
        torch.autograd.backward(*starts)
    except Exception as error:
        # Some models refuse a backward pass in evaluation. Then the module has to refuse it, too.
        found.named[BACKWARD] = f"refused: {type(error).__name__}"


def _trained(tree: nn.Module, states: Sequence[State]) -> dict[str, Tensor]:
    """Every tensor that accumulates a gradient, by name: parameters, and other kept tensors."""
    named: dict[str, Tensor] = dict(tree.named_parameters())
    known = {id(tensor) for tensor in named.values()}
    for cell, entries in (entry for state in states for entry in state.entries):
        if cell.location.root == "the inputs":
            continue
        for key, value in entries.items():
            is_leaf = isinstance(value, Tensor) and value.requires_grad and value.is_leaf
            if is_leaf and id(value) not in known and not str(key).startswith(_OURS):
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
