"""Models that cannot be captured whole: their islands are transformed, the rest is left alone."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion import same
from torch import Tensor, nn

import unitify
import unitify.optim
from unitify.module.assembly import AssembledModule


class Branch(nn.Module):
    """The way through depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2))
        self.left, self.right = nn.Linear(16, 4), nn.Linear(16, 4)
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
        y = self.first(x)
        y = self.left(y) if y.sum() > 0 else self.right(y)
        if shift is not None:
            y = y + shift
        return {"y": y * self.gain}


class Doubled(torch.autograd.Function):
    """Its gradient is not that of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3


class WithFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(self.linear(x))


class HoldsFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside = nn.Linear(8, 8), WithFunction()
        self.after = nn.Sequential(nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inside(self.before(x)))


class Tied(nn.Module):
    """One weight in two islands, one used by Python code outside its island, one only inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.body(self.embedding(tokens))
        if x.sum().item() > 1e9:
            return x
        x = F.linear(x, self.middle.weight) + self.middle(x)
        return self.head(x)


class Called(nn.Module):
    """One island called in several ways: other sizes, other arguments, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if y.sum().item() > 1e9:
            return y
        z = self.block(y[:, :2], factor=2.0)
        return self.block(y).sum(1) + z.sum(1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return torch.tanh(self.linear(x) * factor)


CASES: dict[str, tuple[type[nn.Module], tuple[Any, ...], set[str]]] = {
    "branch": (Branch, (torch.randn(4, 8),), {"first", "left"}),
    "function": (HoldsFunction, (torch.randn(4, 8),), {"before", "inside.linear", "after"}),
    "tied": (Tied, (torch.randint(0, 12, (3, 5)),), {"embedding", "body", "middle", "head"}),
}


def built(name: str) -> tuple[nn.Module, tuple[Any, ...], AssembledModule]:
    torch.manual_seed(0)
    kind, args, _ = CASES[name]
    model = kind()
    if name == "branch":
        with torch.no_grad():
            model.first[0].bias += 1.0
    with pytest.warns(unitify.UnitifyWarning, match="U1"):
        module = unitify.transform(model, args, scales="measured")
    assert isinstance(module, AssembledModule)
    return model, args, module


def gradients(model: nn.Module, args: tuple[Any, ...], seed: int = 0) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(*args)
    output = output["y"] if isinstance(output, dict) else output
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **found}


def assert_same(model: nn.Module, module: AssembledModule, args: tuple[Any, ...]) -> None:
    expected, found = gradients(model, args), gradients(module, args)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        bwd = module.plan.parameters[name].bwd if name != "output" else 1.0
        assert same(tensor, found[name] * bwd), name


@pytest.mark.parametrize("name", CASES)
def test_islands_are_exact(name: str) -> None:
    model, args, module = built(name)
    assert module.verification is not None
    assert module.verification.exact
    assert not module.verification.model_differences
    assert set(module.parts) == CASES[name][2]
    assert_same(model, module, args)
    assert_same(model.eval(), module.eval(), args)
    assert any(scale.fwd != 1 for scale in module.plan.parameters.values())


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
    model, _, module = built("tied")
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
        module = unitify.transform(model, (x,), scales="measured")
    assert set(module.parts) == {"block"}
    with pytest.warns(unitify.UnitifyWarning, match="U104"):
        assert_same(model, module, (x,))


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
    assert {d.name for d in found.differences} <= {"output 0", *(f"gradient of {n}" for n in names)}


class Norm(nn.Module):
    """Takes its input twice: as it is, or as what an operation hands back unchanged."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(32, 32), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "composite":
            return self.linear(F.rms_norm(x, (32,)))
        y = x.to(torch.float32) if self.kind == "same" else x
        return self.linear(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6))


class ResidualNorm(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(32, 32), Norm(kind)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * 16
        z = self.norm(y)
        return z if z.sum().item() > 1e9 else z + y


@pytest.mark.parametrize("kind", ["plain", "same", "composite"])
def test_sums_at_the_boundary_keep_their_order(kind: str) -> None:
    """An island's input gets gradients from within and from the code around it."""
    torch.manual_seed(0)
    model, x = ResidualNorm(kind), torch.randn(64, 32)
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (x,), scales="measured")
    assert set(module.parts) == {"first", "norm"}
    assert module.verification is not None
    assert not module.verification.model_differences
    assert_same(model, module, (x,))


