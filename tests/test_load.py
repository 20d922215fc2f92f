"""Folders load without inputs: those of the conversion are drawn from plan.json."""

from __future__ import annotations

import inspect
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import unitify
from unitify.capture.outline import drawn_inputs, outline_of
from unitify.checkpoint import folder
from unitify.plan.bands import PREDICTED_TOLERANCE

CPU = torch.device("cpu")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 24, shape, generator=generator())


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator())


class Net(nn.Module):
    """A linear layer behind whatever a subclass takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Embedding(24, 6)
        self.linear = nn.Linear(6, 4)


class Nested(Net):
    def forward(self, pair: Any, table: Any, how: str, times: int = 1, more: Any = None) -> Tensor:
        x = pair[0] * pair[1] + table["x"] * table["scale"]
        return self.linear(x if how == "plain" else x.tanh()) * times


class Masked(Net):
    def forward(self, tokens: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        x = self.table(tokens)
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        return self.linear(x) if options.get("negate") is None else -self.linear(x)


class Bag(nn.Module):
    """Offsets begin with zero and rise: no other numbers of their range would do."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(24, 6)
        self.linear = nn.Linear(6, 4)

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        return self.linear(self.bag(tokens, offsets))


class Sides(Net):
    """A branch on a size: one recording for each side."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu() if x.shape[1] > 8 else self.linear(x.sin())


class Keyed(Net):
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.linear(batch["x"]) * batch["weight"]


class Looking(Net):
    """Under a recording it computes something else: its linear layer is recorded alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (3.0 if type(x) is Tensor else 2.0)


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
Call = tuple[tuple[Any, ...], dict[str, Any]]
#: A model, how it was called at the conversion, and further options of ``transform``.
CALLS: dict[str, tuple[type[nn.Module], Call, dict[str, Any]]] = {
    "nested": (
        Nested,
        (((normal(3, 6), 0.5), {"x": normal(3, 6), "scale": 2.0}, "curved"), {"times": 3}),
        {},
    ),
    "a list and None": (
        Nested,
        (([normal(3, 6), normal(3, 6)], {"x": normal(3, 6), "scale": True}, "plain", 2, None), {}),
        {},
    ),
    "keywords": (Masked, ((), {"mask": MASK, "tokens": ids(3, 5)}), {}),
    "no mask": (Masked, ((ids(3, 5),), {}), {}),
    "keywords of any name": (Masked, ((ids(3, 5),), {"negate": 1}), {}),
    "offsets": (Bag, ((ids(9), torch.tensor([0, 2, 3, 7])), {}), {}),
    "a dict as an input": (Keyed, (({"x": normal(3, 6), "weight": normal(3, 4)},), {}), {}),
    "a batch of one": (Masked, ((ids(1, 5),), {"mask": MASK[:1]}), {}),
    "no size free": (Masked, ((ids(3, 5),), {}), {"dynamic_shapes": None}),
    "some sizes free": (
        Masked,
        ((ids(3, 5), MASK), {}),
        {"dynamic_shapes": {"tokens": {0: torch.export.Dim.AUTO}, "mask": None}},
    ),
    "a cast": (Masked, ((ids(3, 5), MASK), {}), {"recipe": "fp8"}),
    "measured": (Masked, ((ids(3, 5), MASK), {}), {"scales": "measured"}),
    "a scheme": (Masked, ((ids(3, 5), MASK), {}), {"scheme": "unit"}),
    "islands": (factories.TwoWays, ((normal(4, 6),), {}), {}),
    "recorded apart": (Looking, ((normal(4, 6),), {}), {}),
    "two recordings": (
        Sides,
        ((normal(2, 4, 6),), {}),
        {"batches": [(normal(2, 5, 6),), (normal(2, 11, 6),), (normal(2, 12, 6),)]},
    ),
    "two forms": (
        Masked,
        ((ids(3, 5),), {}),
        {"batches": [{"tokens": ids(3, 5), "mask": MASK}]},
    ),
}


