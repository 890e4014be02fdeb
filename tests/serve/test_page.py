"""The page of a service in a real browser: photos and samples, their verdicts and pictures."""

from __future__ import annotations

import base64
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


@pytest.fixture
def noise(tmp_path):
    """What any detector takes for an anomaly."""
    path = tmp_path / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


SHOWN = "(id => document.getElementById(id).naturalWidth > 0)"
READY = "document.getElementById('runs').textContent.includes('resnet18')"


def test_a_photo_is_judged_on_the_page_and_nobody_else_is_asked(
    browser, service, photos, noise, tmp_path
):
    text = tmp_path / "text.png"
    text.write_text("no image")
    opened = Opened(browser, service.url)
    page = opened.page
    opened.until(READY)
    assert page.locator("#model").input_value() == "bottle"
    # There is no folder of samples here, and so nothing of them.
    assert not any(page.locator(one).is_visible() for one in ("#samples", "#samples-title", "#all"))
    assert opened.text("#nothing") == "Drop a photo here, or paste one."
    for file, verdict, kind in (
        (photos / "train" / "good" / "000.png", "OK", "ok"),
        (noise, "ANOMALY", "anomaly"),
    ):
        page.set_input_files("#file", file)
        page.wait_for_selector(f"#verdict.{kind}")
        assert page.locator("#verdict").text_content() == verdict
        opened.until(f"{SHOWN}('photo') && {SHOWN}('heat-map')")
        assert '"percentile"' in page.locator("#answer").text_content()
    assert not opened.troubles
    page.set_input_files("#file", text)
    page.wait_for_selector("#verdict.error")
    assert "not an image" in page.locator("#verdict").text_content()
    assert page.locator("#heat-map").is_hidden()
    assert not opened.text("#numbers")
    # A browser writes down an answer that refuses, and nothing else happened.
    assert all("415" in one for one in opened.troubles), opened.troubles
    opened.context.close()


@pytest.fixture
def shown(model, photos, noise, tmp_path):
    """A service with samples, eight of them good, and one with a name of markup."""
    folder = tmp_path / "samples"
    shutil.copytree(photos / "train" / "good", folder / "all_good")
    for name in ("000.png", "<img src=x onerror=alert(1)>.png"):
        (folder / "noise").mkdir(exist_ok=True)
        shutil.copy(noise, folder / "noise" / name)
    (folder / "noise" / "half.png").write_bytes(noise.read_bytes()[:2000])
    with Service([model], Settings(engine="ort"), samples=folder) as running:
        yield running


def test_a_sample_is_judged_by_a_click_and_by_the_keyboard(browser, shown, noise):
    opened = Opened(browser, shown.url)
    page = opened.page
    page.wait_for_selector(".sample")
    opened.until(READY)
    assert opened.all("[...document.querySelectorAll('h3')].map(e => e.textContent)") == [
        *("all good \u00b7 12", "noise \u00b7 3")
    ]
    assert page.locator(".sample:visible").count() == 4 + 3
    # A picture each, with a name; of a damaged one the name alone, which a browser writes down.
    assert page.get_by_role("button", name="all_good/003.png", exact=True).count() == 1
    loaded = "[...document.images].filter(e => e.closest('.sample:not([hidden])') && {}).length"
    opened.until(loaded.format("e.complete && e.naturalWidth === 144"), 4 + 2)
    page.get_by_role("button", name="noise/000.png", exact=True).click()
    page.wait_for_selector("#verdict.anomaly")
    opened.until(f"{SHOWN}('photo') && {SHOWN}('heat-map')")
    names = opened.all("[...document.querySelectorAll('dt')].map(e => e.textContent)")
    values = opened.all("[...document.querySelectorAll('dd')].map(e => e.textContent)")
    said = dict(zip(names, values, strict=True))
    with Detector(shown._slots["bottle"].path, "ort") as detector:
        result = detector(noise)
    assert float(said["score"]) == pytest.approx(result.score, rel=1e-3)
    assert float(said["threshold"]) == pytest.approx(result.threshold, rel=1e-3)
    assert float(said["times the threshold"]) == pytest.approx(
        result.score / result.threshold, abs=0.006
    )
    assert int(said["regions"]) == len(result.regions) > 0
    assert float(said["judged in"].removesuffix(" ms")) > 0
    assert opened.text("#why").startswith("100 % of the 12 good photos of the fit")
    assert opened.text("#named") == "noise/000.png, 60 \u00d7 90"
    # Without its heat map the photo is seen.
    page.get_by_label("heat map").uncheck()
    assert page.locator("#heat-map").is_hidden()
    assert page.locator("#photo").is_visible()
    # By the keyboard: the one before it, of another kind. What was judged says what it is.
    page.get_by_role("button", name="noise/000.png anomaly", exact=True).focus()
    opened.press("Shift+Tab", "Enter")
    page.wait_for_selector("#verdict.ok")
    pressed = "[...document.querySelectorAll('.sample[aria-pressed=true]')].map(e => e.title)"
    assert opened.all(pressed) == ["all_good/003.png"]
    marks = "[...document.querySelectorAll('[data-decision]')].map(e => e.dataset.decision)"
    assert opened.all(marks) == ["ok", "anomaly"]
    page.get_by_role("button", name="noise/half.png").click()
    page.wait_for_selector("#verdict.error")
    assert "damaged or truncated" in opened.text("#verdict")
    page.get_by_role("button", name="Show all 15").click()
    assert page.locator(".sample:visible").count() == 15
    assert opened.all("document.activeElement.title") == "all_good/004.png"
    page.get_by_role("button", name="<img").click()
    page.wait_for_selector("#verdict.anomaly")
    assert all("422" in one for one in opened.troubles), opened.troubles
    opened.context.close()


