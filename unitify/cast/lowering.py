"""From a matmul with casts around it to one operator on FP8 operands.

    cast(x) @ cast(w)ᵀ + bias, its gradient cast   ─►   unitify::fp8_linear(x, w, bias)

Takes a graph with casts, and gives another graph; ``Choice.runs`` says what runs how. A
contraction stays simulated where the operator does not compute the same; the choice says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

import unitify.runtime  # noqa: F401  (registers unitify::fp8_linear)
from unitify.arrival import unwatched
from unitify.capture.whole import Capture
from unitify.cast.mean_subtraction import CENTER, UNCENTER
from unitify.diagnostics import NotInFP8, UnitifyError
from unitify.formats.table import FORMATS
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.rulebook.rule_table import Matmul, Rule, RuleTable
from unitify.rulebook.schema import named_arguments, operation_name, set_argument
from unitify.runtime.scaled_mm import multiplies

_CAST = torch.ops.unitify.cast.default
_FP8_LINEAR = torch.ops.unitify.fp8_linear.default


def lower(
    graph: fx.Graph,
    choices: Sequence[Choice],
    recipe: Recipe,
    rules: RuleTable,
    device: torch.device,
) -> tuple[fx.Graph, tuple[Choice, ...]]:
    """``graph`` with FP8 operators where they compute the same, and the choices with ``runs``.

    ``device``: where the weights are. It decides what ``runs`` says; at run time the operator looks
    at its own operands. Raises ``UnitifyError`` (U404) where the recipe requires FP8 and a
    contraction cannot run in it.
    """
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    nodes = {node.name: node for node in made.nodes}
    noted: list[Choice] = []
    refused: list[NotInFP8] = []
    for choice in choices:
        if not (choice.is_contraction and choice.is_cast and recipe.values == "contractions"):
            noted.append(choice)
            continue
        why = "the recipe says simulate" if recipe.simulate is True else ""
        node, rule = nodes[choice.value], rules[choice.operation]
        why = why or objection(node, rule, choice, recipe)
        if not why:
            assert rule.matmul is not None
            _replace(made, node, rule.matmul, choice)
            why = _missing(device, choice)
        if why and recipe.simulate is False:
            refused.append(NotInFP8(value=choice.value, operation=choice.operation, problem=why))
        noted.append(replace(choice, runs="simulated" if why else "fp8", runs_because=why))
    if refused:
        raise UnitifyError(*refused)
    return made, tuple(noted)


def without_codes(graph: fx.Graph, capture: Capture, rules: RuleTable) -> fx.Graph:
    """``graph`` with the operations of ``capture`` in place of the FP8 operators.

    Their operands are not cast, and no mean is subtracted. The result can be compared with the
    capture, node by node.
    """
    originals = {node.name: node for node in capture.graph.nodes}
    graph = unwatched(graph)
    made = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            made.output(fx.node.map_arg(node.args[0], lambda n: placed[n]))
            continue
        if node.target in (CENTER, UNCENTER):
            placed[node] = placed[node.args[0]]  # type: ignore[index]
            continue
        original = originals.get(node.name)
        rule = rules.get(operation_name(original)) if original is not None else None
        if node.target is not _FP8_LINEAR:
            placed[node] = copied = made.node_copy(node, lambda n: placed[n])
            if original is not None and rule is not None and rule.pads and _is_padded(node):
                set_argument(copied, rule.pads, named_arguments(original)[rule.pads])
            continue
        assert original is not None
        assert rule is not None
        matmul = rule.matmul
        assert matmul is not None
        left, right, bias = node.args[:3]
        if not matmul.is_transposed:
            (right,) = right.all_input_nodes
        given = {matmul.left: left, matmul.right: right, matmul.bias or "": bias}
        operands = {name: placed[n] for name, n in given.items() if n is not None}
        # Numbers stay as they are; operands are put in by name below.
        anyone = dict.fromkeys(original.all_input_nodes, placed[left])
        put = made.node_copy(original, anyone.__getitem__)
        for name, operand in operands.items():
            set_argument(put, name, operand)
        placed[node] = put
    made.eliminate_dead_code()
    return made


def _is_padded(contraction: fx.Node) -> bool:
    """Does the mean subtraction also pad the operand of the contraction?"""
    casts = (n.args[0] for n in contraction.all_input_nodes if n.target is _CAST)
    return any(isinstance(n, fx.Node) and n.target is CENTER and n.args[2] for n in casts)


def objection(node: fx.Node, rule: Rule, choice: Choice, recipe: Recipe) -> str:
    """Why the operator does not compute the same as the casts; "" where it does."""
    if recipe.scaling == "amax":
        return "its scales are found at run time"
    if not choice.backward:
        return "only what a cache keeps is cast"
    if any(FORMATS[name].bits != 8 or FORMATS[name].dtype is None for name in _formats(choice)):
        return f"{choice.forward} and {choice.backward} are not both FP8"
    if not recipe.saturate:
        return "FP8 operands saturate"
    matmul = rule.matmul
    if rule.inside:
        return f"{rule.inside} stay in the model's own type"
    if matmul is None:
        return "it is not one matmul of two matrices"
    arguments = named_arguments(node)
    left, right = (_tensor(arguments[name]) for name in (matmul.left, matmul.right))
    if left.dim() < 2 or right.dim() != 2:
        return f"its operands have {left.dim()} and {right.dim()} dimensions"
    bias = arguments[matmul.bias] if matmul.bias is not None else None
    if bias is not None and _tensor(bias).shape != node.meta["val"].shape[-1:]:
        return "what it adds is not a bias"
    if any(arguments.get(name, 1) != 1 for name in ("alpha", "beta")):
        return "it multiplies by alpha or beta"
    if left.dtype == torch.float64:
        return "the model is in float64"
    return ""


def _missing(device: torch.device, choice: Choice) -> str:
    forward, backward = (FORMATS[name].dtype for name in _formats(choice))
    assert forward is not None
    assert backward is not None
    if multiplies(device, forward, forward) and multiplies(device, backward, forward):
        return ""
    return f"{device} has no matmul of {choice.forward} by {choice.backward}"


def _formats(choice: Choice) -> tuple[str, str]:
    return choice.forward, choice.backward


def _tensor(argument: Any) -> Any:
    return argument.meta["val"]


def _replace(graph: fx.Graph, node: fx.Node, matmul: Matmul, choice: Choice) -> None:
    """Replace ``node`` and the casts around it by the operator, under the same name."""
    arguments = named_arguments(node)
    (of_gradient,) = node.users
    left, right = arguments[matmul.left], arguments[matmul.right]
    bias = arguments[matmul.bias] if matmul.bias is not None else None
    exponents = {
        "x_exponent": left.args[3],
        "weight_exponent": right.args[3],
        "gradient_exponent": of_gradient.args[4],
    }
    with graph.inserting_before(node):
        weight = right.args[0]
        if not matmul.is_transposed:
            weight = graph.call_function(torch.ops.aten.t.default, (weight,))
            weight.meta = {**right.meta, "val": right.meta["val"].t()}
        operands = (left.args[0], weight, bias)
        made = graph.call_function(
            _FP8_LINEAR, (*operands, choice.forward, choice.backward), exponents
        )
    made.meta = dict(node.meta)
    name = node.name
    of_gradient.replace_all_uses_with(made)
    for old in (of_gradient, node, left, right):
        if not old.users:
            graph.erase_node(old)
    # Not by ``_rename``: a graph never gives the name of an erased node again.
    made.name = name
