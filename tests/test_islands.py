"""A model that cannot be captured whole is transformed part by part, and is exact."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from conversion import same
from islands import CASES, Branch, Called, Tied, assert_same, built, gradients
from torch import Tensor, nn

import unitify
import unitify.optim
from unitify.plan.scale_plan import WEIGHTS, Weights


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", CASES)
def test_islands_are_exact(name: str, weights: Weights) -> None:
    model, args, module = built(name, weights)
    assert module.verification is not None
    assert module.verification.exact
    assert set(module.parts) == CASES[name][2]
    assert_same(model, module, args)
    assert_same(model.eval(), module.eval(), args)
    if weights == "true":
        # Values that a recipe stores in FP16 are near unit RMS, and exact before its casts.
        with pytest.warns(unitify.UnitifyWarning, match="U1"):
            narrow = unitify.transform(model, args, recipe="fp16")
        assert narrow.verification.exact
        assert any(scale != unitify.Scale() for scale in narrow.plan.values.values())
    is_moved = any(scale.fwd != 1 for scale in module.plan.parameters.values())
    assert is_moved == (weights == "stored")


def test_what_was_left_alone_is_named() -> None:
    _, _, module = built("function")
    found = [(d.code, d.where) for d in module.diagnostics]
    assert ("U109", "HoldsFunction") in found
    assert ("U109", "inside") in found
    _, _, module = built("branch")
    assert {(d.code, d.where) for d in module.diagnostics} == {
        ("U101", "Branch"), ("U101", "right"),
    }  # fmt: skip


def test_a_branch_that_was_not_seen_runs_as_it_was() -> None:
    model, (x,), module = built("branch")
    with torch.no_grad():
        model.first[0].bias -= 2.0
    module.load_original_state_dict(model.state_dict())
    assert model.eval().first(x).sum() < 0
    assert_same(model.train(), module.train(), (x,))


def test_the_call_is_the_original_s() -> None:
    model, (x,), module = built("branch")
    torch.manual_seed(1)
    expected = model(x=x, shift=torch.ones(4))
    torch.manual_seed(1)
    found = module(x=x, shift=torch.ones(4))
    assert same(expected["y"], found["y"])
    with pytest.raises(TypeError):
        module(x, shift=None, other=1)


def test_a_shared_parameter_stays_true() -> None:
    model, _, module = built("tied", "stored")
    scales = module.plan.parameters
    for name in ("embedding.weight", "head.weight", "middle.weight"):
        assert scales[name] == unitify.Scale()
        assert same(module.get_parameter(name), model.get_parameter(name))
    assert scales["body.0.weight"] != unitify.Scale()
    assert module.get_parameter("head.weight") is module.get_parameter("embedding.weight")


def test_state_dicts() -> None:
    model, args, module = built("branch")
    assert module.state_dict().keys() == model.state_dict().keys()
    for name, tensor in module.original_state_dict().items():
        assert same(tensor, model.state_dict()[name])
    torch.manual_seed(5)
    other = Branch()
    module.load_original_state_dict(other.state_dict())
    assert_same(other, module, args)


def test_deepcopy_is_independent() -> None:
    model, args, module = built("tied")
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert_same(model, copied, args)
    assert copied.get_parameter("head.weight") is copied.get_parameter("embedding.weight")


def test_rebuild() -> None:
    model, args, module = built("tied")
    stored, chosen = pickle.loads(pickle.dumps((module.state_dict(), module.plan)))
    again = unitify.rebuild(Tied(), stored, chosen, args)
    assert_same(model, again, args)


@pytest.mark.parametrize("name", CASES)
def test_training(name: str) -> None:
    model, args, module = built(name)
    options = {"lr": 1e-2, "weight_decay": 0.1}
    theirs = torch.optim.AdamW(model.parameters(), **options)
    ours = torch.optim.AdamW(
        unitify.optim.param_groups(module, torch.optim.AdamW, **options), **options
    )
    for step in range(5):
        gradients(model, args, step)
        gradients(module, args, step)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert same(norm, unitify.optim.clip_grad_norm_(module, 1.0))
        theirs.step()
        ours.step()
        true = module.original_state_dict()
        for key, tensor in model.state_dict().items():
            assert same(tensor, true[key]), (step, key)


def test_an_island_called_in_other_ways() -> None:
    torch.manual_seed(0)
    model, x = Called(), torch.randn(3, 4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U10"):
        module = unitify.transform(model, (x,), scales="measured", weights="stored")
    assert set(module.parts) == {"block", "block@2"}
    assert_same(model, module, (x,))
    with pytest.warns(unitify.UnitifyWarning, match="U118.*U104"):
        assert same(module.host.block(x, factor=3.0), model.block(x, factor=3.0))


def test_attributes_and_hooks_of_an_island_are_there() -> None:
    _, (x,), module = built("branch")
    seen = []
    module.get_submodule("left").register_forward_hook(lambda *_: seen.append("left"))
    module(x)
    assert seen == ["left"]
    assert module.get_submodule("left").out_features == 4
    assert isinstance(module.get_submodule("first")[2], nn.Dropout)


def test_verification_is_of_the_whole_too() -> None:
    """What lies between islands is compared as well: the same code around the captured graphs."""
    model, args, module = built("tied")
    found = unitify.verify(model, module, args)
    names = {name for name, _ in model.named_parameters()}
    assert found.exact
    assert found.compared > 2 * len(names)
    module.host.body.register_forward_hook(lambda _m, _a, y: y * 1.5)
    found = unitify.verify(model, module, args)
    assert not found.exact
    differing = {d.name.partition(",")[0] for d in found.differences}
    assert differing <= {"output 0", *(f"gradient of {n}" for n in names)}


class FarScales(nn.Module):
    """What reaches the first island is 2^-12 of a unit gradient; what enters the second, 2^10."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
        self.second = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y * 2.0**-12 if y.sum() == 0 else y * 2.0**-12 * 1.0
        y = self.second(y * 2.0**22)
        return (y * 2.0**-22).square().mean()


@pytest.mark.parametrize("mode", [True, False])
def test_islands_are_measured_as_the_model_runs(mode: bool) -> None:
    torch.manual_seed(0)
    model = FarScales().train(mode)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    batches = [(torch.randn(8, 16),) for _ in range(2)]
    found = unitify.estimate(model, batches[0], scales="measured", batches=batches)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert "forward" not in vars(model.first)

    seen: dict[str, list[Tensor]] = {"values": [], "gradients": []}

    def note(_module: nn.Module, _inputs: Any, result: Tensor) -> None:
        seen["values"].append(result.detach())
        result.register_hook(lambda gradient: seen["gradients"].append(gradient))

    with model.first[2].register_forward_hook(note):
        for batch in batches:
            model(*batch).backward()
    true = {name: torch.stack(held).square().mean().sqrt() for name, held in seen.items()}
    rms = found["first/linear_1"]
    assert rms.forward == pytest.approx(float(true["values"]))
    assert rms.backward == pytest.approx(float(true["gradients"]))
    assert rms.backward < 2.0**-20


def test_a_part_that_no_batch_reaches_is_measured_alone() -> None:
    torch.manual_seed(0)
    model = Branch().eval()
    x = torch.randn(4, 8)
    found = unitify.estimate(model, (x,), scales="measured")
    parts = {name.partition("/")[0] for name in found}
    assert len(parts & {"left", "right"}) == 1
    assert all(rms.forward is not None for rms in found.values())
    with pytest.raises(unitify.UnitifyError) as raised:
        unitify.estimate(model, (x,), scales="measured", batches=[])
    assert raised.value.code == "U003"
