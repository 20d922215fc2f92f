"""Kills conversions: ``python tests/killing.py FOLDER KILLS`` prints what was left, as JSON.

Each conversion is a fork of this process, which has all imports. Half of them are killed at a
random time, half in front of a change of the file system: the last ones, and others at random.
Then the same call runs again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from unitify.checkpoint.converted import read
from unitify.convert import convert
from unitify.diagnostics import UnitifyError
from unitify.recipe.reader import read_recipe
from unitify.serve.checked import check_folder
from unitify.serve.export import export

#: The changes of the file system that the last fork made.
CHANGES: Any = multiprocessing.Value("i", 0)
#: Exit statuses of a fork: finished, refused because the output is there, and another error.
DONE, THERE, FAILED = 0, 3, 4
#: The changes by which a folder is finished; a kill stands in front of each.
_LAST = 6
_EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def source(folder: Path) -> Path:
    """A small Llama in several shards."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=1, intermediate_size=128, vocab_size=96,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="33KB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


def conversions(model: Path) -> dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]]:
    """Format → what writes a folder, and what ``unitify verify`` does with it."""
    recipe = read_recipe("fp8")
    assert recipe is not None
    layout = "compressed-tensors"
    return {
        "unitify": (partial(convert, model, verify=False), read),
        layout: (
            lambda out: export(model, out, recipe, layout, resume=True, verify=False),
            lambda out: check_folder(out, model),
        ),
    }


@contextmanager
def forked(action: Callable[[], Any], at_change: int = -1) -> Iterator[int]:
    """A fork that runs ``action``; killed in front of the change ``at_change``, if there is one."""
    process = os.fork()
    if process == 0:
        code = FAILED
        try:
            _kill_at(at_change)
            action()
            code = DONE
        except UnitifyError as error:
            code = THERE if error.code == "U605" else FAILED
            print(error, file=sys.stderr)
        finally:
            os._exit(code)
    yield process


def status(action: Callable[[], Any]) -> int:
    """The exit status of a fork."""
    with forked(action) as process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _kill_at(change: int) -> None:
    CHANGES.value = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "open" and "w" in str(arguments[1] or "")):
            if CHANGES.value == change:
                os.kill(os.getpid(), signal.SIGKILL)
            CHANGES.value += 1

    sys.addaudithook(audit)


def killed(folder: Path, name: str, write: Any, verify: Any, kills: int) -> dict[str, Any]:
    """What ``kills`` kills of one format left."""
    draw = random.Random(0)
    whole = folder / f"whole-{name}"
    start = time.perf_counter()
    assert status(lambda: write(whole)) == DONE
    seconds, changes = time.perf_counter() - start, CHANGES.value
    expected = _contents(whole)
    first = list(range(changes - _LAST))
    draw.shuffle(first)
    places = [*range(changes - _LAST, changes), *first]
    found = Counter[str]()
    for number in range(kills):
        place = folder / f"{name}-{number}"
        output = place / "out"
        code = DONE
        while code != -signal.SIGKILL:
            # One that finished before it was to be killed is done again.
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            change = places[number // 2] if number % 2 else -1
            with forked(partial(write, output), change) as process:
                if change < 0:
                    time.sleep(draw.uniform(0, seconds))
                    os.kill(process, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        is_there = output.exists()
        found["complete" if is_there else "unfinished"] += 1
        found["partial folder"] += (place / ".out.partial").exists()
        if is_there and status(partial(verify, output)) != DONE:
            found["incomplete under its name"] += 1
        again = status(partial(write, output))
        if again != (THERE if is_there else DONE):
            found["not completed by the same call"] += 1
        is_right = status(partial(verify, output)) == DONE and _contents(output) == expected
        found["right in the end"] += is_right
        left = {path.name for path in place.iterdir()} - {"out", ".out.lock"}
        found["left beside it"] += bool(left)
        if not is_right:
            print(f"wrong after a kill in front of change {change}", file=sys.stderr)
    return {"kills": kills, "changes": changes, **found}


def _contents(folder: Path) -> dict[str, bytes]:
    """The weights and the files beside them, without figures of time."""
    kept = sorted(path for path in folder.rglob("*") if path.is_file())
    names = ("plan.json", "report.json", "unitify.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept if p.name not in names}


def main(folder: Path, kills: int) -> None:
    """Kill conversions to every format, and print what was left."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = source(folder / "model")
    found = {
        name: killed(folder, name, write, verify, kills)
        for name, (write, verify) in conversions(model).items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
