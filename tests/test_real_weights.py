"""Pretrained nets that packages ship: exact in outputs and gradients, and how long it takes.

``python -m examples.pretrained`` writes the times and sizes to a table. A net whose package is not
installed is skipped by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from slow import some_slow

import unitify
from examples.nets import NETS
from unitify.plan.scale_plan import parameter_units

#: Nets with results that are not bitwise the model's: gradients of channels that are all but dead
#: are subnormal; recurrent layers run other kernels where no gradients are recorded.
ROUNDS = {"mobilenet_v2", "speaker_encoder", "g2p"}


@pytest.mark.parametrize("name", some_slow(NETS, {"smollm2", "mobilenet_v2", "crepe"}.__contains__))
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
    assert result.is_accepted, result.differences
    assert result.exact or name in ROUNDS, result.rounded_otherwise[:3]
    assert result.compared > sum(1 for _ in model.parameters())
    scales = parameter_units(module.capture, module.plan).values()
    assert sum(scale.fwd != 1 for scale in scales) > len(scales) / 2
    for key, tensor in module.original_state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
