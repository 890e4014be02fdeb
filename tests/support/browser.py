"""A real browser for pages: Chromium without a window or a network, driven by Playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
