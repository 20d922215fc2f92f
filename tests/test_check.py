"""``unitify check``: planted faults are found where they are, and nothing else is."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import pytest
import torch
import zoo
from checking import FAULTS, RULES, checked, line_of
from conversion import Conversion
from torch import Tensor, nn

import unitify
from unitify.capture.source import Frame, Repository
from unitify.check.causes import causes
from unitify.check.checking import check
from unitify.check.finding import Finding
from unitify.check.outcome import Outcome
from unitify.check.plan_faults import Comparison
from unitify.check.settings import Limits, Settings, settings_from
from unitify.check.source_lines import SourceLines
from unitify.check.subject import subject_of
from unitify.formats.band import band_of
from unitify.formats.table import E4M3
from unitify.naming import stable_names
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import FP8

RECIPE = read_recipe("fp8,multiple=1")
assert RECIPE is not None


def places_of(outcome: Outcome) -> set[tuple[str, str, tuple[str, int]]]:
    return {(f.code, f.direction, f.source.at) for f in outcome.findings}


# -- planted faults -----------------------------------------------------------------------


def test_a_sound_model_is_clean(root: Path) -> None:
    outcome = checked(root, "sound")
    assert outcome.is_clean
    assert outcome.counts == {}
    assert len(outcome.cases) > 50


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_at_its_line(root: Path, fault: str, measured: bool) -> None:
    code, direction = FAULTS[fault]
    outcome = checked(root, "everything", measured=measured)
    assert (code, direction, line_of(fault)) in places_of(outcome)


@pytest.mark.parametrize("fault", ["embedding", "overflow", "logits"])
def test_a_fault_is_judged_by_the_format_asked_for(root: Path, fault: str) -> None:
    expected = "U803" if fault == "embedding" else "U804"
    outcome = checked(root, "everything", format="e4m3/e5m2")
    assert (expected, "forward", line_of(fault)) in places_of(outcome)
    outcome = checked(root, "everything", format="unit")
    assert ("U801", "forward", line_of(fault)) in places_of(outcome)


@pytest.mark.parametrize("fault", ["embedding", "overflow", "logits", "loss"])
def test_wide_formats_hold_what_narrow_ones_do_not(root: Path, fault: str) -> None:
    found = places_of(checked(root, "everything", format="bf16"))
    assert line_of(fault) not in {place for _, _, place in found}


def test_an_autograd_function_is_found_at_its_call(root: Path) -> None:
    outcome = checked(root, "function")
    assert ("U109", "", line_of("function")) in places_of(outcome)
    (finding,) = outcome.findings  # once, though three modules hold it
    assert finding.module == "blocks.2"
    assert "parts" in outcome.notes[0]


@pytest.mark.filterwarnings("ignore:U109")
@pytest.mark.parametrize(("scales", "measured"), [("analysis", False), ("measured", True)])
def test_transformed_it_is_clean_but_for_what_no_scale_mends(
    root: Path, scales: str, measured: bool
) -> None:
    outcome = checked(root, "everything", transformed=scales, measured=measured)
    assert places_of(outcome) == {
        ("U202", "", line_of("unknown")),
        ("U806", "backward", line_of("detached")),
    }
    outcome = checked(root, "function", transformed=scales, measured=measured)
    assert places_of(outcome) == {("U109", "", line_of("function"))}


def test_findings_say_how_they_came_about(root: Path) -> None:
    found = {f.name: f for f in checked(root, "everything").findings if f.direction == "forward"}
    exp = found["blocks.2/exp"]
    assert "torch.exp" in exp.source.text
    assert any("quadrature" in line for line in exp.derivation)
    assert "2^-" in exp.fix
    embedding = found["embedding.weight"]
    # The mean square of 64 × 32 normal numbers, and how far it is below what E4M3 holds.
    rms = embedding.diagnostic.rms
    assert abs(rms**2 / 1e-10 - 1) < 4 * math.sqrt(2 / (64 * 32))
    assert embedding.level == pytest.approx(-band_of(E4M3, Limits().noise).octaves_outside(rms))


def test_one_loss_is_to_blame_for_all_gradients(root: Path) -> None:
    outcome = checked(root, "loss")
    starts = [f for f in outcome.findings if not f.cause]
    assert [f.source.at for f in starts] == [line_of("loss")]
    followers = [f for f in outcome.findings if f.cause]
    assert len(followers) > 20
    assert {f.cause_source.at for f in followers} == {line_of("loss")}
    assert {f.direction for f in outcome.findings} == {"backward"}


# -- no false alarms ----------------------------------------------------------------------

#: What is true of these models at every scale: operations without a rule.
UNRULED = {
    "stochastic_depth": {"bernoulli_"},
}


def test_no_false_alarm_on_what_was_measured(converted: Conversion) -> None:
    # The mode in which it was measured: a bias in front of a batch norm has a gradient in eval mode
    # only, beside which that of train mode is nothing but rounding.
    subject = subject_of(converted.module.train(), (), None, RECIPE, RULES)
    outcome = checked_subject(subject)
    found = [f for f in outcome.findings if f.code != "U202"]
    assert [f.message for f in found] == []
    restored = {f.name.rpartition("/")[2].rstrip("_0123456789") for f in outcome.findings}
    assert restored == {r.rstrip("_") for r in UNRULED.get(converted.name, set())}


def checked_subject(subject: object, **settings: object) -> Outcome:
    return check(
        subject,
        settings_from(settings),
        RULES,
        SourceLines(Repository(Path(zoo.__file__).parent), subject.model, None),
        is_measured=True,
    )


# -- values that are not judged -----------------------------------------------------------


class Quiet(nn.Module):
    """Inputs, integers, masks and buffers at every scale, none of which is a fault."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("table", torch.full((16,), 1e-9))

    def forward(self, x: Tensor, tiny: Tensor, keep: Tensor) -> Tensor:
        positions = torch.arange(16, device=x.device).float() * 1e-9
        hidden = self.linear(x) + tiny + self.table + positions
        return hidden.masked_fill(keep, torch.finfo(x.dtype).min).softmax(-1) * x


