"""Matmuls on FP8 operands against rounded ones: to the bit, or within the order of summation."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from unitify.diagnostics import UnitifyError
from unitify.formats.table import E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, Format, quantize
from unitify.rule_trials import calls
from unitify.rulebook.rule_table import load_rules
from unitify.rulebook.schema import operation_name
from unitify.runtime.cast import cast
from unitify.runtime.scaled_mm import aligned, decode, encode, matmul, multiplies, of_codes

fp8_linear = torch.ops.unitify.fp8_linear

FP8 = [E4M3, E5M2, E4M3FNUZ, E5M2FNUZ]
RULES = load_rules()

# -- codes and matmuls ---------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0, -9, 4])
@pytest.mark.parametrize("format", FP8, ids=lambda f: f.name)
def test_codes_are_what_quantize_rounds_to(format: Format, exponent: int) -> None:
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 1e-30])
    x = torch.cat([torch.randn(2000) * torch.exp2(torch.arange(2000) % 40 - 20), special])
    codes = encode(x, format, exponent)
    assert codes.dtype == format.dtype
    factor = 2.0**exponent
    expected = quantize(x / factor, format) * factor
    assert torch.equal(decode(codes, torch.float32, exponent).nan_to_num(7), expected.nan_to_num(7))


def integers(*shape: int) -> Tensor:
    """Small numbers, whose products and sums are exact in every order."""
    return torch.randint(-4, 5, shape).float()


@pytest.mark.parametrize("shape", [(16, 16, 16), (5, 7, 3), (1, 40, 17), (0, 16, 16), (3, 0, 4)])
@pytest.mark.parametrize(
    "pair", list(itertools.product(FP8, FP8)), ids=lambda p: f"{p[0].name} {p[1].name}"
)
def test_matmul(pair: tuple[Format, Format], shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = integers(m, k), integers(n, k)
    codes = encode(a, pair[0]), encode(b, pair[1])
    for way in (matmul, of_codes):
        assert torch.equal(way(*codes, torch.float32), a @ b.t())
        assert torch.equal(way(*codes, torch.float32, -3), a @ b.t() / 8)
    assert torch.equal(matmul(*codes, torch.float64, -3), a.double() @ b.double().t() / 8)


def test_transposed_codes_are_laid_out_anew() -> None:
    a, b = integers(24, 9), integers(24, 11)
    for way in (matmul, of_codes):
        result = way(encode(a, E5M2).t(), encode(b, E4M3).t(), torch.float32)
        assert torch.equal(result, a.t() @ b)


@pytest.mark.parametrize("rows", [False, True])
def test_alignment_adds_zeros(rows: bool) -> None:
    codes = encode(integers(5, 17), E4M3)
    found = aligned(codes, rows)
    assert found.shape == (16 if rows else 5, 32)
    assert torch.equal(decode(found[:5, :17], torch.float32), decode(codes, torch.float32))
    assert float(decode(found, torch.float32).abs().sum()) == float(
        decode(codes, torch.float32).abs().sum()
    )
    already = encode(integers(16, 32), E4M3)
    assert aligned(already, True) is already


def test_which_device_multiplies_what() -> None:
    cpu, elsewhere = torch.device("cpu"), torch.device("meta")
    assert multiplies(cpu, torch.float8_e4m3fn, torch.float8_e5m2)
    assert multiplies(cpu, torch.float8_e5m2fnuz, torch.float8_e5m2fnuz)
    assert not multiplies(cpu, torch.float16, torch.float8_e5m2)
    assert not multiplies(elsewhere, torch.float8_e4m3fn, torch.float8_e4m3fn)


@pytest.mark.parametrize("operation", [n for n, rule in RULES.items() if rule.matmul is not None])
def test_rows_read_as_matmuls(operation: str) -> None:
    """What a row's ``matmul`` says is what the operation computes."""
    rule = RULES[operation]
    assert rule.matmul is not None
    arguments = calls.drawn(rule, rule.sample, 0, torch.float64)
    left, right = arguments[rule.matmul.left], arguments[rule.matmul.right]
    expected = left @ (right.t() if rule.matmul.is_transposed else right)
    if rule.matmul.bias is not None:
        expected = expected + arguments[rule.matmul.bias]
    found = calls.overload(operation)(*arguments.values())
    torch.testing.assert_close(found, expected)


# -- the operator ---------------------------------------------------------------------------


def simulated(x: Tensor, w: Tensor, b: Tensor | None, exponents: tuple[int, int, int]) -> Tensor:
    of_x, of_w, of_gradient = exponents
    y = F.linear(cast(x, "e4m3", "", of_x), cast(w, "e4m3", "", of_w), b)
    return cast(y, "", "e5m2", 0, of_gradient)


