"""What ``transform`` is given: a model, inputs or none, a loss, sizes; and what is refused."""

from __future__ import annotations

import copy
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitify
from unitify.capture.inputs import infer_inputs

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))


FIRST = [
    nn.Linear(3, 4), nn.Embedding(5, 3), nn.EmbeddingBag(5, 3), nn.Conv1d(2, 3, 3),
    nn.Conv3d(2, 3, 3), nn.ConvTranspose2d(2, 3, 2), nn.LSTM(3, 4), nn.GRUCell(3, 4),
    nn.LayerNorm(3), nn.RMSNorm(3), nn.BatchNorm1d(3), nn.BatchNorm2d(3),
    nn.TransformerEncoderLayer(4, 2),
    nn.Sequential(nn.Flatten(), nn.Linear(12, 2)),
    nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.LazyLinear(2)),
]  # fmt: skip


@pytest.mark.parametrize("model", FIRST, ids=[type(model).__name__ for model in FIRST])
def test_inputs_are_inferred_from_the_first_layer(model: nn.Module) -> None:
    args, kwargs = infer_inputs(model)
    model.eval()(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_inputs_are_of_the_model_s_precision(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    module = unitify.transform(model)
    assert torch.equal(module(X.to(dtype)), model(X.to(dtype)))


@pytest.mark.parametrize(
    "model",
    [nn.Identity(), nn.Bilinear(3, 4, 5), nn.Sequential(nn.LazyLinear(3))],
    ids=["nothing", "two", "lazy"],
)
def test_inputs_that_cannot_be_inferred(model: nn.Module) -> None:
    with pytest.raises(unitify.UnitifyError, match=r"U002.*unitify\.transform\(model, \(input"):
        unitify.transform(model)


@pytest.mark.parametrize("model", [None, mlp, nn.Linear])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(unitify.UnitifyError, match=r"U001.*torch\.nn\.Module"):
        unitify.transform(model, X)


LOSSES = {
    "raises ZeroDivisionError": lambda output: 1 / 0,
    "returns float": lambda output: 1.0,
    "returns NoneType": lambda output: None,
    "returns 10 numbers": lambda output: output,
    "does not depend": lambda output: output.detach().sum(),
}


@pytest.mark.parametrize("scales", ["analysis", "measured"])
@pytest.mark.parametrize("problem", LOSSES)
def test_a_loss_that_is_none(problem: str, scales: str) -> None:
    words = problem.removeprefix("raises ")
    with pytest.raises(unitify.UnitifyError, match=f"U012.*{words}"):
        unitify.transform(mlp(), X, loss_fn=LOSSES[problem], scales=scales)


def test_a_loss_of_one_number() -> None:
    def loss_fn(output: Tensor) -> Tensor:
        return output.square().mean().view(1)

    assert unitify.transform(mlp(), X, loss_fn=loss_fn).verification.exact


@pytest.mark.parametrize(("shapes", "known"), [({"y": None}, "input"), ("all", "auto")])
def test_sizes_of_no_input(shapes: Any, known: str) -> None:
    with pytest.raises(unitify.UnitifyError, match=f"U001.*dynamic_shapes.*not one of {known}"):
        unitify.transform(mlp(), X, dynamic_shapes=shapes)


def test_a_target_among_the_inputs_of_a_measurement() -> None:
    """An input that cannot ask for a gradient is measured as it is, and so are the others."""

    class WithTarget(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return nn.functional.soft_margin_loss(self.body(x), target)

    target = torch.tensor([[1.0, -1.0]]).repeat(5, 1)
    found = unitify.estimate(WithTarget(), (X, target), scales="measured")
    assert found["target"].backward is None
    assert found["x"].backward > 0
    assert found["x"].forward == pytest.approx(float(X.square().mean().sqrt()))


def test_a_plan_that_is_none() -> None:
    module = unitify.transform(mlp(), X)
    with pytest.raises(unitify.UnitifyError, match=r"U001.*plan='dict'.*from_json"):
        unitify.rebuild(mlp(), module.state_dict(), module.plan.to_json(), X)


def test_verification_takes_what_was_transformed() -> None:
    model = mlp()
    with pytest.raises(unitify.UnitifyError, match=r"U009.*Sequential"):
        unitify.verify(model, model, X)
    compiled = torch.compile(unitify.transform(model, X), backend="aot_eager")
    assert unitify.verify(model, compiled, X).exact


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return self.body(x) if shift is None else self.body(x + shift)


class Batched(ByName):
    def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().forward(batch["x"], batch["shift"])


class AnyName(ByName):
    def forward(self, first: Any = None, **named: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(named["x"], named["shift"])


FORMS: dict[str, tuple[type[nn.Module], Any, tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "a tensor": (ByName, X, ((X,), {})),
    "a tuple": (ByName, (X, X), ((X, X), {})),
    "a list": (ByName, [X, X], ((X, X), {})),
    "a dict": (ByName, {"x": X, "shift": X}, ((), {"x": X, "shift": X})),
    "a mapping": (ByName, UserDict(x=X, shift=X), ((), {"x": X, "shift": X})),
    "a dict as the input": (Batched, {"x": X, "shift": X}, (({"x": X, "shift": X},), {})),
    "a dict of any names": (AnyName, {"x": X, "shift": X}, ((), {"x": X, "shift": X})),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_in_every_form(form: str) -> None:
    kind, batch, (args, kwargs) = FORMS[form]
    model = kind()
    expected = model(*args, **kwargs)
    for scales in ("analysis", "measured"):
        module = unitify.transform(model, batch, scales=scales, batches=[batch])
        assert torch.equal(module(*args, **kwargs), expected)
        assert unitify.estimate(model, batch, scales=scales, batches=[batch])
    assert unitify.verify(model, module, batch).exact
    assert unitify.verify(model, module, args, kwargs).exact


def test_keyword_inputs_that_the_model_does_not_take() -> None:
    with pytest.raises(unitify.UnitifyError, match=r"U102.*'y'"):
        unitify.transform(ByName(), {"x": X, "y": X})


OPTIONS: list[tuple[str, Any, str]] = [
    ("recipe", 3, "U402"),
    ("rules", 3, "U001"),
    ("rules", [3], "U001"),
    ("rules", "rules.toml", "U001"),
    ("batches", 3, "U001"),
    ("batches", X, "U001"),
    ("batches", {"x": X}, "U001"),
    ("recording_seconds", "a", "U001"),
    ("recording_seconds", True, "U001"),
    ("weights", 1, "U001"),
    ("scales", None, "U001"),
    ("scheme", 3, "U001"),
    ("dynamic_shapes", 3, "U001"),
    ("on_stage", 3, "U001"),
    ("loss_fn", 3, "U012"),
]


@pytest.mark.parametrize(("option", "value", "code"), OPTIONS)
def test_an_option_of_another_type(option: str, value: Any, code: str) -> None:
    with pytest.raises(unitify.UnitifyError) as raised:
        unitify.transform(mlp(), (X,), **{option: value})
    assert raised.value.code == code


@pytest.mark.parametrize("batches", [3, X, {"x": X}])
def test_a_single_batch_is_no_list(batches: Any) -> None:
    module = unitify.transform(mlp(), (X,))
    plan, weights = module.plan, module.state_dict()
    for run in (
        lambda: module.report(batches),
        lambda: unitify.rebase_(module, batches),
        lambda: unitify.rebuild(mlp(), weights, plan, X, batches=batches),
    ):
        with pytest.raises(unitify.UnitifyError, match="U001"):
            run()


class NotBegun(nn.Module):
    def __init__(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x


class Compared(nn.Linear):
    def __eq__(self, other: object) -> bool:
        return self is other


class OfLabels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(nn.functional.one_hot(x, 4).float())


ODD: dict[str, tuple[Any, str]] = {
    "not begun": (NotBegun, "NotBegun.__init__ does not call"),
    "child not begun": (lambda: nn.Sequential(nn.Linear(4, 4), NotBegun()), "NotBegun.__init__"),
    "no hash": (lambda: Compared(4, 4), "Compared defines __eq__"),
    "child without hash": (lambda: nn.Sequential(Compared(4, 4)), "Compared defines __eq__"),
    "TorchScript": (lambda: torch.jit.trace(nn.Linear(4, 4), X), "TorchScript"),
    "other inputs": (OfLabels, "it does not run: RuntimeError"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_an_odd_model_has_a_code(name: str) -> None:
    made, reason = ODD[name]
    with pytest.raises(unitify.UnitifyError, match=f"U102 .*{reason}"):
        unitify.transform(made(), (X,))


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::unitify.UnitifyWarning")
def test_a_traced_module_within_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(torch.jit.trace(nn.Linear(4, 4), X), nn.Linear(4, 4))
    module = unitify.transform(model, (X,))
    assert set(module.parts) == {"1"}
    assert torch.equal(module(X), model(X))


class Table(nn.Module):
    """A table that is computed from parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.layers = nn.Parameter(torch.randn(5, 4)), mlp()

    def forward(self) -> Tensor:
        return self.layers(self.rows)


def test_a_model_without_inputs_needs_none() -> None:
    model = Table()
    module = unitify.transform(model)
    assert torch.equal(module(), model())


def test_what_is_no_transformed_module() -> None:
    stored = unitify.transform(mlp(), (X,), weights="stored")
    cast = unitify.transform(mlp(), (X,), recipe="fp8,multiple=1")
    wrong = [torch.randn(5, 7)]
    for code, run in (
        ("U009", lambda: unitify.gather_codes_(mlp())),
        ("U614", lambda: unitify.export(mlp(), "new")),
        ("U001", lambda: unitify.optim.param_groups(stored, "adam")),
        ("U001", lambda: unitify.load(None)),
        ("U102", lambda: unitify.rebase_(cast, wrong)),
        ("U102", lambda: cast.report(wrong)),
    ):
        with pytest.raises(unitify.UnitifyError, match=code):
            run()


def test_a_shallow_copy_has_the_same_tensors() -> None:
    for recipe in (None, "fp8,multiple=1"):
        module = unitify.transform(mlp(), (X,), recipe=recipe)
        copied = copy.copy(module)
        assert copied is not module
        assert torch.equal(copied(X), module(X))
        with torch.no_grad():
            module[0].weight.mul_(2)
        assert torch.equal(copied(X), module(X))
