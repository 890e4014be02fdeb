"""The page in a real browser: what it shows, what can be done, and what must not happen."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import Opened, chromium
from pages import SCRIPT, Line, Pupil
from scripted import wait_for

pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'padim-edge[live]'")
pytest.importorskip("starlette", reason="needs starlette: pip install 'padim-edge[live]'")

from padim_edge.detect.calibration import Row, threshold_for
from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError
from padim_edge.images.decode import load_image
from padim_edge.live import album
from padim_edge.live.board import Board
from padim_edge.live.page import channel
from padim_edge.live.page.app import page
from padim_edge.live.page.teaching import Lesson, Version
from padim_edge.web.server import Server

pytestmark = pytest.mark.slow

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """What a teacher says is looked for more often than frames that do not come."""
    monkeypatch.setattr(channel, "QUIET", 0.2)


@pytest.fixture(scope="module")
def good(photos):
    return sorted((photos / "test" / "good").iterdir())


@pytest.fixture(scope="module")
def bad(good, tmp_path_factory):
    """Photos with a hole."""
    folder = tmp_path_factory.mktemp("bad")
    for number, photo in enumerate(good):
        image = load_image(photo)
        image.paste((255, 0, 0), (20 + 8 * number, 20, 60 + 8 * number, 70))
        image.save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def line(model_file) -> Iterator[Line]:
    one = Line(model_file, ("top", SCRIPT), lambda: [{"address": f"jsonl:{SCRIPT}", "backlog": 3}])
    yield one
    one.slot.close()


@pytest.fixture
def opened(browser, line) -> Iterator[Any]:
    """Opens the page of the line; at the end nothing may have gone wrong."""
    with contextlib.ExitStack() as stack:

        def opened(pupil: Pupil | None = None, **options: Any) -> Opened:
            app = page(line.board, {"top": pupil} if pupil else None)
            server = stack.enter_context(Server(app))
            one = Opened(browser, server.url, **options)
            stack.callback(check, one)
            stack.callback(one.context.close)
            one.until("state.now !== null")
            return one

        yield opened


def check(one: Opened) -> None:
    troubles = [text for text in one.troubles if not text.startswith(one.expected or ("\0",))]
    assert troubles == []


def test_what_is_now_is_shown_and_goes_on(opened, line, good, bad):
    first = line.show(good[0])
    one = opened()
    one.until("$('decision').textContent", "OK" if not first.outcome.is_anomalous else "ANOMALY")
    one.until("$('frame').naturalWidth", 96)
    numbers = dict(
        zip(
            *(one.page.locator(f"#numbers {kind}").all_inner_texts() for kind in ("dt", "dd")),
            strict=True,
        )
    )
    assert float(numbers["score"]) == pytest.approx(first.outcome.score, rel=1e-2)
    assert numbers["judged"] == "1"
    assert numbers["latency p50"] == "20 ms"
    seen = line.show(bad[0])
    one.until("$('decision').textContent", "ANOMALY")
    one.until("document.querySelectorAll('#anomalies li').length", 1 + first.outcome.is_anomalous)
    one.until("document.querySelector('#anomalies img').naturalWidth", 96)
    assert f"{seen.outcome.score:.2f}"[:4] in one.text("#anomalies li >> nth=0")
    one.until("$('told').textContent.startsWith('Anomaly at top')")
    line.show(None, error="the file is truncated")
    one.until("$('decision').textContent", "not judged")
    assert one.text("#why") == one.text("#nothing") == "the file is truncated"
    for statistic, words in (("brightness", "the light has changed"), ("red", "the colour has")):
        line.say("drift", words, "top", statistic=statistic, begins=True)
    line.say("drift", "it does not say how its photos look", "top")  # which is no drift
    line.say("drift", "the focus has changed", SCRIPT, statistic="sharpness", begins=True)
    one.until(
        "$('drift').innerText.split(/\\n+/).join('|')", "the light has changed|the colour has"
    )
    assert one.page.locator("#drift").is_visible()
    for _ in range(200):  # however long ago it began
        line.say("source", "lost", "top")
    one.until("document.querySelectorAll('#messages li').length", 30)
    assert one.page.locator("#drift").is_visible()
    for statistic in ("brightness", "red"):
        line.say("drift", "as in the photos again", "top", statistic=statistic, begins=False)
    one.until("$('drift').hidden")
    status = line.board.cameras["top"].status
    status.is_connected, status.source = False, "lost: no route to host"
    one.until("$('why').textContent", "No frames come: lost: no route to host.")
    assert one.text("#decision") == "no frames"  # and no green OK of before


def test_a_camera_that_is_lost_leaves_no_decision_standing(opened, line, bad):
    line.show(bad[0])
    one = opened()
    one.until("$('decision').textContent", "ANOMALY")
    status = line.board.cameras["top"].status
    status.is_connected, status.source = False, "lost: no route to host"
    one.until("$('decision').textContent", "no frames")
    assert one.text("#why").endswith(", was an anomaly.")
    assert one.all("$('picture').dataset.kind") == "stale"
    status.is_connected = True
    one.until("$('decision').textContent", "ANOMALY")
    one.all("state.fresh -= 25000")  # as if it had been half a minute ago
    one.until("/^No frame has come for \\d+ s/.test($('why').textContent)")
    line.show(bad[1])
    one.until("$('why').textContent.startsWith('No frame has come')", False)


def test_a_picture_comes_when_it_is_made_and_one_that_was_not_kept_is_said(
    opened, line, bad, held, monkeypatch
):
    begun, go_on = held
    monkeypatch.setattr(album, "HELD", 1)
    line.show(bad[0])
    assert begun.wait(60)
    one = opened()
    lack = "document.querySelector('#anomalies .lack')?.textContent"
    one.until(lack, album.FOLLOWS)
    one.page.locator(".look").click()
    assert one.text("#large") == album.FOLLOWS
    go_on.set()
    one.until("document.querySelector('#large img')?.naturalWidth", 96)
    one.press("Escape")
    one.until("document.querySelector('#anomalies img')?.naturalWidth", 96)
    go_on.clear()
    begun.clear()
    line.show(bad[1])
    assert begun.wait(60)
    line.show(bad[1])  # as bad: the one before gives way to it
    one.page.locator("#newer").click()
    one.until(
        "[...document.querySelectorAll('#anomalies .lack')].some((p) => p.textContent === "
        f"{album.NOT_KEPT!r})"
    )


def test_the_heat_map_is_there_or_not_and_a_picture_can_be_held(opened, line, bad, good):
    line.show(bad[0])
    one = opened()
    one.until("$('frame').naturalWidth", 96)
    pixels = """(() => { const c = document.createElement('canvas'); c.width = c.height = 96;
        const p = c.getContext('2d'); p.drawImage($('frame'), 0, 0);
        return [...p.getImageData(0, 0, 96, 96).data].reduce((a, b) => a + b, 0); })()"""
    with_heat = one.all(pixels)
    before = one.all("$('frame').src")
    one.page.locator("#heat").uncheck()
    one.until(f"$('frame').src !== {before!r}")
    assert abs(one.all(pixels) - with_heat) > 10_000
    one.page.locator("#hold").click()
    held = one.all("$('frame').src")
    line.show(good[0])
    one.until("state.now.newest.sequence", 2)
    one.page.wait_for_timeout(50)
    assert one.all("$('frame').src") == held
    assert "frame 1" in one.text("#named")
    one.page.locator("#hold").click()
    one.until(f"$('frame').src !== {held!r}")  # without another frame: the line may wait
    assert "frame 2" in one.text("#named")


def test_names_with_scripts_are_shown_and_not_run(opened, line, bad):
    pupil = Pupil(
        Lesson(
            warnings=(SCRIPT,),
            doing=SCRIPT,
            failed=SCRIPT,
            undoable=SCRIPT,
            versions=(Version(SCRIPT, 1.0, SCRIPT),),
        )
    )
    line.show(bad[0], name=f"in/{SCRIPT}.png")
    line.say("source", SCRIPT)
    line.say("drift", SCRIPT, "top", statistic="score", begins=True)
    line.board.cameras["top"].status.source = SCRIPT
    one = opened(pupil)
    one.until("document.querySelectorAll('#anomalies li').length", 1)
    for selector in (
        "#tabs",
        "#named",
        "#anomalies",
        "#messages",
        "#drift",
        "#states",
        "#warnings",
        "#doing",
        "#failed",
        "#undo",
        "#versions",
    ):
        assert SCRIPT in one.all(f"document.querySelector({selector!r}).textContent"), selector
    one.page.locator(".look").click()
    one.until("document.querySelector('#large img').naturalWidth", 96)
    assert SCRIPT in one.text("#viewed")
    one.press("Escape")
    assert one.all("document.scripts.length") == 1
    one.page.locator("#tabs button >> nth=1").click()
    one.until("document.title", f"{SCRIPT} \u2013 padim-edge")
    line.show(bad[1], SCRIPT)
    one.until("document.querySelectorAll('#anomalies li').length", 1)
    assert one.all("$('anomalies').querySelector('li').dataset.id") == "e000004"


def test_nothing_of_another_camera_is_shown_or_acted_on(opened, line, bad):
    line.show(bad[0])
    pupil = Pupil(Lesson(taken=5, versions=(Version("0001", 1.0, "fit", True),)))
    one = opened(pupil)
    one.until("$('frame').naturalWidth", 96)
    one.until("document.querySelectorAll('#anomalies li').length", 1)
    pupil.refuses = "99 parts are needed"
    one.page.locator("#fit").click()
    one.until("$('failed').textContent", pupil.refuses)
    one.expected = ("Failed to load resource: the server responded with a status of 422",)
    # Before anything has come of the other one.
    shown = """(() => { $('tabs').children[1].click(); return [state.now, $('decision').textContent,
        $('failed').textContent, $('named').textContent,
        ...['teaching', 'kept', 'frame', 'keep'].map((id) => $(id).hidden),
        ...['numbers', 'anomalies', 'versions', 'states'].map((id) => $(id).children.length),
        $('tabs').children[1].getAttribute('aria-selected')]; })()"""
    assert one.all(shown) == [None, "waiting", "", "", *[True] * 4, 0, 0, 0, 0, "true"]
    one.until("document.title", f"{SCRIPT} \u2013 padim-edge")
    assert one.text("#nothing") == "No frame has come yet."
    assert one.all("$('frame').hidden && $('teaching').hidden && $('kept').hidden")
    one.page.locator("#tabs button >> nth=0").click()
    one.until("document.querySelectorAll('#versions li').length", 1)
    one.until("$('frame').hidden", False)
    assert not one.all("$('kept').hidden || $('teaching').hidden")
    # An anomaly is told of by more than a colour, to a screen reader as well.
    assert one.page.get_by_role("tab", name="anomaly top").count() == 1


def try_threshold(one: Opened, limit: float) -> None:
    """Drag the slider there; in one go, or a part that comes in between puts it back."""
    one.all(
        f"Object.assign($('preview'), {{ step: 'any', max: {2 * limit}, value: {limit} }})"
        ".dispatchEvent(new Event('input'))"
    )


def rate_to_keep(one: Opened) -> float:
    """The false-alarm rate of the command that the page names for a threshold."""
    command = one.all("$('keep').querySelector('code').textContent").split()
    assert command[:2] == ["padim-edge", "calibrate"]
    assert command[2].endswith("padim.onnx")
    return float(command[command.index("--false-alarm-rate") + 1])


def test_of_thousands_of_good_scores_what_keeps_a_threshold_is_true(opened, line, good):
    """Of which not all are told."""
    scores = np.sort(np.random.default_rng(0).gamma(9.0, size=30_001))
    info = dataclasses.replace(
        line.slot.detector_info,
        good_scores=tuple(scores.tolist()),
        threshold=threshold_for(scores, 0.01),
    )
    with line.slot.using() as detector:
        detector.detector_info = info
    line.show(good[0])
    one = opened()
    one.until("state.goodCount", len(scores))
    assert one.all("state.good.length") <= channel.GOOD
    for rank in (30_001, 30_000, 29_950, 29_000, 20_000, 15_000, 2):
        limit = float(scores[rank - 1]) + 1e-6
        try_threshold(one, limit)
        said = one.text("#keep")
        kept = threshold_for(scores, rate_to_keep(one))
        assert kept <= limit
        # Never more than two in a hundred of what lies above is left out.
        assert (scores > kept).sum() <= 1.02 * (scores > limit).sum() + 1
        assert ("All 30001 good scores lie below" in said) == (rank == 30_001)
    try_threshold(one, float(scores[0]) / 2)
    assert one.text("#keep").startswith("Every good part of the fit scores higher")


def test_another_threshold_is_tried_and_what_keeps_it_is_said(opened, line, good, bad):
    shown = [line.show(photo) for photo in (*good, *bad)]
    scores = sorted(seen.outcome.score for seen in shown)
    were = sum(seen.outcome.is_anomalous for seen in shown)
    one = opened()
    one.until("state.points.length", len(shown))
    assert one.text("#would").startswith(f"{were} of the last {len(shown)} frames anomalous")
    assert not one.page.locator("#keep").is_visible()
    for limit in ((scores[1] + scores[2]) / 2, 3.9 * line.slot.threshold):
        try_threshold(one, limit)
        will = sum(score > limit for score in scores)
        assert f" {will} of the last {len(shown)} frames would have been" in one.text("#would")
        assert f"anomalous; {were} were" in one.text("#would")
        spared = one.page.locator("#anomalies li.spared").count()
        assert spared == were - min(will, were)
    info = line.slot.detector_info
    assert line.slot.threshold == info.threshold
    # What it says to do gives what it says that comes of it.
    for limit in sorted(info.good_scores)[3:9:2]:
        try_threshold(one, limit + 1e-4)
        assert threshold_for(info.good_scores, rate_to_keep(one)) == pytest.approx(limit, rel=1e-6)
    one.page.locator("#back").click()
    assert one.text("#would").startswith(f"{were} of the last")
    assert one.focus() == "preview"
    one.press("ArrowRight")
    one.until("state.preview !== null")


def test_what_keeps_a_threshold_is_said_for_what_judges(opened, line, bad, model_file):
    line.show(bad[0])
    pupil = Pupil()
    scores = sorted(line.slot.detector_info.good_scores)
    given = Detector(model_file, "ort", 1, threshold=scores[5])

    def said(one: Opened) -> str:
        try_threshold(one, scores[4] + 1e-4)
        return one.text("#keep")

    one = opened()
    one.until("state.points.length", 1)
    assert "--in-place (it is taken while this runs)" in said(one)
    assert "watch \u2026 --threshold" in said(one)
    line.slot.opener = lambda _: given
    line.slot.swap(model_file)  # as with --threshold
    one.until("state.now.camera.threshold_file", None)
    assert "--in-place, and start without --threshold" in said(one)
    # One that is taught follows no file, and a threshold for all of its fits is refused.
    taught = opened(pupil)
    taught.until("state.points.length", 1)
    assert "and watch the file that it writes" in said(taught)
    assert "--threshold" not in said(taught)
    assert "--in-place" not in said(taught)


def test_everything_by_keyboard(opened, line, bad, good):
    for photo in bad[:3]:
        line.show(photo)
    line.show(good[0], SCRIPT)
    pupil = Pupil(Lesson(taken=5, undoable="part 5"))
    one = opened(pupil)
    one.until("document.querySelectorAll('#anomalies li').length", 3)
    reached = []
    for _ in range(18):
        one.press("Tab")
        reached.append(one.focus())
        if one.all("document.activeElement.className") == "look":
            break
    assert reached[:8] == ["top", "heat", "hold", "take", "fit", "undo", "preview", ""]
    one.press("Enter")
    one.until("$('viewer').open")
    first = one.text("#viewed")
    assert one.page.locator("#previous").is_disabled()
    one.press("ArrowRight")
    assert one.text("#viewed") != first
    # What is looked at large can be said to be bad there.
    pupil.refuses = "there is no room"
    one.page.get_by_role("dialog").get_by_role("button", name="This was bad").focus()
    one.press("Enter")
    one.until("$('refused').textContent", "there is no room")
    pupil.refuses = ""
    one.press("Enter")
    one.until("$('viewer').querySelector('.chip').textContent", "kept as bad")
    assert pupil.asked == [("bad", "e000002")]
    assert one.focus() == "close"
    one.expected = ("Failed to load resource: the server responded with a status of 422",)
    one.press("Escape")
    one.until("$('viewer').open", False)
    one.until("document.activeElement.closest('li')?.dataset.id", "e000002")
    one.page.locator("#tabs button >> nth=0").focus()
    one.press("ArrowRight")
    one.until("state.now?.camera.name", SCRIPT)
    assert one.all("document.activeElement.getAttribute('aria-selected')") == "true"
    assert not one.page.locator("#teaching").is_visible()  # nobody teaches this one


def test_an_anomaly_that_is_none_of_the_last_ones_is_still_looked_at_and_taught(opened, line, bad):
    event = line.show(bad[0]).event.id
    pupil = Pupil(Lesson(taken=5))
    one = opened(pupil)
    one.until("document.querySelectorAll('#anomalies li').length", 1)
    one.page.locator(".look").click()
    one.until("document.querySelector('#large img').naturalWidth", 96)
    assert one.all("['previous', 'next'].map((id) => $(id).getAttribute('aria-disabled'))") == [
        *("true", "true")
    ]
    one.page.locator("#previous").focus()
    newer = line.show(bad[1]).event.id
    one.until("$('previous').getAttribute('aria-disabled')", None)  # there is a newer one now
    for _ in range(album.ANOMALIES):
        line.show(bad[1])
    one.until("$('viewed').textContent.endsWith('no longer among the last 30')")
    one.until(f"state.anomalies.some((one) => one.id === {newer!r})", False)
    assert one.focus() == "previous"
    one.page.get_by_role("dialog").get_by_role("button", name="This was bad").click()
    one.until("$('viewer').querySelector('.chip').textContent", "kept as bad")
    assert pupil.asked == [("bad", event)]
    assert "is kept as bad" in one.all("$('told').textContent")
    assert one.text(f"#anomalies [data-id={event}] .chip") == "kept as bad"
    one.page.get_by_role("dialog").get_by_role("button", name="Take back").click()
    one.until("$('viewer').querySelector('.chip').textContent", "")
    assert pupil.asked[1:] == [("take back", event)]
    oldest = one.all("state.anomalies.at(-1).id")
    one.press("ArrowLeft")
    one.until("looked.id", oldest)
    assert one.all("$('next').getAttribute('aria-disabled')") == "true"
    one.press("Escape")
    one.until("document.activeElement.className", "look")


def test_new_anomalies_wait_while_somebody_points_at_the_list(opened, line, bad):
    line.show(bad[0])
    one = opened(Pupil(), viewport={"width": 1200, "height": 2400})  # nothing has to be scrolled
    one.until("document.querySelectorAll('#anomalies li').length", 1)
    one.page.locator("#anomalies li").hover()
    line.show(bad[1])
    one.until("$('newer').classList.contains('away')", False)
    assert one.text("#newer") == "Show 1 newer anomaly"
    assert one.page.locator("#anomalies li").count() == 1
    one.page.locator("#newer").click()
    one.until("document.querySelectorAll('#anomalies li').length", 2)
    assert one.all("$('anomalies').querySelector('li').dataset.id") == "e000002"


def test_teaching(opened, line, bad):
    event = line.show(bad[0]).event.id
    pupil = Pupil()
    one = opened(pupil)
    one.until("document.querySelectorAll('#anomalies li').length", 1)
    assert "From 2 on" in one.text("#lesson")
    assert one.page.locator("#fit").is_disabled()
    assert one.page.locator("#undo").is_disabled()
    one.page.get_by_role("button", name="Take good parts").click()
    wait_for(lambda: pupil.asked == [("take", True)])
    one.until("$('take').textContent", "Stop taking")
    pupil.now = replace(
        pupil.now,
        taken=49,
        promised=1 / 50,
        interval=(0.0005, 0.073),
        undoable="good part 49",
        warnings=("part 7 is nearly equal to part 3",),
        odd=(9,),
    )
    one.until(
        "$('lesson').textContent",
        "49 good parts taken. They can promise that 2 % of good "
        "parts raise an alarm (95 %: 0.05 % to 7.3 %); for the 1 % asked for, 99 are needed.",
    )
    one.until("$('warnings').textContent", "part 7 is nearly equal to part 3")
    one.page.get_by_role("button", name="Leave part 9 out").click()
    wait_for(lambda: pupil.asked[-1] == ("leave out", "9"))
    pupil.asked.pop()
    one.page.get_by_role("button", name="Stop taking").click()
    one.page.get_by_role("button", name="Fit", exact=True).click()
    wait_for(lambda: pupil.asked[1:] == [("take", False), ("fit",)])
    pupil.now = replace(pupil.now, doing="fitting on 49 parts")
    one.until("$('doing').textContent", "fitting on 49 parts \u2026")
    one.until("$('fit').getAttribute('aria-disabled')", "true")
    versions = (Version("v2", 2.0, "fit", True), Version("v1", 1.0, "fit on 20 parts"))
    pupil.now = replace(pupil.now, doing="", versions=versions)
    one.until("document.querySelectorAll('#versions li').length", 2)
    one.all("$('versions').querySelector('button').dataset.mine = 'yes'")
    line.say("source", "lost", "top")  # other lists change; what somebody presses stays
    one.until("document.querySelector('#messages').textContent.endsWith('lost')")
    assert one.all("$('versions').querySelector('button').dataset.mine") == "yes"
    one.page.get_by_role("button", name="Roll back to v1").click()
    wait_for(lambda: pupil.asked[-1] == ("roll back", "v1"))
    pupil.refuses = "the part of this event is not kept any more"
    one.page.get_by_role("button", name="This was good").click()
    one.until("$('failed').textContent", pupil.refuses)
    one.expected = ("Failed to load resource: the server responded with a status of 422",)
    pupil.refuses = ""
    one.page.get_by_role("button", name="This was good").click()
    one.until("document.querySelector('#anomalies .chip').textContent", "learnt as good")
    assert pupil.asked[-1] == ("good", event)
    assert one.page.get_by_role("button", name="This was bad").count() == 0
    pupil.now = replace(pupil.now, said={event: "good"})
    # What is undone is what was looked at; and whether that was this part the teacher says.
    pupil.now = replace(pupil.now, step=7)
    one.until("state.now.lesson.step", 7)
    one.page.get_by_role("button", name="Undo: good part 49").click()
    wait_for(lambda: pupil.asked[-1] == ("undo", 7))
    one.until("state.now.lesson.said", None)
    assert one.text("#anomalies .chip") == "learnt as good"
    one.page.get_by_role("button", name="Take back").click()
    wait_for(lambda: pupil.asked[-1] == ("take back", event))
    pupil.now = replace(pupil.now, said={})
    one.until("document.querySelector('#anomalies .chip').textContent", "")
    one.page.get_by_role("button", name="This was bad").click()
    wait_for(lambda: pupil.asked[-1] == ("bad", event))


def test_what_is_said_of_a_part_is_what_the_teacher_says(opened, line, bad):
    """To every browser, also to one that comes later."""
    events = [line.show(photo).event.id for photo in bad[:2]]
    pupil = Pupil(Lesson(taken=5))
    one, other = opened(pupil), opened(pupil)
    for page_ in (one, other):
        page_.until("document.querySelectorAll('#anomalies li').length", 2)
    one.page.get_by_role("button", name="This was bad").first.click()
    wait_for(lambda: pupil.asked == [("bad", events[1])])
    pupil.now = replace(pupil.now, said={events[1]: "bad"}, bad=1)
    chips = "[...document.querySelectorAll('#anomalies .chip')].map((e) => e.textContent)"
    other.page.locator("#anomalies li").first.hover()  # new cards wait, what is said does not
    line.show(bad[2])
    for page_ in (one, other, opened(pupil)):
        page_.until(f"{chips}.filter((text) => text === 'kept as bad').length", 1)
    pupil.now = replace(pupil.now, said={}, bad=0)
    for page_ in (one, other):
        page_.until(f"{chips}.join('')", "")


def test_how_many_bad_parts_are_found_is_asked_by_keyboard(opened, line, bad):
    line.show(bad[0])
    pupil = Pupil(Lesson(taken=40, bad=4, versions=(Version("0002", 2.0, "fit", True),)))
    now = line.slot.threshold
    pupil.found = [
        Row(1 / 41, (0.0, 0.1), 2 * now, 0.5, (0.07, 0.93)),
        Row(0.05, (0.01, 0.15), now, 0.75, (0.2, 0.99)),
    ]
    one = opened(pupil)
    one.until("$('recall').textContent", "How many of the 4 bad parts are found?")
    one.page.locator("#undo").focus()
    one.press("Tab")
    assert one.focus() == "recall"
    one.press("Enter")
    wait_for(lambda: pupil.asked == [("recall",)])
    one.until("$('recalled').textContent.startsWith('3 of 4 bad parts are found by the threshold')")
    assert one.focus() == "recall"  # a button that waits keeps the keyboard
    rows = [row.split("\t") for row in one.text("#found tbody").splitlines()]
    assert [row[0] for row in rows] == ["2.4 %", "5 %"]
    assert [row[2:] for row in rows] == [["2 of 4", "7 % to 93 %"], ["3 of 4", "20 % to 99 %"]]
    assert one.text("#found [aria-current]").startswith("5 %")
    # It is of what was then.
    pupil.now = replace(pupil.now, bad=5)
    one.until("$('found').hidden")
    assert one.text("#recalled") == ""


def test_of_two_cameras_that_are_taught_together_each_is_asked_for_itself(browser, line, bad):
    for camera in ("top", SCRIPT):
        line.show(bad[0], camera)
    entered, go_on = threading.Event(), threading.Event()
    pupil = Pupil(Lesson(taken=40, bad=4, versions=(Version("0002", 2.0, "fit", True),)))

    def slow():
        entered.set()
        assert go_on.wait(60)
        return [Row(0.05, (0.01, 0.15), line.slot.threshold, 0.75, (0.2, 0.99))]

    pupil.recall = slow
    can = "$('recall').getAttribute('aria-disabled') === null"
    with Server(page(line.board, {"top": pupil, SCRIPT: pupil})) as server:
        one = Opened(browser, server.url)
        try:
            one.until(can)
            one.page.locator("#recall").click()
            assert entered.wait(60)
            one.page.locator("#tabs button >> nth=1").click()
            one.until("document.title", f"{SCRIPT} \u2013 padim-edge")
            go_on.set()
            one.until(can)  # of the other camera, too
            assert one.all("$('found').hidden")
            one.page.locator("#recall").click()
            one.until("$('recalled').textContent.startsWith('3 of 4 bad parts are found')")
            assert one.troubles == []
        finally:
            go_on.set()
            one.context.close()


def test_a_second_click_asks_for_nothing(opened, line, bad):
    line.show(bad[0])
    entered, go_on = threading.Event(), threading.Event()
    pupil = Pupil(Lesson(taken=5, undoable="part 5 was taken", step=3))

    def slow(step=None):
        entered.set()
        assert go_on.wait(60)
        pupil.asked.append(("undo", step))

    pupil.undo = slow
    one = opened(pupil)
    one.until("$('undo').textContent", "Undo: part 5 was taken")
    try:
        one.page.locator("#undo").dblclick()
        assert entered.wait(60)
        one.page.locator("#fit").click(force=True)
        one.page.get_by_role("button", name="This was good").click(force=True)
        one.until("$('undo').getAttribute('aria-disabled')", "true")
    finally:
        go_on.set()
    one.until("$('undo').getAttribute('aria-disabled')", None)
    assert pupil.asked == [("undo", 3)]
    assert one.text("#failed") == ""


@contextlib.contextmanager
def again(board: Board, port: int) -> Iterator[None]:
    """A server of a board on a port that another had."""
    server = Server(page(board), "127.0.0.1", port)

    def started() -> bool:
        try:
            server.start()
        except PadimEdgeError:  # another test has the port for a moment
            return False
        return True

    wait_for(started)
    try:
        yield
    finally:
        server.stop()


def test_a_lost_connection_is_said_and_found_again(browser, line, good, model_file):
    line.show(good[0])
    server = Server(page(line.board))
    server.start()
    port = urlsplit(server.url).port
    one = Opened(browser, server.url)
    one.until("$('line').textContent", "live")
    before = one.text("#decision")
    server.stop()
    one.until("$('line').dataset.kind", "off")
    assert "trying again" in one.text("#line")
    # What was decided last is not what is decided now.
    assert (one.text("#decision"), one.all("$('decision').dataset.kind")) == (
        "no connection",
        "none",
    )
    assert one.text("#why").startswith("What you see is of ")
    with again(line.board, port):
        one.until("$('line').textContent", "live")
        one.until("$('decision').textContent", before)
    # Started anew with the names of two cameras swapped: a tab is what it says.
    swapped = Line(model_file, (SCRIPT, "top"))
    with again(swapped.board, port):
        one.until("$('tabs').children[0].textContent", SCRIPT)
        one.until("$('tabs').children[1].getAttribute('aria-selected')", "true")
        one.page.locator("#tabs button >> nth=0").click()
        one.until("state.now?.camera.name", SCRIPT)
    swapped.slot.close()
    # With another camera: that one is shown.
    other = Line(model_file, ("bottom",))
    other.show(good[0])
    with again(other.board, port):
        one.until("state.now?.camera.name", "bottom")
        one.until("$('line').textContent", "live")
        one.context.close()
    other.slot.close()
    known = ("ERR_", "status of 400")
    assert all(any(part in text for part in known) for text in one.troubles), one.troubles


def test_a_connection_on_which_nothing_comes_is_given_up(opened, line, good, monkeypatch):
    """As where a network goes without a word: the browser would wait for ever."""
    line.show(good[0])
    one = opened()
    one.until("$('line').textContent", "live")
    with monkeypatch.context() as patch:

        async def never(*_):
            await asyncio.sleep(3600)

        patch.setattr(channel.Channel, "next", never)
        line.show(good[1])
        one.all("state.patience = 1500")
        one.until("$('line').dataset.kind", "off")
        assert one.text("#decision") == "no connection"
    one.all("state.patience = 8000")
    one.until("$('line').textContent", "live")
    one.until("state.now.newest.sequence", 2)


def test_with_a_token_there_is_a_login(browser, line, good):
    line.show(good[0])
    with Server(page(line.board), token="0123456789abcdef") as server:
        one = Opened(browser, server.url)
        assert urlsplit(one.page.url).path == "/login"
        one.until("document.activeElement.id", "token")  # a test may be before the browser there
        one.page.get_by_label("Token").fill("wrong")
        one.press("Enter")
        one.page.get_by_text("That was not the token.").wait_for()
        one.page.get_by_label("Token").fill(server.token)
        one.page.get_by_role("button", name="Open").click()
        one.page.locator("#line").wait_for()
        one.until("$('line').textContent", "live")
        assert one.all("document.cookie") == ""
        assert server.token not in one.page.url
        one.context.close()
    assert [text for text in one.troubles if "401" not in text and "ERR_" not in text] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_in_both_schemes(opened, line, bad, scheme):
    for photo in bad:
        line.show(photo, name="a/very/long/folder/of/a/line/and/its/part-0000000000000000001.png")
    one = opened(Pupil(Lesson(taken=5)), color_scheme=scheme, **PHONE)
    one.until("document.querySelectorAll('#anomalies li').length", len(bad))
    assert one.all("document.documentElement.scrollWidth") <= 390
    small = """[...document.querySelectorAll('button, input')].filter((e) => e.offsetParent)
        .filter((e) => e.type !== 'checkbox' && e.getBoundingClientRect().height < 39.5)
        .map((e) => e.outerHTML)"""
    assert one.all(small) == []
    back = one.all("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 150) == (scheme == "dark")
    # Something is drawn into the chart, in colours of the scheme.
    inked = """(() => { const c = $('chart'); const d = c.getContext('2d').getImageData(0, 0,
        c.width, c.height).data; let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0;
        return n > 100; })()"""
    one.until(inked)