def outputs(module: nn.Module, call: Call) -> list[Tensor]:
    """Result and gradients of a call."""
    torch.manual_seed(1)
    result = module(*call[0], **call[1])
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(result.sum(), parameters, allow_unused=True)
    return [result, *(g for g in found if g is not None)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
def test_a_folder_loads_without_inputs(tmp_path: Path, name: str) -> None:
    kind, (args, kwargs), options = CALLS[name]
    module = unitify.transform(kind(), args, kwargs, **options)
    folder.write(tmp_path / "out", module, {})
    loaded = unitify.load(tmp_path / "out", kind())
    assert loaded.plan == module.plan
    assert loaded.casts == module.casts
    assert list(loaded.parts) == list(module.parts)
    calls = [(args, kwargs)]
    for batch in options.get("batches", ()):
        calls.append(((), batch) if isinstance(batch, dict) else (batch, {}))
    for call in calls:
        for ours, theirs in zip(outputs(loaded, call), outputs(module, call), strict=True):
            assert torch.equal(ours, theirs)
    for name, part in module.parts.items():
        ours, theirs = loaded.parts[name].capture.call, part.capture.call
        free = [[isinstance(s, str) for s in leaf.shape or ()] for leaf in theirs.leaves]
        assert [[isinstance(s, str) for s in leaf.shape or ()] for leaf in ours.leaves] == free
        assert str(loaded.parts[name].graph) == str(part.graph)


@pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")
def test_inputs_that_are_given_are_those_of_the_first_recording(tmp_path: Path) -> None:
    kind, (args, kwargs), options = CALLS["two recordings"]
    module = unitify.transform(kind(), args, kwargs, **options)
    folder.write(tmp_path / "out", module, {})
    loaded = unitify.load(tmp_path / "out", kind(), normal(7, 3, 6))
    assert list(loaded.parts) == ["", "@2"]
    assert loaded.plan == module.plan


def test_a_plan_tells_the_inputs(tmp_path: Path) -> None:
    module = unitify.transform(Masked(), (ids(3, 5),), {"mask": MASK})
    folder.write(tmp_path / "out", module, {})
    (call,) = json.loads((tmp_path / "out" / "plan.json").read_text())["calls"]
    tokens, mask = call["args"][0]["tensor"], call["kwargs"]["mask"]["tensor"]
    assert (tokens["dtype"], tokens["shape"], tokens["free"]) == ("int64", [3, 5], [0, 1])
    assert tokens["range"] == [ids(3, 5).min(), ids(3, 5).max()]
    assert (mask["values"], mask["order"]) == ([[0, 5], [1, 10]], "falling")


def test_what_a_plan_cannot_tell_is_asked_for(tmp_path: Path) -> None:
    batch = OrderedDict(x=normal(3, 6), weight=normal(3, 4))
    module = unitify.transform(Keyed(), (batch,))
    folder.write(tmp_path / "out", module, {})
    with pytest.raises(unitify.UnitifyError, match=r"U002.*OrderedDict.*unitify\.load\(DIR"):
        unitify.load(tmp_path / "out", Keyed())
    assert unitify.load(tmp_path / "out", Keyed(), (batch,)).plan == module.plan
    with pytest.raises(unitify.UnitifyError, match=r"U001.*model="):
        unitify.load(tmp_path / "out", Keyed, (batch,))  # type: ignore[arg-type]


TENSORS = {
    "tokens": ids(4, 9),
    "positions": torch.arange(12).expand(3, 12),
    "lengths": torch.tensor([9, 7, 7, 2]),
    "a mask": MASK,
    "hidden by infinity": torch.full((5, 5), -torch.inf).triu(1),
    "booleans": MASK > 0,
    "images": torch.rand(2, 3, 8, 8, generator=generator()),
    "positive": normal(3, 40).exp(),
    "shifted": normal(6, 50) * 3 + 100,
    "a constant": torch.full((40,), 2.5),
    "large numbers": torch.arange(2**62, 2**62 + 20),
    "the largest": torch.cat([torch.arange(20), torch.tensor([2**63 - 1])]),
    "half": normal(4, 30).half(),
    "bfloat16": normal(4, 30).bfloat16(),
    "complex": torch.complex(normal(4, 30), normal(4, 30)),
    "float8": normal(4, 30).to(torch.float8_e4m3fn),
    "bytes": torch.arange(100, dtype=torch.uint8),
    "empty": normal(0, 4),
    "one number": torch.tensor(3.5),
    "not finite": torch.tensor([1.0, torch.nan, -torch.inf, *range(10)]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_drawn_tensors_have_what_an_analysis_sees(name: str) -> None:
    given_ = TENSORS[name]
    outline = json.loads(json.dumps(outline_of((given_,), {}), allow_nan=False))
    ((drawn,), _) = drawn_inputs(outline, CPU)
    assert (drawn.shape, drawn.dtype) == (given_.shape, given_.dtype)
    assert str(drawn.flatten().tolist()) == str(drawn_inputs(outline, CPU)[0][0].flatten().tolist())
    if not given_.numel() or given_.is_complex() or name == "not finite":
        return
    ours, theirs = drawn.double(), given_.double()
    assert ours.min() >= theirs.min()
    assert ours.max() <= theirs.max()
    if given_.is_floating_point():
        assert (ours.min(), ours.max()) == (theirs.min(), theirs.max())
        if theirs.isfinite().all():
            for moment in (Tensor.mean, lambda x: x.square().mean().sqrt()):
                # A tenth of the octaves that a prediction may be off.
                assert abs(math.log2(moment(ours) / moment(theirs))) < PREDICTED_TOLERANCE / 10
    else:
        steps, own = given_.long().diff(), drawn.long().diff()
        assert (own >= 0).all() or not (steps >= 0).all()
        assert (own <= 0).all() or not (steps <= 0).all()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None)
@given(value=values, name=st.text())
def test_what_is_no_tensor_is_kept(value: Any, name: str) -> None:
    outline = json.loads(json.dumps(outline_of((value,), {name: value}), allow_nan=False))
    args, kwargs = drawn_inputs(outline, CPU)
    assert repr((args, kwargs)) == repr(((value,), {name: value}))
    assert pytree.tree_structure(args) == pytree.tree_structure((value,))


def test_inputs_that_take_gradients_still_do() -> None:
    x = normal(3, 6).requires_grad_()
    assert drawn_inputs(outline_of((x,), {}), CPU)[0][0].requires_grad


def test_rebuild_takes_batches() -> None:
    kind, (args, kwargs), options = CALLS["two recordings"]
    module = unitify.transform(kind(), args, kwargs, **options)
    state, plan = module.state_dict(), module.plan
    rebuilt = unitify.rebuild(kind(), state, plan, args, kwargs, batches=options["batches"])
    assert rebuilt.plan == plan
    assert "batches" in inspect.signature(unitify.rebuild).parameters
