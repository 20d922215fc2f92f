"""``scheme="u-mup"``: roles, depth, multipliers and learning rates, as the papers have them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from conversion import parameter_scales
from torch import Tensor, nn

import unitify
from unitify.capture.whole import Capture, capture
from unitify.diagnostics import UnitifyError
from unitify.optim import learning_rates, param_groups
from unitify.reparametrization import Reparametrization
from unitify.rulebook.rule_table import load_rules
from unitify.scheme.multipliers import multipliers

RULES = load_rules()


class Block(nn.Module):
    """Attention and a gated unit, pre-norm, without trainable gains."""

    def __init__(self, width: int, by_hand: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.width, self.by_hand = width, by_hand

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(F.layer_norm(x, (self.width,))).chunk(3, -1)
        if not self.by_hand:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(-1, -2) / self.width**0.5
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attention(x))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (self.width,)))))


class Model(nn.Module):
    """A small language model."""

    def __init__(self, width: int = 32, layers: int = 2, by_hand: bool = False) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(48, width), nn.Embedding(8, width)
        self.blocks = nn.Sequential(*(Block(width, by_hand) for _ in range(layers)))
        self.head = nn.Linear(width, 48)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.blocks(x)
        logits = self.head(F.layer_norm(x, x.shape[-1:]))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def made(model: nn.Module, **options: Any) -> unitify.UnitScaledModule:
    return unitify.transform(
        model, (torch.randint(0, 48, (2, 8)),), scheme=unitify.UMuP(**options), verify=False
    )


@cache
def captured(width: int, layers: int, by_hand: bool) -> Capture:
    return capture(Model(width, layers, by_hand), (torch.randint(0, 48, (2, 8)),), {})


def constants(
    width: int = 32, layers: int = 2, by_hand: bool = False, **options: Any
) -> Reparametrization:
    return multipliers(captured(width, layers, by_hand), unitify.UMuP(**options), RULES)


def rates(module: unitify.UnitScaledModule, kind: Any, **options: Any) -> Mapping[str, float]:
    """The true learning rate of every parameter."""
    found = {}
    for group in param_groups(module, kind, **options):
        for name in group["param_names"]:
            found[name] = group["lr"]
    return found


@pytest.mark.parametrize(("width", "layers"), [(16, 3), (64, 1)])
def test_roles_and_rates(width: int, layers: int) -> None:
    """Blake et al. 2024 (arXiv 2407.17465), table 2: A, B and C of every kind of parameter."""
    module = made(Model(width, layers))
    roles = module.scheme[""].parameters
    assert roles["embedding.weight"].role == roles["positions.weight"].role == "embedding"
    assert roles["head.weight"].role == "readout"
    assert {roles[f"blocks.0.{n}.weight"].role for n in ("qkv", "out", "up", "down")} == {"hidden"}
    assert roles["blocks.0.down.weight"].fan_in == pytest.approx(2 * width)
    assert {r.depth for n, r in roles.items() if n.startswith("blocks")} == {2 * layers}
    found = rates(module, torch.optim.Adam, lr=1.0)
    depth = (2 * layers) ** -0.5
    assert found["embedding.weight"] == pytest.approx(width**-0.5)
    assert found["blocks.0.qkv.weight"] == pytest.approx(width**-0.5 * depth)
    assert found["blocks.0.down.weight"] == pytest.approx((2 * width) ** -0.5 * depth)
    assert found["blocks.0.qkv.bias"] == pytest.approx(depth)
    assert found["head.weight"] == found["head.bias"] == 1.0
    outputs = module.scheme[""].outputs
    head = [m for value, m in outputs.items() if value.startswith("linear")][-1]
    assert head == pytest.approx(1 / width)
    weights = dict(module.capture.model.named_parameters())
    assert all(
        0.8 < float(p.detach().std()) < 1.2 for n, p in weights.items() if n.endswith("weight")
    )


def test_rates_of_sgd_move_the_function_alike() -> None:
    """One step of SGD changes each layer's output as much at every width."""
    found = rates(made(Model(64)), torch.optim.SGD, lr=1.0)
    assert found["blocks.0.qkv.weight"] == pytest.approx(64.0)
    assert found["embedding.weight"] == found["head.weight"] == pytest.approx(64.0)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_rates_of_unit_scaling(kind: Any) -> None:
    """One for matrices and tables, n^-1/2 for vectors; SGD is handed gradients of unit RMS."""
    inputs = (torch.randint(0, 48, (2, 8)),)
    module = unitify.transform(Model(32), inputs, scheme="unit", verify=False)
    found = rates(module, kind, lr=1.0)
    assert found
    for name, rate in found.items():
        parameter, bwd = module.get_parameter(name), parameter_scales(module)[name].bwd
        of_vector = parameter.numel() ** -0.5 if parameter.dim() == 1 else 1.0
        assert rate == pytest.approx(of_vector / (bwd if kind is torch.optim.SGD else 1.0)), name
    assert {role.gradient for role in module.scheme[""].parameters.values()} != {1.0}


