"""A real browser for pages: Chromium without a window or a network, driven by Playwright."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

DEADLINE = 60.0
"""Seconds after which what a test waits for has not come, however slow the machine is."""

BROWSERS = ("chromium", "google-chrome")
"""Programs that will do, the first that is there."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips, saying what is missing, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser here, none of {', '.join(BROWSERS)}: make parts, as root")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Page:
    """A file opened in a browser, and everything that it must not do.

    Attributes:
        page: Playwright's.
        troubles: what was written to the console, and errors of scripts.
        asked: addresses that were asked for, data: left out.
        refused: those among them that were not given, and why.
    """

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self.refused: dict[str, str] = {}
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on(
            "request",
            lambda request: request.url.startswith("data:") or self.asked.append(request.url),
        )
        self.page.on(
            "requestfailed", lambda request: self.refused.update({request.url: request.failure})
        )
        self.page.goto(file.resolve().as_uri())
        self.page.wait_for_selector("#gallery", state="attached")

    def all(self, code: str) -> Any:
        """The value of a piece of JavaScript."""
        return self.page.evaluate(code)

    def texts(self, selector: str) -> list[str]:
        """Texts of all elements that match, in their order."""
        return self.page.locator(selector).all_text_contents()

    def focused(self, code: str) -> Any:
        """Something of the element that has the keyboard: ``e => e.id``."""
        return self.page.evaluate(f"({code})(document.activeElement)")

    def press(self, *keys: str) -> None:
        """Press keys, one after another."""
        for key in keys:
            self.page.keyboard.press(key)


class Opened:
    """A page of a server opened in a browser, and all that it must not do.

    Attributes:
        troubles: on the console, errors, dialogs, what it asked for elsewhere.
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.expected: tuple[str, ...] = ()
        host = urlsplit(url).netloc
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.troubles.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self._asked(request.url, host))
        self.page.goto(url)

    def _asked(self, url: str, host: str) -> None:
        if not url.startswith(("data:", "blob:")) and urlsplit(url).netloc != host:
            self.troubles.append(f"asked for {url}")

    def all(self, code: str) -> Any:
        return self.page.evaluate(code)

    def until(self, code: str, wanted: Any = True) -> None:
        """Wait until a piece of JavaScript has this value."""
        deadline = time.monotonic() + DEADLINE
        while (value := self.page.evaluate(code)) != wanted:
            assert time.monotonic() < deadline, f"{code} is {value!r}, not {wanted!r}"
            self.page.wait_for_timeout(30)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def focus(self) -> str:
        """What has the keyboard: its id, or its text."""
        return self.all("document.activeElement.id || document.activeElement.textContent")
