"""The pytest plugin: loaded without torch, and what its fixture, marker and option do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import unitify
from unitify.check import assert_unit_scaled

pytest_plugins = ["pytester"]

MODEL = """
import pytest, torch
from torch import nn
from unitify.check import assert_unit_scaled

def build(std=1.0):
    torch.manual_seed(0)
    model = nn.Linear(16, 16, bias=False)
    nn.init.normal_(model.weight, std=std)
    return model

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
"""


def test_loading_it_does_not_load_torch() -> None:
    code = "import sys, pytest_unitify; sys.exit(bool({'torch', 'unitify'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_plugin_is_installed(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("unitify")
    assert pytestconfig.getoption("--unitify-baseline") is None
    assert any(line.startswith("unit_scaled") for line in pytestconfig.getini("markers"))


def test_fixture_marker_and_assertion(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        MODEL
        + """
def test_clean(unitify_check):
    assert unitify_check(build(), X).is_clean
    unitify_check.assert_clean(build(), X, scales="measured")

def test_found(unitify_check):
    unitify_check.assert_clean(build(1e-5), X)

@pytest.mark.unit_scaled(ignore=["U8"])
def test_marked(unitify_check):
    unitify_check.assert_clean(build(1e-5), X)

@pytest.mark.unit_scaled(ignore=["U8"])
def test_the_call_is_stronger(unitify_check):
    assert not unitify_check(build(1e-5), X, ignore=["U1"]).is_clean

def test_unit():
    assert_unit_scaled(build(), X, band=[0.5, 8])

def test_not_unit():
    assert_unit_scaled(build(0.02), X)
"""
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["*U803*weight*", "*is not unit-scaled*", "*U801*weight*"])
    # The assertion is reported at the line of the test, which is the place of what it is about.
    result.stdout.fnmatch_lines(["*test_fixture_marker_and_assertion.py:*: U801*"])


def test_known_findings(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        MODEL
        + """
def test_known(unitify_check):
    outcome = unitify_check(build(1e-5), X, select=["weight", "U803"])
    assert outcome.is_clean
    assert len(outcome.known) == 1
"""
    )
    pytester.makefile(
        ".json", known='{"version": 1, "findings": [["U803", "weight", "forward", 11]]}'
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--unitify-baseline", "known.json"
    )
    result.assert_outcomes(passed=1)


def test_the_assertion_says_what_and_where() -> None:
    model = nn.Linear(16, 16, bias=False)
    nn.init.normal_(model.weight, std=0.02)
    with pytest.raises(AssertionError, match="Linear is not unit-scaled") as caught:
        assert_unit_scaled(model, torch.randn(4, 16))
    assert "U801" in str(caught.value)
    assert "test_pytest_plugin.py:" in str(caught.value)


def test_what_was_transformed_is_unit_scaled() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)), torch.randn(4, 16)
    assert_unit_scaled(unitify.transform(model, x), x)
    assert_unit_scaled(unitify.transform(model, x, scales="measured"), x, scales="measured")
    with pytest.raises(AssertionError):
        assert_unit_scaled(model, x)
