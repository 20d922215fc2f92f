"""What makes each diagnostic of calls, recordings and rules appear."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import factories
import pytest
import torch
from file_triggers import saved
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from triggers import Forward, Found, X, noted, triggers

import unitify
import unitify.diagnostics
from unitify.capture.whole import capture
from unitify.checkpoint.state_dict import check_finite
from unitify.checkpoint.targets import import_libraries
from unitify.convert import convert
from unitify.diagnostics import OwnCodeRuns, RecordedAnew
from unitify.explain import explain_code, explain_value
from unitify.plan.scale_plan import Scale
from unitify.rule_trials.missing import without_rule
from unitify.rulebook.rule_table import load_rules


@triggers("U001")
def _(path: Path) -> None:
    unitify.transform(factories.mlp(), scales="mesured")


@triggers("U002")
def _(path: Path) -> None:
    unitify.transform(factories.pair())


@triggers("U003")
def _(path: Path) -> None:
    unitify.transform(factories.mlp(), scales="measured", batches=[])


@triggers("U004")
def _(path: Path) -> None:
    convert(saved(path), path / "out")


@triggers("U005")
def _(path: Path) -> None:
    (path / "config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "transformers", None)
        convert(path, path / "out")


@triggers("U006")
def _(path: Path) -> None:
    explain_code("U999")


@triggers("U007")
def _(path: Path) -> None:
    from unitify.optim.groups import param_groups

    param_groups(unitify.transform(factories.mlp(), weights="stored"), torch.optim.LBFGS)


@triggers("U009")
def _(path: Path) -> None:
    unitify.rebase_(factories.mlp(), [X])


@triggers("U012")
def _(path: Path) -> None:
    unitify.transform(factories.mlp(), (X,), loss_fn=lambda output: output.detach().sum())


@triggers("U016")
def _(path: Path) -> None:
    unitify.transform(unitify.transform(factories.mlp()), (X,))


@triggers("U017")
def _(path: Path) -> None:
    model = factories.mlp()
    stored = unitify.transform(model, (X,), weights="stored")
    stored.load_state_dict(model.state_dict())


@triggers("U018")
def _(path: Path) -> None:
    model = factories.mlp()
    stored = unitify.transform(model, (X,), weights="stored")
    held = stored.state_dict()
    stored.plan = replace(stored.plan, parameters=dict.fromkeys(stored.plan.parameters, Scale(64)))
    stored.load_state_dict(held)


@triggers("U019")
def _(path: Path) -> None:
    stored = unitify.transform(nn.Sequential(nn.Linear(6, 6)), (X,), weights="stored")
    layer = stored.get_submodule("0")
    layer.register_parameter("flat", layer._parameters.pop("weight"))
    unitify.optim.param_groups(stored, torch.optim.AdamW)


@triggers("U020")
def _(path: Path) -> None:
    unitify.gather_codes_(unitify.transform(nn.Sequential(nn.Linear(6, 6)), (X,)))


@triggers("U021")
def _(path: Path) -> None:
    module = unitify.transform(nn.Sequential(nn.Linear(6, 6)), (X,), recipe="fp8,multiple=1")
    unitify.rebase_(unitify.gather_codes_(module))


@triggers("U101")
def _(path: Path) -> None:
    capture(Forward(lambda m, x: m.linear(x) if x.sum() > 0 else x), (X,), {})


@triggers("U102")
def _(path: Path) -> None:
    unitify.transform(factories.mlp(), (X, X))


@triggers("U103")
def _(path: Path) -> Found:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if not self.training and x.sum() > 0:
            return x
        return self.linear(x)

    return noted(Forward(forward))


@triggers("U104")
def _(path: Path) -> None:
    unitify.transform(factories.mlp(), recipe="fp16")(torch.ones(4, 7))


@triggers("U105")
def _(path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        hidden = self.linear(x)
        hidden.unfold(0, 2, 1).mul_(2.0)
        return hidden

    capture(Forward(forward), (X,), {})


@triggers("U106")
def _(path: Path) -> Found:
    return noted(Forward(lambda m, x: m.linear(x).view(4, -1)))


@triggers("U107")
def _(path: Path) -> Found:
    return noted(Forward(lambda m, x: checkpoint(m.linear, x, use_reentrant=False)))


@triggers("U108")
def _(path: Path) -> Found:
    model = factories.mlp()
    model.config = SimpleNamespace(use_cache=True)
    return noted(model)


class Doubled(torch.autograd.Function):
    """A backward of its own, unlike what autograd would find."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 3


