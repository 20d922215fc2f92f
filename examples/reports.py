"""What a report costs: seconds, bytes, and how long a browser takes to show it.

    python -m examples.reports [NAME ...]

reports a pretrained sentence encoder, a GPT-2 of its small shape, and a Llama of 70B shape without
its weights, and writes ``docs/results/report.md``, with the figure of the encoder beside it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel

import unitify
from examples import large_model, minilm

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--window-size=1400,1000", "--force-prefers-reduced-motion",
)  # fmt: skip
Inputs = dict[str, torch.Tensor]


def gpt2() -> tuple[nn.Module, Inputs]:
    """GPT-2 of 124 million parameters as it is initialized, with a batch of tokens."""
    torch.manual_seed(0)
    ids = torch.randint(0, 50257, (2, 128))
    return GPT2LMHeadModel(GPT2Config()), {"input_ids": ids, "labels": ids}


def sentence_encoder() -> tuple[nn.Module, Inputs]:
    """Pretrained, with real sentences."""
    folder = minilm.model_folder()
    return AutoModel.from_pretrained(folder, local_files_only=True), minilm.sentences()


def seventy_billion() -> tuple[nn.Module, Inputs]:
    """Llama 3 of 70B shape on the meta device."""
    return large_model.model(), large_model.tokens()


MODELS: dict[str, tuple[str, Callable[[], tuple[nn.Module, Inputs]]]] = {
    "minilm": ("MiniLM, pretrained", sentence_encoder),
    "gpt2": ("GPT-2 small", gpt2),
    "large": ("Llama of 70B shape", seventy_billion),
}


@dataclass(frozen=True)
class Opened:
    """Seconds until a page can be used, until every module is unfolded, until a table is sorted."""

    ready: float
    unfolded: float
    sorted: float


def opened(path: Path) -> Opened | None:
    """Times in a headless Chromium; None where none is installed."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        return None
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            start = time.perf_counter()
            browser.get(path.as_uri())
            is_ready = "return document.documentElement.dataset.ready"
            WebDriverWait(browser, 60, 0.02).until(lambda b: b.execute_script(is_ready))
            ready = time.perf_counter() - start
            browser.execute_script("document.getElementById('scales-figure').scrollIntoView()")
            drawn = "return document.querySelector('#scales-figure').data !== undefined"
            WebDriverWait(browser, 60, 0.02).until(lambda b: b.execute_script(drawn))
            return Opened(
                ready,
                _timed(browser, "#scales .buttons button:last-child"),
                _timed(browser, "#values thead tr:last-child button"),
            )
        finally:
            browser.quit()


def _timed(browser: Any, selector: str) -> float:
    """Seconds from a click to the frame after it."""
    script = """
        const [selector, done] = arguments, start = performance.now();
        document.querySelector(selector).click();
        requestAnimationFrame(() => setTimeout(() => done((performance.now() - start) / 1000)));
    """
    return float(browser.execute_async_script(script, selector))


def row(name: str) -> str:
    """One row of the table: makes the report of a model, opens it, and measures all of it."""
    title, build = MODELS[name]
    model, inputs = build()
    start = time.process_time()
    module = unitify.transform(model, example_kwargs=inputs, recipe="fp8")
    transformed = time.process_time()
    report = module.report([inputs])
    gathered = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        report.save(path)
        written = time.process_time()
        sizes = [p.stat().st_size / 1e6 for p in (path, path.with_suffix(".json"))]
        seen = opened(path)
    if name == "minilm":
        report.save(RESULTS / "report.svg")
    seconds = (transformed - start, gathered - transformed, written - gathered)
    browser = (seen.ready, seen.unfolded, seen.sorted) if seen is not None else ()
    cells = [
        title,
        f"{len(report.numerics.values):,}",
        "measured" if report.numerics.batches else "predicted",
        *(f"{second:.1f}" for second in seconds),
        *(f"{size:.1f}" for size in sizes),
        *(f"{second:.2f}" for second in browser or (float("nan"),) * 3),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = """# What a report costs

`python -m examples.reports`. Seconds of one core to transform, to gather what the report says, and
to write page and JSON; megabytes of either. In headless Chromium, on two cores that had other work,
seconds until the page can be used, until every module is unfolded, and until the table of all
values is sorted. Every page holds the plotting library, which is 2.0 MB of it.

| model | values | RMS | transform | gather | write | page | JSON | ready | unfold | sort |
|---|---|---|---|---|---|---|---|---|---|---|
"""
TAIL = """
![log2 RMS of every value and gradient of MiniLM, original and transformed](report.svg)

The pretrained sentence encoder, measured on eight sentences (`unitify report … -o report.svg`). Six
gradients far below all others are those of the biases of attention's keys, which are zero but for
rounding: a softmax does not change when all of its inputs move by the same amount.
"""


def main() -> None:
    """Write the table."""
    warnings.simplefilter("ignore")
    names = sys.argv[1:] or list(MODELS)
    rows = []
    for name in names:
        rows.append(row(name))
        print(rows[-1], flush=True)
    if names == list(MODELS):
        (RESULTS / "report.md").write_text(HEAD + "\n".join(rows) + "\n" + TAIL, "utf-8")


if __name__ == "__main__":
    main()
