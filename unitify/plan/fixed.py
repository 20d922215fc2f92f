"""Which values of a graph stay at true scale.

They are inputs, buffers, constants of the recording, true parameters, and values computed from true
parameters alone. The operation that takes such a value carries the factor in its result. A rescaled
copy of a weight would be kept for the backward pass: a second model in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from unitify.capture.composite import is_summed_unseen
from unitify.capture.whole import Capture
from unitify.rulebook.laws import holds_tensors


def parameter_of(capture: Capture, node: fx.Node) -> str | None:
    """The first name of the parameter that a ``get_attr`` node holds; None for other nodes."""
    if node.op != "get_attr":
        return None
    return capture.aliases.get(str(node.target))


def has_no_gradient(capture: Capture, node: fx.Node) -> bool:
    """Does the node hold a buffer or constant, which never has a gradient?"""
    if node.op != "get_attr" or node.target in capture.aliases:
        return False
    held = capture.attribute(str(node.target))
    return isinstance(held, Tensor) and not held.requires_grad


def is_true_parameter(capture: Capture, node: fx.Node) -> bool:
    """Does the node hold a parameter that stays at true scale?"""
    return parameter_of(capture, node) in capture.true_parameters


def true_weights(capture: Capture) -> frozenset[fx.Node]:
    """True parameters, and values computed from these alone, in as wide a format.

    Sizes of inputs may take part. A value in a narrow format (float16) is not among them.
    """
    given: set[fx.Node] = set()
    made: set[fx.Node] = set()
    for node in capture.graph.nodes:
        if node.op == "placeholder" or any(n in given for n in node.all_input_nodes):
            given |= {node} if _is_tensor(node) else set()
        elif is_true_parameter(capture, node):
            made.add(node)
        elif any(n in made for n in node.all_input_nodes) and _is_wide(node):
            made |= {node} if node.op != "output" else set()
    return frozenset(made)


def _is_wide(node: fx.Node) -> bool:
    """Has the number format of a value, or of each value of several, the exponents of float32?"""
    held = node.meta.get("val")
    tensors = held if isinstance(held, list | tuple) else [held]
    return all(
        torch.finfo(t.dtype).smallest_normal <= torch.finfo(torch.float32).smallest_normal
        for t in tensors
        if isinstance(t, Tensor) and t.is_floating_point()
    )


def fixed_values(capture: Capture) -> frozenset[fx.Node]:
    """The nodes of ``capture.graph`` whose values must stay at true scale.

    A value that an operation returns unchanged (``to`` with the same type) stays true with it: the
    two are one tensor, and its gradients are summed with those from outside the graph. A value to
    which a recurrent layer adds a gradient beside others stays true (``capture.composite``). In a
    float16 model every value stays true: its own values and gradients underflow for some losses,
    and numbers below the normal range round differently at another scale.
    """
    if any(parameter.dtype == torch.float16 for parameter in capture.model.parameters()):
        return frozenset(capture.graph.nodes)
    fixed = set(true_weights(capture))
    for node in capture.graph.nodes:
        is_outside = node.op == "placeholder" or (
            node.op == "get_attr" and parameter_of(capture, node) is None
        )
        is_same = is_handed_back(node) and node.args[0] in fixed
        if is_outside or is_same or is_summed_unseen(node):
            fixed.add(node)
    return frozenset(fixed)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor) or holds_tensors(node)


def is_handed_back(node: fx.Node) -> bool:
    """Is the result its first operand, unchanged?"""
    source = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.target, OpOverload):
        return False
    if not any(result.alias_info is not None for result in node.target._schema.returns):
        return False
    held, given = node.meta.get("val"), source.meta.get("val")
    if not isinstance(held, Tensor) or not isinstance(given, Tensor):
        return False
    # As text: comparing two free sizes would decide that they are equal.
    same_layout = str((held.shape, held.stride())) == str((given.shape, given.stride()))
    return same_layout and held.untyped_storage()._cdata == given.untyped_storage()._cdata
