"""Files and folders: read safely, written whole, rebuilt bitwise."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import unitify
from unitify.checkpoint import folder
from unitify.checkpoint.files import read_state_dicts
from unitify.checkpoint.filling import fill
from unitify.checkpoint.state_dict import check_finite, check_fitting
from unitify.diagnostics import UnitifyError

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "mlp": (factories.mlp, (torch.randn(4, 6),)),
    "tied": (factories.tied, (torch.randint(0, 24, (3, 5)),)),
    "pair": (factories.pair, factories.inputs_tuple()),
}


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(UnitifyError) as caught:
        action()
    return caught.value.code


@functools.cache
def transformed(name: str, dtype: torch.dtype) -> unitify.UnitScaledModule:
    factory, inputs = MODELS[name]
    torch.manual_seed(7)
    return unitify.transform(factory().to(dtype), cast(inputs, dtype))


def converted(name: str, dtype: torch.dtype = torch.float32) -> unitify.UnitScaledModule:
    """A copy of its own for each use."""
    return copy.deepcopy(transformed(name, dtype))


def cast(inputs: tuple[torch.Tensor, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def same(a: unitify.UnitScaledModule, b: unitify.UnitScaledModule, inputs: object) -> bool:
    """Bitwise: stored weights, the output, and every stored gradient."""
    assert a.state_dict().keys() == b.state_dict().keys()
    tensors = []
    for module in (a, b):
        output = module(*inputs)
        gradients = torch.autograd.grad(output.sum(), list(module.parameters()))
        tensors.append([*module.state_dict().values(), output, *gradients])
    return all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_written_folder_loads_bitwise(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    module = converted(name, dtype)
    folder.write(tmp_path / "out", module, {})
    factory, inputs = MODELS[name]
    inputs = cast(inputs, dtype)
    loaded = unitify.load(tmp_path / "out", factory().to(dtype), inputs)
    assert loaded.plan == module.plan
    assert same(loaded, module, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_a_pickled_pair_rebuilds_bitwise(name: str) -> None:
    module = converted(name)
    state_dict, plan = pickle.loads(pickle.dumps((module.state_dict(), module.plan)))
    factory, inputs = MODELS[name]
    assert same(unitify.rebuild(factory(), state_dict, plan, inputs), module, inputs)


def test_rebuild_leaves_the_model_alone() -> None:
    module, model = converted("tied"), factories.tied()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    unitify.rebuild(model, module.state_dict(), module.plan, MODELS["tied"][1])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    module = converted("tied")
    folder.write(tmp_path / "out", module, {})
    assert "head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    loaded = unitify.load(tmp_path / "out", factories.tied(), MODELS["tied"][1])
    assert loaded.head.weight is loaded.embedding.weight


def test_overlapping_tensors_are_written_apart(tmp_path: Path) -> None:
    module = converted("mlp")
    whole = torch.arange(24.0)
    module.register_buffer("all", whole)
    module.register_buffer("first", whole[:12])
    module.register_buffer("columns", whole.view(4, 6).t())
    folder.write(tmp_path / "out", module, {})
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(held["first"], whole[:12])
    assert torch.equal(held["columns"], whole.view(4, 6).t())


def test_a_skeleton_on_the_meta_device_receives_memory() -> None:
    module = converted("mlp")
    with torch.device("meta"):
        skeleton = factories.mlp()
    x = torch.randn(4, 6)
    rebuilt = unitify.rebuild(skeleton, module.state_dict(), module.plan, (x.to("meta"),))
    assert same(rebuilt, module, (x,))


def test_a_buffer_that_nobody_holds_is_not_made_up() -> None:
    module = converted("tied")
    with torch.device("meta"):
        skeleton = factories.tied()
    inputs = (MODELS["tied"][1][0].to("meta"),)
    rebuild = lambda: unitify.rebuild(skeleton, module.state_dict(), module.plan, inputs)  # noqa: E731
    assert code_of(rebuild) == "U603"


def edit_plan(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        plan = path / "plan.json"
        document = json.loads(plan.read_text())
        edit(document)
        plan.write_text(json.dumps(document))

    return change


def flip_a_bit(path: Path) -> None:
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights edited": flip_a_bit,
    "weights gone": lambda p: (p / "model.safetensors").unlink(),
    "plan gone": lambda p: (p / "plan.json").unlink(),
    "plan cut": lambda p: (p / "plan.json").write_text('{"format": 1'),
    "plan no object": lambda p: (p / "plan.json").write_text("[]"),
    "plan of another format": edit_plan(lambda d: d.update(format=folder.FORMAT + 1)),
    "hashes gone": edit_plan(lambda d: d.pop("sha256")),
    "a scale edited": edit_plan(lambda d: d["values"].update(linear=[5, 0])),
    "the recipe edited": edit_plan(lambda d: d.update(recipe="fp8")),
    "a hash edited": edit_plan(lambda d: d["sha256"].update({"model.safetensors": "0"})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    folder.write(tmp_path / "out", converted("mlp"), {})
    DAMAGES[damage](tmp_path / "out")
    assert code_of(lambda: unitify.load(tmp_path / "out", factories.mlp())) == "U607"


def test_the_layout_of_the_plan_does_not_matter(tmp_path: Path) -> None:
    module = converted("mlp")
    folder.write(tmp_path / "out", module, {})
    edit_plan(lambda d: None)(tmp_path / "out")
    assert unitify.load(tmp_path / "out", factories.mlp()).plan == module.plan


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder.write(tmp_path / "out", converted("mlp"), {})
    assert code_of(lambda: unitify.load(tmp_path / "out", factories.deep_mlp())) == "U301"
    assert code_of(lambda: unitify.load(tmp_path / "out", factories.wide_mlp())) == "U603"
    assert code_of(lambda: unitify.load(tmp_path / "out", factories.mlp().double())) == "U603"
    assert code_of(lambda: unitify.load(tmp_path / "out")) == "U607"
    assert code_of(lambda: unitify.load(tmp_path / "none")) == "U607"


@pytest.mark.parametrize("scale", [unitify.Scale(3.0, 1.0), unitify.Scale(1.0, 0.0)])
def test_a_scale_that_is_not_allowed(scale: unitify.Scale) -> None:
    module = converted("mlp")
    plan = unitify.ScalePlan({**module.plan.values, "linear": scale}, module.plan.parameters)
    assert code_of(lambda: unitify.rebuild(factories.mlp(), module.state_dict(), plan)) == "U302"


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = converted("mlp")

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "digest_of_plan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.write(tmp_path / "out", module, {})
    assert os.listdir(tmp_path) == []


def pt_bytes() -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"a": torch.arange(40.0), "b": torch.ones(3, dtype=torch.int64)}, buffer)
    return buffer.getvalue()


def legacy_bytes() -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"a": torch.arange(40.0)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def safetensors_bytes() -> bytes:
    from safetensors.torch import save

    return save({"a": torch.arange(40.0)})


@pytest.mark.parametrize(
    ("suffix", "make"),
    [(".pt", pt_bytes), (".pt", legacy_bytes), (".safetensors", safetensors_bytes)],
    ids=["zip", "legacy", "safetensors"],
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_broken_file_is_never_read_wrongly(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    make: Callable[[], bytes],
    data: st.DataObject,
) -> None:
    whole = make()
    length = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.mktemp("broken") / f"cut{suffix}"
    path.write_bytes(whole[:length])
    assert code_of(lambda: read_state_dicts(path)) in ("U601", "U602")


def test_a_narrower_type_is_held_exactly_and_a_wider_one_refused(tmp_path: Path) -> None:
    state = {n: t.bfloat16() for n, t in factories.mlp().state_dict().items()}
    save_file(state, tmp_path / "narrow.safetensors")
    model = factories.mlp()
    fill(model, read_state_dicts(tmp_path / "narrow.safetensors"))
    assert all(torch.equal(model.state_dict()[n], t.float()) for n, t in state.items())
    wide = factories.mlp().state_dict()
    assert code_of(lambda: fill(factories.mlp().bfloat16(), {"": wide})) == "U603"
    integers = {n: t.to(torch.int64) for n, t in wide.items()}
    assert code_of(lambda: fill(factories.mlp(), {"": integers})) == "U603"


def test_a_tied_name_may_be_missing() -> None:
    model = factories.tied()
    state = model.state_dict()
    del state["head.weight"]
    check_fitting(model, state)
    del state["embedding.weight"]
    assert code_of(lambda: check_fitting(model, state)) == "U603"


def test_all_that_differs_is_named() -> None:
    state = factories.wide_mlp().state_dict()
    state["spare"] = state.pop("2.bias")
    with pytest.raises(UnitifyError) as caught:
        check_fitting(factories.mlp(), state)
    text = str(caught.value)
    for part in ("missing: 2.bias", "unexpected: spare", "0.weight is 32×6, the model's 16×6"):
        assert part in text


def test_masks_may_be_infinite_and_weights_not() -> None:
    model = factories.mlp()
    model.register_buffer("mask", torch.full((3,), -torch.inf))
    check_finite(model)
    model.mask[1] = torch.nan
    assert code_of(lambda: check_finite(model)) == "U204"
