"""True weights: whatever touches a parameter of a module does what it does to the original."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from islands import CASES
from torch import Tensor, nn
from training import Pair, tokens
from true_weights import assert_same_results, assert_same_state, small

import unitify
from unitify.plan.fixed import fixed_values
from unitify.rulebook.laws import is_scalable


def test_names_values_and_order_are_the_originals(pair: Pair) -> None:
    model, module = pair
    assert_same_state(model, module)
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert set(module.plan.parameters.values()) == {unitify.Scale()}
    assert any(scale != unitify.Scale() for scale in module.plan.values.values())
    assert_same_results(model, module)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_state_dicts_go_both_ways(pair: Pair, strict: bool, assign: bool) -> None:
    _, module = pair
    other = small(seed=1)
    held = copy.deepcopy(other.state_dict())
    if not strict:
        del held["hidden.bias"]
        held["strange"] = torch.ones(1)
        other.hidden.bias.data.copy_(module.get_parameter("hidden.bias"))
    module.load_state_dict(held, strict=strict, assign=assign)
    assert_same_state(other, module)
    assert_same_results(other, module)

    fresh = small(seed=2)
    fresh.load_state_dict(module.state_dict(), strict=strict, assign=assign)
    assert_same_state(fresh, module)


def test_names_of_one_parameter_stay_one(pair: Pair) -> None:
    _, module = pair
    module.load_state_dict(copy.deepcopy(small(seed=1).state_dict()), assign=True)
    assert module.get_parameter("head.weight") is module.get_parameter("embedding.weight")
    own = nn.Parameter(torch.zeros(11, 8))
    module.load_state_dict({"head.weight": own}, strict=False, assign=True)
    assert module.get_parameter("embedding.weight") is own

    two = {**module.state_dict(), "head.weight": torch.ones(11, 8)}
    with pytest.raises(unitify.UnitifyError) as caught:
        module.load_state_dict(two, assign=True)
    assert caught.value.diagnostics[0].code == "U603"


def test_a_state_dict_that_does_not_fit_is_refused_as_torch_does(pair: Pair) -> None:
    model, module = pair
    for owner in (model, module):
        with pytest.raises(RuntimeError, match="Missing key"):
            owner.load_state_dict({"hidden.bias": torch.zeros(8)})


def test_hooks_see_true_gradients(pair: Pair) -> None:
    seen: list[Tensor] = []
    for owner in pair:
        weight = owner.get_parameter("head.weight")
        weight.register_hook(lambda g: seen.append(g) or 2 * g)
        weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        owner(tokens(3)).backward()
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert torch.equal(seen[1], 2 * seen[0])


def test_a_parameter_may_be_used_outside_as_well(pair: Pair) -> None:
    gradients = []
    for owner in pair:
        decay = sum(p.square().sum() for p in owner.parameters())
        (owner(tokens(3)) + 0.1 * decay).backward()
        gradients.append([p.grad for p in owner.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_block_of_a_larger_model() -> None:
    """State dicts of the whole speak true weights, too; stored ones are marked inside it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.GELU()))
    with torch.no_grad():
        model[1][0].weight.mul_(2.0**-6)
    whole = copy.deepcopy(model)
    whole[1] = unitify.transform(model[1], (torch.randn(4, 8),))
    assert_same_state(model, whole)
    whole.load_state_dict(model.state_dict())
    assert_same_results(model, whole, torch.randn(4, 8))
    whole[1] = unitify.transform(model[1], (torch.randn(4, 8),), weights="stored")
    assert "1.unitify_fingerprint" in whole.state_dict()
    whole.load_state_dict(whole.state_dict())
    with pytest.raises(unitify.UnitifyError) as caught:
        whole.load_state_dict(model.state_dict())
    assert caught.value.diagnostics[0].code == "U017"


@pytest.mark.parametrize("name", CASES)
def test_islands(name: str) -> None:
    factory, args = CASES[name][:2]
    torch.manual_seed(0)
    model = factory()
    module = unitify.transform(model, args)
    assert_same_state(model, module)
    other = factory()
    module.load_state_dict(other.state_dict())
    other.load_state_dict(module.state_dict())
    assert_same_state(other, module)


class MakesWeights(nn.Module):
    """Weights that are themselves made: transposed, masked, normalized, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(0.01 * torch.randn(8, 8))
        self.b = nn.Parameter(0.01 * torch.randn(8, 8))
        self.gain = nn.Parameter(torch.rand(8, 1))
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, 8))
        self.register_buffer("mask", (torch.rand(8, 8) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.gain * self.a / self.a.norm(dim=1, keepdim=True)
        joined = torch.cat([normalized, (self.b * self.mask).t()])
        tokens = self.token.expand(x.shape[0], -1, -1)
        return torch.cat([tokens, x], 1) @ joined.t() + F.linear(x, self.b).mean()


def test_no_copy_of_a_weight_is_made() -> None:
    """What is made of weights alone stays true; only what is added small is multiplied."""
    torch.manual_seed(0)
    model, x = MakesWeights(), torch.randn(3, 5, 8)
    module = unitify.transform(model, (x,), scales="measured")
    assert_same_results(model, module, x)
    held = {n.name: n for n in module.capture.graph.nodes}
    for node in module.graph.nodes:
        source = node.args[0] if node.target is torch.ops.unitify.rescale.default else None
        if source is not None and source.name in held and node.args[1] != 1:
            assert not source.name.startswith(("p_a", "p_b")), source.name
    assert any(unit.fwd != 1 for name, unit in module.plan.units.items() if name.startswith("p_"))


class Halves(nn.Module):
    """A weight that is cast to float16 in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(2.0**-12 * torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.half(), self.weight.half()).float()


def test_a_weight_in_a_narrow_format_has_a_scale_there() -> None:
    torch.manual_seed(0)
    model, x = Halves(), torch.randn(16, 8)
    module = unitify.transform(model, (x,), scales="measured", verify=False)
    fixed = fixed_values(module.capture)
    (weight,) = [
        n
        for n in module.capture.graph.nodes
        if is_scalable(n) and n.op == "call_function" and n.all_input_nodes[0].op == "get_attr"
    ]
    assert weight not in fixed
    assert module.plan.values[weight.name].fwd < 2.0**-9
    module(x).square().sum().backward()
    own = module.get_parameter("weight")
    wide = F.linear(x, own.detach().requires_grad_())
    assert torch.allclose(module(x), wide, rtol=0.02, atol=1e-5)
    assert own.grad is not None
    assert own.grad.isfinite().all()


def saved_bytes(owner: nn.Module, *args: Any) -> int:
    """Bytes of memory that one call keeps for its backward pass, parameters' own aside."""
    own = {p.untyped_storage().data_ptr() for p in owner.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        held = owner(*args)
    del held
    return sum(found.values())


def test_nothing_more_is_kept_for_the_backward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0**-5)
    x = torch.randn(4, 256)
    module = unitify.transform(model, (x,))
    weights = sum(p.nbytes for p in model.parameters())
    assert saved_bytes(module, x) - saved_bytes(model, x) < 0.1 * weights
