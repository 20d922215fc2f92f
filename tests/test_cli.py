"""The command line: what it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import unitify
from unitify.checkpoint import folder
from unitify.checkpoint.new_folder import sha256
from unitify.cli import app
from unitify.diagnostics import all_diagnostics
from unitify.rule_trials.listing import rule_texts
from unitify.rulebook.rule_table import load_rules

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def state_of(factory: Callable[[], torch.nn.Module]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return factory().state_dict()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(state_of(factories.mlp), tmp_path / "mlp.safetensors")
    return tmp_path / "mlp.safetensors"


def error_of(result: Result) -> str:
    """The one line on stderr; nothing on stdout, and exit status 2."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"unitify {unitify.__version__}\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_convert_writes_a_folder_that_loads_bitwise(run: Run, tmp_path: Path, suffix: str) -> None:
    state = state_of(factories.mlp)
    checkpoint = tmp_path / f"mlp{suffix}"
    save_file(state, checkpoint) if suffix == ".safetensors" else torch.save(state, checkpoint)
    result = run("convert", checkpoint, "--model", "factories:mlp", "-o", "out")
    assert result.exit_code == 0, result.output
    assert "yes: " in result.stdout
    assert sorted(os.listdir("out")) == ["model.safetensors", "plan.json", "report.json"]
    assert sorted(os.listdir()) == [checkpoint.name, "out"]

    model = factories.mlp()
    model.load_state_dict(state)
    module, expected = unitify.load("out", factories.mlp()), unitify.transform(model)
    assert module.plan.values == expected.plan.values
    x = torch.randn(4, 6)
    assert torch.equal(module(x), expected(x))
    assert torch.equal(module(x), model(x))


def test_plan_and_report(run: Run, weights: Path) -> None:
    run("convert", weights, "--model", "factories:mlp", "--scales", "measured", "-o", "out")
    document = json.loads(Path("out/plan.json").read_text())
    assert document["versions"] == {
        "unitify": unitify.__version__,
        "torch": str(torch.__version__),
    }
    assert document["source"]["sha256"] == {"mlp.safetensors": sha256(weights)}
    assert document["sha256"]["model.safetensors"] == sha256(Path("out/model.safetensors"))
    report = json.loads(Path("out/report.json").read_text())
    assert report["model"] == "Sequential"
    assert report["verification"]["exact_before_casts"] is True
    # An output and its structure, the input's and four gradients, of four calls (the second one of
    # the example among them); two more have no gradients.
    assert report["verification"]["compared"] == 4 * 7 + 2 * 2
    for direction in ("unit_forward", "unit_backward"):
        share = report[direction]
        assert share["total"] >= 3
        assert share["weights"] == 4
        assert share["after"] >= share["before"]
        assert share["after"] + len(share["outside"]) == share["total"]
    assert {"read", "capture", "estimate", "plan", "rewrite", "verify"} <= report["seconds"].keys()


@pytest.mark.parametrize("function", ["inputs_tuple", "inputs_dict", "inputs_batches"])
def test_inputs(run: Run, tmp_path: Path, function: str) -> None:
    save_file(state_of(factories.pair), tmp_path / "pair.safetensors")
    inputs = f"factories:{function}"
    result = run(
        "convert", "pair.safetensors", "--model", "factories:pair", "--inputs", inputs, "-o", "out"
    )
    assert result.exit_code == 0, result.output
    x, shift = factories.inputs_tuple()
    module = unitify.load("out", factories.pair(), (x, shift))
    model = factories.pair()
    model.load_state_dict(state_of(factories.pair))
    assert torch.equal(module(x, shift), model(x, shift))


def test_inputs_of_one_tensor(run: Run, weights: Path) -> None:
    """And what takes a folder needs none."""
    options = ("--model", "factories:mlp")
    inputs = ("--inputs", "factories:inputs_tensor")
    for command in (
        ("convert", weights, *inputs, "-o", "out"),
        ("report", "out"),
        ("check", "out"),
    ):
        result = run(*command, *options)
        assert result.exit_code in (0, 1), result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
    (call,) = json.loads(Path("out/plan.json").read_text())["calls"]
    assert call["args"][0]["tensor"]["shape"] == [5, 6]