@triggers("U109")
def _(path: Path) -> None:
    capture(Forward(lambda m, x: Doubled.apply(m.linear(x))), (X,), {})


@triggers("U110")
def _(path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        # No two calls are the same.
        torch.manual_seed(torch.seed() % 2**60)
        return torch.dropout(self.linear(x), 0.5, train=True)

    unitify.transform(Forward(forward), (X,))


@triggers("U111")
def _(path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.linear(x) if x.shape[0] <= 4 else x

    unitify.transform(Forward(forward), (2.0**12 * X,), recipe="fp16")(torch.randn(5, 6))


@triggers("U112")
def _(path: Path) -> Found:
    return list(unitify.transform(factories.mlp(), (X,), recording_seconds=0.0).diagnostics)


@triggers("U113")
def _(path: Path) -> Found:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (x > 100.0).all():
            x = x - 100.0
        return self.linear(x)

    return noted(Forward(forward))


@triggers("U115")
def _(path: Path) -> Found:
    module = unitify.transform(nn.Sequential(nn.Linear(6, 6), nn.Dropout()), (2.0**12 * X,))
    module.get_submodule("1").p = 0.0
    with warnings.catch_warnings(record=True) as found:
        module(X)
    assert "U115" in str(found[0].message)
    return [module._changed()]


@triggers("U116")
def _(path: Path) -> Found:
    module = unitify.transform(factories.mlp(), (X,)).bfloat16()
    with warnings.catch_warnings(record=True) as found:
        module(X.bfloat16())
    assert [str(w.message)[:4] for w in found] == ["U116"]
    return [RecordedAnew(where="MLP", tensor="up.weight", dtype="bfloat16")]


@triggers("U117")
def _(path: Path) -> None:
    made = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (torch.randn(16, 16),), recipe="fp8")
    made.to_inference().get_submodule("0")(torch.randn(16))


@triggers("U118")
def _(path: Path) -> Found:
    module = unitify.transform(factories.mlp(), (X,), weights="stored")
    with warnings.catch_warnings(record=True) as found:
        module(X[0])
    assert [str(w.message)[:4] for w in found] == ["U118"]
    return [OwnCodeRuns(reason=str(found[0].message))]


@triggers("U201")
def _(path: Path) -> None:
    unitify.transform(factories.mlp(), rules=[{"mine.f.default": {"law": {"out": "x +* y"}}}])


@triggers("U202")
def _(path: Path) -> Found:
    captured = capture(factories.mlp(), (X,), {})
    rules = {k: v for k, v in load_rules().items() if k != "aten.gelu.default"}
    return list(without_rule(captured, rules))


@triggers("U203")
def _(path: Path) -> None:
    explain_value("liner", factories.mlp())


@triggers("U204")
def _(path: Path) -> None:
    model = factories.mlp()
    nn.init.constant_(model[0].weight, torch.inf)
    check_finite(model)


@triggers("U205")
def _(path: Path) -> None:
    load_rules([{"mylib.softclip.default": {"law": {"out": "self"}}}])


@triggers("U206")
def _(path: Path) -> Found:
    # The row averages over a dimension that a matrix has not.
    forward = {"square": "average(square(self))"}
    row = {"replaces": True, "over": [-5], "forward": forward}
    model = Forward(lambda m, x: m.linear(x).cumsum(0))
    rules = [{"aten.cumsum.default": row}]
    module = unitify.transform(model, (X,), rules=rules, scales="analysis", verify=False)
    return list(module.diagnostics)


@triggers("U207")
def _(path: Path) -> None:
    import_libraries(["unitify_tests_nowhere"])


@triggers("U209")
def _(path: Path) -> Found:
    model = factories.mlp()
    nn.init.zeros_(model[-1].weight)
    return list(unitify.transform(model, (X,)).diagnostics)


@triggers("U208")
def _(path: Path) -> Found:
    model = Forward(lambda m, x: m.linear(x.log()))
    return list(unitify.transform(model, (-X.abs(),), verify=False).diagnostics)
