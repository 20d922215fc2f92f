"""How a captured model behaves: its call, its modes, its sizes, what it writes, what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
import zoo
from conversion import conversion, same, tensors
from torch import Tensor, fx, nn

import unitify
from unitify.capture import capture
from unitify.capture.composite import open_composites
from unitify.capture.exporting import export
from unitify.capture.functional import remove_mutation
from unitify.measure.captured import measure
from unitify.operations.rule_table import load_rules
from unitify.plan import plan
from unitify.rewrite import rewrite
from unitify.verify.validation import validate


class Forward(nn.Module):
    """A module around a function, with two layers to use."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def transformed(model: nn.Module, *args: Any, **kwargs: Any) -> unitify.UnitScaledModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return unitify.transform(model, args, kwargs, scales="measured")


def assert_same_call(model: nn.Module, module: nn.Module, *args: Any, **kwargs: Any) -> None:
    torch.manual_seed(1)
    expected = model(*args, **kwargs)
    torch.manual_seed(1)
    found = module(*args, **kwargs)
    assert type(found) is type(expected)
    assert len(tensors(expected)) == len(tensors(found))
    for a, b in zip(tensors(expected), tensors(found), strict=True):
        assert same(a, b)


# -- the call -----------------------------------------------------------------------------


class Signature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, scale: float = 2.0, *more: Tensor, bias: Tensor | None = None, **rest: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.linear(x) * scale
        for item in [*more, *(rest[key] for key in sorted(rest))]:
            y = y + item
        return y, {"sum": y.sum(), "biased": y if bias is None else y + bias}


def test_arguments_by_position_keyword_and_default() -> None:
    model, x = Signature(), torch.randn(3, 4)
    module = transformed(model, x)
    assert inspect.signature(module.forward) == inspect.signature(model.forward)
    assert_same_call(model, module, x)
    assert_same_call(model, module, x=x)
    assert_same_call(model, module, x, 2.0, bias=None)


def test_star_arguments() -> None:
    model = Signature()
    args = tuple(torch.randn(3, 4) for _ in range(3))
    kwargs = {"bias": torch.randn(4), "zeta": torch.randn(3, 4), "alpha": torch.randn(3, 4)}
    call = (args[0], 3.0, *args[1:])
    module = transformed(model, *call, **kwargs)
    assert_same_call(model, module, *call, **kwargs)
    assert_same_call(model, module, *call, **dict(reversed(kwargs.items())))


def test_sizes_of_star_arguments_as_torch_takes_them() -> None:
    class Stars(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
            return self.linear(sum([*tensors, *named.values()]))

    model, x = Stars(), torch.randn(3, 4)
    batch = {0: torch.export.Dim("batch")}
    for shapes in ({"tensors": (batch, batch), "named": {"z": batch}}, "auto"):
        module = unitify.transform(model, (x, x + 1), {"z": x + 2}, dynamic_shapes=shapes)
        y = torch.randn(5, 4)
        assert_same_call(model, module, y, y + 1, z=y + 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda module, x: module(x[0]),
        lambda module, x: module(x[:, :3]),
        lambda module, x: module(x.double()),
        lambda module, x: module(x, 3.0),
        lambda module, x: module(x, bias=torch.zeros(4)),
        lambda module, x: module([x]),
        lambda module, x: module(None),
        lambda module, x: module(),
        lambda module, x: module(x, unknown=1),
    ],
)
def test_inputs_of_another_form_are_refused(call: Callable[..., Any]) -> None:
    x = torch.randn(3, 4)
    module = transformed(Signature(), x)
    with pytest.raises(unitify.UnitifyError) as caught:
        call(module, x)
    assert caught.value.code == "U104"
    assert "x: float32[" in str(caught.value)


def test_a_model_output_stays_one() -> None:
    case = conversion("gpt2")
    output = case.module(**case.kwargs)
    assert type(output) is type(case.model(**case.kwargs))
    assert isinstance(output, transformers.utils.ModelOutput)
    assert output.loss is output[0]
    ids = case.kwargs["input_ids"]
    assert_same_call(case.model.eval(), case.module.eval(), input_ids=ids, labels=ids)


def test_dataclasses_and_nested_structures() -> None:
    case = conversion("structured")
    output = case.module(**case.kwargs)
    assert isinstance(output, zoo.Prediction)
    assert isinstance(output.parts, list)
    assert output.count.dtype == torch.int64
    assert_same_call(case.model, case.module, **case.kwargs)


