"""What a recipe does with every value of a model, and why."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

import unitify
from unitify.capture.whole import Capture, capture
from unitify.formats.signal_to_noise import snr
from unitify.formats.table import FORMATS
from unitify.recipe.choices import Choice, Patterns, choose, flop_share
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import RECIPES
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()


# -- what is cast -----------------------------------------------------------------------


@functools.cache
def captured(name: str) -> Capture:
    model, args, kwargs = zoo.build(name)
    return capture(model, args, kwargs)


def table(what: Capture, recipe: str) -> dict[str, Choice]:
    made = read_recipe(recipe)
    assert made is not None
    return {choice.value: choice for choice in choose(what, made, RULES)}


def cast_in(what: Capture, recipe: str) -> set[str]:
    return {name for name, choice in table(what, recipe).items() if choice.is_cast}


def of(model: nn.Module, *args: Any) -> Capture:
    return capture(model, args, {})


class Several(nn.Module):
    """Linear layers of several widths, a convolution, a tied weight, and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(48, 16)
        self.query = nn.Linear(16, 16)
        self.key = nn.Linear(16, 16)
        self.mix = nn.Conv1d(16, 32, 3, padding=1)
        self.narrow = nn.Linear(32, 10)
        self.back = nn.Linear(10, 16)
        self.head = nn.Linear(16, 48, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        x = self.mix((weights @ x).transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(self.back(self.narrow(x)))
        return logits


@functools.cache
def several() -> Capture:
    return of(Several(), torch.randint(0, 48, (2, 16)))


def test_every_floating_value_has_a_choice_and_a_reason() -> None:
    choices = table(several(), "fp8")
    assert all(choice.reason for choice in choices.values())
    floating = [
        n.name
        for n in several().graph.nodes
        if isinstance(n.meta.get("val"), Tensor) and n.meta["val"].is_floating_point()
    ]
    assert list(choices) == floating
    contractions = {n: c for n, c in choices.items() if c.is_contraction}
    kept = {n: c.reason for n, c in contractions.items() if not c.is_cast}
    assert set(contractions) - set(kept) == {"linear", "linear_1", "conv1d", "linear_4"}
    assert {"matmul", "matmul_1", "linear_2", "linear_3"} == set(kept)
    assert kept["matmul"].startswith("both operands are activations")
    assert kept["linear_2"].startswith("a width of 10 is not divisible by 16 (`multiple=1`")
    assert contractions["linear"].forward == "e4m3"
    assert contractions["linear"].backward == "e5m2"


PATTERNS = [
    ("fp8,exclude=query", {"linear"}),
    ("fp8,exclude=query.weight", {"linear"}),
    ("fp8,exclude=head.weight", {"linear_4"}),  # a tied weight has all of its names
    ("fp8,exclude=embedding.weight", {"linear_4"}),
    ("fp8,exclude=aten.conv*", {"conv1d"}),
    ("fp8,exclude=linear_1", {"linear_1"}),
    ("fp8,exclude=query+key", {"linear", "linear_1"}),
    ("fp8,include=aten.linear.*", {"conv1d"}),
]


@pytest.mark.parametrize(("recipe", "left_out"), PATTERNS, ids=[p[0] for p in PATTERNS])
def test_patterns(recipe: str, left_out: set[str]) -> None:
    assert cast_in(several(), "fp8") - cast_in(several(), recipe) == left_out
    assert cast_in(several(), recipe) < cast_in(several(), "fp8")


def test_more_on_request() -> None:
    assert cast_in(several(), "fp8,attention=true") - cast_in(several(), "fp8") == {
        "matmul", "matmul_1",
    }  # fmt: skip
    assert cast_in(several(), "fp8,multiple=1") - cast_in(several(), "fp8") == {
        "linear_2", "linear_3",
    }  # fmt: skip


def test_a_module_stands_for_all_inside() -> None:
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))})
    net = nn.Sequential(model["block"], nn.Linear(16, 16))
    what = of(net, torch.randn(4, 16))
    assert cast_in(what, "fp8,exclude=0") == {"linear_2"}
    assert cast_in(what, "fp8,exclude=0.1") == {"linear", "linear_2"}


def test_a_pattern_that_matches_nothing_is_reported() -> None:
    recipe = read_recipe("fp8,exclude=haed+query")
    assert recipe is not None
    patterns = Patterns(recipe)
    choose(several(), recipe, RULES, patterns=patterns)
    (found,) = patterns.unmatched()
    assert found.code == "U403"
    assert "'haed'" in found.message


def test_a_product_without_a_weight_is_kept() -> None:
    """Rotary embeddings multiply positions by frequencies, in full precision everywhere."""

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("frequencies", torch.rand(16, 1))
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            angles = (self.frequencies @ positions.float()).t()
            y: Tensor = self.linear(x) * angles.cos()
            return y

    what = of(Rotary(), torch.randn(16, 16), torch.arange(16).unsqueeze(0))
    choices = table(what, "fp8,attention=true,multiple=1")
    assert {n for n, c in choices.items() if c.is_cast} == {"linear"}
    assert choices["matmul"].reason == "neither operand depends on a weight"
    stored = table(what, "fp16")
    assert stored["cos"].reason == "it depends on no weight"
    assert stored["linear"].forward == "fp16"


def test_fp16_casts_what_is_stored() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = self.linear(x).masked_fill(mask, -torch.inf)
            return y.softmax(-1).square().mean()

    mask = torch.eye(8, dtype=torch.bool)
    choices = table(of(Masked(), torch.randn(8, 8), mask), "fp16")
    kept = {name: c.reason for name, c in choices.items() if not c.is_cast}
    assert kept == {
        "masked_fill": "it carries masking constants", "mean": "a single number",
    }  # fmt: skip
    assert {"p_linear_weight", "p_linear_bias", "x", "linear", "softmax"} <= choices.keys()