def results(y: Tensor, leaves: list[Tensor], gradient: Tensor) -> list[Tensor]:
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("exponents", [(0, 0, 0), (2, -3, 5)])
@pytest.mark.parametrize("shape", [(5, 48), (4, 8, 48), (3, 5, 2, 40)])
def test_operator_against_casts(
    shape: tuple[int, ...], exponents: tuple[int, int, int], bias: bool
) -> None:
    """Products of three- and four-bit numbers are exact in float32; sums differ in their order."""
    torch.manual_seed(0)
    width = shape[-1]
    x, w = torch.randn(shape, requires_grad=True), torch.randn(37, width, requires_grad=True)
    b = torch.randn(37, requires_grad=True) if bias else None
    leaves = [t for t in (x, w, b) if t is not None]
    gradient = torch.randn(*shape[:-1], 37)
    expected = results(simulated(x, w, b, exponents), leaves, gradient)
    found = results(fp8_linear(x, w, b, "e4m3", "e5m2", *exponents), leaves, gradient)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= summation_bound(shape, one)


def summation_bound(shape: tuple[int, ...], result: Tensor) -> float:
    """n·ε·Σ|terms| for n summands: Higham 2002, section 4.2; no term exceeds 64 here."""
    count = max(shape[-1], 37, torch.Size(shape[:-1]).numel())
    return count * torch.finfo(result.dtype).eps * count * 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_width_models(dtype: torch.dtype) -> None:
    x, w = torch.randn(16, 32, dtype=dtype), torch.randn(16, 32, dtype=dtype)
    y = fp8_linear(x.requires_grad_(), w.requires_grad_(), None, "e4m3", "e5m2")
    y.sum().backward()
    assert y.dtype == x.grad.dtype == w.grad.dtype == dtype
    exact = decode(encode(x, E4M3), torch.float64) @ decode(encode(w, E4M3), torch.float64).t()
    assert float((y.detach().double() - exact).abs().max()) <= torch.finfo(dtype).eps * 64


def kept_by(x: Tensor, w: Tensor) -> list[Tensor]:
    """What the backward pass of a matmul keeps of its operands."""
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        fp8_linear(x, w, None, "e4m3", "e5m2")
    return kept


def test_the_backward_pass_keeps_codes_and_refers_to_parameters() -> None:
    x, w = torch.randn(64, 32, requires_grad=True), torch.randn(16, 32, requires_grad=True)
    codes, parameter = kept_by(x, w)
    assert codes.nbytes == x.numel()
    assert parameter.data_ptr() == w.data_ptr()
    # Computed weights are of no use to anybody else.
    assert sum(t.nbytes for t in kept_by(x, w * 2)) == x.numel() + w.numel()


def test_a_frozen_operand_keeps_nothing_of_the_other() -> None:
    x, w = torch.randn(64, 32, requires_grad=True), torch.randn(16, 32)
    assert [t.data_ptr() for t in kept_by(x, w)] == [w.data_ptr()]
    assert [t.nbytes for t in kept_by(x.detach(), w.requires_grad_())] == [x.numel()]


def test_a_weight_that_changes_before_the_backward_pass_is_refused() -> None:
    x, w = torch.randn(8, 32, requires_grad=True), torch.randn(16, 32, requires_grad=True)
    loss = fp8_linear(x, w, None, "e4m3", "e5m2").sum()
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_only_what_is_asked_for() -> None:
    x, w = torch.randn(4, 16), torch.randn(16, 16, requires_grad=True)
    fp8_linear(x, w, None, "e4m3", "e5m2").sum().backward()
    assert w.grad is not None
    assert x.grad is None


# -- in a transformed model --------------------------------------------------------------------