def test_one_tensor_passed_twice() -> None:
    """Export alone would merge the two, and be wrong for two different ones."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(a) - 2 * b

    model, x = Two(), torch.randn(3, 4)
    module = transformed(model, x, x)
    assert_same_call(model, module, x, x)
    assert_same_call(model, module, x, torch.randn(3, 4))


def test_the_gradients_of_inputs_are_true() -> None:
    case = conversion("mlp")
    x = case.args[0].clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    case.model.eval()(x).square().sum().backward()
    case.module.eval()(y).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert same(x.grad, y.grad)


def test_non_float_values_are_untouched() -> None:
    def forward(m: Forward, x: Tensor) -> Any:
        order = x[:, 0].argsort()
        return m.linear(x)[order], order, x > 0, x.shape[0], None, "text"

    model, x = Forward(forward), torch.randn(5, 8)
    module = transformed(model, x)
    assert_same_call(model, module, x)
    expected, found = model(x), module(x)
    assert found[3:] == expected[3:]
    assert found[1].dtype == torch.int64
    assert found[2].dtype == torch.bool


# -- sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
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
        if name != "llama":  # eagerly it takes another attention kernel than while recorded
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
    module = transformed(Forward(lambda m, x: m.linear(x).view(4, -1)), torch.randn(4, 8))
    assert [d.code for d in module.diagnostics] == ["U106"]
    with pytest.raises(unitify.UnitifyError) as caught:
        module(torch.randn(5, 8))
    assert caught.value.code == "U104"


def test_fixed_shapes_where_asked_for() -> None:
    model, x = nn.Linear(8, 2), torch.randn(4, 8)
    module = unitify.transform(model, (x,), dynamic_shapes=None)
    assert_same_call(model, module, x)
    with pytest.raises(unitify.UnitifyError, match="U104"):
        module(torch.randn(5, 8))


# -- modes --------------------------------------------------------------------------------


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.feature = nn.Dropout(0.5), nn.Dropout1d(0.5)
        self.first, self.second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.feature(self.drop(self.first(x))))


def states(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same_buffers(model: nn.Module, module: nn.Module) -> None:
    found = states(module)
    for name, buffer in states(model).items():
        assert same(buffer, found[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_switch_everything(training: bool) -> None:
    """Whatever the mode it was captured in."""
    model, x = Modes().train(training), torch.randn(7, 6)
    module = transformed(model, x)
    for mode in (True, False, True):
        model.train(mode)
        module.train(mode)
        before = states(module)
        assert_same_call(model, module, x)
        assert_same_buffers(model, module)
        changed = any(not same(before[name], b) for name, b in states(module).items())
        assert changed is mode
    assert int(module.get_buffer("first.num_batches_tracked")) == 2


def test_one_module_in_eval() -> None:
    """Batch norms are often frozen one by one while the rest trains."""
    model, x = Modes(), torch.randn(7, 6)
    module = transformed(model, x)
    for one in (model, module):
        one.train()
        one.get_submodule("first").eval()
    assert_same_call(model, module, x)
    assert_same_buffers(model, module)
    assert int(module.get_buffer("first.num_batches_tracked")) == 0
    assert int(module.get_buffer("second.num_batches_tracked")) == 1


def test_capture_with_one_module_in_eval() -> None:
    model, x = Modes(), torch.randn(7, 6)
    model.first.eval()
    module = transformed(model, x)
    assert not module.get_submodule("first").training
    assert module.get_submodule("second").training
    assert_same_call(model, module, x)
    assert_same_call(model.train(), module.train(), x)
    assert_same_buffers(model, module)


def test_two_graphs_where_the_modes_differ() -> None:
    case = conversion("stochastic_depth")
    assert set(case.module.parts) == {"", "@other"}
    for training in (True, False):
        model, module = case.model.train(training), case.module.train(training)
        assert_same_call(model, module, *case.args)
        assert ("auxiliary" in module(*case.args)) is training
    copied = copy.deepcopy(case.module)
    assert_same_call(case.model.eval(), copied.eval(), *case.args)


def test_a_mode_that_cannot_be_captured_is_refused() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        return m.linear(x) if m.training or x.sum() > 0 else x

    module = transformed(Forward(forward).train(), torch.randn(4, 8))
    assert [d.code for d in module.diagnostics] == ["U103"]
    with pytest.raises(unitify.UnitifyError) as caught:
        module.eval()(torch.randn(4, 8))
    assert caught.value.code == "U103"


# -- writes -------------------------------------------------------------------------------


def assign(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    y[:, 0] = m.other(x)[:, 1]
    return y * 2


def add_to_view(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    half = y.view(-1, 2, 4)[:, 1]
    half += m.other(x)[:, :4]
    return y.relu_() + half.sum()


def index_put(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    y[torch.tensor([0, 2]), torch.tensor([1, 3])] = 5.0
    y[x > 1] = 0.0
    y.index_add_(0, torch.tensor([1, 1]), m.other(x)[:2])
    return y.masked_fill_(x < -1, -1.0)


def transposed(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    y.t()[1].mul_(m.other(x)[:, 0])
    y.transpose(0, 1)[2:4].copy_(x.t()[:2])
    y.diagonal().zero_()
    return y


def chained(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    first, second = y.narrow(-1, 0, 4), y[..., 4:]
    first.mul_(2.0)
    second.add_(first).mul_(0.5)
    y.unsqueeze(0)[0, :, 7].fill_(3.0)
    return y


def outputs(m: Forward, x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    with torch.no_grad():
        torch.mul(x, 3.0, out=made)
    y = m.linear(x).clone()
    y.bernoulli_(0.5)
    return y + made


def uninitialised(m: Forward, x: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], 8)
    y[:, :4] = m.linear(x)[:, :4]
    y[:, 4:] = m.other(x)[:, 4:]
    whole = torch.empty_like(y, memory_format=torch.contiguous_format)
    return y + torch.empty(8).fill_(2.0) + whole.copy_(x)


WRITES = [assign, add_to_view, index_put, transposed, chained, outputs, uninitialised]


@pytest.mark.parametrize("function", WRITES, ids=lambda f: f.__name__)
def test_writes_through_views(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, x = Forward(function), torch.randn(6, 8)
    module = transformed(model, x)
    assert module.verification is not None
    assert module.verification.exact
    assert not module.verification.model_differences
    assert tuple(module.parts) == ("",)
    assert_same_call(model, module, torch.randn(9, 8))


def test_memory_that_was_never_written_is_no_value() -> None:
    """What happens to be there would be taken for its RMS."""
    module = transformed(Forward(uninitialised), torch.randn(6, 8))
    held = {
        str(node.target).split(".")[1] for node in module.graph.nodes if "." in str(node.target)
    }
    assert {"new_zeros", "zeros_like", "zeros"} <= held
    assert not {"new_empty", "empty_like", "empty"} & held


def test_a_buffer_that_the_model_keeps() -> None:
    case = conversion("in_place")
    model, module = (made.train() for made in case.fresh())
    for step in range(3):
        x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(step))
        assert_same_call(model, module, x)
        assert_same_buffers(model, module)
    assert int(module.get_buffer("calls")) == 3
    before = states(module.eval())
    assert_same_call(model.eval(), module, *case.args)
    assert all(same(before[name], buffer) for name, buffer in states(module).items())


def test_an_input_that_the_model_writes_into() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        x[:, 0] = 1.0
        return m.linear(x)

    model, x = Forward(forward), torch.randn(4, 8)
    module = unitify.transform(model, (x.clone(),), verify=False)
    mine, theirs = x.clone(), x.clone()
    assert same(model(mine), module(theirs))
    assert same(mine, theirs)
    assert not same(mine, x)


# -- what is refused, warned of or kept ------------------------------------------------------


def test_a_model_that_writes_into_its_weights() -> None:
    """Behind the back of the optimiser, and in units that are no longer the weight's."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        if not m.training:
            with torch.no_grad():
                m.other.weight.mul_(0.5)
        return m.linear(m.other(x))

    model, x = Forward(forward), torch.randn(4, 8)
    before = model.other.weight.clone()
    module = transformed(model, x)
    assert [d.code for d in module.diagnostics] == ["U103"]
    assert "writes into its parameter other.weight" in str(module.diagnostics[0])
    assert same(model.other.weight, before)
    assert_same_call(model, module, x)
    islands = transformed(model.eval(), x)
    assert set(islands.parts) == {"linear", "other"}
    assert_same_call(model, islands, x)


