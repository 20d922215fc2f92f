"""Asks every external link of the pages whether it is there.

    python tests/links.py

needs the network, so no test does it: CI runs it once a week. It prints what fails, and then exits
with 1. A server that refuses programs (401, 403, 429) has the page.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((https://[^)\s]+)\)")
SECONDS = 30
REFUSED = {401, 403, 429}


def pages() -> Iterator[Path]:
    """Every page of Markdown: those of the site, and those at the top."""
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted((ROOT / "docs").rglob("*.md"))


def external(text: str) -> list[str]:
    """The addresses that a text links to, without their anchors."""
    return [url.partition("#")[0] for url in LINK.findall(text)]


def problem(url: str) -> str:
    """Why an address has no page; "" where it has one."""
    request = urllib.request.Request(url, headers={"User-Agent": "unitify-links"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code in REFUSED else str(error)
    except OSError as error:
        return str(error)


def main() -> int:
    """Ask each address once."""
    found: dict[str, Path] = {}
    for page in pages():
        for url in external(page.read_text("utf-8")):
            found.setdefault(url, page)
    with ThreadPoolExecutor(8) as pool:
        problems = dict(zip(found, pool.map(problem, found), strict=True))
    for url, text in problems.items():
        if text:
            print(f"{found[url].relative_to(ROOT)}: {url}: {text}")
    failed = sum(map(bool, problems.values()))
    print(f"{len(found) - failed} of {len(found)} addresses are there")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
