"""What capture keeps of a model, leaves as it was, and says that it lost."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers
import zoo
from capturing import Forward, assert_same_call, transformed
from conversion import conversion, same
from torch import Tensor, nn

import unitify


def test_a_model_that_looks_at_how_it_runs_stays_python() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        return m.linear(x) * (3.0 if type(x) is Tensor else 2.0)

    with pytest.warns(unitify.UnitifyWarning, match="U101 .* it computes something else"):
        module = unitify.transform(Forward(forward), (torch.randn(4, 8),))
    assert module.verification is not None
    assert module.verification.exact


def test_lost_checkpointing_is_noted() -> None:
    config = transformers.LlamaConfig(**zoo.zoo_transformers.MAIN["llama"][1])
    model = transformers.LlamaForCausalLM(config)
    model.gradient_checkpointing_enable()
    tokens = torch.randint(0, 99, (2, 6))
    with pytest.warns(unitify.UnitifyWarning, match="U107"):
        module = unitify.transform(model.train(), (), {"input_ids": tokens, "labels": tokens})
    assert "U107" in [d.code for d in module.diagnostics]


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


def test_diagnostics_are_values() -> None:
    module = transformed(Forward(lambda m, x: m.linear(x).view(4, -1)), torch.randn(4, 8))
    (note,) = module.diagnostics
    assert dataclasses.asdict(note)["size"] == 4
