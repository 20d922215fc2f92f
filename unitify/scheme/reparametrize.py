"""``reparametrize``: turns a captured model into another true model, that of a unit scaling scheme.

A stage before the pipeline. Weights are drawn again, and every multiplier is a constant of the
graph, like the operations of the model. Later stages treat the result as any captured model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from unitify.capture.execution import run_captured
from unitify.capture.islands import Recording
from unitify.capture.tree import copy_of
from unitify.capture.whole import Capture
from unitify.diagnostics import (
    Diagnostic,
    PatternUnmatched,
    PlanMismatch,
    SchemeNeedsGraph,
    TiedRoles,
    TrainableGains,
    UnitifyError,
)
from unitify.reparametrization import ParameterRole, Reparametrization
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, set_argument
from unitify.scheme.multipliers import multipliers
from unitify.scheme.options import UMuP, UnitScheme
from unitify.scheme.roles import unmatched
from unitify.scheme.sweep import DRAWN

_MUL = torch.ops.aten.mul.Tensor


class ReparametrizedModel(nn.Module):
    """The true model of a scheme: the graph of its capture, on unit weights.

    It has the parameter names and the call signature of the original model.
    """

    def __init__(self, tree: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = (
            tree._modules, tree._parameters, tree._buffers,
        )  # fmt: skip
        self._non_persistent_buffers_set = tree._non_persistent_buffers_set
        self.training = tree.training

    @property
    def captures(self) -> Mapping[str, Capture]:
        """Its graph by part: two where train and eval mode have different graphs."""
        captures: Mapping[str, Capture] = self.__dict__["_captures"]
        return captures

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One call with the original's arguments, in the model's present mode."""
        mode = "train" if self.training else "eval"
        fitting = [c for c in self.captures.values() if c.mode in (None, mode)]
        capture = (fitting or list(self.captures.values()))[0]
        # Run on the tensors of this module, which may be a copy of the captured one.
        capture = replace(capture, model=self)
        return run_captured(capture, capture.flat_inputs(args, kwargs))


def reparametrize(
    recording: Recording,
    scheme: UnitScheme | Mapping[str, Reparametrization] | None,
    rules: RuleTable,
) -> Recording:
    """The recording of the true model of ``scheme``; ``recording`` itself for None.

    ``scheme``: a scheme, whose constants are chosen here, and whose weights are drawn by torch's
    global generator; or constants that were chosen before, by part, which keep the weights.

    Raises ``UnitifyError``: U701 where the model is not captured whole; U301 where constants do not
    fit its graph.
    """
    if not scheme:
        return recording
    if any(captured.model is not recording.model for captured in recording.parts.values()):
        reason = "; ".join(d.message for d in recording.diagnostics)
        where = type(recording.model).__name__
        raise UnitifyError(SchemeNeedsGraph(where=where, reason=reason))
    notes: list[Diagnostic] = []
    if isinstance(scheme, UnitScheme):
        chosen = {n: multipliers(c, scheme, rules) for n, c in recording.parts.items()}
        notes = _notes(recording, scheme, chosen)
    else:
        chosen = dict(scheme)
    model = ReparametrizedModel(copy_of(recording.model))
    if isinstance(scheme, UnitScheme):
        _initialize(model, next(iter(chosen.values())), scheme)
    parts = {
        name: replace(
            with_constants(captured, chosen[name]),
            model=model,
            diagnostics=(*captured.diagnostics, *notes),
        )
        for name, captured in recording.parts.items()
    }
    model.__dict__["_captures"] = parts
    return Recording(model, parts, (*recording.diagnostics, *notes))


def _notes(
    recording: Recording, scheme: UnitScheme, chosen: Mapping[str, Reparametrization]
) -> list[Diagnostic]:
    """Notes on patterns that match nothing, and on what prevents u-μP's transfer."""
    capture = next(iter(recording.parts.values()))
    where = type(recording.model).__name__
    notes: list[Diagnostic] = [
        PatternUnmatched(key="roles", pattern=p) for p in unmatched(capture, scheme.roles)
    ]
    if not isinstance(scheme, UMuP):
        return notes
    roles = next(iter(chosen.values())).parameters
    trains = {n for n, p in recording.model.named_parameters() if p.requires_grad}
    gains = [n for n, r in roles.items() if r.role == "gain" and n in trains]
    if gains:
        notes.append(TrainableGains(where=where, first=gains[0], count=len(gains)))
    tied = [n for n, r in roles.items() if r.role == "embedding" and r.fan_in and n in trains]
    notes += [TiedRoles(where=where, name=name) for name in tied]
    return notes


@torch.no_grad()
def _initialize(model: nn.Module, chosen: Reparametrization, options: UnitScheme) -> None:
    for name, parameter in model.named_parameters():
        role = chosen.parameters.get(name, ParameterRole("other")).role
        if parameter.is_meta:
            continue
        if role in DRAWN and options.init == "normal":
            # A row of zeros is the padding token's, and stays zero.
            blank = (parameter == 0).all(-1) if role == "embedding" else torch.tensor(False)
            drawn = torch.randn(parameter.shape).to(parameter)
            parameter.copy_(drawn.masked_fill(blank.unsqueeze(-1), 0.0))
        elif role in DRAWN and options.init == "normalize":
            parameter.div_(_rms(parameter))
        elif role == "gain":
            parameter.fill_(1.0)
        elif role == "bias" and options.biases == "zero":
            parameter.zero_()


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) or 1.0


def with_constants(capture: Capture, chosen: Reparametrization) -> Capture:
    """``capture`` with the constants of a scheme in its graph. Every node keeps its name.

    Raises ``UnitifyError`` (U301) where the graph lacks a value of ``chosen``.
    """
    named = {*chosen.outputs, *chosen.operands, *chosen.numbers}
    if strange := named - {node.name for node in capture.graph.nodes}:
        problem = f"it has no value {sorted(strange)[0]} of the scheme"
        raise UnitifyError(PlanMismatch(problem=problem))
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in capture.graph.nodes:
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], lambda n: made[n]))
            break
        operands = {
            name: _multiplied(graph, made[named_arguments(node)[name]], m, f"{node.name}_{name}")
            for name, m in chosen.operands.get(node.name, {}).items()
        }
        copied = graph.node_copy(node, lambda n: made[n])
        copied._rename(node.name)
        for name, value in {**operands, **chosen.numbers.get(node.name, {})}.items():
            set_argument(copied, name, value)
        if node.name in chosen.outputs:
            copied = _multiplied(graph, copied, chosen.outputs[node.name], node.name)
        made[node] = copied
    return replace(capture, graph=graph, reparametrization=chosen)


def with_gradients(capture: Capture, rms: Mapping[str, float]) -> Capture:
    """``capture``, with the RMS of parameters' gradients added to its scheme, if it has one."""
    made = capture.reparametrization
    return capture if made is None else replace(capture, reparametrization=made.with_gradients(rms))


def _multiplied(graph: fx.Graph, node: fx.Node, multiplier: float, name: str) -> fx.Node:
    made = graph.call_function(_MUL, (node, multiplier))
    made._rename(f"{name}_multiplied")
    made.meta = {**node.meta, "val": _MUL(node.meta["val"], multiplier)}
    return made
