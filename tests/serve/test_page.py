"""The page of a service in a real browser: a photo is chosen, its verdict and picture appear."""

from __future__ import annotations

import shutil
import threading
import time

import numpy as np
import pytest
from browser import DEADLINE, Opened, chromium
from live_events import until
from PIL import Image

from padim_edge import Detector
from padim_edge.serve.service import Service
from padim_edge.serve.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


def test_a_photo_is_judged_on_the_page_and_nobody_else_is_asked(browser, service, photos, tmp_path):
    noise = tmp_path / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noise)
    text = tmp_path / "text.png"
    text.write_text("no image")
    opened = Opened(browser, service.url)
    page = opened.page
    opened.until("document.getElementById('about').textContent.includes('resnet18')")
    assert page.locator("#model").input_value() == "bottle"
    for file, verdict, kind in (
        (photos / "train" / "good" / "000.png", "OK", "ok"),
        (noise, "ANOMALY", "anomaly"),
    ):
        page.set_input_files("#file", file)
        page.wait_for_selector(f"#verdict.{kind}")
        assert page.locator("#verdict").text_content() == verdict
        opened.until("document.getElementById('picture').naturalWidth > 0")
        assert '"percentile"' in page.locator("#answer").text_content()
    assert not opened.troubles
    page.set_input_files("#file", text)
    page.wait_for_selector("#verdict.error")
    assert "not an image" in page.locator("#verdict").text_content()
    assert page.locator("#picture").is_hidden()
    # A browser writes down an answer that refuses, and nothing else happened.
    assert all("415" in one for one in opened.troubles), opened.troubles
    opened.context.close()


def test_of_two_photos_the_last_is_shown_whichever_answer_comes_late(
    browser, service, photos, tmp_path
):
    noise = tmp_path / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noise)
    opened = Opened(browser, service.url)
    page = opened.page
    opened.until("document.getElementById('about').textContent.includes('resnet18')")
    # Counts answers once the page has done with them.
    page.evaluate(
        """() => {
            window.read = 0;
            const json = Response.prototype.json;
            Response.prototype.json = async function () {
                const said = await json.call(this);
                setTimeout(() => window.read++);
                return said;
            };
        }"""
    )
    asked = []
    page.route("**/judge?*", lambda route: asked.append(route))
    for number, file in enumerate((noise, photos / "train" / "good" / "000.png"), 1):
        page.set_input_files("#file", file)
        end = time.monotonic() + DEADLINE
        while len(asked) < number:
            page.wait_for_timeout(10)
            assert time.monotonic() < end
    for number, one in enumerate(reversed(asked), 1):
        one.continue_()
        opened.until(f"window.read === {number}")
        assert page.locator("#verdict").text_content() == "OK"
        assert '"ok"' in page.locator("#answer").text_content()
    assert page.locator("#picture").get_attribute("alt").startswith("000.png")
    assert not opened.troubles
    opened.context.close()


def test_a_model_that_is_loaded_while_its_page_is_open_is_said_to_be_there(
    browser, model, tmp_path, monkeypatch
):
    """The second of two, which is chosen, comes later."""
    go_on = threading.Event()
    real = Detector.__init__

    def slow(self, path, *arguments, **options):
        assert path.stem != "cable" or go_on.wait(DEADLINE)
        real(self, path, *arguments, **options)

    monkeypatch.setattr(Detector, "__init__", slow)
    cable = tmp_path / "cable.onnx"
    shutil.copy(model, cable)
    service = Service([model, cable], Settings(engine="ort"))
    starting = threading.Thread(target=service.start)
    starting.start()
    try:
        until(lambda: service._slots["bottle"].loaded)
        opened = Opened(browser, service.url)
        about = "document.getElementById('about').textContent"
        opened.until(f"{about}.includes('resnet18')")
        opened.page.select_option("#model", "cable")
        assert opened.text("#about") == "is being loaded"
        go_on.set()
        opened.until(f"{about}.includes('resnet18')")
        assert opened.page.locator("#model").input_value() == "cable"
        opened.context.close()
        assert not opened.troubles
    finally:
        go_on.set()
        starting.join()
        service.stop()
