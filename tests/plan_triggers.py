"""What makes each diagnostic of plans, casts, verification and schemes appear."""

from __future__ import annotations

from pathlib import Path

import factories
import pytest
import torch
from torch import Tensor, nn
from triggers import Forward, Found, X, triggers

import unitify
import unitify.diagnostics
from unitify.checkpoint import folder
from unitify.checkpoint.original import true_model
from unitify.plan import planner
from unitify.rulebook.rule_table import load_rules
from unitify.verifying.validation import validate


@triggers("U301")
def _(path: Path) -> None:
    module = unitify.transform(factories.mlp())
    unitify.rebuild(factories.deep_mlp(), module.state_dict(), module.plan)


@triggers("U302")
def _(path: Path) -> None:
    module = unitify.transform(factories.mlp())
    values = {**module.plan.values, "linear": unitify.Scale(3.0)}
    plan = unitify.ScalePlan(values, module.plan.parameters)
    unitify.rebuild(factories.mlp(), module.state_dict(), plan)


@triggers("U303")
def _(path: Path) -> Found:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planner, "NODES", 1)
        return list(unitify.transform(factories.mlp(), (X,)).diagnostics)


@triggers("U401")
def _(path: Path) -> None:
    unitify.transform(factories.mlp(), recipe="fp9")


@triggers("U402")
def _(path: Path) -> None:
    unitify.transform(factories.mlp(), recipe="fp8,exlude=lm_head")


@triggers("U403")
def _(path: Path) -> Found:
    module = unitify.transform(factories.mlp(), recipe="fp8,exclude=lm_head")
    return list(module.diagnostics)


@triggers("U409")
def _(path: Path) -> Found:
    return list(unitify.transform(factories.mlp(), recipe="fp8,exclude=*").diagnostics)


@triggers("U410")
def _(path: Path) -> Found:
    x = 1e13 * torch.randn(4, 16)
    return list(
        unitify.transform(nn.Linear(16, 16), x, recipe="fp8", scales="analysis").diagnostics
    )


class Ratio(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().sum(-1, keepdim=True) + 1e-12)


@triggers("U411")
def _(path: Path) -> Found:
    x = torch.randn(4, 16) * torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    model = nn.Sequential(nn.Linear(16, 16, bias=False), Ratio())
    return list(unitify.transform(model, x, recipe="fp16").diagnostics)


@triggers("U404")
def _(path: Path) -> None:
    unitify.transform(nn.Conv1d(16, 16, 3), torch.randn(2, 16, 8), recipe="fp8,simulate=false")


@triggers("U405")
def _(path: Path) -> Found:
    recipe = "fp8-auto,multiple=1,min_sqnr=90"
    return list(unitify.transform(factories.mlp(), recipe=recipe).diagnostics)


@triggers("U406")
def _(path: Path) -> Found:
    with torch.device("meta"):
        model = factories.mlp()
    return list(unitify.transform(model, recipe="fp8-auto,multiple=1").diagnostics)


@triggers("U501")
def _(path: Path) -> None:
    model = nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        model.weight.mul_(2.0**40)
    # Products near 2^130 overflow in the original, where infinities cancel, and not at unit scale.
    unitify.transform(model, torch.randn(4, 64) * 2.0**92, weights="stored")


@triggers("U504")
def _(path: Path) -> Found:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.linear(x)
        # A recording is shown other tensors than a call.
        return y * 0.1 * 0.7 if type(x) is Tensor else y * (0.1 * 0.7)

    return list(unitify.transform(Forward(forward), (X,)).diagnostics)


@triggers("U505")
def _(path: Path) -> Found:
    model = nn.Linear(64, 8).half()
    x = torch.randn(4, 64, dtype=torch.float16)
    loss = lambda y: (y * 1e-5).sum()  # noqa: E731
    return list(unitify.transform(model, (x,), loss_fn=loss).diagnostics)


@triggers("U502")
def _(path: Path) -> Found:
    module = unitify.transform(factories.mlp(), weights="stored")
    rescale = next(n for n in module.graph.nodes if n.target is torch.ops.unitify.rescale.default)
    rescale.args = (rescale.args[0], 2 * rescale.args[1], rescale.args[2])
    return list(validate(module.capture, module.graph, module.plan, load_rules()))


@triggers("U503")
def _(path: Path) -> Found:
    model = nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        model.weight.mul_(2.0**-36)
    # Products near 2^-148 are subnormal; they round in the original, and not at unit scale.
    x = torch.randn(4, 64) * 2.0**-108
    return list(unitify.transform(model, x, weights="stored").diagnostics)


@triggers("U701")
def _(path: Path) -> None:
    def branches(module: nn.Module, x: Tensor) -> Tensor:
        return module.linear(x) if x.sum() > 0 else x

    unitify.transform(nn.Sequential(nn.Linear(6, 6), Forward(branches)), (X,), scheme="unit")


@triggers("U702")
def _(path: Path) -> Found:
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))
    with pytest.warns(unitify.UnitifyWarning):
        return list(unitify.transform(model, (X,), scheme="u-mup").diagnostics)


@triggers("U703")
def _(path: Path) -> Found:
    model, tokens = factories.TiedLanguageModel(), torch.randint(0, 24, (2, 5))
    with pytest.warns(unitify.UnitifyWarning):
        return list(unitify.transform(model, (tokens,), scheme="u-mup").diagnostics)


@triggers("U704")
def _(path: Path) -> Found:
    module = unitify.transform(factories.mlp(), (X,), scheme="u-mup")
    with pytest.warns(unitify.UnitifyWarning, match="U704"):
        unitify.optim.param_groups(module, torch.optim.Adam, lr=1.0, weight_decay=0.1)
    return [unitify.diagnostics.DecayNotIndependent(optimizer="Adam")]


@triggers("U705")
def _(path: Path) -> None:
    folder.write(path / "out", unitify.transform(factories.mlp(), (X,), scheme="unit"), {})
    true_model(folder.read(path / "out"), factories.mlp())
