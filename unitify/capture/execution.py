"""Runs a captured graph, and starts its backward pass where the user's training would.

Measurement and verification share this file. Neither touches ``.grad`` or keeps a change of a
buffer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unitify.capture.equality import is_plain
from unitify.capture.example import copied
from unitify.capture.state import State, restored, seeded
from unitify.capture.whole import Capture
from unitify.diagnostics import LossUnusable, UnitifyError
from unitify.rulebook.dimensions import is_floating

Observer = Callable[[fx.Node, Any], None]
LossFunction = Callable[[Any], Tensor]
Result = TypeVar("Result")


class GraphRunner(fx.Interpreter):
    """Runs a graph. A function gives its attributes; ``observe`` sees every result."""

    def __init__(
        self, graph: fx.Graph, attribute: Callable[[str], Any], observe: Observer | None = None
    ) -> None:
        super().__init__(nn.Module(), graph=graph)
        self.attribute = attribute
        self.observe = observe

    def run(self, *inputs: Any, **options: Any) -> Any:
        """Run from flat inputs to flat results."""
        return super().run(*inputs, **{"enable_io_processing": False, **options})

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The attribute as the capture names it."""
        return self.attribute(str(target))

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, then show its result."""
        result = super().run_node(n)
        if self.observe is not None and n.op != "output":
            self.observe(n, result)
        return result


def run_captured(
    capture: Capture,
    inputs: list[Any],
    parameters: dict[str, Tensor] | None = None,
    observe: Observer | None = None,
) -> Any:
    """The original's outputs, from its captured graph on flat ``inputs``.

    ``parameters`` replace the model's own, by first name.
    """
    held = parameters or {}

    def attribute(target: str) -> Any:
        return held[target] if target in held else capture.attribute(target)

    runner = GraphRunner(capture.graph, attribute, observe)
    return capture.call.unflatten(runner.run(*inputs))


def leaf_parameters(capture: Capture) -> dict[str, Tensor]:
    """Fresh leaves that share the memory of the parameters, by first name."""
    found = dict(capture.model.named_parameters(remove_duplicate=True))
    return {name: found[name].detach().requires_grad_(found[name].requires_grad) for name in found}


def backward_starts(output: Any, loss_fn: LossFunction | None) -> tuple[list[Tensor], list[Tensor]]:
    """Where gradients start, and the gradients there.

    They start at ``loss_fn(output)``, else at a scalar in the output (a loss). Else every floating
    output that depends on a parameter or input gets a unit gradient: normal numbers, the same each
    time. (The sum of an output is no substitute for a loss: behind a norm or a softmax its gradient
    is zero.)
    """
    if loss_fn is not None:
        loss = loss_of(loss_fn, output)
        return ([loss], [torch.ones_like(loss)]) if loss.requires_grad else ([], [])
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    scalars = [t for t in tensors if t.dim() == 0]
    if scalars:
        return scalars[:1], [torch.ones_like(scalars[0])]
    generator = torch.Generator().manual_seed(0)
    return tensors, [_normal_like(t, generator) for t in tensors]


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
    return drawn.to(device=tensor.device, dtype=tensor.dtype)


def differentiate(output: Any, targets: Iterable[Any], loss_fn: LossFunction | None) -> None:
    """A backward pass to those of ``targets`` that require a gradient."""
    starts, gradients = backward_starts(output, loss_fn)
    wanted = [x for x in targets if isinstance(x, Tensor) and x.requires_grad]
    if not (starts and wanted):
        return
    # After all other hooks: nobody needs the gradients any more, which take as much memory as the
    # weights.
    handles = [x.register_hook(_without_memory) for x in wanted]
    try:
        torch.autograd.grad(starts, wanted, gradients, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()


def _without_memory(gradient: Tensor) -> Tensor:
    return gradient.new_zeros(()).expand_as(gradient) if is_plain(gradient) else gradient


def loss_of(loss_fn: LossFunction, output: Any) -> Tensor:
    """The user's loss of an output.

    Raises ``UnitifyError`` (U012) unless it is one number that depends on the output.
    """
    try:
        loss = loss_fn(output)
    except Exception as error:
        raise UnitifyError(LossUnusable(problem=f"{type(error).__name__}: {error}")) from error
    problem = _problem_of(loss, output)
    if problem:
        raise UnitifyError(LossUnusable(problem=problem))
    return loss


def _problem_of(loss: Any, output: Any) -> str:
    if not isinstance(loss, Tensor):
        return f"it returns {type(loss).__name__}"
    if loss.numel() != 1:
        return f"it returns {loss.numel()} numbers"
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
    if not loss.requires_grad and any(t.requires_grad for t in tensors):
        return "what it returns does not depend on the output"
    return ""


def on_gradient(tensor: Tensor, action: Callable[[Tensor], None]) -> Any:
    """Call ``action`` with the gradient of ``tensor`` when it arrives; the handle of the hook.

    A hook on one of several results of an operation, such as ``chunk``, is called without a
    gradient where the others alone have one.
    """

    def hook(gradient: Tensor | None) -> None:
        if gradient is not None:
            action(gradient)

    return tensor.register_hook(hook)


def on_leaves(run: Callable[[list[Any]], Result], inputs: list[Any]) -> Result:
    """``run`` on fresh leaves for ``inputs``, of which as many as possible require a gradient.

    Usually every floating input does. An input that is written into cannot, nor can the target of a
    loss without that derivative. Some operations have no derivative at all.
    """
    try:
        return run(_leaves(inputs))
    except RuntimeError as error:
        floating = [i for i, x in enumerate(inputs) if is_floating(x)]
        asking = [i for i in floating if _succeeds(run, _leaves(inputs, [i]))]
        try:
            return run(_leaves(inputs, asking))
        except RuntimeError:
            with torch.no_grad(), contextlib.suppress(RuntimeError):
                return run(_leaves(inputs, ()))
        raise error


def _leaves(inputs: list[Any], asking: Collection[int] | None = None) -> list[Any]:
    """Inputs of one run; those at ``asking`` (None: all) take gradients, others may be written."""
    return [
        x.detach().requires_grad_()
        if is_floating(x) and (asking is None or i in asking)
        else x.detach().clone() if isinstance(x, Tensor) else copied(x)
        for i, x in enumerate(inputs)
    ]  # fmt: skip


def detached(value: Any) -> Any:
    """``value`` without its history, where it is a tensor."""
    return value.detach() if isinstance(value, Tensor) else value


def _succeeds(run: Callable[[list[Any]], Any], inputs: list[Any]) -> bool:
    try:
        run(inputs)
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def unchanged(
    model: nn.Module, seed: int = 0, wholly: bool = False, state: State | None = None
) -> Iterator[State]:
    """Inside, a fixed seed holds. Restores random state and all that ``model`` holds afterwards.

    Yields the state before, which may be given. ``wholly``: also parameters and their ``.grad``
    (none inside), which Python code may change. A captured graph does not change them.
    """
    gradients = [(p, p.grad) for p in model.parameters()] if wholly else []
    state = State.of(model, weights=wholly) if state is None else state
    with restored(state), seeded(model, seed):
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield state
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
