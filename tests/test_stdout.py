"""The standard output of the command line is for results, whatever else is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

NOISY = """
import os
from torch import nn, randn

print("imported")

class Noisy(nn.Linear):
    def forward(self, x):
        print("called")
        os.write(1, b"compiled code")
        return super().forward(x)

model, inputs = lambda: Noisy(8, 8), lambda: (randn(4, 8),)
"""


@pytest.mark.parametrize("command", ["check --output-format json", "report --format json"])
def test_stdout_is_for_results(command: str, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY, "utf-8")
    name, *options = command.split()
    arguments = [name, "noisy:model", "--inputs", "noisy:inputs", *options]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ran = subprocess.run(
        [sys.executable, "-m", "unitify", *arguments],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["target"] == "noisy:model"
    for printed in ("imported", "called", "compiled code"):
        assert printed in ran.stderr