@pytest.mark.parametrize("measured", [False, True])
def test_inputs_masks_and_constants_do_not_alarm(measured: bool) -> None:
    keep = torch.arange(16) > 12
    inputs = torch.randn(4, 16), torch.full((4, 16), 1e-12), keep
    subject = subject_of(Quiet(), inputs, None, RECIPE, RULES)
    outcome = check(
        subject, Settings(), RULES, SourceLines(Repository(Path()), subject.model, None),
        is_measured=measured,
    )  # fmt: skip
    assert [f.message for f in outcome.findings] == []


def test_an_input_that_is_cast_does(tmp_path: Path) -> None:
    subject = subject_of(nn.Linear(16, 16), torch.randn(4, 16) * 1e-6, None, FP8, RULES)
    (finding, *_) = check_here(subject).findings
    assert (finding.code, finding.name, finding.severity) == ("U803", "input_1", "error")
    # A transformed module stores an input true, too, and rounds it near unit RMS.
    module = unitify.transform(nn.Linear(16, 16), torch.randn(4, 16) * 1e-6, recipe=FP8)
    assert "U803" not in check_here(subject_of(module, (), None, FP8, RULES)).counts


def check_here(subject: object, **settings: object) -> Outcome:
    lines = SourceLines(Repository(Path()), subject.model, None)
    comparison = settings.pop("comparison", Comparison())
    return check(subject, settings_from(settings), RULES, lines, comparison=comparison)


def test_a_branch_that_starts_at_zero_is_no_lost_gradient() -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.gain = nn.Parameter(torch.zeros(16))
            self.norm = nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            # The sum that starts the backward pass is constant behind a normalization.
            return self.norm(x + self.gain * self.linear(x))

    found = check_here(subject_of(Gained(), torch.randn(4, 16), None, FP8, RULES)).findings
    assert [f for f in found if f.code == "U806"] == []


def test_a_value_that_is_not_finite() -> None:
    class Overflown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return (self.linear(x) * 1e4).exp().log1p().mean()

    subject = subject_of(Overflown(), torch.randn(4, 16), None, FP8, RULES)
    lines = SourceLines(Repository(Path(__file__).parent), subject.model, None)
    outcome = check(subject, Settings(), RULES, lines, is_measured=True)
    found = [f for f in outcome.findings if f.code == "U805"]
    assert {"exp", "log1p"} <= {f.name for f in found}
    assert {f.source.file for f in found} == {Path(__file__).name}
    assert {f.severity for f in found} == {"error"}


# -- plans --------------------------------------------------------------------------------


def test_weights_that_moved_drift_from_the_plan() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    module = unitify.transform(model, torch.randn(4, 16), recipe=FP8)
    judged, planned = Comparison(drift=True), module.plan.unit("p_2_weight").fwd
    assert check_here(subject_of(module, (), None, FP8, RULES), comparison=judged).is_clean
    with torch.no_grad():
        module.get_parameter("2.weight").mul_(2.0**4)
    outcome = check_here(subject_of(module, (), None, FP8, RULES), comparison=judged)
    drifted = {f.name: f for f in outcome.findings if f.code == "U807"}
    assert "2.weight" in drifted
    rms = float(module.get_parameter("2.weight").detach().square().mean().sqrt())
    assert drifted["2.weight"].level == pytest.approx(math.log2(rms / planned))
    limits = {"drift": 6}
    assert check_here(
        subject_of(module, (), None, FP8, RULES), **limits, comparison=judged
    ).is_clean


