"""Parameters that torch replaces after ``transform``: pruning, parametrizations, weight norm."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import unitify

pytestmark = [
    pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
]


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


class Net(nn.Module):
    """A weight of its own, and that of a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 4) * 64)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x @ self.weight)


class InIslands(Net):
    """Stays Python, but for its layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.is_leaf else x * 2)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "parametrized": lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
    "orthogonal": parametrizations.orthogonal,
    "weight norm": parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "pruned for good": lambda m: prune.remove(prune.l1_unstructured(m, "weight", 0.5), "weight"),
}
PLACES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "root": lambda m: m,
    "layer": lambda m: m.layer,  # type: ignore[return-value]
}


def _gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    module.zero_grad()
    module(x).sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def _assert_same(module: nn.Module, model: nn.Module, x: Tensor) -> None:
    assert torch.equal(module(x), model(x))
    mine, theirs = _gradients(module, x), _gradients(model, x)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Net, InIslands])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_call_uses_what_torch_puts_in_place(
    change: Callable[[nn.Module], object],
    place: Callable[[nn.Module], nn.Module],
    kind: type[nn.Module],
) -> None:
    model, x = kind(), torch.randn(3, 4)
    module = unitify.transform(model, x)
    for one in (model, module):
        torch.manual_seed(1)
        change(place(one))
    _assert_same(module, model, x)
    _assert_same(copy.deepcopy(module), model, x)
    assert list(module.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_is_taken_away_again_leaves_the_graph(
    place: Callable[[nn.Module], nn.Module],
) -> None:
    model, x = Net(), torch.randn(3, 4)
    module = unitify.transform(model, x)
    for one in (model, module):
        parametrize.register_parametrization(place(one), "weight", Doubled())
        one(x)
        parametrize.remove_parametrizations(place(one), "weight", leave_parametrized=False)
    _assert_same(module, model, x)
    assert module._changed() is None


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("change", ["parametrized", "pruned"])
def test_a_stored_weight_is_not_replaced(
    change: str, place: Callable[[nn.Module], nn.Module]
) -> None:
    x = torch.randn(3, 4)
    module = unitify.transform(Net(), x, weights="stored")
    CHANGES[change](place(module))
    with pytest.raises(unitify.UnitifyError, match="U115 the stored parameter"):
        module(x)
