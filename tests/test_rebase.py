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


@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=[f"{kind.__name__}-{options}" for kind, options in CASES]
)
def test_training_goes_on_as_if_nothing_had_happened(
    pair: Pair, kind: Any, options: dict[str, Any]
) -> None:
    plain, own = optimizers(pair, kind, **options)
    assert_same_training(pair, plain, own)
    held = pair[1].plan.parameters
    assert unitify.rebase_(pair[1], BATCHES).values > 0
    assert pair[1].plan.parameters == held
    assert_same_parameters(*pair)
    assert_same_training(pair, plain, own, first=6)
    unitify.rebase_(pair[1], scales="analysis")
    assert_same_training(pair, plain, own, first=12)


@pytest.mark.parametrize("weights", ["true", "stored"])
def test_scales_are_unit_again(weights: str) -> None:
    """Those of a fresh plan; stored weights keep their own, and are cast at the fresh ones."""
    model, _ = fresh_pair()
    module = unitify.transform(model, BATCHES[0], weights=weights)
    with torch.no_grad():
        for owner in (model, module):
            for parameter in owner.parameters():
                parameter.mul_(2.0**9)
    held = module.plan.parameters
    unitify.rebase_(module, BATCHES)
    fresh = unitify.transform(
        model, BATCHES[0], scales="measured", batches=BATCHES, weights=weights
    )
    assert module.plan.parameters == held
    for name in fresh.plan.values:
        assert module.plan.unit(name) == fresh.plan.unit(name)
    if weights == "true":
        assert module.plan == fresh.plan
    assert unitify.rebase_(module, BATCHES).values == 0


def test_stored_weights_are_cast_at_their_new_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    x = torch.randn(64, 16)
    module = unitify.transform(model, (x,), recipe="fp8", weights="stored")
    with torch.no_grad():
        for owner in (model, module):
            for parameter in owner.parameters():
                parameter.mul_(2.0**12)
    unitify.rebase_(module, [x])
    expected = unitify.transform(model, (x,), recipe="fp8", scales="measured", batches=[x])
    assert torch.equal(module(x), expected(x))


def test_measuring_leaves_no_trace(pair: Pair) -> None:
    module = pair[1]
    before, state = module.original_state_dict(), torch.get_rng_state()
    unitify.rebase_(module, BATCHES)
    after = module.original_state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())


def test_accumulation_clipping_and_schedules_go_on(pair: Pair) -> None:
    """Whatever is under way: a rebase between two micro-batches changes no bit."""
    plain, own = optimizers(pair, O.AdamW, **ADAMW)
    schedules = [lr_scheduler.StepLR(o, 2, 0.3) for o in (plain, own)]
    for seed in range(8):
        for owner in pair:
            owner(tokens(seed)).backward()
        if seed == 4:
            unitify.rebase_(pair[1], BATCHES)
        if seed % 2:
            nn.utils.clip_grad_norm_(list(pair[0].parameters()), 0.1)
            optim.clip_grad_norm_(pair[1], 0.1)
            for one in (plain, own, *schedules):
                one.step()
            plain.zero_grad()
            own.zero_grad()
    assert_same_parameters(*pair)


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
            done = unitify.rebase_(module, [batch], loss_fn=lambda y: y.square().mean())
            # The parameters keep theirs.
            assert done.values >= 4
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
    assert unitify.rebase_(module, [x]).values > 0
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
    unitify.rebase_(module, [x])
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
    assert unitify.rebase_(compiled, [x]).values > 0
    assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize(
    ("code", "arguments"),
    [("U003", {"scales": "measured"}), ("U001", {"scales": "guessed", "batches": BATCHES})],
)
def test_what_is_refused(pair: Pair, code: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UnitifyError) as caught:
        unitify.rebase_(pair[1], **arguments)
    assert caught.value.code == code


def test_a_module_for_inference_has_nothing_to_move() -> None:
    module = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (torch.randn(4, 16),))
    with pytest.raises(UnitifyError) as caught:
        unitify.rebase_(module.to_inference(), [torch.randn(4, 16)])
    assert caught.value.code == "U009"


def test_a_baseline_has_no_scales_to_choose() -> None:
    x = torch.randn(4, 16)
    module = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (x,), recipe="fp8-plain")
    before, expected = module.plan, module(x)
    assert unitify.rebase_(module, [64 * x]).values == 0
    assert module.plan == before
    assert torch.equal(module(x), expected)
