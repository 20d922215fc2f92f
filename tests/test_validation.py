"""The checker accepts what ``transform`` emits, and catches every single change to it."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion import RULES, Conversion, conversion
from program import chain
from torch import Tensor, fx, nn

import unitify
from unitify.capture.whole import Capture, capture
from unitify.estimates import Rms
from unitify.measure.captured import measure
from unitify.module.assembly import build
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part
from unitify.plan.planner import plan
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.rewrite import rewrite
from unitify.verifying.validation import Checker, validate, validate_parameters

RESCALE = torch.ops.unitify.rescale.default
#: Real models and the kinds of mutation tried on each; on ``Several`` all are.
MUTATED = {
    "gpt2": ["factors", "removed", "doubled"],
    "bert": ["factors", "removed"],
    "residual_cnn": ["factors", "removed", "doubled", "added", "numbers"],
    "lstm": ["factors", "removed", "doubled", "added", "numbers", "scales"],
    "in_place": ["factors", "removed", "doubled", "added", "numbers", "scales"],
    "masked_attention": ["factors", "removed", "doubled", "added", "numbers", "scales"],
}


def test_what_is_emitted_is_accepted(converted: Conversion) -> None:
    for part in converted.module.parts.values():
        assert validate(part.capture, part.graph, part.plan, RULES) == ()
        assert validate_parameters(part) == ()


def test_any_scales_are_accepted(converted: Conversion) -> None:
    module = converted.randomly_scaled(seed=1)
    assert validate(converted.capture, module.graph, module.plan, RULES) == ()
    assert validate_parameters(module) == ()


class Several(nn.Module):
    """Operations with several results, a scaled number, a root and a value taken twice."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.project(x).split(8, dim=-1)
        first, second = torch.chunk(F.layer_norm(q + k, (8,)), 2, dim=0)
        top, _ = v.topk(3, dim=-1)
        power = torch.sqrt(x * x + 0.1) * self.scale
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None])
        return first * second, top + 1.5, power, attended.masked_fill(x[None] > 1, 2.5)


@pytest.fixture(scope="module")
def several() -> Conversion:
    torch.manual_seed(0)
    model, args = Several(), (torch.randn(6, 8),)
    captured = capture(model, args, {})
    chosen = plan(captured, measure(captured), RULES)
    module = build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))
    return Conversion("several", model, args, {}, captured, module)


# -- mutations of the graph ---------------------------------------------------------------


def mutable(graph: fx.Graph) -> fx.Graph:
    """A copy that keeps every name."""
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    assert [n.name for n in made.nodes][:-1] == [n.name for n in graph.nodes][:-1]
    return made


