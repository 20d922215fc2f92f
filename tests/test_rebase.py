"""``rebase_``: scales chosen anew in the middle of a training that does not notice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from islands import HoldsFunction
from test_optim import CASES
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from training import ADAMW, Pair, assert_same_parameters, fresh_pair, scaled_at_random, tokens

import unitify
from unitify import optim
from unitify.diagnostics import UnitifyError
from unitify.optim.optimizers import OptimizerUnits, Units
from unitify.optim.state import multiply_

BATCHES = [(tokens(100),), (tokens(101),)]
O = torch.optim  # noqa: E741


@pytest.fixture
def pair() -> Pair:
    return fresh_pair()


def optimizers(pair: Pair, kind: Any, **options: Any) -> tuple[Optimizer, Optimizer]:
    model, module = pair
    own = optim.param_groups(module, kind, **options)
    return kind(list(model.parameters()), **options), kind(own)


def step(owner: nn.Module, optimizer: Optimizer, seed: int) -> None:
    owner(tokens(seed)).backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_same_training(pair: Pair, plain: Optimizer, own: Optimizer, first: int = 0) -> None:
    """Six steps of both, compared."""
    for seed in range(first, first + 6):
        step(pair[0], plain, seed)
        step(pair[1], own, seed)
    assert_same_parameters(*pair)


def assert_groups_as_made_now(module: nn.Module, optimizer: Optimizer, **options: Any) -> None:
    made = type(optimizer)(optim.param_groups(module, type(optimizer), **options)).param_groups
    assert len(made) == len(optimizer.param_groups)
    for found, group in zip(optimizer.param_groups, made, strict=True):
        assert [id(p) for p in found.pop("params")] == [id(p) for p in group.pop("params")]
        assert found == group


@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=[f"{kind.__name__}-{options}" for kind, options in CASES]
)
def test_training_goes_on_as_if_nothing_had_happened(
    pair: Pair, kind: Any, options: dict[str, Any]
) -> None:
    plain, own = optimizers(pair, kind, **options)
    assert_same_training(pair, plain, own)
    done = unitify.rebase_(pair[1], own, BATCHES)
    assert len(done.parameters) > 5
    assert done.underflows == 0
    assert_same_parameters(*pair)
    assert_same_training(pair, plain, own, first=6)
    unitify.rebase_(pair[1], own, scales="analysis")
    assert_same_training(pair, plain, own, first=12)
    assert_groups_as_made_now(pair[1], own, **options)


def test_scales_are_unit_again(pair: Pair) -> None:
    model, module = pair
    unitify.rebase_(module, None, BATCHES)
    fresh = unitify.transform(
        model, BATCHES[0], scales="measured", batches=BATCHES, weights="stored"
    )
    assert module.plan == fresh.plan
    again = unitify.rebase_(module, None, BATCHES)
    assert (again.parameters, again.values) == ({}, 0)


def test_measuring_leaves_no_trace(pair: Pair) -> None:
    module = pair[1]
    before, state = module.original_state_dict(), torch.get_rng_state()
    unitify.rebase_(module, None, BATCHES)
    after = module.original_state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())


def test_gradients_that_were_accumulated_are_moved(pair: Pair) -> None:
    plain, own = optimizers(pair, O.AdamW, **ADAMW)
    for owner in pair:
        owner(tokens(0)).backward()
    unitify.rebase_(pair[1], own, BATCHES)
    assert_same_training(pair, plain, own, first=1)


def test_clipping_and_given_groups(pair: Pair) -> None:
    """Groups of the user's are never merged with one another, and keep their options."""

    def grouped(owner: nn.Module) -> list[dict[str, Any]]:
        named = list(owner.named_parameters())
        bias = [p for name, p in named if "bias" in name]
        rest = [p for name, p in named if "bias" not in name]
        return [{"params": bias, "weight_decay": 0.0, "mine": 7}, {"params": rest, "lr": 0.02}]

    model, module = pair
    plain = O.AdamW(grouped(model), **ADAMW)
    given = grouped(module)
    own = O.AdamW(optim.param_groups(module, O.AdamW, params=given, **ADAMW))
    for seed in range(12):
        for owner, optimizer in ((model, plain), (module, own)):
            optimizer.zero_grad()
            owner(tokens(seed)).backward()
        nn.utils.clip_grad_norm_(list(model.parameters()), 0.1)
        optim.clip_grad_norm_(module, 0.1)
        plain.step()
        own.step()
        if seed == 5:
            unitify.rebase_(module, own, BATCHES)
    assert_same_parameters(model, module)
    assert {g.get("mine") for g in own.param_groups if g["given_group"] == 0} == {7}
    assert_groups_as_made_now(module, own, params=given, **ADAMW)