@pytest.mark.parametrize("scales", ["analysis", "measured"])
def test_batches_on_both_sides_of_a_branch(run: Run, tmp_path: Path, scales: str) -> None:
    save_file(state_of(factories.two_sides), tmp_path / "sides.safetensors")
    model, inputs = ("--model", "factories:two_sides"), ("--inputs", "factories:inputs_two_sides")
    result = run("convert", "sides.safetensors", *model, *inputs, "--scales", scales, "-o", "out")
    assert result.exit_code == 0, result.output
    loaded = unitify.load("out", factories.two_sides())
    assert list(loaded.parts) == ["", "@2"]
    original = factories.two_sides()
    original.load_state_dict(state_of(factories.two_sides))
    for (x,) in factories.inputs_two_sides():
        assert torch.equal(loaded(x), original(x))
    explained = run("explain", "linear", "out", *model)
    assert explained.exit_code == 0, explained.stderr
    assert run("report", "out", *model).exit_code == 0


def test_every_batch_is_measured(run: Run, tmp_path: Path) -> None:
    save_file(state_of(factories.pair), tmp_path / "pair.safetensors")
    plans = {}
    for function in ("inputs_dict", "inputs_batches"):
        run(
            "convert", "pair.safetensors", "--model", "factories:pair", "--scales", "measured",
            "--inputs", f"factories:{function}", "-o", function,
        )  # fmt: skip
        plans[function] = folder.read(Path(function)).plan
    sums = {f: plan.unit("add").fwd for f, plan in plans.items()}
    # RMS over batches at 1 and 64 times a value: 64 / sqrt(2) times it.
    assert 16 <= sums["inputs_batches"] / sums["inputs_dict"] <= 128


@pytest.mark.parametrize("scales", ["analysis", "measured"])
def test_a_model_of_islands(run: Run, tmp_path: Path, scales: str) -> None:
    save_file(state_of(factories.two_ways), tmp_path / "ways.safetensors")
    factory = ("--model", "factories:two_ways")
    result = run("convert", "ways.safetensors", *factory, "--scales", scales, "-o", "out")
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(Path("out/report.json").read_text())
    assert report["model"] == "TwoWays"
    assert report["verification"]["exact_before_casts"] is True
    assert report["operations"] == 4
    assert report["unit_forward"]["total"] == 6
    assert report["unit_forward"]["weights"] == 6
    assert "U101" in {note["code"] for note in report["left_out"]}
    x = torch.randn(4, 6)
    model = factories.two_ways()
    model.load_state_dict(state_of(factories.two_ways))
    assert torch.equal(unitify.load("out", factories.two_ways())(x), model(x))
    for value in ("first/linear_1", "first.2.weight", "left.bias"):
        explained = run("explain", value, "out", *factory)
        assert explained.exit_code == 0, explained.stderr
        assert "stored rms" in explained.stdout
    line = error_of(run("explain", "first/linear_2", "out", *factory))
    assert "first/linear_1" in line


def test_no_verify_says_so(run: Run, weights: Path) -> None:
    result = run("convert", weights, "--model", "factories:mlp", "--no-verify", "-o", "out")
    assert "not verified" in result.stdout
    report = json.loads(Path("out/report.json").read_text())
    assert report["verification"]["exact_before_casts"] is None


def test_plain_output_without_a_terminal(run: Run, weights: Path) -> None:
    result = run("convert", weights, "--model", "factories:mlp", "-o", "out")
    assert "\x1b" not in result.output
    assert result.stderr == ""


def write_pickled_code(path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(path.parent / "touched"), "w")

    path.write_bytes(pickle.dumps({"0.weight": Touch()}))


