"""Pretrained nets that packages ship: exact in outputs and gradients, and how long it takes.

``python -m examples.pretrained`` writes the times and sizes to a table. A net whose package is not
installed is skipped by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

import unitify
from examples.nets import NETS

#: transformers takes another attention kernel while it is recorded.
OTHER_KERNEL = {"smollm2"}


@pytest.mark.parametrize("name", NETS)
def test_pretrained_weights_are_exact(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    net = NETS[name]
    if net.folder is None:
        pytest.skip(f"the package {net.package} is not installed")
    model, kwargs = net.load()
    start = time.perf_counter()
    module = unitify.transform(model, example_kwargs=kwargs, verify=False)
    record_property("seconds", round(time.perf_counter() - start, 2))
    result = unitify.verify(model, module, example_kwargs=kwargs)
    assert result.exact, result.differences
    assert result.compared > sum(1 for _ in model.parameters())
    scales = module.plan.parameters.values()
    assert sum(scale.fwd != 1 for scale in scales) > len(scales) / 2
    for key, tensor in module.original_state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
