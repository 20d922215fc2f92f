"""A headless Chromium for tests of pages: its console, its requests, and what a user does."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1400,1000", "--force-prefers-reduced-motion",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """A selenium driver of an installed Chromium, with a profile of its own; skips without one."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no browser: chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        made = webdriver.Chrome(options=options, service=Service(driver))
        made.set_script_timeout(60)
        try:
            yield made
        finally:
            made.quit()


class Page:
    """A report in a browser. ``js`` runs a script in it; ``until`` waits for one to be true."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        driver.get("about:blank")
        self.requests()  # those of the browser's own first page
        driver.get(path.absolute().as_uri())
        self.until("document.documentElement.dataset.ready")
        assert self.js("document.documentElement.dataset.ready") == "yes", self.console()

    def js(self, expression: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression, in which arguments are ``arguments[i]``."""
        return self.driver.execute_script(f"return {expression}", *arguments)

    def until(self, expression: str) -> None:
        """Wait, for a minute at most, until ``expression`` is true."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 60, 0.05).until(lambda _: self.js(expression), expression)

    def find(self, selector: str) -> Any:
        """The first element that a CSS selector matches."""
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        """All of them."""
        return list(self.driver.find_elements("css selector", selector))

    def click(self, element: Any) -> None:
        """Click an element, in the middle of the window."""
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def see(self, section: str) -> None:
        """Scroll to a section, and wait for its figure, where it has one."""
        self.js(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
        figure = f"document.querySelector('#{section} .figure')"
        self.until(f"!{figure} || {figure}._fullLayout !== undefined")

    def press(self, *keys: str) -> None:
        """Keys, to whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def console(self) -> list[str]:
        """What the page said on its console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = (
            e["params"]["request"] for e in events if e["method"] == "Network.requestWillBeSent"
        )
        return [request["url"] for request in sent]
