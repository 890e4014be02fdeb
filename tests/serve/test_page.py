"""The page of a service in a real browser: a photo is chosen, its verdict and picture appear."""

from __future__ import annotations

import numpy as np
import pytest
from browser import chromium
from PIL import Image

pytestmark = pytest.mark.slow


def test_a_photo_is_judged_on_the_page_and_nobody_else_is_asked(service, photos, tmp_path):
    noise = tmp_path / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noise)
    text = tmp_path / "text.png"
    text.write_text("no image")
    with chromium() as browser:
        page = browser.new_page()
        troubles, asked = [], []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(service.url)
        page.wait_for_function("document.getElementById('about').textContent.includes('resnet18')")
        assert page.locator("#model").input_value() == "bottle"
        for file, verdict, kind in (
            (photos / "train" / "good" / "000.png", "OK", "ok"),
            (noise, "ANOMALY", "anomaly"),
        ):
            page.set_input_files("#file", file)
            page.wait_for_selector(f"#verdict.{kind}")
            assert page.locator("#verdict").text_content() == verdict
            page.wait_for_function("document.getElementById('picture').naturalWidth > 0")
            assert '"percentile"' in page.locator("#answer").text_content()
        page.set_input_files("#file", text)
        page.wait_for_selector("#verdict.error")
        assert "not an image" in page.locator("#verdict").text_content()
        assert page.locator("#picture").is_hidden()
    assert not troubles
    assert all(one.startswith((service.url, "data:image/png")) for one in asked), asked
