"""Outputs, loss, gradients and buffers of real models are bitwise those of the original."""

from __future__ import annotations

import pytest
import torch
import zoo
from conversion import OTHER_KERNELS, Conversion, conversion, is_exact
from slow import some_slow
from survey import surveyed

from unitify.module.unit_scaled import UnitScaledModule
from unitify.plan.fixed import fixed_values
from unitify.verification import Verification
from unitify.verifying.running import verify_by_running


def verified(case: Conversion, module: UnitScaledModule, training: bool) -> Verification:
    case.model.train(training)
    module.train(training)
    found = verify_by_running(case.model, module, case.args, case.kwargs)
    assert found.compared > sum(1 for _ in case.model.parameters())
    return found


def assert_exact(case: Conversion, found: Verification) -> None:
    """Bitwise the model; of one that rounds otherwise while it is recorded, but for rounding."""
    if case.name in OTHER_KERNELS:
        assert found.is_accepted, found.differences
        assert not found.underflows
    else:
        assert is_exact(case.name, found), found.differences or found.rounded_otherwise


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_exact(converted: Conversion, training: bool) -> None:
    assert_exact(converted, verified(converted, converted.module, training))


def test_exact_under_any_scales(converted: Conversion) -> None:
    for seed in range(2):
        found = verified(converted, converted.randomly_scaled(seed), training=True)
        assert_exact(converted, found)


def test_values_are_rescaled(converted: Conversion) -> None:
    """The exactness above is not that of a graph which was left as it was."""
    assert any(
        part.plan.values[node.name].exponents != (0, 0)
        for part in converted.module.parts.values()
        for node in set(part.capture.graph.nodes) - fixed_values(part.capture)
        if node.name in part.plan.values
    )


HEAVY = {
    "t5", "llama", "bert", "gpt2", "transformer", "mixtral", "vit", "lstm", "residual_cnn", "unet",
    "in_place", "transformer_encoder", "recurrent_cells", "functions", "losses",
    "mixed_convolutions",
}  # fmt: skip
#: Models that torch itself cannot run in a precision, and the words it says so with.
NO_KERNEL = {
    ("mixtral", torch.float64): "got Double",
    ("fourier", torch.bfloat16): "Unsupported dtype BFloat16",
}


#: What is rounded otherwise in a precision: a table of positions, whose gradient every block of the
#: stack adds to.
ROUNDED = {
    ("t5", torch.bfloat16): "gradient of decoder.block.0.layer.0.SelfAttention"
    ".relative_attention_bias",
}


@pytest.mark.parametrize(
    "dtype", some_slow([torch.float64, torch.bfloat16], {torch.float64}.__contains__), ids=str
)
@pytest.mark.parametrize("name", some_slow(zoo.MODELS, HEAVY.__contains__))
def test_exact_in_other_precisions(name: str, dtype: torch.dtype) -> None:
    if (name, dtype) in NO_KERNEL:
        model, args, kwargs = zoo.build(name, dtype)
        with pytest.raises(RuntimeError, match=NO_KERNEL[name, dtype]):
            model(*args, **kwargs)
        return
    case = conversion(name, dtype)
    found = verified(case, case.module, training=True)
    if (name, dtype) in ROUNDED:
        assert found.is_accepted, found.differences
        assert {d.name.split(",")[0].rpartition(".")[0] for d in found.rounding} == {
            ROUNDED[name, dtype]
        }
        return
    assert_exact(case, found)


#: Of the survey (``make survey``) some that differ most from the zoo; the last comes in islands.
UNLIKE = ["mamba", "deberta_v2", "vilt"]


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLIKE)
def test_exact_architectures(name: str) -> None:
    row = surveyed(name)
    assert row.is_exact, row.refused or row.result
