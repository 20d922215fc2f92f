"""Iterators that a model advances: ``transform`` leaves them where they were."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitify
from unitify.capture.iterators import is_iterator, position, twin

pytestmark = pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
NUMBERS = [float(n) for n in range(1, 30)]


def _drawn() -> Iterator[float]:
    yield from NUMBERS


ITERATORS: dict[str, Callable[[], Iterator[Any]]] = {
    "list": lambda: iter(NUMBERS),
    "tuple": lambda: iter(tuple(NUMBERS)),
    "range": lambda: iter(range(1, 30)),
    "reversed": lambda: reversed(NUMBERS),
    "keys": lambda: iter(dict.fromkeys(NUMBERS)),
    "cycle": lambda: itertools.cycle([1.0, 2.0, 3.0]),
    "count": lambda: itertools.count(1.0, 0.5),
    "chain": lambda: itertools.chain([1.0], NUMBERS),
    "islice": lambda: itertools.islice(NUMBERS, 2, 25),
    "accumulate": lambda: itertools.accumulate(NUMBERS),
    "map": lambda: map(float, range(1, 30)),
    "filter": lambda: filter(None, NUMBERS),
    "nested": lambda: map(sum, zip(itertools.cycle([1.0, 2.0]), NUMBERS, strict=False)),
}


class Draws(nn.Module):
    """Takes the next number in each call, from where ``held`` has its iterator."""

    def __init__(self, held: Any, take: Callable[[Any], Iterator[Any]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.held, self.take = nn.Linear(4, 4), held, take

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * next(self.take(self.held))


PLACES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Iterator[Any]]]] = {
    "attribute": (lambda own: own, lambda held: held),
    "list": (lambda own: [own], lambda held: held[0]),
    "dict": (lambda own: {"of": own}, lambda held: held["of"]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", ITERATORS.values(), ids=ITERATORS)
def test_a_model_and_its_module_draw_from_the_start(
    make: Callable[[], Iterator[Any]], place: str
) -> None:
    wrap, take = PLACES[place]
    own, x = make(), torch.randn(3, 4)
    model, other = Draws(wrap(own), take), Draws(wrap(make()), take)
    module = unitify.transform(model, x)
    assert take(model.held) is own
    assert [d.code for d in module.diagnostics] == ["U101"]
    for _ in range(4):
        expected = other(x)
        assert torch.equal(model(x), expected)
        assert torch.equal(module(x), expected)


def test_what_a_cycle_gives_stays_the_models() -> None:
    class Alternates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.turns = itertools.cycle(self.layers)

        def forward(self, x: Tensor) -> Tensor:
            return next(self.turns)(x)

    model, x = Alternates(), torch.randn(3, 4)
    module = unitify.transform(model, x)
    for layer in (*model.layers, *model.layers):
        assert torch.equal(module(x), layer(x))


@pytest.mark.parametrize("make", ITERATORS.values(), ids=ITERATORS)
def test_a_twin_goes_on_at_the_same_position(make: Callable[[], Iterator[Any]]) -> None:
    own, other = make(), make()
    start = position(own)
    assert next(own) == next(other)
    assert is_iterator(own)
    assert position(own) != start
    made = twin(own)
    expected = [*itertools.islice(other, 8)]
    assert [*itertools.islice(made, 8)] == expected
    assert [*itertools.islice(own, 8)] == expected


def test_a_generator_has_no_twin_and_is_said() -> None:
    model = Draws(_drawn(), lambda held: held)
    assert twin(model.held) is None
    with pytest.raises(unitify.UnitifyError, match=r"U110 .*held"):
        unitify.transform(model, torch.randn(3, 4))


def test_an_iterator_that_is_not_advanced_changes_nothing() -> None:
    model = nn.Linear(4, 4)
    model.unused = itertools.count()  # type: ignore[assignment]
    module = unitify.transform(model, torch.randn(3, 4))
    assert not module.diagnostics
    assert next(copy.copy(model.unused)) == 0
