"""Stored weights: they know their plan, and casts of them are those of true weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch import optim as O
from training import tokens
from true_weights import small

import unitify
from unitify import optim


def test_stored_weights_know_their_plan() -> None:
    model = small()
    module = unitify.transform(model, (tokens(0),), weights="stored")
    held = module.state_dict()
    assert held["unitify_fingerprint"].dtype == torch.uint8
    copy.deepcopy(module).load_state_dict(held)
    with pytest.raises(RuntimeError, match="unitify_fingerprint"):
        small().load_state_dict(held)
    assert_same_state_as(model, module.original_state_dict())

    true = unitify.transform(model, (tokens(0),))
    other = unitify.transform(small(seed=3), (16 * tokens(0).clamp(max=0),), weights="stored")
    other.plan = unitify.ScalePlan.from_json(
        {**other.plan.to_json(), "parameters": {n: [1, 1] for n in other.plan.parameters}}
    )
    for owner, given, code in (
        (module, model.state_dict(), "U017"),
        (true, held, "U017"),
        (other, held, "U018"),
        (module.to_inference(), model.state_dict(), "U017"),
    ):
        before = copy.deepcopy(owner.state_dict())
        with pytest.raises(unitify.UnitifyError) as caught:
            owner.load_state_dict(given, strict=False)
        assert caught.value.diagnostics[0].code == code
        assert str(before) == str(owner.state_dict())
    module.load_state_dict({}, strict=False)
    module.load_original_state_dict(small(seed=4).state_dict())
    assert_same_state_as(small(seed=4), module.original_state_dict())


def assert_same_state_as(model: nn.Module, held: dict[str, Tensor]) -> None:
    theirs = model.state_dict()
    assert list(held) == list(theirs)
    assert all(torch.equal(held[name], tensor) for name, tensor in theirs.items())


def test_stored_parameters_that_were_renamed_are_refused() -> None:
    module = unitify.transform(small(), (tokens(0),), weights="stored")
    hidden = module.get_submodule("hidden")
    hidden.register_parameter("flat", hidden._parameters.pop("weight"))
    with pytest.raises(unitify.UnitifyError) as caught:
        optim.param_groups(module, O.AdamW, lr=0.1)
    assert caught.value.diagnostics[0].code == "U019"


@pytest.mark.parametrize("recipe", ["fp8", "fp16", "fp8-ptq", "fp8-amax"])
def test_casts_see_what_they_see_of_stored_weights(recipe: str) -> None:
    """Rounding is the same to the bit, wherever a weight is held."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0**-6)
    x, found = torch.randn(8, 16), []
    for weights in unitify.plan.scale_plan.WEIGHTS:
        module = unitify.transform(model, (x,), recipe=recipe, weights=weights)
        y = module(x)
        y.square().sum().backward()
        scales = module.plan.parameters
        found.append([y, *(p.grad * scales[n].bwd for n, p in module.named_parameters())])
        with torch.no_grad():
            assert torch.equal(module.to_inference()(x), y)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_weights_is_one_of_two() -> None:
    with pytest.raises(unitify.UnitifyError) as caught:
        unitify.transform(small(), (tokens(0),), weights="unit")  # type: ignore[arg-type]
    assert caught.value.diagnostics[0].code == "U001"