@pytest.mark.parametrize("layers", [1, 2, 6])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_residual_weights(layers: int, ratio: float, alpha: float) -> None:
    """The shares of the final stream: of embedding, attention and feed-forward, at every depth."""
    sums = constants(layers=layers, alpha_res=alpha, alpha_res_attn_ratio=ratio).sums
    assert [s.kind for s in sums] == ["attention", "other"] * layers
    share = {"embedding": 1.0, "attention": 0.0, "other": 0.0}
    for s in sums:
        assert s.skip**2 + s.branch**2 == pytest.approx(1.0)
        share = {kind: held * s.skip**2 for kind, held in share.items()}
        share[s.kind] += s.branch**2
    expected = {
        (1.0, 1.0): (1 / 3, 1 / 3, 1 / 3), (1.0, 0.5): (0.3333, 0.1333, 0.5333),
        (2.0, 1.0): (1 / 9, 4 / 9, 4 / 9), (2.0, 0.5): (0.1111, 0.1778, 0.7111),
    }[alpha, ratio]  # fmt: skip
    assert tuple(share.values()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("layers", [2, 4])
def test_first_and_last_amplitudes(layers: int) -> None:
    sums = constants(layers=layers).sums
    ratios = [s.branch / s.skip for s in sums]
    expected = {2: (0.7071, 0.5774, 0.5, 0.4472), 4: (0.5, 0.4472, 0.4082, 0.378)}[layers]
    assert ratios[:4] == pytest.approx(expected, abs=1e-4)
    assert ratios[-1] == pytest.approx({2: 0.4472, 4: 0.3015}[layers], abs=1e-4)


@pytest.mark.parametrize("by_hand", [False, True])
def test_logits_are_divided_by_the_width(by_hand: bool) -> None:
    width, alpha = 32, 1.5
    found = constants(width, by_hand=by_hand, alpha_attn_softmax=alpha)
    if by_hand:
        # The model itself divides by √d.
        assert found.outputs["div"] == pytest.approx(alpha / width**0.5, rel=1e-4)
    else:
        scale = found.numbers["scaled_dot_product_attention"]["scale"]
        assert scale == pytest.approx(alpha / width)


def test_multipliers_are_one_by_default_and_act_where_they_say() -> None:
    plain = constants()
    first = next(v for v in plain.outputs if v.startswith("linear"))
    head = [v for v in plain.outputs if v.startswith("linear")][-1]
    assert constants(alpha_out=2.0).outputs[head] == 2 * plain.outputs[head]
    assert constants(alpha_emb=2.0).outputs["embedding"] == pytest.approx(2.0)
    assert "embedding" not in plain.outputs
    acted = constants(alpha_ffn_act=2.0)
    assert acted.operands["gelu"] == {"self": 2.0}
    assert acted.outputs["gelu"] < plain.outputs["gelu"]
    assert acted.outputs[first] == plain.outputs[first]
    assert constants(alpha_loss_softmax=0.5).operands == {"cross_entropy_loss": {"self": 0.5}}
    assert constants(activation_alphas={"blocks.1": 3.0}).operands == {"gelu_1": {"self": 3.0}}


def test_roles_and_depth_may_be_said() -> None:
    found = constants(roles={"blocks.*.down.*": "readout", "head.*": "other"}, depth=9)
    assert found.parameters["blocks.1.down.weight"].role == "readout"
    assert found.parameters["head.weight"].role == "other"
    assert {s.depth for s in found.sums} == {9}
    with pytest.raises(UnitifyError) as caught:
        unitify.UMuP(roles={"*": "matrix"}, residual="none", alpha_out=0.0)
    assert [d.code for d in caught.value.diagnostics] == ["U001", "U001", "U001"]


def test_decay_is_independent() -> None:
    module = made(Model())
    for group in param_groups(module, torch.optim.AdamW, lr=0.25, weight_decay=0.01):
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.01)
    groups = param_groups(module, torch.optim.AdamW, lr=0.25)
    assert learning_rates(groups, 0.25) == pytest.approx([g["lr"] for g in groups])
    with pytest.warns(unitify.UnitifyWarning, match="U704"):
        groups = param_groups(
            module, torch.optim.AdamW, lr=0.25, weight_decay=0.01, independent_decay=False
        )
    plain = {n: g["lr"] * g["weight_decay"] for g in groups for n in g["param_names"]}
    assert plain["head.weight"] == pytest.approx(0.25 * 0.01)


def test_description_names_everything() -> None:
    found = constants()
    text = found.describe()
    assert all(name in text for name in (*found.parameters, *found.outputs, *found.numbers))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_models_of_transformers(name: str) -> None:
    """Attention, depth and roles are found without a name."""
    model, args, kwargs = zoo.build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = unitify.transform(model, args, kwargs, scheme="u-mup", verify=False)
    found = module.scheme[""]
    kinds = [s.kind for s in found.sums]
    if name == "gpt2":
        assert kinds == ["attention", "other"] * 2
        assert {s.depth for s in found.sums} == {4}
    else:
        # An encoder's stack of two layers, and a decoder's with cross-attention.
        assert kinds == ["attention", "other"] * 2 + ["attention", "attention", "other"] * 2
        assert [s.depth for s in found.sums] == [4] * 4 + [6] * 6
    assert {r.role for r in found.parameters.values()} >= {"embedding", "hidden", "gain"}


@pytest.mark.parametrize("scheme", ["unit", "u-mup"])
def test_sizes_that_the_model_does_not_take_are_left_out(scheme: str) -> None:
    """A scheme's model refuses an image for which its last layer has no weights."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)
    )
    module = unitify.transform(model, (torch.randn(2, 3, 8, 8),), scheme=scheme)
    assert module(torch.randn(5, 3, 8, 8)).shape == (5, 4)
