"""What an import takes along: no library that the work at hand does not need."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

import unitify
from unitify.capture.sizes import RECORDING_SECONDS
from unitify.check.outputs import FORMATS

HEAVY = {
    "accelerate", "jinja2", "matplotlib", "networkx", "plotly", "scipy", "sympy",
    "torch._dynamo", "torch._inductor", "torch.export", "torch.onnx._internal.exporter._core",
    "transformers",
}  # fmt: skip


def loaded(code: str) -> set[str]:
    """What a Python holds that has run ``code``, and has not after torch alone."""
    script = f"import json, sys, torch\nheld = set(sys.modules)\n{code}\n"
    script += "print(json.dumps(sorted(set(sys.modules) - held)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_is_its_operators() -> None:
    found = loaded("import unitify")
    assert not found & (HEAVY | {"rich", "safetensors", "typer"})
    own = {name.split(".")[1] for name in found if name.startswith("unitify.")}
    assert own == {"formats", "runtime", "version"}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["convert", "--help"]], ids=str)
def test_help_and_version_need_no_torch(words: list[str]) -> None:
    script = (
        f"import sys; sys.argv = {['unitify', *words]}\nfrom unitify_command import main\n"
        "try:\n    main()\nexcept SystemExit:\n    assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_a_command_has_the_operators() -> None:
    script = (
        "import sys; sys.argv = ['unitify', 'explain', 'U001']\nfrom unitify_command import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "import torch\ntorch.ops.unitify.rescale.default"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_the_help_says_what_is() -> None:
    """Texts that would take the code along that they speak of."""
    command = [sys.executable, "-m", "unitify"]
    texts = [
        subprocess.run(
            [*command, name, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for name in ("check", "convert")
    ]
    assert all(format in texts[0] for format in FORMATS)
    assert f"(default: {RECORDING_SECONDS:.0f})" in texts[1]


def test_every_public_name_is_what_it_says() -> None:
    for name in unitify.__all__:
        assert getattr(unitify, name) is not None
        assert name in dir(unitify)
    assert not hasattr(unitify, "nothing")


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Python puts a submodule into its package, where it would hide the function."""
    for name in unitify.__all__:
        module = importlib.util.find_spec(f"unitify.{name}") is not None
        assert module == (name == "optim"), name
