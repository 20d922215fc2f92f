"""``export_onnx``: from a checkpoint to a folder with ``model.onnx``.

    read ─► transform ─► hold codes ─► torch.onnx.export ─► reopen in onnxruntime

Casts are ``QuantizeLinear`` and ``DequantizeLinear``. The whole model is in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from unitify.capture.inputs import Inputs, as_inputs, written_inputs
from unitify.checkpoint.new_folder import Folder, check_absent, new_folder
from unitify.checkpoint.targets import input_batches
from unitify.convert import read_source
from unitify.diagnostics import NotOnnx, UnitifyError, check_package, error_line
from unitify.recipe.recipe import Recipe
from unitify.serve.contents import ONNX, ONNX_FILE, write_contents
from unitify.serve.reopened import LEAST, Reader, reopened
from unitify.serve.writing import Export, OnStart
from unitify.transforming import transform


def export_onnx(
    checkpoint: Path,
    output: Path,
    recipe: Recipe,
    *,
    model: str | None = None,
    inputs: str | None = None,
    scales: str = "auto",
    rules: Iterable[str | Path] = (),
    verify: bool = True,
    on_start: OnStart = lambda _size: lambda _bytes: None,
) -> Export:
    """Write the inference graph of the transformed model to the new folder ``output``.

    ``model``, ``inputs``, ``scales`` and ``rules`` are those of ``convert``. Sizes of inputs are
    free where the recording leaves them free. ``verify``: verify the transformed module, and
    compare the outputs of onnxruntime with those of the model.

    Raises ``UnitifyError``: those of ``convert``; U620 for a module that ONNX cannot hold; U615 for
    outputs that differ by more than ``min_sqnr`` of the recipe, or 6 dB. Nothing is written then.
    """
    check_absent(output)
    purpose = "writing and running ONNX"
    for package in ("onnx", "onnxscript", *(("onnxruntime",) if verify else ())):
        check_package(package, purpose)
    source = read_source(checkpoint, model)
    original = source.model.eval()
    batches = input_batches(inputs) if inputs is not None else []
    calls = [as_inputs(original, batch) for batch in batches]
    calls = calls or [written_inputs(original)]
    module = transform(
        original, *calls[0],
        scales=scales, batches=batches or None, recipe=recipe, verify=verify, rules=rules,
    )  # fmt: skip
    with new_folder(output) as folder:
        program = exported(module.to_inference(), calls[0])
        size = _write(folder, program, on_start)
        least = recipe.min_sqnr or LEAST
        sqnr = None
        if verify:
            sqnr = reopened(folder.partial, original, calls, least, in_onnxruntime)
        folder.copy(source.companions)
        write_contents(folder, ONNX, recipe, sqnr, layers=[], caches=[])
    return Export(ONNX, (), (), size, sqnr, (*source.notes, *module.diagnostics))


def exported(module: nn.Module, call: Inputs) -> Any:
    """The program. Outputs have the names of the model's, where it returns a mapping."""
    args, kwargs = call
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    with torch.no_grad():
        output = module(*args, **kwargs)
    try:
        return torch.onnx.export(
            module, args, kwargs=dict(kwargs), dynamo=True, verbose=False,
            dynamic_shapes=pytree.tree_map(_sizes, dict(bound)),
            output_names=[str(name) for name in output] if isinstance(output, Mapping) else None,
        )  # fmt: skip
    except Exception as error:  # torch raises many kinds.
        raise UnitifyError(NotOnnx(problem=error_line(_cause(error)))) from error


def _cause(error: BaseException) -> BaseException:
    """The first of a chain of errors: those after it say in which step of the exporter it was."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def _sizes(value: Any) -> Any:
    """Every size of a tensor but those of one is free if the module's code lets it be."""
    if not isinstance(value, Tensor):
        return None
    return {axis: Dim.AUTO for axis, length in enumerate(value.shape) if length > 1}


def _write(folder: Folder, program: Any, on_start: OnStart) -> int:
    """Write the graph and its weights, and return their size in bytes."""
    path = folder.partial / ONNX_FILE
    program.save(path, external_data=True)
    size = sum(file.stat().st_size for file in folder.partial.glob(f"{ONNX_FILE}*"))
    on_start(size)(size)
    return size


def in_onnxruntime(folder: Path) -> Reader:
    """The graph of ``folder`` in onnxruntime, which takes the tensors of a call in their order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])

    def run(call: Inputs) -> list[Tensor]:
        tensors = [t for t in pytree.tree_leaves(call) if isinstance(t, Tensor)]
        names = [given.name for given in session.get_inputs()]
        feeds = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        return [torch.from_numpy(found) for found in session.run(None, feeds)]

    return run