class Blocks(nn.Module):
    """Every form of a matmul of two matrices, and one that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 64)
        self.weight = nn.Parameter(torch.randn(64, 32) / 8)
        self.bias = nn.Parameter(torch.randn(32))
        self.other = nn.Parameter(torch.randn(32, 16) / 6)
        self.last = nn.Parameter(torch.randn(16, 16) / 4)
        self.conv = nn.Conv1d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.linear(x))
        y = torch.addmm(self.bias, x.flatten(0, 1), self.weight)
        y = torch.mm(F.gelu(y), self.other).view(*x.shape[:-1], 16)
        y = torch.matmul(y.tanh(), self.last)
        return self.conv(y.transpose(1, 2)).square().mean()


@functools.cache
def blocks(recipe: str) -> tuple[unitify.UnitScaledModule, Tensor]:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(3, 5, 32)
    return unitify.transform(model, (x,), recipe=recipe, verify=False), x


def pair() -> tuple[unitify.UnitScaledModule, unitify.UnitScaledModule, Tensor]:
    """A module on FP8 operands and its simulated twin."""
    (real, x), (twin, _) = blocks("fp8"), blocks("fp8,simulate=true")
    return copy.deepcopy(real), copy.deepcopy(twin), x


def test_matmuls_are_lowered_and_say_so() -> None:
    real, twin, _ = pair()
    lowered = [n for n in real.graph.nodes if operation_name(n).startswith("unitify.fp8_linear.")]
    names = ("linear", "addmm", "mm", "matmul")
    assert {n.name for n in lowered} == {f"{name}_watched" for name in names}
    runs = {c.value: (c.runs, c.runs_because) for c in real.casts if c.is_contraction}
    assert runs == {
        **dict.fromkeys(["linear", "addmm", "mm", "matmul"], ("fp8", "")),
        "conv1d": ("simulated", "it is not one matmul of two matrices"),
    }
    assert not any(operation_name(n).startswith("unitify.fp8_linear.") for n in twin.graph.nodes)
    assert {c.runs for c in twin.casts if c.is_contraction} == {"simulated"}


def test_real_and_simulated_agree() -> None:
    real, twin, x = pair()
    losses = [m(x) for m in (real, twin)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    for name, parameter in real.named_parameters():
        other = twin.get_parameter(name).grad
        # A sum that differs in its last bit may round to the other neighbor at the next cast.
        error = float((parameter.grad - other).norm() / other.norm())
        assert error < 2.0**-7, name


def test_where_fp8_is_insisted_on() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(16, 16, 3)), torch.randn(2, 16, 16)
    with pytest.raises(UnitifyError) as caught:
        unitify.transform(model, (x,), recipe="fp8,simulate=false")
    (found,) = caught.value.diagnostics
    assert found.code == "U404"
    assert "conv1d" in found.message
    recipe = "fp8,simulate=false,exclude=aten.conv*"
    assert {c.runs for c in unitify.transform(model, (x,), recipe=recipe).casts} == {"", "fp8"}


OBJECTIONS = {
    "fp8-amax": "its scales are found at run time",
    "fp8,backward=bf16": "e4m3 and bf16 are not both FP8",
    "fp8,forward=int8": "int8 and e5m2 are not both FP8",
    "fp8,saturate=false": "FP8 operands saturate",
}


@pytest.mark.parametrize("recipe", OBJECTIONS)
def test_why_not(recipe: str) -> None:
    module = unitify.transform(nn.Linear(16, 16), torch.randn(4, 16), recipe=recipe)
    assert {c.runs_because for c in module.casts if c.is_contraction} == {OBJECTIONS[recipe]}


def test_matmuls_with_numbers_or_vectors_stay() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = torch.addmm(y, x, self.w, alpha=0.5)
            return torch.addmm(x, z, self.w) + x[0] @ self.w

    x = torch.randn(16, 16)
    module = unitify.transform(Odd(), (x, torch.randn(16)), recipe="fp8")
    why = {c.value: c.runs_because for c in module.casts if c.is_contraction}
    assert why == {
        "addmm": "it multiplies by alpha or beta",
        "addmm_1": "what it adds is not a bias",
        "matmul": "its operands have 1 and 2 dimensions",
    }


def test_the_graph_beneath_is_still_the_original() -> None:
    """Verified after the fact, a module on codes is found to differ by its casts alone."""
    real, twin, x = pair()
    for module in (real, twin):
        found = unitify.verify(module.capture.model, module, (x,))
        assert not found.findings
        assert not found.exact
    options = {"recipe": "fp8", "placement": "everywhere", "weights": "stored"}
    real = unitify.transform(real.capture.model, (x,), **options)
    rescale = next(n for n in real.graph.nodes if operation_name(n) == "unitify.rescale.default")
    rescale.args = (rescale.args[0], 2.0 * rescale.args[1], rescale.args[2])
    assert {d.code for d in unitify.verify(real.capture.model, real, (x,)).findings} == {"U502"}


# -- export and compilation -----------------------------------------------------------------------


def grads(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    loss = module(x)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("recipe", ["fp8", "fp8-amax", "fp16"])
@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_without_breaks(recipe: str) -> None:
    module, x = blocks(recipe)
    compiled = torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True)
    for one, other in zip(grads(module, x), grads(compiled, x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_fuses_casts() -> None:
    """No cast and no rescale is a call of its own; codes go to the device's own matmul."""
    from torch._inductor.utils import run_and_get_code

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Conv1d(4, 16, 1)), torch.randn(4, 32)
    module = unitify.transform(model, (x,), recipe="fp8,multiple=1", verify=False)
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True)
    _, codes = run_and_get_code(lambda: compiled(x).square().mean().backward())
    text = "\n".join(codes)
    assert "torch.ops.unitify" not in text
    assert text.count("extern_kernels._scaled_mm(") == 3 - 1  # the input needs no gradient
    module(x).square().mean().backward()
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        error = float((one.grad - other.grad).norm() / one.grad.norm())
        assert error < 2.0**-7


def test_export_keeps_the_backward_pass() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(32, 16), torch.randn(4, 32)
    module = unitify.transform(model, (x,), recipe="fp8", verify=False)
    program = torch.export.export(module, (x,)).run_decompositions({})
    assert any(operation_name(n).startswith("unitify.fp8_linear.") for n in program.graph.nodes)
    again = program.module()
    module(x).square().sum().backward()
    again(x)[0].square().sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, again.get_parameter(name).grad)
