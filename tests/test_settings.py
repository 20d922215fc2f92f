"""Settings that a graph was recorded with: a change of one takes effect, or is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from python_state import Linear, x
from torch import Tensor, nn
from truth import differences

import unitify

#: The changes make a difference to a graph that holds values near unit RMS.
pytestmark = pytest.mark.usefixtures("near_unit")


class Settings(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.temperature, self.drop = 1.0, nn.Dropout(0.5)
        self.options = {"shift": 0.0}
        self.config = SimpleNamespace(gain=1.0)
        self.widths = [1.0, 2.0]
        self.act: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.drop(self.inner(x)) / self.temperature) + self.options["shift"]
        return y * self.config.gain * self.widths[1]


def _set(name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model, name, value)


CHANGES: dict[str, Callable[[Any], None]] = {
    "number": _set("temperature", 0.25),
    "dropout": lambda m: [_set("p", 0.0)(k) for k in m.modules() if isinstance(k, nn.Dropout)],
    "dict": lambda m: m.options.update(shift=2.0),
    "object": lambda m: setattr(m.config, "gain", 3.0),
    "list": lambda m: m.widths.__setitem__(1, 5.0),
    "function": _set("act", torch.sigmoid),
    "submodule": lambda m: setattr(m.get_submodule(""), "drop", nn.Identity()),
    "hook": lambda m: m.get_submodule("inner").register_forward_hook(lambda *a: a[2] * 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_takes_effect(name: str) -> None:
    model = Settings()
    module = unitify.transform(model, (x(),))
    assert not differences(model, module, (x(),))
    for one in (model, module):
        CHANGES[name](one)
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, module, (x(),))


def test_a_changed_setting_of_a_module_for_inference_is_refused() -> None:
    options: Any = {"recipe": "fp8,multiple=1", "placement": "everywhere"}
    module = unitify.transform(Settings(), (x(),), **options).to_inference()
    module(x())
    module.get_submodule("drop").p = 0.1
    with pytest.raises(unitify.UnitifyError, match=r"U115 drop\.p"):
        module(x())


def test_what_the_code_does_not_read_may_be_set() -> None:
    module = unitify.transform(Settings(), (x(),))
    module.tag = "mine"
    module.get_submodule("inner").in_features = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x())


def test_a_copy_has_settings_of_its_own() -> None:
    model = Settings()
    module = unitify.transform(model, (x(),))
    other = copy.deepcopy(module)
    other.temperature = 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not differences(model, module, (x(),))
    model.temperature = 0.25
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, other, (x(),))