def truncated(path: Path) -> None:
    torch.save(state_of(factories.mlp), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_safetensors(path: Path) -> None:
    save_file(state_of(factories.mlp), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_finite(path: Path) -> None:
    state = state_of(factories.mlp)
    state["0.weight"][1, 2] = torch.nan
    state["0.weight"][0, 0] = torch.inf
    save_file(state, path)


def without_a_bias(path: Path) -> None:
    state = state_of(factories.mlp)
    del state["0.bias"]
    save_file(state, path)


def saved(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def nothing(path: Path) -> None:
    pass


BAD_CHECKPOINTS = [
    ("none.pt", nothing, "U601", "there is no such file"),
    ("none.safetensors", nothing, "U601", "there is no such file"),
    ("cut.pt", truncated, "U601", "not a whole state dict"),
    ("cut.safetensors", truncated_safetensors, "U601", "not a whole safetensors file"),
    ("empty.pt", lambda p: p.write_bytes(b""), "U601", "torch.save did not write it"),
    ("text.pt", lambda p: p.write_text("weights " * 90), "U601", "torch.save did not write it"),
    ("weights.npz", lambda p: p.write_text("?"), "U601", "the suffix '.npz'"),
    ("list.pt", saved([torch.ones(2)]), "U601", "it holds a list, not a state dict"),
    ("step.pt", saved({"step": 3, "model": {"lr": 0.1}}), "U601", "its entry 'step' is a int"),
    (
        "nested.pt",
        saved({"model": {"a": torch.ones(2)}}),
        "U603",
        "nested.pt: model] the checkpoint",
    ),
    ("code.pt", write_pickled_code, "U601", "torch.save did not write it"),
    ("module.pt", lambda p: torch.save(factories.mlp(), p), "U602", "torch.nn.modules.container"),
    ("nan.safetensors", not_finite, "U204", "0.weight holds 2 non-finite values"),
    ("less.safetensors", without_a_bias, "U603", "missing: 0.bias"),
]


@pytest.mark.parametrize(
    ("name", "make", "code", "text"), BAD_CHECKPOINTS, ids=[c[0] for c in BAD_CHECKPOINTS]
)
def test_bad_checkpoint(
    run: Run, tmp_path: Path, name: str, make: Callable[[Path], None], code: str, text: str
) -> None:
    make(tmp_path / name)
    before = sorted(os.listdir(tmp_path))
    line = error_of(run("convert", name, "--model", "factories:mlp", "-o", "out"))
    assert line.startswith(f"error: {code}")
    assert text in line
    assert sorted(os.listdir(tmp_path)) == before


BAD_OPTIONS = [
    (["--model", "factories:wide_mlp"], "U603", "0.weight is 16×6, the model's 32×6"),
    (["--model", "factories:deep_mlp"], "U603", "missing: 3.bias, 3.weight"),
    (["--model", "factories:pair"], "U603", "unexpected: 0.bias, 0.weight, 2.bias and 1 more"),
    ([], "U004", "mlp.safetensors holds weights and does not name their model"),
    (["--model", "factories"], "U604", "it has not the form package.module:name"),
    (["--model", "no_such_module:build"], "U604", "ModuleNotFoundError"),
    (["--model", "broken_module:build"], "U604", "SyntaxError"),
    (["--model", "factories:no_such_name"], "U604", "factories has no no_such_name"),
    (["--model", "factories:NOT_CALLABLE"], "U604", "cannot be called"),
    (["--model", "factories:raises"], "U604", "it failed with RuntimeError: no GPU here"),
    (["--model", "factories:exits"], "U604", "it failed with SystemExit: 3"),
    (["--model", "factories:art"], "U604", "factories has no art"),
    (["--model", "no_such:art:build"], "U604", "no_such:art:build"),
    (["--model", "factories:not_a_module"], "U604", "it returned a dict, not an nn.Module"),
    (["--model", "factories:mlp", "--inputs", "factories:inputs_number"], "U604", "an int"),
    (
        ["--model", "factories:mlp", "--inputs", "factories:inputs_list_of_tensors"],
        "U604",
        "a list",
    ),
    (["--model", "factories:mlp", "--inputs", "factories:inputs_none"], "U003", "no batch"),
    (["--model", "factories:mlp", "--inputs", "factories:raises"], "U604", "no GPU here"),
    (["--model", "factories:mlp", "--inputs", "factories:inputs_tuple"], "U102", "too many"),
    (["--model", "factories:mlp", "--inputs", "factories:inputs_misfit"], "U102", "shapes"),
    (["--model", "factories:mlp", "--scales", "guessed"], "U001", "auto, measured, analysis"),
    (["--model", "factories:mlp", "--rules", "none.toml"], "U201", "none.toml"),
    (["--model", "factories:mlp", "--recipe", "fp9"], "U401", "'fp9'"),
]


@pytest.mark.parametrize(
    ("options", "code", "text"), BAD_OPTIONS, ids=[" ".join(o[0]) or "-" for o in BAD_OPTIONS]
)
def test_bad_options(
    run: Run, tmp_path: Path, weights: Path, options: list[str], code: str, text: str
) -> None:
    (tmp_path / "broken_module.py").write_text("def build(:\n")
    before = {p.name for p in tmp_path.iterdir()}
    line = error_of(run("convert", weights, *options, "-o", "out"))
    assert line.startswith(f"error: {code}")
    assert text in line
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == before


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda p: p.symlink_to("nowhere")])
def test_nothing_is_overwritten(run: Run, weights: Path, make: Callable[[Path], None]) -> None:
    make(Path("out"))
    line = error_of(run("convert", weights, "--model", "factories:mlp", "-o", "out"))
    assert line.startswith("error: U605 out exists already")


def test_output_below_a_file(run: Run, weights: Path) -> None:
    line = error_of(run("convert", weights, "--model", "factories:mlp", "-o", "mlp.safetensors/o"))
    assert line.startswith("error: U606")


def test_nothing_half_written_stays(
    run: Run, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "digest_of_plan", full_disk)  # the weights are written by then
    line = error_of(run("convert", weights, "--model", "factories:mlp", "-o", "below/out"))
    assert line.startswith("error: U606")
    assert "No space left on device" in line
    assert not list(Path("below").iterdir()) if Path("below").exists() else True


def test_options_are_checked_before_long_work(
    run: Run, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: object) -> None:
        pytest.fail("the checkpoint was read first")

    monkeypatch.setattr("unitify.convert.read_source", never)
    Path("out").mkdir()
    error_of(run("convert", weights, "--model", "factories:mlp", "-o", "out"))
    error_of(run("convert", weights, "--model", "factories:mlp", "--scales", "x", "-o", "new"))


@pytest.mark.parametrize("code", all_diagnostics())
def test_explain_a_code(run: Run, code: str) -> None:
    text = run("explain", code.lower()).stdout
    assert text.startswith(f"{code} {all_diagnostics()[code].__name__}\n")
    assert "Fix:" in text


def test_explain_an_unknown_code(run: Run) -> None:
    assert error_of(run("explain", "U999")).startswith("error: U006 there is no diagnostic U999")


def test_explain_a_value(run: Run, weights: Path) -> None:
    run("convert", weights, "--model", "factories:mlp", "-o", "out")
    for arguments in (["--model", "factories:mlp"], ["out", "--model", "factories:mlp"]):
        result = run("explain", "linear_1", *arguments)
        assert result.exit_code == 0, result.output
        assert "aten.linear.default" in result.stdout
        assert "torch/nn/modules/linear.py:" in result.stdout
        assert "stored rms" in result.stdout
        assert "0.weight" not in result.stdout.splitlines()[0]
        shown = [line.strip() for line in result.stdout.splitlines()]
        for operation in ("aten.linear.default", "aten.gelu.default"):
            assert set(rule_texts(load_rules()[operation])) <= set(shown)


def test_explain_an_unknown_value(run: Run) -> None:
    line = error_of(run("explain", "liner", "--model", "factories:mlp"))
    assert line.startswith("error: U203")
    assert "linear" in line
    assert run("explain", "linear").exit_code == 2


def test_explain_needs_a_whole_folder(run: Run, weights: Path) -> None:
    assert error_of(run("explain", "linear", "none")).startswith("error: U607")
    run("convert", weights, "--model", "factories:mlp", "-o", "out")
    assert "it describes no model" in error_of(run("explain", "linear", "out"))