def test_what_a_model_keeps_of_a_call_is_its_own() -> None:
    """Tensors of the calls that transform makes of it would hold on to their graphs."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        if "weight" not in m.kept:
            m.kept["weight"] = m.other.weight * 2.0
        return m.linear(x) @ m.kept["weight"]

    model, x = Forward(forward), torch.randn(4, 8)
    model.kept = {}
    module = transformed(model, x)
    assert model.kept == {}
    assert_same_call(model, module, x)


def test_a_capture_that_differs_is_warned_of() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        return m.linear(x) * (2.0 if torch.compiler.is_exporting() else 3.0)

    with pytest.warns(unitify.UnitifyWarning, match="U110 .* differs in 4 tensors"):
        module = unitify.transform(Forward(forward), (torch.randn(4, 8),))
    assert module.verification is not None
    assert module.verification.exact


def test_rounding_is_not_warned_of() -> None:
    """Attention with no mask and with a causal one take other kernels."""
    model, args, kwargs = zoo.build("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error", unitify.UnitifyWarning)
        module = unitify.transform(model, args, kwargs)
    assert module.verification is not None
    assert module.verification.model_differences


def test_lost_checkpointing_is_noted() -> None:
    config = transformers.LlamaConfig(**zoo.zoo_transformers.MAIN["llama"][1])
    model = transformers.LlamaForCausalLM(config)
    model.gradient_checkpointing_enable()
    tokens = torch.randint(0, 99, (2, 6))
    with pytest.warns(unitify.UnitifyWarning, match="U107"):
        module = unitify.transform(model.train(), (), {"input_ids": tokens, "labels": tokens})
    assert [d.code for d in module.diagnostics] == ["U107"]


def test_a_cache_is_left_out() -> None:
    options = {**zoo.zoo_transformers.MAIN["gpt2"][1], "use_cache": True}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options))
    module = transformed(model, input_ids=torch.randint(0, 99, (2, 6)))
    assert [d.code for d in module.diagnostics] == ["U108"]
    assert model.config.use_cache
    assert module(input_ids=torch.randint(0, 99, (2, 6))).past_key_values is None


def test_masks_with_infinities_and_rows_without_any_key() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        keep = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).tril(-1)
        scores = m.linear(x) @ m.other(x).t()
        hard = scores.masked_fill(~keep, -torch.inf)[1:].softmax(-1)
        soft = (scores + torch.where(keep, 0.0, torch.finfo(x.dtype).min)).softmax(-1)
        undefined = scores.masked_fill(~keep, float("-inf")).softmax(-1)
        return torch.cat([hard, soft, undefined])

    model, x = Forward(forward), torch.randn(5, 8)
    module = transformed(model, x)
    assert torch.isnan(module(x)).any()
    assert_same_call(model, module, x)


def test_frozen_parameters() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), torch.randn(4, 8)
    model[0].requires_grad_(False)
    module = transformed(model, x)
    assert not module.get_parameter("0.weight").requires_grad
    module(x).sum().backward()
    model(x).sum().backward()
    assert module.get_parameter("0.weight").grad is None
    gradient = module.get_parameter("2.weight").grad
    assert gradient is not None
    assert same(gradient * module.plan.parameters["2.weight"].bwd, model[2].weight.grad)


def test_deepcopy_is_independent() -> None:
    case = conversion("gpt2")
    copied = copy.deepcopy(case.module)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert_same_call(case.model.eval(), case.module.eval(), **case.kwargs)
    tied = copied.get_parameter("lm_head.weight")
    assert tied is copied.get_parameter("transformer.wte.weight")


def test_state_dicts() -> None:
    case = conversion("residual_cnn")
    original = case.model.state_dict()
    assert list(case.module.state_dict()) == list(original)
    for name, tensor in case.module.original_state_dict().items():
        assert same(tensor, original[name]), name
    torch.manual_seed(9)
    other = zoo.ResidualCNN()
    module = copy.deepcopy(case.module)
    module.load_original_state_dict(other.state_dict())
    assert_same_call(other.eval(), module.eval(), *case.args)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model, args, kwargs = zoo.build("in_place")
    model.linear.eval()
    before = copy.deepcopy(model)
    transformed(model, *args, **kwargs)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for name, tensor in model.state_dict().items():
        assert same(tensor, before.state_dict()[name]), name
    assert vars(model).keys() == vars(before).keys()
    assert not model._forward_hooks


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "llama"])
def test_on_the_meta_device(name: str) -> None:
    """No weights are there, yet the graph and a plan are."""
    model, args, kwargs = zoo.build(name)
    as_meta = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    module = unitify.transform(model.to("meta"), *as_meta)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert any(scale.bwd != 1 for scale in module.plan.values.values())


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


def test_a_graph_of_thousands_of_nodes_takes_linear_time() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        y = m.linear(x)
        y[:, 0] = m.other(x)[:, 1]
        return (F.relu_(y) + x) * 0.5

    model, x = Forward(forward), torch.randn(2, 8)
    (program, _) = export(model, (x,), {}, "auto")
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
    long, many = seconds(600)
    assert many > 6000
    assert long / many < 3 * short / few


def test_dynamic_shapes_as_torch_takes_them() -> None:
    model, x = nn.Linear(8, 2), torch.randn(4, 8)
    batch = torch.export.Dim("batch")
    module = unitify.transform(model, (x,), dynamic_shapes={"input": {0: batch}})
    assert_same_call(model, module, torch.randn(6, 8))
    again = unitify.transform(model, (x,), dynamic_shapes=({0: batch},))
    assert_same_call(model, again, torch.randn(6, 8))


def test_diagnostics_are_values() -> None:
    module = transformed(Forward(lambda m, x: m.linear(x).view(4, -1)), torch.randn(4, 8))
    (note,) = module.diagnostics
    assert dataclasses.asdict(note)["size"] == 4