class Mutations:
    """One emitted graph, changed in one place after the other and put back each time."""

    def __init__(self, captured: Capture, chosen: ScalePlan) -> None:
        self.capture, self.plan = captured, chosen
        self.graph = mutable(rewrite(captured, chosen, RULES))
        self.originals = {n.name for n in captured.graph.nodes}
        self.checker = Checker(captured, chosen, RULES)
        self.tried = 0

    def findings(self) -> tuple[Any, ...]:
        if self.checker.plan is not self.plan:
            self.checker = Checker(self.capture, self.plan, RULES)
        return self.checker.findings(self.graph)

    def must_be_caught(self, what: str) -> None:
        self.tried += 1
        assert self.findings(), f"not caught: {what}"

    def rescales(self) -> list[fx.Node]:
        return [n for n in self.graph.nodes if n.target is RESCALE]

    def factors(self) -> None:
        """A wrong forward and a wrong backward factor for every rescale."""
        for node in self.rescales():
            right = node.args
            for place, name in ((1, "forward"), (2, "backward")):
                for wrong in (2.0, 0.5):
                    args = list(right)
                    args[place] *= wrong
                    node.args = tuple(args)
                    self.must_be_caught(f"{name} of {node.name} times {wrong}")
            node.args = right

    def removed(self) -> None:
        for node in self.rescales():
            kept = [(user, user.args, user.kwargs) for user in node.users]
            node.replace_all_uses_with(node.args[0])
            self.must_be_caught(f"{node.name} removed")
            for user, args, kwargs in kept:
                user.args, user.kwargs = args, kwargs

    def doubled(self) -> None:
        for node in self.rescales():
            if node.args[1:] == (1.0, 1.0):
                continue  # There for the order of a sum alone: twice is once.
            with self.graph.inserting_after(node):
                again = self.graph.call_function(RESCALE, (node, *node.args[1:]))
            node.replace_all_uses_with(again, delete_user_cb=lambda user, a=again: user is not a)
            self.must_be_caught(f"{node.name} doubled")
            again.replace_all_uses_with(node)
            self.graph.erase_node(again)

    def added(self) -> None:
        """A rescale on every edge between floating tensors that has none."""
        for node in list(self.graph.nodes):
            if node.target is RESCALE:
                continue
            for operand in node.all_input_nodes:
                value = operand.meta.get("val")
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    continue
                if operand.target is RESCALE:
                    continue
                for factors in ((2.0, 1.0), (1.0, 2.0), (2.0, 2.0), (2.0, 0.5)):
                    with self.graph.inserting_before(node):
                        made = self.graph.call_function(RESCALE, (operand, *factors))
                    before = node.args, node.kwargs
                    node.replace_input_with(operand, made)
                    self.must_be_caught(f"{factors} between {operand.name} and {node.name}")
                    node.args, node.kwargs = before
                    self.graph.erase_node(made)

    def numbers(self) -> None:
        """Every number of every original operation, off by two."""
        for node in self.graph.nodes:
            if node.name not in self.originals or node.op != "call_function":
                continue
            args, kwargs = node.args, node.kwargs
            for i, argument in enumerate(args):
                if is_number(argument):
                    node.args = (*args[:i], argument * 2, *args[i + 1 :])
                    self.must_be_caught(f"argument {i} of {node.name}")
            node.args = args
            for name, argument in kwargs.items():
                if is_number(argument):
                    node.kwargs = {**kwargs, name: argument * 2}
                    self.must_be_caught(f"{name} of {node.name}")
            node.kwargs = kwargs

    def targets(self) -> None:
        """Another operation in place of an elementwise one."""
        swaps = {
            torch.ops.aten.add.Tensor: torch.ops.aten.sub.Tensor,
            torch.ops.aten.mul.Tensor: torch.ops.aten.div.Tensor,
            torch.ops.aten.relu.default: torch.ops.aten.gelu.default,
        }
        for node in self.graph.nodes:
            if node.target in swaps and node.name in self.originals:
                node.target, kept = swaps[node.target], node.target
                self.must_be_caught(f"{node.name} is another operation")
                node.target = kept

    def scales(self) -> None:
        """Every entry of the plan, in either direction."""
        kept = self.plan
        for name, scale in kept.values.items():
            for changed in (replace(scale, fwd=scale.fwd * 2), replace(scale, bwd=scale.bwd / 2)):
                self.plan = replace(kept, values={**kept.values, name: changed})
                if not self.is_the_same_graph():
                    self.must_be_caught(f"{name} at {changed} in the plan")
        used = {n.target for n in self.capture.graph.nodes if n.op == "get_attr"}
        for name, scale in kept.parameters.items():
            if self.capture.aliases[name] in used:
                changed = replace(scale, bwd=scale.bwd * 2)
                self.plan = replace(kept, parameters={**kept.parameters, name: changed})
                self.must_be_caught(f"the parameter {name} at {changed} in the plan")
        self.plan = kept

    def is_the_same_graph(self) -> bool:
        """Does the changed plan ask for this very graph? (One rescale ends, or begins, there.)"""
        other = rewrite(self.capture, self.plan, RULES)
        return structure(other, self.originals) == structure(self.graph, self.originals)


def structure(graph: fx.Graph, originals: set[str]) -> list[str]:
    """Every original operation with all that leads to it, however the rest is named and ordered."""

    def chain_to(node: fx.Node) -> str:
        if node.name in originals:
            return node.name
        return str((node.target, fx.node.map_arg(node.args, chain_to)))

    return [
        str((n.name, n.target, fx.node.map_arg((n.args, n.kwargs), chain_to)))
        for n in graph.nodes
        if n.name in originals
    ]


def is_number(argument: Any) -> bool:
    """A finite number other than zero, of which twice is something else."""
    if isinstance(argument, bool) or not isinstance(argument, int | float):
        return False
    return argument not in (0, float("inf"), float("-inf"))


KINDS = ["factors", "removed", "doubled", "added", "numbers", "targets", "scales"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scales", ["planned", "random"])
def test_every_mutation_is_caught(several: Conversion, scales: str, kind: str) -> None:
    module = several.module if scales == "planned" else several.randomly_scaled(seed=3)
    assert tried(several, module.plan, kind) >= 4


@pytest.mark.parametrize("name", MUTATED)
def test_every_mutation_of_a_real_model_is_caught(name: str) -> None:
    case = conversion(name)
    chosen = plan(case.capture, measure(case.capture), RULES)
    assert sum(tried(case, chosen, kind) for kind in MUTATED[name]) > 100


def tried(case: Conversion, chosen: ScalePlan, kind: str) -> int:
    """How many mutations of this kind there were; every one was caught."""
    mutations = Mutations(case.capture, chosen)
    assert mutations.findings() == ()
    getattr(mutations, kind)()
    assert mutations.findings() == ()
    return mutations.tried


# -- what a finding says ------------------------------------------------------------------


def narrow(model: nn.Module, x: Tensor) -> UnitScaledModule:
    """The model with every value and gradient near unit RMS, and rescales between them."""
    captured = capture(model, (x,), {})
    chosen = plan(captured, measure(captured), RULES)
    return build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))


