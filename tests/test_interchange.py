"""Transformed modules that leave: ONNX, ``.pt2`` and AOTInductor, run where unitify is not."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from slow import some_slow
from test_compiled_casts import Attention, convolutions
from torch import Tensor, nn

import unitify
from unitify.formats.table import FORMATS
from unitify.runtime.cast import cast

RECIPES = [None, "fp8", "fp8,simulate=true", "fp8-ptq", "fp8-mixed", "fp8-amax", "fp16", "bf16"]
SOME = some_slow(RECIPES, lambda recipe: recipe not in (None, "fp8", "bf16"))
FP8 = [recipe for recipe in RECIPES if recipe and recipe.startswith("fp8")]

#: Runs programs in a Python that has no unitify.
ALONE = """
import sys
sys.modules["unitify"] = None
import torch
kind, inputs, *programs = sys.argv[1:]
(x,) = torch.load(inputs)
load = torch._inductor.aoti_load_package
for program in programs:
    run = torch.export.load(program).module() if kind == "pt2" else load(program)
    with torch.no_grad():
        torch.save(run(x), program + ".outputs")
"""


def attention() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.randn(4, 8, 32)


MODELS = {"attention": attention, "convolutions": convolutions}


@functools.cache
def transformed(
    name: str, recipe: str | None
) -> tuple[nn.Module, unitify.UnitScaledModule, Tensor]:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    module = unitify.transform(model, (x,), scales="measured", recipe=recipe, verify=False)
    return model.eval(), module.eval(), x


def made(name: str, recipe: str | None, is_inference: bool) -> tuple[Any, nn.Module, Tensor]:
    """A copy of its own for each use."""
    model, module, x = copy.deepcopy(transformed(name, recipe))
    return model, module.to_inference() if is_inference else module, x


def run_alone(kind: str, folder: Path, x: Tensor, *programs: str) -> list[Tensor]:
    """What each program of ``folder`` makes of ``x``."""
    torch.save((x,), folder / "inputs.pt")
    command = [sys.executable, "-c", ALONE, kind, "inputs.pt", *programs]
    subprocess.run(command, cwd=folder, check=True)
    return [torch.load(folder / f"{program}.outputs") for program in programs]


def in_onnxruntime(path: Path, *inputs: Tensor) -> list[Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = [operand.name for operand in session.get_inputs()]
    given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(found) for found in session.run(None, given)]


def export_onnx(module: nn.Module, args: tuple[Tensor, ...], path: Path) -> Counter[str]:
    """Export as anybody does; the operations of the file, counted."""
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(module, args, dynamo=True, verbose=False)
    program.save(path)
    return Counter(node.op_type for node in program.model.graph)


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("is_inference", [False, True], ids=["module", "inference"])
@pytest.mark.parametrize("recipe", SOME)
@pytest.mark.parametrize("name", MODELS)
def test_onnx(name: str, recipe: str | None, is_inference: bool, tmp_path: Path) -> None:
    model, module, x = made(name, recipe, is_inference)
    counted = export_onnx(module, (x,), tmp_path / "model.onnx")
    (found,) = in_onnxruntime(tmp_path / "model.onnx", x)
    true, expected = model(x).detach(), module(x).detach()
    if recipe is None:
        # Kernels of another library: no further than the same model exported by itself.
        export_onnx(model, (x,), tmp_path / "original.onnx")
        (other,) = in_onnxruntime(tmp_path / "original.onnx", x)
        assert error(found, true) <= 2 * error(other, true)
    else:
        # The same numbers are rounded to the same neighbors (here all of it was bitwise); casts
        # that were left out, or others, would be as far as the casts themselves.
        assert error(found, expected) < error(expected, true) / 50
    assert (counted["DequantizeLinear"] > 0) == (recipe in FP8)
    assert counted["QuantizeLinear"] <= counted["DequantizeLinear"]
    if is_inference and recipe in FP8:
        # Weights are codes in the file.
        assert counted["QuantizeLinear"] < counted["DequantizeLinear"]


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("format", ["e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_onnx_rounds_as_we_do(format: str, saturate: bool, tmp_path: Path) -> None:
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cast(x, format, "", 2, 0, False, saturate)

    values = FORMATS[format].values().float() * 4
    middles = (values[1:] + values[:-1]) / 2
    special = torch.tensor([0.0, torch.inf, torch.nan, 1e-20, 1e6, 3e38, FORMATS[format].largest])
    x = torch.cat([values, middles, special])
    x = torch.cat([x, -x])
    export_onnx(Casts(), (x,), tmp_path / "casts.onnx")
    (found,) = in_onnxruntime(tmp_path / "casts.onnx", x)
    expected = cast(x, format, "", 2, 0, False, saturate)
    assert torch.equal(found.nan_to_num(-7), expected.nan_to_num(-7))


@pytest.mark.parametrize("recipe", SOME)
def test_programs_run_without_unitify(recipe: str | None, tmp_path: Path) -> None:
    """That of the module and that for inference, in one Python: its start takes the longest."""
    names, expected = ("module.pt2", "inference.pt2"), []
    for name, is_inference in zip(names, (False, True), strict=True):
        _, module, x = made("attention", recipe, is_inference)
        exported = torch.export.export(module, (x,))
        program = exported.run_decompositions(unitify.decompositions())
        torch.export.save(program, tmp_path / name)
        expected.append(module(x))
    for a, b in zip(run_alone("pt2", tmp_path, x, *names), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp8", "bf16"])
def test_aot_inductor_runs_without_unitify(recipe: str, tmp_path: Path) -> None:
    model, module, x = made("attention", recipe, True)
    exported = torch.export.export(module, (x,))
    package = tmp_path / "model.pt2"
    torch._inductor.aoti_compile_and_package(exported, package_path=str(package))
    (found,) = run_alone("aoti", tmp_path, x, package.name)
    true, expected = model(x).detach(), module(x)
    # What the package rounds, and no more than rounding: casts are not left out.
    assert error(found, expected) < error(expected, true) / 2 < error(found, true)
