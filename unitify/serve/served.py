"""Folds a model's casts into the scales of a checkpoint: linear layers, and their scales.

A runtime runs its own code of the model, on codes and their scales. So a cast folds if it is that
of an operand of a linear layer, by a constant power of two. Any other cast of a recipe is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from unitify.capture.aliases import storages
from unitify.cast.joint import fused
from unitify.diagnostics import NotFolded, UnitifyError
from unitify.estimates import Rms
from unitify.formats.band import band_of
from unitify.formats.table import FORMATS
from unitify.part import Part
from unitify.plan.fixed import parameter_of
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.rulebook.contractions import Operand, contraction_operands
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name
from unitify.serve.experts import stacked

#: Decibels that a scale may lose against the best one; a window is as wide as this allows.
_LOST = 0.1


@dataclass(frozen=True)
class Served:
    """A linear layer in a format of few bits; value = scale × stored value.

    ``layer``: the module's path. ``weight``, ``input``: scales, powers of two. ``group``: layers of
    one module with the same input; runtimes fuse these into one matmul, with one scale.
    ``rms``: the estimated RMS of the input; 0 without one.
    """

    layer: str
    format: str
    weight: float
    input: float
    group: str
    rms: float = 0.0

    @property
    def window(self) -> tuple[float, float]:
        """The least and the greatest scale of the input that loses less than a tenth of a decibel.

        The input is assumed to be normal, with its estimated RMS.
        """
        band = band_of(FORMATS[self.format], _LOST)
        return self.rms / band.high, self.rms / band.low

    @property
    def margin(self) -> float:
        """Octaves between the scale of the input and the nearer end of its window; < 0 outside."""
        if not self.rms:
            return 0.0
        low, high = self.window
        return min(math.log2(self.input / low), math.log2(high / self.input))


def served(
    model: nn.Module, parts: Iterable[Part], recipe: Recipe, rules: RuleTable
) -> tuple[Served, ...]:
    """The layers whose contractions are cast, in order of their paths.

    Raises ``UnitifyError`` (U614) with every cast that does not fold.
    """
    if recipe.scaling != "unit" or recipe.values != "contractions" or not recipe.saturate:
        problem = "it has casts other than saturating ones of operands at constant scales"
        raise UnitifyError(NotFolded(value=recipe.name, problem=problem))
    found: list[Served] = []
    wrong: list[NotFolded] = []
    kept: dict[str, str] = {}
    experts = stacked(model)
    for part in parts:
        contractions = {c.value: c for c in part.choices if c.is_contraction}
        for node in part.capture.graph.nodes:
            choice = contractions.get(node.name)
            if choice is None or (choice.forward in ("", "bf16", "fp16") and not choice.has_weight):
                continue
            rule = rules[operation_name(node)]
            if rule.cached and not choice.backward:
                # Only keys and values are cast; ``kv_cache`` has their scales.
                continue
            operands = contraction_operands(rule, node)
            layers, problem = _layers(model, part, operands, choice, experts)
            if choice.forward in ("", "bf16", "fp16"):
                kept.update({fused(layer, operands[0][2]): layer for layer in layers})
            elif problem:
                wrong.append(NotFolded(value=(*layers, choice.value)[0], problem=problem))
            else:
                found += [_served(layer, operands, choice, part) for layer in layers]
    found = _once(found)
    if not (found or wrong):
        wrong.append(NotFolded(value=recipe.name, problem="no linear layer is cast"))
    for group in {each.group for each in found} & kept.keys():
        layer = next(each.layer for each in found if each.group == group)
        problem = f"{kept[group]}, which has the same input, is not cast"
        wrong.append(NotFolded(value=layer, problem=problem))
    if wrong:
        raise UnitifyError(*wrong)
    _check_joint(found)
    return tuple(found)


def _layers(
    model: nn.Module,
    part: Part,
    operands: Sequence[Operand],
    choice: Choice,
    experts: Mapping[str, tuple[str, ...]],
) -> tuple[tuple[str, ...], str]:
    """The linear layers of a contraction, and why its casts do not fold; one may be empty.

    There are several where the model holds the weights of ``experts`` as one tensor.
    """
    weight = _held(operands[1][2]) if len(operands) == 2 else None
    if weight is None:
        return (), "it is not a contraction with a weight of the model"
    first, aliases = parameter_of(part.capture, weight), part.capture.aliases
    names = [f"{part.path}.{n}".strip(".") for n, of in aliases.items() if of == first]
    for name in names:
        layers = _linear(model, name) or experts.get(name, ())
        if layers:
            break
    else:
        return (), f"{part.path}.{weight.target} is not the weight of a linear layer".lstrip(".")
    if choice.mean:
        return layers, "its operand is cast around a mean (center = 'none' folds)"
    others = [other for other in names if other != name]
    if others or len(weight.users) > 1:
        return layers, f"its weight is also {', '.join(others) or 'used elsewhere'}"
    return layers, ""


def _linear(model: nn.Module, parameter: str) -> tuple[str, ...]:
    """The linear layer whose weight this is; empty where there is none."""
    layer, _, name = parameter.rpartition(".")
    try:
        is_linear = name == "weight" and isinstance(model.get_submodule(layer), nn.Linear)
    except AttributeError:
        return ()
    return (layer,) if is_linear else ()


def _held(node: fx.Node) -> fx.Node | None:
    """The ``get_attr`` node whose tensor this is, or of which alone it is a view."""
    held = node
    while held.op == "call_function" and len(held.all_input_nodes) == len(held.users) == 1:
        held = held.all_input_nodes[0]
    return held if held.op == "get_attr" and storages(held) == storages(node) else None


def _served(layer: str, operands: Sequence[Operand], choice: Choice, part: Part) -> Served:
    scales = {cast.place[1]: math.ldexp(1.0, part.exponent(cast)) for cast in choice.casts}
    input, weight = (scales[name] for name, _, _ in operands)
    operand = operands[0][2]
    rms = part.estimates.get(operand.name, Rms()).forward or 0.0
    return Served(layer, choice.forward, weight, input, fused(layer, operand), rms)


def _once(found: Iterable[Served]) -> list[Served]:
    """One entry for each layer; one with several calls has the largest scales."""
    layers: dict[str, Served] = {}
    for each in found:
        other = layers.get(each.layer, each)
        most = max(each.weight, other.weight), max(each.input, other.input)
        layers[each.layer] = replace(other, weight=most[0], input=most[1])
    return [layers[layer] for layer in sorted(layers)]


def _check_joint(found: Iterable[Served]) -> None:
    """Raises ``UnitifyError`` (U614) where layers of a group have different scales."""
    first: dict[str, Served] = {}
    wrong = []
    for each in found:
        other = first.setdefault(each.group, each)
        if (each.weight, each.input) != (other.weight, other.input):
            problem = f"{other.layer}, which has the same input, has other scales (joint = true)"
            wrong.append(NotFolded(value=each.layer, problem=problem))
    if wrong:
        raise UnitifyError(*wrong)
