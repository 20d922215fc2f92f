"""Sizes stay free where the model leaves them free; the meta device, and large graphs."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
import torch.nn.functional as F
import zoo
from capturing import Forward, assert_same_call, transformed
from conversion import conversion, same
from slow import some_slow
from torch import Tensor, fx, nn

import unitify
from unitify.capture import capture
from unitify.capture.composite import open_composites
from unitify.capture.exporting import export
from unitify.capture.functional import remove_mutation
from unitify.measure.captured import measure
from unitify.plan import plan
from unitify.rewrite import rewrite
from unitify.rulebook.rule_table import load_rules
from unitify.verifying.validation import validate


@pytest.mark.parametrize("name", some_slow(["gpt2", "llama", "bert", "t5"], lambda n: n != "gpt2"))
def test_other_batch_and_length(name: str) -> None:
    """Than captured, with another padding; a batch of one too."""
    case = conversion(name)
    model, module = case.model.eval(), case.module.eval()
    for batch, length in ((3, 7), (1, 13)):
        torch.manual_seed(batch)
        tokens = torch.randint(2, 99, (batch, length))
        kwargs = dict.fromkeys(case.kwargs, tokens)
        if "attention_mask" in kwargs:
            kwargs["attention_mask"] = torch.ones_like(tokens)
            kwargs["attention_mask"][0, 4:] = 0
        output, found = model(**kwargs), module(**kwargs)
        assert same(output.loss, found.loss)
        assert same(output.logits, found.logits)
        flat = case.capture.flat_inputs((), kwargs)
        expected = case.capture.call.unflatten(case.unscaled().eval().flat_forward(*flat))
        assert same(expected.loss, found.loss)
        assert same(expected.logits, found.logits)


def test_other_image_sizes() -> None:
    case = conversion("unet")
    images, masks = torch.randn(3, 3, 16, 12), torch.ones(3, 1, 16, 12)
    assert_same_call(case.model.eval(), case.module.eval(), images, masks)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_other_lengths_of_a_recurrent_layer(name: str) -> None:
    case = conversion(name)
    for batch, length in ((3, 4), (1, 13)):
        tokens = torch.randint(0, 50, (batch, length))
        assert_same_call(case.model.eval(), case.module.eval(), tokens)


@pytest.mark.parametrize("batch", [2, 5])
def test_an_example_with_a_batch_of_one(batch: int) -> None:
    """The batch stays free, though a recording fixes every size of one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(1, 3, 6, 6))
    module = transformed(model, torch.randn(1, 3, 6, 6))
    assert not module.diagnostics
    assert_same_call(model, module, torch.randn(batch, 3, 6, 6))
    assert_same_call(model, module, torch.randn(1, 3, 6, 6))


def test_a_size_that_the_model_fixes_is_named() -> None:
    model = Forward(lambda m, x: m.linear(x).view(4, -1))
    module = transformed(model, torch.randn(4, 8))
    assert [d.code for d in module.diagnostics] == ["U106"]
    with pytest.raises(unitify.UnitifyError) as caught:
        module.capture.flat_inputs((torch.randn(8, 8),), {})
    assert caught.value.code == "U104"
    assert_same_call(model, module, torch.randn(8, 8))


def test_fixed_shapes_where_asked_for() -> None:
    model, x = nn.Linear(8, 2), torch.randn(4, 8)
    module = unitify.transform(model, (x,), dynamic_shapes=None)
    assert_same_call(model, module, x)
    with pytest.raises(unitify.UnitifyError, match="U104"):
        module.capture.flat_inputs((torch.randn(5, 8),), {})
    assert_same_call(model, module, torch.randn(5, 8))


@pytest.mark.parametrize(
    "name", some_slow(["mlp", "residual_cnn", "llama"], {"llama"}.__contains__)
)
def test_on_the_meta_device(name: str) -> None:
    """No weights are there, yet the graph and a plan are."""
    model, args, kwargs = zoo.build(name)
    as_meta = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    module = unitify.transform(model.to("meta"), *as_meta)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert any(module.plan.unit(name).bwd != 1 for name in module.plan.values)


def repeated(body: fx.Graph, times: int) -> fx.Graph:
    """A graph of one input that runs ``body`` on its own result again and again."""
    graph = fx.Graph()
    held: dict[fx.Node, fx.Node] = {}
    for node in body.nodes:
        if node.op in ("placeholder", "get_attr"):
            held[node] = graph.node_copy(node)
    start = [n for n in body.nodes if n.op == "placeholder"][-1]
    for _ in range(times):
        (held[start],) = graph.graph_copy(body, copied := dict(held))
        for node, copy_ in copied.items():
            copy_.meta = dict(node.meta)
    graph.output((held[start],))
    return graph


@pytest.mark.slow
def test_a_graph_of_thousands_of_nodes_takes_linear_time() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        y = m.linear(x)
        y[:, 0] = m.other(x)[:, 1]
        return (F.relu_(y) + x) * 0.5

    model, x = Forward(forward), torch.randn(2, 8)
    program = export(model, (x,), {}, "auto").program
    captured = capture(model, (x,), {})
    rules = load_rules()

    def seconds(times: int) -> tuple[float, int]:
        in_place = repeated(program.graph, times)
        long = dataclasses.replace(captured, graph=repeated(captured.graph, times))
        start = time.perf_counter()
        open_composites(in_place)
        remove_mutation(in_place)
        estimates = measure(long)
        chosen = plan(long, estimates, rules)
        graph = rewrite(long, chosen, rules)
        assert not validate(long, graph, chosen, rules)
        return time.perf_counter() - start, len(long.graph.nodes)

    seconds(10)
    short, few = seconds(60)
    long, many = seconds(800)
    assert many > 6000
    assert long / many < 3 * short / few


def test_dynamic_shapes_as_torch_takes_them() -> None:
    model, x = nn.Linear(8, 2), torch.randn(4, 8)
    batch = torch.export.Dim("batch")
    module = unitify.transform(model, (x,), dynamic_shapes={"input": {0: batch}})
    assert_same_call(model, module, torch.randn(6, 8))
    again = unitify.transform(model, (x,), dynamic_shapes=({0: batch},))
    assert_same_call(model, again, torch.randn(6, 8))