def test_a_plan_that_differs_from_the_committed_one() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)), torch.randn(4, 16)
    committed = unitify.transform(model, x, scales="analysis").plan
    same = Comparison(committed=committed, path="plan.json")
    assert check_here(subject_of(model, x, None, FP8, RULES), comparison=same).is_clean
    with torch.no_grad():
        model[2].weight.mul_(2.0**4)
    found = check_here(subject_of(model, x, None, FP8, RULES), comparison=same).findings
    differing = {(f.name, f.direction) for f in found if f.code == "U808"}
    assert ("2.weight", "forward") in differing
    assert ("0.weight", "forward") not in differing
    other = dataclasses.replace(committed, values={}, units={})
    found = check_here(
        subject_of(model, x, None, FP8, RULES), comparison=Comparison(committed=other)
    ).findings
    assert all("has none" in f.diagnostic.message for f in found if f.code == "U808")


# -- names, lines, causes ----------------------------------------------------------------


def test_names_stay_when_a_layer_is_added() -> None:
    def names(depth: int) -> set[str]:
        layers = [nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(depth)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = unitify.transform(nn.Sequential(*layers), torch.randn(2, 8))
        found = stable_names("", module.capture)
        assert len(set(found.values())) == len(found)
        return set(found.values())

    assert names(2) < names(3)
    assert {"0.0.weight", "0.0/linear", "1.1/gelu", "input_1"} <= names(2)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.register_parameter("gain", nn.Parameter(torch.ones(8)))
        self.inner = nn.Sequential(nn.Linear(8, 8))
        with torch.no_grad():
            self.inner[0].weight.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.shared(self.shared(x)) * self.gain)


def test_a_parameter_is_placed_where_it_gets_its_values() -> None:
    text_lines = Path(__file__).read_text("utf-8").splitlines()
    module = unitify.transform(Twice(), torch.randn(2, 8))
    lines = SourceLines(Repository(Path(__file__).parent), Twice(), None)
    nodes = {str(n.target): n for n in module.capture.graph.nodes if n.op == "get_attr"}
    expected = {
        "shared.weight": "self.shared = nn.Linear(8, 8)",
        "gain": 'self.register_parameter("gain", nn.Parameter(torch.ones(8)))',
        "inner.0.bias": "self.inner = nn.Sequential(nn.Linear(8, 8))",
    }
    for name, text in expected.items():
        frame = lines.of_node("", nodes[name])
        assert (frame.file, text_lines[frame.line - 1].strip()) == (Path(__file__).name, text)


def test_what_lies_in_an_environment_is_not_of_the_repository(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    own = tmp_path / "mine.py"
    installed = tmp_path / ".venv" / "lib" / "site-packages" / "theirs.py"
    for path in (own, installed):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert repository.relative(own) == "mine.py"
    assert repository.relative(installed) is None
    assert repository.relative(torch.__file__) is None
    assert repository.relative(tmp_path / "gone.py") is None
    frames = [Frame(str(own), 3), Frame(str(installed), 4)]
    assert repository.last(frames) == Frame("mine.py", 3)
    assert repository.last([]) is None


def test_what_is_made_of_nothing_else_begins_there() -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin().cos().tan().exp()

    graph = unitify.transform(Chain(), torch.randn(2, 8)).capture.graph
    outside = {("sin", 0): 3.0, ("cos", 0): 4.0, ("tan", 0): 30.0, ("cos", 1): 2.0}
    assert causes(graph, outside, []) == {
        ("sin", 0): ("sin", 0),
        ("cos", 0): ("sin", 0),
        ("tan", 0): ("tan", 0),  # far worse than what it is made of
        ("cos", 1): ("cos", 1),
    }


def test_the_worst_comes_first(root: Path) -> None:
    found: list[Finding] = list(checked(root, "everything").findings)
    ranks = ["error", "warning", "note"]
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=ranks.index)
    starts = [f.level for f in found if f.severity == "warning" and not f.cause]
    assert starts == sorted(starts, reverse=True)


# -- advice and notes -------------------------------------------------------------------


def test_a_factor_is_advised_only_where_one_helps() -> None:
    wide = torch.cat([torch.full((1,), 400.0), torch.full((4095,), 1e-6)])
    subject = subject_of(nn.Linear(4096, 16), wide.expand(4, -1), None, FP8, RULES)
    outcome = check(
        subject, Settings(), RULES, SourceLines(Repository(Path()), subject.model, None),
        is_measured=True,
    )  # fmt: skip
    (finding,) = (f for f in outcome.findings if f.code == "U803")
    assert "No factor helps" in finding.fix
    assert all("2^0" not in f.fix and "2^-0" not in f.fix for f in outcome.findings)


def test_notes_are_no_failure() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x) + x

    outcome = check_here(subject_of(Own(), torch.randn(4, 16), None, RECIPE, RULES))
    assert {f.severity for f in outcome.findings} == {"note"}
    assert outcome.is_clean