# -- where residual branches end ---------------------------------------------------------


class Block(nn.Module):
    """Attention and a gated FFN, pre- or post-norm, in sequence or in parallel."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.gate, self.up, self.down = (
            nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16),
        )  # fmt: skip

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v))
        return F.dropout(y, 0.1, self.training)

    def ffn(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y * 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "parallel":
            y = self.norm(x)
            return x + self.attention(y) + self.ffn(y)
        if self.kind == "sum first":
            y = self.norm(x)
            return x + (self.attention(y) + self.ffn(y))
        if self.kind == "pre-norm":
            x = x + self.attention(self.norm(x))
            return x + self.ffn(self.norm(x))
        x = self.norm(x + self.attention(x))
        return self.norm(self.ffn(x) + x)


@pytest.mark.parametrize("kind", ["pre-norm", "post-norm", "parallel", "sum first"])
def test_branch_ends(kind: str) -> None:
    what = of(nn.Sequential(nn.Linear(16, 16), Block(kind)), torch.randn(2, 16, 16))
    names = {
        c.value: list(n.meta["nn_module_stack"].values())[-1][0]
        for n in what.graph.nodes
        for c in choose(what, RECIPES["fp8-mixed"], RULES)
        if n.name == c.value and c.is_cast and c.forward == "bf16"
    }
    assert set(names.values()) == {"1.out", "1.down"}
    others = {c.backward for c in choose(what, RECIPES["fp8-mixed"], RULES) if c.forward == "e4m3"}
    assert others == {"e5m2"}


class Sums(nn.Module):
    """Sums that end no residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)  # two branches, none made of the other
        y = 0.5 * y * (1 + torch.tanh(y + 0.04 * y**3))  # an activation, no contraction inside
        return torch.where(y > 0, y, self.a(y))  # a choice, not a sum


def test_other_sums_are_no_residual_branches() -> None:
    choices = table(of(Sums(), torch.randn(4, 16)), "fp8-mixed")
    assert {c.forward for c in choices.values() if c.is_contraction} == {"e4m3"}


# -- shares of FLOPs ---------------------------------------------------------------------


def test_flops_are_counted_from_shapes() -> None:
    choices = table(several(), "fp8")
    assert choices["linear"].flops == 2 * 2 * 16 * 16 * 16
    assert choices["matmul"].flops == 2 * 2 * 16 * 16 * 16
    assert choices["conv1d"].flops == 2 * 2 * 16 * 32 * 16 * 3
    assert choices["softmax"].flops == 0


WIDTHS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_share_in_fp8(name: str) -> None:
    """Widths as real models have them (tiny vocabularies are odd): all linear FLOPs are cast."""
    what = captured(name)
    choices = list(table(what, "fp8,multiple=1").values())
    assert flop_share(choices, weights_only=True) == 1.0
    assert flop_share(choices) < 1.0
    attention = list(table(what, "fp8,multiple=1,attention=true").values())
    assert flop_share(attention) == 1.0
    ends = list(table(what, "fp8-mixed,multiple=1").values())
    bf16 = sum(c.flops for c in ends if c.forward == "bf16")
    per_block = {"gpt2": (1 + 4) / (3 + 1 + 8), "llama": (1 + 2) / (1 + 1 + 1 + 6)}[name]
    blocks = sum(c.flops for c in ends if c.has_weight) - ends_head(ends)
    assert bf16 / blocks == pytest.approx(per_block)


def ends_head(choices: list[Choice]) -> int:
    return next(c.flops for c in reversed(choices) if c.has_weight)


# -- in the module ------------------------------------------------------------------------


def test_the_module_tells_what_was_cast() -> None:
    module = unitify.transform(Several(), torch.randint(0, 48, (2, 16)), recipe="fp8,exclude=key")
    choices = {c.value: c for c in module.casts}
    assert choices["linear_1"].reason == "excluded by 'key'"
    assert choices["linear"].runs == "fp8"
    assert choices["conv1d"].runs == "simulated"
    assert choices["conv1d"].runs_because == "it is not one matmul of two matrices"
    assert unitify.transform(Several(), torch.randint(0, 48, (2, 16))).casts == ()


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_unit_rms_is_cast_where_the_format_holds_it_best(format: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64, bias=False), torch.randn(64, 64)
    nn.init.normal_(model.weight)
    recipe = f"fp8,forward={format},backward={format}"
    (made,) = (c for c in unitify.transform(model, (x,), recipe=recipe).casts if c.is_cast)
    best = max(snr(FORMATS[format], 2.0**e) for e in range(-20, 20))
    for cast in made.casts:
        assert snr(FORMATS[format], 2.0**-cast.exponent) == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize("placement", ["casts", "everywhere"])
@pytest.mark.parametrize("recipe", ["fp8", "fp16", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("octaves", [-110, -43, 43, 83])
def test_casts_lose_the_same_at_any_magnitude(octaves: int, recipe: str, placement: str) -> None:
    def run(octaves: int) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False)
        )
        x, size = torch.randn(16, 32), 2.0**octaves
        given = (size * x).requires_grad_()
        module = unitify.transform(model, (given,), recipe=recipe, placement=placement)
        y = module(given)
        gradients = torch.autograd.grad(y, (given, *module.parameters()), torch.ones_like(y))
        return tuple(
            t / unit for t, unit in zip((y, *gradients), (size, 1.0, size, size), strict=True)
        )

    for found, expected in zip(run(octaves), run(0), strict=True):
        assert torch.equal(found, expected)