def test_groups_that_were_made_by_hand_are_split(pair: Pair) -> None:
    """Without ``param_groups`` the optimiser's own trajectory goes on, whatever it was."""
    module = pair[1]
    own = O.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    step(module, own, 0)
    other = copy.deepcopy(module)
    twin = O.SGD(other.parameters(), lr=1e-3, momentum=0.9)
    twin.load_state_dict(copy.deepcopy(own.state_dict()))
    unitify.rebase_(module, own, BATCHES)
    assert len(own.param_groups) > 1
    for seed in range(1, 5):
        step(module, own, seed)
        step(other, twin, seed)
    found, expected = module.original_state_dict(), other.original_state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


SCHEDULERS = {
    "LambdaLR": lambda o, _: lr_scheduler.LambdaLR(o, lambda step: step / 9),
    "StepLR": lambda o, _: lr_scheduler.StepLR(o, 2, 0.3),
    "CosineAnnealingLR": lambda o, _: lr_scheduler.CosineAnnealingLR(o, 20),
    "SequentialLR": lambda o, _: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)],
        milestones=[4],
    ),
    "OneCycleLR": lambda o, rates: lr_scheduler.OneCycleLR(o, rates, total_steps=20),
    "CyclicLR": lambda o, rates: lr_scheduler.CyclicLR(
        o, [r / 8 for r in rates], rates, step_size_up=3, cycle_momentum=False
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_go_on(pair: Pair, name: str) -> None:
    plain, own = optimizers(pair, O.AdamW, **ADAMW)
    schedules = [
        SCHEDULERS[name](plain, [0.05]),
        SCHEDULERS[name](own, optim.learning_rates(own, 0.05)),
    ]
    for seed in range(12):
        step(pair[0], plain, seed)
        step(pair[1], own, seed)
        for schedule in schedules:
            schedule.step()
        if seed == 5:
            unitify.rebase_(pair[1], own, BATCHES, scheduler=schedules[1])
    assert_same_parameters(*pair)
    factors = [group["lr_factor"] for group in own.param_groups]
    true = [rate / f for rate, f in zip(schedules[1].get_last_lr(), factors, strict=True)]
    assert set(true) == set(schedules[0].get_last_lr())


def test_two_optimisers(pair: Pair) -> None:
    def halves(owner: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        parameters = list(owner.parameters())
        return parameters[:2], parameters[2:]

    model, module = pair
    plain = [O.AdamW(halves(model)[0], **ADAMW), O.SGD(halves(model)[1], lr=0.1, momentum=0.9)]
    own = [
        O.AdamW(
            optim.param_groups(module, O.AdamW, params=[{"params": halves(module)[0]}], **ADAMW)
        ),
        O.SGD(
            optim.param_groups(
                module, O.SGD, params=[{"params": halves(module)[1]}], lr=0.1, momentum=0.9
            )
        ),
    ]
    for seed in range(8):
        for owner, both in ((model, plain), (module, own)):
            owner(tokens(seed)).backward()
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()
        if seed == 3:
            unitify.rebase_(module, own, BATCHES)
    assert_same_parameters(model, module)


def test_islands() -> None:
    """Two islands around code that is left alone."""
    torch.manual_seed(0)
    model = HoldsFunction()
    x = torch.randn(4, 8)
    module = unitify.transform(model, (x,), scales="analysis", weights="stored")
    assert len(module.parts) > 1
    plain = O.AdamW(model.parameters(), **ADAMW)
    own = O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW))
    for seed in range(12):
        batch = 9 * torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        for owner, optimizer in ((model, plain), (module, own)):
            optimizer.zero_grad()
            owner(batch).square().mean().backward()
            optimizer.step()
        if seed == 5:
            done = unitify.rebase_(module, own, [batch], loss_fn=lambda y: y.square().mean())
            assert done.values > 5
    found = module.original_state_dict()
    assert all(torch.equal(found[name], p) for name, p in model.state_dict().items())


