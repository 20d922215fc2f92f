"""The explanation of one value."""

from __future__ import annotations

import torch

from unitify.explain import explain_value


def test_a_value_stays_true_only_at_scale_one() -> None:
    linear = torch.nn.Linear(16, 16, bias=False)
    torch.nn.init.normal_(linear.weight, std=1e-6)
    model = torch.nn.Sequential(linear, torch.nn.GELU(), torch.nn.Linear(16, 16))
    x = torch.ones(4, 16)
    value, weight = (explain_value(name, model, (x,)) for name in ("linear", "0.weight"))
    assert "stays true; a cast rounds it" in weight
    assert "forward  scale 2^0," not in value
    assert "a cast rounds it" in value
    assert "stays true" not in value