class Recomputed(torch.autograd.Function):
    """Runs a module again in its backward pass, which adds to the weights' gradients itself."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None]:
        assert ctx.module.training
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.module(x).backward(gradient)
        return None, x.grad


class Reversible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return Recomputed.apply(self.inside, self.before(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_backward_pass_in_python(training: bool) -> None:
    """Its gradients are compared too; where it refuses to run there are none."""
    torch.manual_seed(0)
    model, x = Reversible().train(training), torch.randn(4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U109"):
        module = unitify.transform(model, (x,), scales="measured")
    assert set(module.parts) == {"before", "inside"}
    assert module.verification is not None
    assert not module.verification.model_differences
    assert all(parameter.grad is None for parameter in model.parameters())
    if training:
        assert_same(model, module, (x,))
        assert all(parameter.grad is not None for parameter in module.parameters())


class WithWeight(torch.autograd.Function):
    """Its backward pass takes a weight of the module, whose call it is not."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor) -> Tensor:
        ctx.module = module
        return module(x).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient @ ctx.module.weight


def test_a_weight_that_a_backward_pass_uses_stays_true() -> None:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inside = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return WithWeight.apply(self.inside, self.before(x))

    torch.manual_seed(0)
    model, x = Uses(), torch.randn(4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U109"):
        module = unitify.transform(model, (x,), scales="measured")
    assert set(module.parts) == {"before", "inside"}
    assert module.plan.parameters["inside.weight"] == unitify.Scale()
    assert module.plan.parameters["before.weight"] != unitify.Scale()
    assert_same(model, module, (x,))


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.largest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.largest = float(x.shape[0])
        return y


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keeps, self.last = Keeps(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.keeps(x)
        y = y / self.keeps.largest
        return self.last(y) if y.sum().item() < 1e9 else y


def test_what_a_module_keeps_of_its_call_is_kept() -> None:
    torch.manual_seed(0)
    model, x = Reads(), torch.randn(4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (x,), scales="measured")
    assert set(module.parts) == {"keeps.linear", "last"}
    assert "its call writes largest" in str(module.diagnostics)
    assert model.keeps.largest == 0.0
    assert_same(model, module, (x,))
    assert_same(model, module, (torch.randn(7, 8),))


class OwnSeed(nn.Module):
    """No two runs are the same, whatever the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(torch.seed() % 2**60)
        y = self.other(x)
        x = self.linear(x)
        return (F.dropout(x) if x.sum().item() < 1e9 else x), y


def test_what_is_drawn_anew_cannot_be_compared() -> None:
    torch.manual_seed(0)
    model, x = OwnSeed(), torch.randn(64, 8)
    with pytest.warns(unitify.UnitifyWarning) as warned:
        module = unitify.transform(model, (x,))
    assert {str(w.message)[:4] for w in warned} == {"U101", "U110"}
    found = module.verification
    assert found is not None
    assert found.exact
    differing = {d.name for d in found.model_differences}
    assert {"output 0", "gradient of linear.weight"} <= differing
    assert not {"output 1", "gradient of other.weight"} & differing


class Caching(Branch):
    """Returns a cache when it is asked for one, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict[str, Any]:
        found = super().forward(x, shift)
        return {**found, "cache": x} if self.config.use_cache else found


def test_a_cache_is_left_out() -> None:
    torch.manual_seed(0)
    model, x = Caching(), torch.randn(4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (x,))
    assert "U108" in {d.code for d in module.diagnostics}
    assert module.verification is not None
    assert not module.verification.model_differences
    assert set(module(x)) == {"y"}
    assert model.config.use_cache


class Unusable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_nothing_to_capture() -> None:
    with pytest.raises(unitify.UnitifyError) as caught:
        unitify.transform(Unusable(), (torch.randn(3),))
    assert caught.value.code == "U102"


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