def test_a_finding_names_the_value_and_both_factors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    module = narrow(model, torch.randn(3, 4))
    gelu = next(n for n in module.graph.nodes if n.name == "gelu")
    rescale = gelu.args[0]
    assert rescale.target is RESCALE
    forward = math.log2(rescale.args[1])
    rescale.args = (rescale.args[0], rescale.args[1] * 8, rescale.args[2])
    (finding,) = validate(module.capture, module.graph, module.plan, RULES)
    assert finding.code == "U502"
    assert finding.value == "linear"
    expected = f"forward factor 2^{forward + 3:.0f}, expected 2^{forward:.0f}"
    assert finding.problem == f"its result: {expected}"


def test_all_findings_are_reported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU())
    module = narrow(model, torch.randn(3, 4))
    for node in module.graph.nodes:
        if node.target is RESCALE:
            node.args = (node.args[0], node.args[1] * 2, node.args[2])
    found = {d.value for d in validate(module.capture, module.graph, module.plan, RULES)}
    assert len(found) >= 4


def test_a_stored_parameter_that_is_not_the_original_is_found() -> None:
    module = unitify.transform(nn.Linear(4, 4), (torch.randn(3, 4),))
    assert validate_parameters(module) == ()
    with torch.no_grad():
        module.bias.mul_(2.0)
    (finding,) = validate_parameters(module)
    assert finding.value == "bias"


def test_a_plan_that_is_not_of_powers_of_two_is_found(several: Conversion) -> None:
    chosen = several.module.plan
    values = {**chosen.values, "linear": Scale(3.0, 1.0)}
    graph = several.module.graph
    found = validate(several.capture, graph, replace(chosen, values=values), RULES)
    assert any("powers of two" in d.problem for d in found)


def test_a_value_without_scale_is_found(several: Conversion) -> None:
    chosen = several.module.plan
    values = {name: scale for name, scale in chosen.values.items() if name != "linear"}
    graph = several.module.graph
    found = validate(several.capture, graph, replace(chosen, values=values), RULES)
    assert any("no scale" in d.problem for d in found)


def test_an_input_must_stay_true(several: Conversion) -> None:
    chosen = several.module.plan
    values = {**chosen.values, "x": Scale(2.0, 1.0)}
    graph = several.module.graph
    found = validate(several.capture, graph, replace(chosen, values=values), RULES)
    assert any("must stay true" in d.problem for d in found)


def test_casts_count_as_one(several: Conversion) -> None:
    graph = mutable(several.module.graph)
    linear = next(n for n in graph.nodes if n.target is torch.ops.aten.linear.default)
    with graph.inserting_before(linear):
        cast = torch.ops.unitify.cast.default
        made = graph.call_function(cast, (linear.args[0], "e4m3", "e5m2"))
    linear.args = (made, *linear.args[1:])
    assert validate(several.capture, graph, several.module.plan, RULES) == ()


def test_transform_refuses_a_wrong_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> fx.Graph:
        graph = rewrite(*arguments)
        node = next(n for n in graph.nodes if n.target is RESCALE)
        node.args = (node.args[0], node.args[1], node.args[2] * 2)
        return graph

    monkeypatch.setattr(sys.modules["unitify.transforming"], "rewrite", wrong)
    with pytest.raises(unitify.UnitifyError) as caught:
        unitify.transform(nn.Linear(4, 4), (torch.randn(3, 4) * 2.0**9,), scales="measured")
    assert caught.value.code == "U502"


# -- size ---------------------------------------------------------------------------------


def test_a_model_without_data_is_validated() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)), torch.empty(4, 8)
    module = unitify.transform(model, (x,))
    assert module.verification is not None
    assert module.verification.exact
    assert module.verification.compared == 0


def seconds(run: Callable[[], Any]) -> float:
    """Of the processor, the shorter of two runs."""
    times = []
    for _ in range(2):
        gc.collect()
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.slow
def test_time_is_linear_in_the_nodes() -> None:
    def stages(length: int) -> dict[str, float]:
        captured = chain(length)
        estimates = {n.name: Rms(3.0, 0.1) for n in captured.graph.nodes}
        chosen = plan(captured, estimates, RULES)
        graph = rewrite(captured, chosen, RULES)
        assert validate(captured, graph, chosen, RULES) == ()
        return {
            "plan": seconds(lambda: plan(captured, estimates, RULES)),
            "rewrite": seconds(lambda: rewrite(captured, chosen, RULES)),
            "validate": seconds(lambda: validate(captured, graph, chosen, RULES)),
        }

    short, long = stages(2_000), stages(6_000)
    assert {name: long[name] / short[name] for name in short if long[name] > 5 * short[name]} == {}
