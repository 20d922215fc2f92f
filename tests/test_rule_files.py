"""A rule file is checked as it is loaded: nothing in it is wrong in silence, or without effect."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from rule_rows import TWENTY, damaged, shipped_texts, with_parents
from torch import fx, nn

import unitify
from unitify.analysis.counts import COUNTS
from unitify.diagnostics import UnitifyError
from unitify.rulebook.expressions import COUNTED
from unitify.rulebook.rule_table import RuleTable, checked_rules, load_rules
from unitify.rulebook.schema import named_arguments

TEXTS = shipped_texts()
RULES = load_rules()
#: One in this many of the damaged files is loaded; the whole takes minutes.
STEP = 8


def problem_of(text: str, path: Path) -> UnitifyError:
    path.write_text(text)
    with pytest.raises(UnitifyError) as caught:
        load_rules([path])
    return caught.value


def test_the_shipped_rows_are_checked() -> None:
    assert checked_rules() == RULES
    assert all(
        re.fullmatch(r"rules/\w+\.toml:[1-9]\d*", r.location) for r in checked_rules().values()
    )


def test_counts_are_those_of_the_language() -> None:
    assert COUNTS.keys() == COUNTED.keys()


# -- where a row is written means nothing ---------------------------------------------------


def test_all_rows_in_one_file_are_the_same_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("".join(TEXTS.values()))
    found = load_rules([path])
    assert found == RULES
    assert {rule.file for rule in found.values()} == {str(path)}


@pytest.mark.parametrize("scheme", ["unit", "u-mup"])
def test_a_scheme_does_not_ask_in_which_file_a_row_is(scheme: str, tmp_path: Path) -> None:
    """Keys mark the softmax of a loss, and what is made without operands."""
    path = tmp_path / "mine.toml"
    path.write_text("".join(TEXTS.values()))

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            state = torch.zeros_like(x)
            for _ in range(2):
                state = state + torch.tanh(self.first(x + state))
            return nn.functional.cross_entropy(self.last(state), target)

    example = torch.randn(8, 16), torch.randint(16, (8,))
    options = unitify.UMuP(alpha_loss_softmax=2.0) if scheme == "u-mup" else scheme
    made = []
    for rules in ([], [path]):
        torch.manual_seed(0)
        model = Classifier()
        made.append(unitify.transform(model, example, scheme=options, rules=rules, verify=False))
    first, second = (module.scheme[""] for module in made)
    assert first == second
    assert made[0].plan == made[1].plan
    if scheme == "u-mup":
        assert any("cross_entropy" in name for name in first.operands)


# -- every key, name and function -----------------------------------------------------------

WRONG: dict[str, tuple[str, int, str]] = {
    "a key": ("elementwize = 'self'", 1, "no key 'elementwize'; did you mean 'elementwise'?"),
    "a key of moments": ("forward.men = '0'", 1, "no key 'men'; did you mean 'mean'?"),
    "a key of common": (
        "forward.square = '1'\nbackward.self.square = '1'\n"
        "common.self = { along = [0], vra = '1' }", 3, "no key 'vra'",
    ),
    "an operand": ("law = { out = 'sefl' }", 1, "no argument 'sefl'; did you mean 'self'?"),
    "an operand of moments": ("forward = { square = 'square(other)' }", 1, "no argument 'other'"),
    "a function": ("forward = { square = 'sqare(self)' }", 1, "calls 'sqare'"),
    "a number": ("linear = ['self']\nterms = { out = 'dm', self = '1' }", 2, "'dm' means nothing"),
    "a size": ("linear = ['self']\ndims.n = 'slf.numel'\nterms = { out = 'n', self = '1' }", 2,
               "no argument 'slf'"),
    "a count without its arguments": (
        "linear = ['self']\ndims.n = 'overlaps'\nterms = { out = 'n', self = '1' }", 2, "stride",
    ),
    "a later name": (
        "linear = ['self']\ndims = { one = 'two', two = '1' }\nterms = { out = 'one', self = '1' }",
        2, "'two' means nothing",
    ),
    "a gradient in front": ("forward = { square = 'square(grad)' }", 1, "needs the gradient"),
    "moments where sizes count": (
        "linear = ['self']\nterms = { out = 'mean(self)', self = '1' }", 2, "mean(self)",
    ),
    "a key of law": ("law = { out = 'self', dimm = 'dim' }", 1, "no argument 'dimm'"),
    "a type": ("law.out = 'self'\nonly = { dtype = ['torch.flaot32'] }", 2, "is not a type"),
    "no result": ("law = { self = 'self' }", 1, "the scale of its result"),
    "a text for a list": ("linear = 'self'", 1, "not a list"),
    "a number for a formula": ("forward = { square = 1 }", 1, "not text"),
    "a text for a flag": ("unit = 'yes'", 1, "neither true nor false"),
    "words": ("parameters = { self = 'gian' }", 1, "bias|gain|table"),
    "a domain": ("domain = { self = [1, 0] }", 1, "least and the greatest"),
    "dimensions": ("over = 'trailing'", 1, "trailing|argument"),
    "coefficient alone": ("coefficient = '2'", 1, "no effect without linear"),
    "no window": ("elementwise = 'self'\nwindow = true", 2, "elementwise already gives"),
    "over alone": ("forward.square = '1'\nover = [0]", 2, "no average"),
    "average alone": ("forward.square = 'average(square(self))'", 1, "has no over"),
    "backward alone": ("backward.self.square = 'square(grad)'", 1, "no effect without forward"),
    "defaults alone": ("law.out = 'self'\ndefaults = { dim = '1' }", 2, "neither the law nor"),
    "loss alone": ("loss = true", 1, "no effect without logits"),
    "an unused name": ("forward.square = '1'\nwhere.unused = '2'", 2, "no formula uses 'unused'"),
    "an empty value": ("linear = []", 1, "not a list with entries"),
    "two ways": ("elementwise = 'self'\nlinear = ['self']", 1, "linear already gives the moments"),
    "two squares": ("forward = { square = '1', rms = '1' }", 1, "one of square, rms and var"),
    "uncounted": ("linear = ['self']\nterms = { out = '1' }", 2, "no count for 'self'"),
    "names alike": ("where = { gm = '2', m = '1' }\nforward.square = 'gm + m'", 1, "typing error"),
    "a sign apart": ("forward.square = '( - 2)'", 1, "has a space after it"),
    "no spaces": ("where.n = '2'\nforward.square = 'n-2'", 2, "no spaces around"),
    "a sample's function": ("sample = { self = 'norml(4)', dim = 0 }", 1, "calls 'norml'"),
    "a sample's option": ("sample = { self = 'normal(4, rsm=1.0)', dim = 0 }", 1, "rsm"),
    "a sample's argument": ("sample = { slf = 'normal(4)', dim = 0 }", 1, "no argument 'slf'"),
    "half a sample": ("sample = { self = 'normal(4)' }", 1, "lacks dim"),
    "a parent": ("like = 'aten.cumsun.default'", 1, "not another row of this file"),
    "itself": ("like = 'aten.cumsum.default'", 1, "not another row of this file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_has_a_line(kind: str, tmp_path: Path) -> None:
    lines, line, text = WRONG[kind]
    file = tmp_path / "mine.toml"
    error = problem_of(f'# mine\n["aten.cumsum.default"]\nreplaces = true\n{lines}\n', file)
    found = [str(d) for d in error.diagnostics if text in d.message]
    assert found, error
    assert {d.code for d in error.diagnostics} == {"U201"}
    assert f"[{file}:{3 + line}]" in found[0], found


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = '["aten.exp.default"]\nunit = 1\n\n["aten.nothing.default"]\nunit = true\n'
    error = problem_of(text, tmp_path / "mine.toml")
    places = [(d.code, d.where.rpartition(":")[2]) for d in error.diagnostics]
    assert places == [("U201", "2"), ("U205", "4")]


def test_an_overload_that_there_is_not(tmp_path: Path) -> None:
    error = problem_of('["aten.add.Tensro"]\nunit = true\n', tmp_path / "mine.toml")
    assert error.code == "U205"
    assert "did you mean 'aten.add.Tensor'?" in str(error)


@pytest.mark.parametrize("text", ["x = ", "[a\n", '["aten.exp.default"]\n["aten.exp.default"]\n'])
def test_what_is_no_toml_has_a_line(text: str, tmp_path: Path) -> None:
    error = problem_of(text, tmp_path / "mine.toml")
    assert re.search(r"mine\.toml:\d+\] .*not TOML", str(error))


def test_lines_of_long_values(tmp_path: Path) -> None:
    text = '["aten.exp.default"]\nreplaces = true\nvariants = [\n  { self = 1 },\n]\nunit = 3\n'
    error = problem_of(text, tmp_path / "mine.toml")
    assert "mine.toml:6]" in str(error)


def test_another_row_is_replaced_on_purpose_only(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    row = '["aten.elu.default"]\nlaw = { out = "self" }\nelementwise = "self"\n'
    assert "replaces = true" in str(problem_of(row, path))
    path.write_text(f"{row}replaces = true\n")
    assert load_rules([path])["aten.elu.default"].law is not None
    nothing = '["aten.segment_reduce.default"]\nunit = true\nreplaces = true\n'
    assert "no other row" in str(problem_of(nothing, path))
    path.write_text(TEXTS["aten.exp.default"])
    assert load_rules([path]) == RULES


# -- what has no schema ---------------------------------------------------------------------


def halved(values: torch.Tensor, factor: float = 0.5) -> torch.Tensor:
    return values * factor


def test_a_python_function_has_the_names_of_its_signature(tmp_path: Path) -> None:
    name = f"{__name__}.halved"
    path = tmp_path / "mine.toml"
    path.write_text(
        f'["{name}"]\nlaw = {{ out = "values" }}\nsample = {{ values = "normal(4)" }}\n'
    )
    (rule,) = (r for n, r in load_rules([path]).items() if n == name)
    node = fx.Graph().call_function(halved, (torch.ones(2),))
    assert rule.law is not None
    assert rule.law.output.keys() <= named_arguments(node).keys()
    path.write_text(f'["{name}"]\nlaw = {{ out = "valeus" }}\n')
    assert "did you mean 'values'?" in str(problem_of(path.read_text(), path))


# -- slips ----------------------------------------------------------------------------------


def outcome(text: str, before: RuleTable, path: Path) -> str:
    """What becomes of a damaged file: "refused" with its lines, or "equal" in meaning."""
    path.write_text(text)
    try:
        found = load_rules([path])
    except UnitifyError as error:
        for diagnostic in error.diagnostics:
            assert diagnostic.code in ("U201", "U205"), diagnostic
            assert re.fullmatch(rf"{re.escape(str(path))}:[1-9]\d*", diagnostic.where), diagnostic
        return "refused"
    assert found == before, text
    return "equal"


def test_no_slip_in_a_name_goes_unnoticed(tmp_path: Path) -> None:
    """Every deletion and exchange in the names of twenty rows, each with the rows it rests on.

    Rows of a file meet in ``like`` and in their names alone, so that each is damaged by itself.
    """
    counts: Counter[str] = Counter()
    path = tmp_path / "mine.toml"
    for name in TWENTY:
        texts = list(damaged(with_parents(name, TEXTS)))
        random.Random(name).shuffle(texts)
        for text in texts[::STEP]:
            counts[outcome(text, RULES, path)] += 1
    assert counts["refused"] > 1500
    assert counts["refused"] > 0.99 * counts.total()
