#!/usr/bin/env python3
"""Take a picture of the page of a running watch, in a browser without a window.

    page_picture.py http://127.0.0.1:8080/ -o page.webp --scheme dark

Needs Playwright (pip install playwright) and Chromium. The picture in docs/live.md was made by it.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Error, sync_playwright


def main() -> int:
    """Open, wait for a frame and for anomalies, take the picture. Returns the exit code."""
    parser = argparse.ArgumentParser(description="A picture of the page of a running watch.")
    parser.add_argument("url", help="what padim-edge watch --page says")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .webp or .png")
    parser.add_argument("--size", default="1280x1000", help="width x height, in pixels")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=options.scheme
            )
            page.goto(options.url)
            page.locator("#frame").wait_for()
            page.locator("#anomalies img").first.wait_for()
            page.wait_for_timeout(1000)  # the list of anomalies comes picture by picture
            taken = page.screenshot()
            browser.close()
    except Error as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    Image.open(io.BytesIO(taken)).convert("RGB").save(options.output, quality=80)
    return 0


if __name__ == "__main__":
    sys.exit(main())
