"""What makes every diagnostic appear: an error is raised, or findings are returned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import check_triggers
import factories
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unitify
import unitify.diagnostics
from unitify.capture.inputs import infer_inputs
from unitify.capture.whole import capture
from unitify.checkpoint import folder
from unitify.checkpoint.files import mapped_weights, read_state_dicts
from unitify.checkpoint.filling import fill
from unitify.checkpoint.new_folder import check_absent, new_folder
from unitify.checkpoint.original import true_model, write_original
from unitify.checkpoint.state_dict import check_finite
from unitify.checkpoint.targets import build_model, import_libraries
from unitify.convert import convert
from unitify.diagnostics import Diagnostic, OwnCodeRuns, RecordedAnew
from unitify.explain import explain_code, explain_value
from unitify.plan import planner
from unitify.plan.scale_plan import Scale
from unitify.recipe.recipe import RECIPES
from unitify.rule_trials.missing import without_rule
from unitify.rulebook.rule_table import load_rules
from unitify.serve.export import export
from unitify.serve.mapped import mapped_model
from unitify.serve.reopened import reopened
from unitify.verifying.validation import validate

X = torch.randn(4, 6)


Found = list[Diagnostic]


TRIGGERS: dict[str, Callable[[Path], Found | None]] = {**check_triggers.TRIGGERS}


def triggers(code: str) -> Callable[[Callable[[Path], Found | None]], None]:
    """Register what makes a diagnostic appear: an error is raised, or findings are returned."""

    def register(trigger: Callable[[Path], Found | None]) -> None:
        assert code not in TRIGGERS, code
        TRIGGERS[code] = trigger

    return register


class Forward(nn.Module):
    """A module around a function, with one parameter."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def noted(model: nn.Module, x: Tensor = X) -> Found:
    return list(capture(model, (x,), {}).diagnostics)


def saved(path: Path) -> Path:
    save_file(factories.mlp().state_dict(), path / "mlp.safetensors")
    return path / "mlp.safetensors"


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


@triggers("U208")
def _(path: Path) -> Found:
    model = Forward(lambda m, x: m.linear(x.log()))
    return list(unitify.transform(model, (-X.abs(),), verify=False).diagnostics)


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


@triggers("U601")
def _(path: Path) -> None:
    read_state_dicts(path / "none.pt")


@triggers("U602")
def _(path: Path) -> None:
    torch.save(factories.mlp(), path / "module.pt")
    read_state_dicts(path / "module.pt")


@triggers("U603")
def _(path: Path) -> None:
    convert(saved(path), path / "out", model="factories:wide_mlp")


@triggers("U604")
def _(path: Path) -> None:
    build_model("factories:raises")


@triggers("U605")
def _(path: Path) -> None:
    check_absent(path)


@triggers("U606")
def _(path: Path) -> None:
    check_absent(saved(path) / "out")


@triggers("U407")
def _(path: Path) -> Found:
    return list(unitify.transform(factories.mlp(), recipe="fp8,kv_cache=e4m3").diagnostics)


@triggers("U408")
def _(path: Path) -> None:
    unitify.kv_cache(unitify.transform(factories.mlp(), recipe="fp8"))


@triggers("U617")
def _(path: Path) -> None:
    with new_folder(path / "out"), new_folder(path / "out"):
        pass


@triggers("U607")
def _(path: Path) -> None:
    unitify.load(path, factories.mlp())


@triggers("U609")
def _(path: Path) -> None:
    unitify.transform(factories.mlp()).report(drift=path / "none.jsonl")


@triggers("U610")
def _(path: Path) -> None:
    torch.save(unitify.transform(factories.mlp()), path / "module.pt")


@triggers("U611")
def _(path: Path) -> None:
    (path / "adapter_config.json").write_text("{}")
    read_state_dicts(path)


@triggers("U612")
def _(path: Path) -> Found:
    state = {f"module.{name}": t for name, t in factories.mlp().state_dict().items()}
    return list(fill(factories.mlp(), {"": state}))


@triggers("U613")
def _(path: Path) -> None:
    state = factories.mlp().state_dict()
    fill(factories.mlp(), {"model": state, "ema": state})


def _language_model(path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, intermediate_size=64, vocab_size=64,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path / "model")
    return path / "model"


@triggers("U614")
def _(path: Path) -> None:
    export(_language_model(path), path / "out", RECIPES["fp8-amax"], "compressed-tensors")


@triggers("U615")
def _(path: Path) -> None:
    model, _ = mapped_model(_language_model(path), mapped_weights(path / "model"))
    (path / "other").mkdir()
    reopened(path / "other", model, [infer_inputs(model)], least=6.0)


@triggers("U616")
def _(path: Path) -> None:
    net = nn.Sequential(nn.Linear(16, 16))
    module = unitify.transform(net, (torch.randn(4, 16),), recipe="fp8")
    folder.write(path / "out", module, {})
    write_original(folder.read(path / "out"), path / "back")


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
