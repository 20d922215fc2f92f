"""True weights: whatever touches a parameter of a module does what it does to the original."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion import RULES
from islands import CASES
from strategies import random_plan
from torch import Tensor, nn
from torch import optim as O
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import ADAMW, Tied, tokens, train

import unitify
from unitify import optim
from unitify.capture.whole import capture
from unitify.module.assembly import build
from unitify.part import Part
from unitify.plan.fixed import fixed_values
from unitify.rewrite import rewrite
from unitify.rulebook.laws import is_scalable

Pair = tuple[nn.Module, unitify.UnitScaledModule]


def at_any_scales(model: nn.Module, seed: int = 5) -> unitify.UnitScaledModule:
    """A module of true weights whose other values have scales drawn at random."""
    captured = capture(model, (tokens(0),), {}).with_true_parameters()
    generator = random.Random(seed)
    chosen = random_plan(lambda _: generator.randint(-6, 6), captured, RULES)
    return build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))


def small(seed: int = 0) -> Tied:
    """Weights so far from unit RMS that a scale would move them."""
    torch.manual_seed(seed)
    model = Tied()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0**-7)
    return model


@pytest.fixture(params=["chosen", "any"])
def pair(request: pytest.FixtureRequest) -> Pair:
    model = small()
    if request.param == "chosen":
        return model, unitify.transform(model, (tokens(0),))
    return model, at_any_scales(model)


def assert_same_state(model: nn.Module, module: nn.Module) -> None:
    own, theirs = module.state_dict(), model.state_dict()
    assert list(own) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(own[name], tensor), name


def assert_same_results(model: nn.Module, module: nn.Module, *args: Any) -> None:
    args = args or (tokens(9),)
    for owner in (model, module):
        owner.zero_grad()
    expected, found = model(*args), module(*args)
    assert torch.equal(expected, found)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {n: p.grad for n, p in module.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None, name
        else:
            assert torch.equal(parameter.grad, gradients[name]), name


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


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: O.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "ASGD": lambda p: O.ASGD(p, 0.1),
    "Adam": lambda p: O.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: O.AdamW(p, **ADAMW),
    "NAdam": lambda p: O.NAdam(p, 0.01),
    "RAdam": lambda p: O.RAdam(p, 0.01),
    "Adamax": lambda p: O.Adamax(p, 0.01),
    "RMSprop": lambda p: O.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "Adagrad": lambda p: O.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "Adadelta": lambda p: O.Adadelta(p),
    "Rprop": lambda p: O.Rprop(p, 0.01),
    "Adafactor": lambda p: O.Adafactor(p, 0.01),
    "a decay rate of its own": lambda p: O.AdamW(
        [{"params": list(p)[:2], "weight_decay": 0.0}], lr=0.1, foreach=True
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_optimizer_takes_the_originals_steps(name: str, pair: Pair) -> None:
    for owner in pair:
        train(
            owner,
            OPTIMIZERS[name](owner.parameters()),
            clip=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.05),
            accumulate=2,
        )
    assert_same_state(*pair)


def test_lbfgs_takes_the_originals_steps(pair: Pair) -> None:
    for owner in pair:
        optimizer = O.LBFGS(owner.parameters(), max_iter=5, line_search_fn="strong_wolfe")

        def closure(owner: nn.Module = owner, optimizer: O.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = owner(tokens(1))
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)  # type: ignore[arg-type]
    assert_same_state(*pair)


SCHEDULES: dict[str, Callable[[O.Optimizer], Any]] = {
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=20),
    "cosine above zero": lambda o: schedules.CosineAnnealingLR(o, 20, eta_min=1e-3),
    "cyclic": lambda o: schedules.CyclicLR(o, 1e-3, 0.1, step_size_up=3, cycle_momentum=False),
    "warm restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 5, eta_min=1e-4),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_with_absolute_rates(name: str, pair: Pair) -> None:
    for owner in pair:
        optimizer = O.AdamW(owner.parameters(), **ADAMW)
        train(owner, optimizer, scheduler=SCHEDULES[name](optimizer))
    assert_same_state(*pair)


def test_clipping_by_value_clamps_and_averages(pair: Pair) -> None:
    averages = [AveragedModel(pair[0], multi_avg_fn=get_ema_multi_avg_fn(0.9)) for _ in pair]
    for owner, average in zip(pair, averages, strict=True):
        optimizer = O.SGD(owner.parameters(), 0.5)
        for step in range(6):
            optimizer.zero_grad()
            owner(tokens(step)).backward()
            nn.utils.clip_grad_value_(owner.parameters(), 1e-3)
            optimizer.step()
            with torch.no_grad():
                for parameter in owner.parameters():
                    parameter.clamp_(-2e-3, 2e-3)
            average.update_parameters(owner)
    assert_same_state(*pair)
    assert_same_state(averages[0].module, averages[1].module)


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


def test_training_changes_horses() -> None:
    """Original, module, original, module of another plan: model and optimizer handed on."""
    model, plain = small(), small()
    reference = O.AdamW(plain.parameters(), **ADAMW)
    owner: nn.Module = model
    held: dict[str, Any] | None = None
    for leg in range(4):
        if leg % 2:
            owner = at_any_scales(small(seed=9), seed=leg)
        elif leg:
            owner = small(seed=9)
        optimizer = O.AdamW(owner.parameters(), **ADAMW)
        if held is not None:
            owner.load_state_dict(held["model"])
            optimizer.load_state_dict(held["optimizer"])
        train(owner, optimizer, clip=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1))
        train(plain, reference, clip=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1))
        assert_same_state(plain, owner)
        state, expected = optimizer.state_dict(), reference.state_dict()
        assert state["param_groups"] == expected["param_groups"]
        for index, moments in expected["state"].items():
            for name, tensor in moments.items():
                assert torch.equal(state["state"][index][name], tensor)
        held = copy.deepcopy({"model": owner.state_dict(), "optimizer": state})


def test_inplace_shares_the_models_own_parameters() -> None:
    model = small()
    before = copy.deepcopy(model)
    module = unitify.transform(model, (tokens(0),), inplace=True)
    own = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        assert own[name] is parameter
    assert_same_state(before, model)
    train(module, O.AdamW(model.parameters(), **ADAMW))
    train(before, O.AdamW(before.parameters(), **ADAMW))
    assert_same_state(before, model)


def test_a_rebase_exchanges_constants_alone() -> None:
    """No optimizer and no schedule is needed, known or not."""
    model = small()
    module = unitify.transform(model, (tokens(0),))
    for owner in (model, module):
        optimizer = O.RAdam(owner.parameters(), 0.05)
        schedule = SCHEDULES["one cycle"](optimizer)
        train(owner, optimizer, scheduler=schedule)
        if owner is module:
            owner(tokens(1)).backward()
            state = copy.deepcopy([owner.state_dict(), optimizer.state_dict()])
            gradients = [p.grad.clone() for p in owner.parameters() if p.grad is not None]
            assert unitify.rebase_(owner, [(tokens(1),)]).values > 0
            assert str(state) == str([owner.state_dict(), optimizer.state_dict()])
            kept = [p.grad for p in owner.parameters() if p.grad is not None]
            assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))
        train(owner, O.AdamW(owner.parameters(), **ADAMW))
    assert_same_state(model, module)


def test_param_groups_are_what_torch_would_take() -> None:
    module = unitify.transform(small(), (tokens(0),))
    (group,) = optim.param_groups(module, O.LBFGS, lr=0.1)
    assert group.keys() == {"params", "lr"}
    assert group["params"] == list(module.parameters())
    given = [{"params": module.get_parameter("hidden.bias"), "lr": 0.2, "note": "bias"}]
    (group,) = optim.param_groups(module, O.Adafactor, params=given, weight_decay=0.1)
    assert group["lr"] == 0.2
    assert group["weight_decay"] == 0.1
    assert group["note"] == "bias"
    assert optim.learning_rates(O.SGD(module.parameters(), 0.1), 0.3) == [0.3]
    with pytest.raises(unitify.UnitifyError) as caught:
        optim.param_groups(module, O.AdamW, weigth_decay=0.1)
    assert caught.value.diagnostics[0].code == "U001"


def test_a_block_of_a_larger_model() -> None:
    """State dicts of the whole speak true weights, too; stored ones are told apart inside it."""
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
