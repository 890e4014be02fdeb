"""From a camera and an embedding to a detector, taught in a real browser by a person's clicks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Opened, chromium
from scripted import END, Kept, Scripted, camera, wait_for

pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'padim-edge[live]'")
pytest.importorskip("starlette", reason="needs starlette: pip install 'padim-edge[live]'")

from padim_edge.detect.detector import Detector
from padim_edge.fit.settings import Settings
from padim_edge.images.decode import load_image
from padim_edge.images.preprocess import Preprocess
from padim_edge.live.board import Board
from padim_edge.live.page.app import page
from padim_edge.live.recorder import Recorder
from padim_edge.live.swap import ModelSlot
from padim_edge.live.teach import Teacher
from padim_edge.live.watch import Watch
from padim_edge.web.server import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


def frame(path: Path, hole: bool = False) -> np.ndarray:
    image = load_image(path)
    if hole:
        image.paste((255, 0, 0), (20, 20, 60, 70))
    return np.asarray(image)


def test_from_nothing_to_a_detector_and_a_false_alarm_taught_away(
    browser, tmp_path, embedding_file, good, photos
):
    slot = ModelSlot(lambda path: Detector(path, "ort", 1))
    source = Scripted()
    kept = Kept()
    recorder = Recorder(kept)
    recorder.observers.append(kept.seen.append)
    watch = Watch([camera(slot, source, policy="all")], recorder)
    board = Board(list(watch.statuses.values()))
    settings = Settings(Preprocess.whole((64, 64)), false_alarm_rate=0.1)
    teacher = Teacher(
        tmp_path / "taught", embedding_file, slot, settings, say=watch.say, threads=1, every=0
    )
    watch.observers.extend([board, teacher])
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    odd = sorted((photos / "test" / "good").iterdir())[0]
    with Server(page(board, {"camera": teacher})) as server:
        one = Opened(browser, server.url)
        source.put(frame(good[0]))
        one.until("$('decision').textContent", "not taught")
        one.page.get_by_role("button", name="Take good parts").click()
        one.until("$('take').textContent", "Stop taking")
        for number, path in enumerate(good, start=1):
            source.put(frame(path))
            wait_for(lambda: teacher.lesson().taken == number)  # noqa: B023 - called at once
        one.until("$('lesson').textContent.startsWith('12 good parts taken')")
        assert "that 10 %" in one.text("#lesson")
        one.page.get_by_role("button", name="Stop taking").click()
        one.page.get_by_role("button", name="Fit", exact=True).click()
        one.until("document.querySelectorAll('#versions li').length", 1)
        source.put(frame(good[0]))
        one.until("['OK', 'ANOMALY'].includes($('decision').textContent)")
        assert one.page.locator("#anomalies li").count() == 0

        # A part that is good, and looks like none before: an alarm.
        source.put(frame(odd, hole=True))
        one.until("document.querySelectorAll('#anomalies li').length", 1)
        before = kept.seen[-1].outcome
        assert before.is_anomalous
        one.page.get_by_role("button", name="This was good").click()
        one.until("document.querySelector('#anomalies .chip').textContent", "learnt as good")
        one.until("document.querySelectorAll('#versions li').length", 2)
        count = len(kept.seen)
        source.put(frame(odd, hole=True))
        wait_for(lambda: len(kept.seen) > count)
        after = kept.seen[-1].outcome
        assert not after.is_anomalous
        one.until("$('decision').textContent", "OK")

        # Undone, it is an alarm again; rolled forward, it is none.
        one.page.get_by_role("button", name="Undo").click()
        wait_for(lambda: slot.threshold == before.threshold)
        count = len(kept.seen)
        source.put(frame(odd, hole=True))
        wait_for(lambda: len(kept.seen) > count)
        assert kept.seen[-1].outcome.score == before.score
        one.until("$('decision').textContent", "ANOMALY")
        one.page.get_by_role("button", name="This was bad").first.click()
        one.until("document.querySelector('#anomalies .chip').textContent", "kept as bad")
        assert len(teacher.versions.state.bad) == 1
        one.context.close()
        assert one.troubles == []
    source.put(END)
    watch.stop()
    thread.join(60)
    teacher.close()
    slot.close()