def test_photos_are_dropped_and_pasted_anywhere(browser, service, noise, photos):
    opened = Opened(browser, service.url)
    page = opened.page
    opened.until(READY)
    bring = """([kind, name, encoded]) => {
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(encoded), (one) => one.charCodeAt(0));
        if (name) data.items.add(new File([bytes], name));
        else data.setData("text/plain", "no file");
        document.body.dispatchEvent(kind === "paste"
            ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true })
            : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    good = photos / "train" / "good" / "000.png"
    for kind, file, decision in (("drop", noise, "anomaly"), ("paste", good, "ok")):
        page.evaluate(bring, ["dragover", "", ""])
        assert opened.all("document.body.className") == "over"
        page.evaluate(bring, [kind, file.name, base64.b64encode(file.read_bytes()).decode()])
        page.wait_for_selector(f"#verdict.{decision}")
        assert opened.text("#named").startswith(file.name)
        page.evaluate(bring, [kind, "", ""])  # text is no photo, and nothing happens
        page.evaluate(bring, ["dragleave", "", ""])
        assert opened.all("document.body.className") == ""
    assert not opened.troubles
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_all_of_it_is_as_wide_as_the_phone(browser, shown, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    opened = Opened(browser, shown.url, color_scheme=scheme, **phone)
    page = opened.page
    page.wait_for_selector(".sample")
    page.get_by_role("button", name="noise/000.png", exact=True).tap()
    page.wait_for_selector("#verdict.anomaly")
    assert opened.all("document.documentElement.scrollWidth") == 360
    # Samples are one row, to be pushed aside; verdict and photo are seen without scrolling.
    assert opened.all("document.getElementById('samples').scrollWidth") > 360
    for seen in ("verdict", "picture"):
        bottom = opened.all(f"document.getElementById('{seen}').getBoundingClientRect().bottom")
        assert bottom < 740, seen
    camera = page.get_by_text("Take a photo")
    assert camera.is_visible()
    assert page.locator(f"#{camera.get_attribute('for')}").get_attribute("capture") == "environment"
    light = opened.all("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    assert light == (scheme == "light")
    opened.context.close()


def test_of_two_photos_the_last_is_shown_whichever_answer_comes_late(
    browser, service, photos, noise
):
    opened = Opened(browser, service.url)
    page = opened.page
    opened.until(READY)
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
    assert page.locator("#photo").get_attribute("alt").startswith("000.png")
    assert not opened.troubles
    opened.context.close()


def test_what_is_said_of_a_model_is_of_the_one_that_judges(
    browser, model, other_model, noise, tmp_path
):
    file = tmp_path / "bottle.onnx"
    shutil.copy(model, file)
    with Service([file], Settings(engine="ort")) as service:
        opened = Opened(browser, service.url)
        opened.until(READY)
        assert opened.text("#about").startswith("fitted on 12 good photos")
        beside = tmp_path / "new"
        shutil.copy(other_model, beside)
        beside.replace(file)
        until(lambda: service.look())
        opened.page.set_input_files("#file", noise)
        opened.page.wait_for_selector("#verdict.anomaly")
        assert opened.text("#why").startswith("100 % of the 6 good photos of the fit")
        assert opened.text("#about").startswith("fitted on 6 good photos")
        # Of one that is not told of: less, and nothing that is not so.
        opened.page.route("**/v1/models", lambda route: route.abort())
        opened.all("models = []")
        opened.page.set_input_files("#file", noise)
        opened.until("!document.querySelector('.now').hasAttribute('aria-busy')")
        opened.until("models.length", 0)
        assert opened.text("#why").startswith("100 % of the good photos of the fit")
        assert all("ERR_FAILED" in one for one in opened.troubles), opened.troubles
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
        opened.until(READY)
        opened.page.select_option("#model", "cable")
        assert opened.text("#about") == "is being loaded"
        go_on.set()
        opened.until(READY)
        assert opened.page.locator("#model").input_value() == "cable"
        opened.context.close()
        assert not opened.troubles
    finally:
        go_on.set()
        starting.join()
        service.stop()