class ByMode(nn.Module):
    """Two modes that are two graphs on the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.second(self.first(x).tanh())
        return self.second(self.first(x).sin() + x)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_that_does_not_run_keeps_its_scales(training: bool) -> None:
    torch.manual_seed(0)
    model, x = ByMode(), torch.ones(4, 6)
    module = unitify.transform(model, (x,))
    parts = {part.capture.mode == "train": part for part in module.parts.values()}
    before = parts[not training].plan.values
    held = {n.name for n in parts[not training].capture.graph.nodes if n.op == "get_attr"}
    with torch.no_grad():
        for owner in (model, module):
            for parameter in owner.parameters():
                parameter.mul_(2.0**9)
    module.train(training)
    assert unitify.rebase_(module, None, [x]).values > 0
    after = parts[not training].plan.values
    assert all(after[name] == scale for name, scale in before.items() if name not in held)
    assert parts[True].plan.parameters == parts[False].plan.parameters
    for mode in (True, False):
        assert torch.equal(module.train(mode)(x), model.train(mode)(x))


def test_casts_are_placed_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    x = torch.randn(64, 16)
    module = unitify.transform(model, (x,), recipe="fp8")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0**12)
    true = module.original_state_dict()
    unitify.rebase_(module, None, [x])
    twin = copy.deepcopy(model)
    twin.load_state_dict(true)
    assert module.recipe is not None
    expected = unitify.transform(twin, (x,), recipe=module.recipe, scales="measured", batches=[x])
    assert str(module.graph) == str(expected.graph)
    assert torch.equal(module(x), expected(x))


def test_a_compiled_module_runs_the_new_graph() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(5, 6)
    module = scaled_at_random(model, x)
    compiled = torch.compile(module, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    assert unitify.rebase_(compiled, None, [x]).values > 0
    assert torch.equal(compiled(x), model(x))


def test_digits_that_are_lost_are_counted() -> None:
    x = torch.tensor([1.0, 3e-38, 1e-45, 0.0, float("inf"), float("nan"), 1e38])
    assert multiply_(x.clone(), 2.0**-10) == 2
    assert multiply_(x.clone(), 2.0**10) == 1
    assert multiply_(x.to_sparse(), 2.0**-10) == 2


class WithTrace(O.SGD):
    """Keeps something of its own."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["trace"] = parameter.grad.square()
        return super().step(closure)


def test_state_of_unknown_units(pair: Pair) -> None:
    module = pair[1]
    own = WithTrace(optim.param_groups(module, WithTrace, lr=0.1, momentum=0.9))
    step(module, own, 0)
    before = copy.deepcopy(module)
    with pytest.raises(UnitifyError) as caught:
        unitify.rebase_(module, own, BATCHES)
    assert caught.value.code == "U008"
    assert module.plan == before.plan
    assert all(
        torch.equal(p, q) for p, q in zip(module.parameters(), before.parameters(), strict=True)
    )
    row = optim.units_of(O.SGD)
    units = OptimizerUnits(row.units, {**row.state, "trace": Units(0, -2)})
    kept = {n: own.state[p]["trace"].clone() for n, p in module.named_parameters() if own.state[p]}
    moved = unitify.rebase_(module, own, BATCHES, units=units).parameters
    for name, trace in kept.items():
        old, new = moved.get(name, (unitify.Scale(), unitify.Scale()))
        true = own.state[module.get_parameter(name)]["trace"] * new.bwd**2
        assert torch.equal(true, trace * old.bwd**2)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [("U003", {}), ("U001", {"scales": "guessed", "batches": BATCHES})],
)
def test_what_is_refused(pair: Pair, code: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UnitifyError) as caught:
        unitify.rebase_(pair[1], None, **arguments)
    assert caught.value.code == code


def test_a_module_for_inference_has_nothing_to_move() -> None:
    module = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (torch.randn(4, 16),))
    with pytest.raises(UnitifyError) as caught:
        unitify.rebase_(module.to_inference(), None, [torch.randn(4, 16)])
    assert caught.value.code == "U009"


def test_a_baseline_has_no_scales_to_choose() -> None:
    x = torch.randn(4, 16)
    module = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (x,), recipe="fp8-plain")
    before, expected = module.plan, module(x)
    assert unitify.rebase_(module, None, [64 * x]).values == 0
    assert module.plan == before
    assert torch.equal(module(x), expected)


def test_a_schedule_that_was_given_up(pair: Pair) -> None:
    plain, own = optimizers(pair, O.AdamW, **ADAMW)
    for optimizer in (plain, own):
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.step()
        schedule.step()
    unitify.rebase_(pair[1], own, BATCHES, scheduler=())
    assert_same_training(pair, plain, own)
