"""A detector in the place of another, between two frames."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
from scripted import END, Scripted, camera, pictures, wait_for, watching

from padim_edge.detect.detector import Detector
from padim_edge.errors import ModelError, PadimEdgeError
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.live.swap import ModelSlot

CLOSED: list[Detector] = []


class Told(Detector):
    """One that is known to have been closed."""

    def close(self) -> None:
        CLOSED.append(self)
        super().close()


def opener(path: Path) -> Detector:
    return Told(path, "ort", 1)


@pytest.fixture(scope="module")
def other_file(embedding_file, photos, tmp_path_factory) -> Path:
    """A detector of other photos."""
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    fit_detector(
        embedding_file, train_images(photos)[:9], path, Settings(Preprocess.whole((64, 64)))
    )
    return path


@pytest.fixture
def mine(model_file, other_file, tmp_path) -> Path:
    """A folder with a.onnx and b.onnx."""
    shutil.copy(model_file, tmp_path / "a.onnx")
    shutil.copy(other_file, tmp_path / "b.onnx")
    CLOSED.clear()
    return tmp_path


def replace(new: Path, path: Path) -> None:
    """As one should: whole, or not at all."""
    shutil.copy(new, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def test_no_frame_is_lost_or_judged_twice_while_detectors_are_swapped(mine):
    frames = pictures(80)
    slot = ModelSlot(opener, mine / "a.onnx")
    sources = {name: Scripted(frames[:60], is_live=False) for name in ("one", "two")}
    cameras = [camera(slot, source, name=name) for name, source in sources.items()]
    watch, kept = watching(cameras, batch=2)
    thread = threading.Thread(target=watch.run)
    thread.start()
    swaps = 0
    while thread.is_alive():
        slot.swap(mine / ("b.onnx", "a.onnx")[swaps % 2])
        swaps += 1
        if swaps == 3:  # the rest comes now, so that each of both judges some
            for source in sources.values():
                for step in (*frames[60:], END):
                    source.put(step)
    thread.join()
    for name in ("one", "two"):
        assert kept.sequences(name) == list(range(80))
    with Detector(mine / "a.onnx", "ort", 1) as a, Detector(mine / "b.onnx", "ort", 1) as b:
        wanted = {"a.onnx": a, "b.onnx": b}
        for seen in kept.seen[::5]:
            detector = wanted[seen.event.record["model"]]
            expected = detector(frames[seen.captured.sequence]).score
            assert seen.outcome.score == pytest.approx(expected, rel=1e-5)
            assert seen.outcome.threshold == detector.threshold
        assert a.threshold != b.threshold
    judged = Counter(seen.event.record["model"] for seen in kept.seen)
    assert set(judged) == {"a.onnx", "b.onnx"}
    assert len(CLOSED) == len(set(CLOSED)) == swaps  # each that was replaced, once
    slot.close()
    assert len(CLOSED) == swaps + 1


def test_a_detector_is_closed_when_its_last_frame_is_done(mine):
    slot = ModelSlot(opener, mine / "a.onnx")
    first, second = slot.acquire(), slot.acquire()
    slot.swap(mine / "b.onnx")
    assert slot.path == mine / "b.onnx"
    first.release()
    assert not CLOSED
    first.detector(pictures(1)[0])
    second.release()
    assert [first.detector] == CLOSED
    with slot.using() as detector:
        slot.close()
        detector(pictures(1)[0])
    assert [first.detector, detector] == CLOSED
    assert slot.acquire() is None
    slot.close()
    slot.swap(mine / "a.onnx")  # too late
    assert slot.acquire() is None
    assert len(CLOSED) == 3


@pytest.mark.parametrize("error", [RuntimeError("CUDA error 46"), ValueError("no such device")])
def test_whatever_an_engine_raises_at_opening_is_said(mine, error):
    slot = ModelSlot(opener, mine / "a.onnx")
    said = []
    slot.listeners.append(lambda message, _path: said.append(message))

    def failing(_path):
        raise error

    slot.opener = failing
    slot.poll(now=True)
    assert said == [
        f"{mine / 'a.onnx'} is not taken, the old one judges on: "
        f"cannot open {mine / 'a.onnx'}: {error}"
    ]
    slot.close()


def test_what_runs_the_new_one_is_said_and_why_nothing_better(mine):
    slot = ModelSlot(opener, mine / "a.onnx")
    said = []
    slot.listeners.append(lambda message, _path: said.append(message))

    def lesser(path):
        detector = opener(path)
        detector.skipped = ("tensorrt: no GPU", "cuda: no GPU")
        return detector

    slot.swap(mine / "b.onnx")
    slot.opener = lesser
    slot.swap(mine / "b.onnx")
    assert said[0].endswith(", engine ort")
    assert said[1].endswith(", engine ort (not on this machine: tensorrt: no GPU; cuda: no GPU)")
    slot.close()


@pytest.mark.parametrize("kind", ["torn", "embedding", "missing"])
def test_what_does_not_open_leaves_the_old_one_judging_and_says_so(mine, embedding_file, kind):
    slot = ModelSlot(opener, mine / "a.onnx")
    said = []
    slot.listeners.append(lambda message, _path: said.append(message))
    bad = mine / "bad.onnx"
    if kind == "torn":
        bad.write_bytes((mine / "b.onnx").read_bytes()[:-5000])
    if kind == "embedding":
        shutil.copy(embedding_file, bad)
    before = slot.acquire()
    with pytest.raises(ModelError, match=str(bad)):
        slot.swap(bad)
    assert said[0].startswith(f"{bad} is not taken, the old one judges on: ")
    assert len(said) == 1
    assert slot.acquire() is before
    assert slot.path == mine / "a.onnx"
    slot.close()


def test_a_file_that_is_replaced_is_swapped_in(mine):
    slot = ModelSlot(opener, mine / "a.onnx")
    said = []
    slot.listeners.append(lambda message, _path: said.append(message))
    threshold = slot.threshold

    def poll():
        slot.poll()
        slot.poll()

    poll()
    assert not said
    replace(mine / "b.onnx", mine / "a.onnx")
    slot.poll()
    assert not said  # it may be in the middle of being written
    slot.poll()
    assert len(said) == 1
    assert "judges from now on" in said[0]
    assert slot.threshold != threshold
    (mine / "a.onnx").unlink()
    poll()
    assert len(said) == 1  # it is no news that there is nothing to open
    (mine / "a.onnx").write_bytes(b"no model")
    poll()
    poll()
    assert len(said) == 2  # once
    assert "is not taken" in said[1]
    shutil.copy(mine / "b.onnx", mine / "a.onnx")
    os.utime(mine / "a.onnx", ns=(1, 1))
    poll()
    assert len(said) == 3
    slot.poll(now=True)
    assert len(said) == 4
    slot.close()


def test_a_watch_looks_at_the_file_and_reloads_when_told(mine, monkeypatch):
    monkeypatch.setattr("padim_edge.live.watch.POLL", 0.01)
    slot = ModelSlot(opener, mine / "a.onnx")
    source = Scripted(pictures(1))
    watch, kept = watching([camera(slot, source, policy="all")])
    thread = threading.Thread(target=watch.run)
    thread.start()
    wait_for(lambda: len(kept.seen) == 1)
    replace(mine / "b.onnx", mine / "a.onnx")
    wait_for(lambda: len(kept.messages("model")) == 1)
    watch.reload()
    wait_for(lambda: len(kept.messages("model")) == 2)
    source.put(pictures(1)[0])
    wait_for(lambda: len(kept.seen) == 2)
    watch.stop()
    thread.join(60)
    assert kept.seen[0].outcome.threshold != kept.seen[1].outcome.threshold
    event = next(event for event in kept.events if event.record["kind"] == "model")
    assert event.record["model"] == "a.onnx"
    assert event.record["camera"] == "camera"
    slot.close()


def test_a_slot_without_a_detector_is_given_one(mine):
    slot = ModelSlot(opener)
    assert (slot.path, slot.threshold, slot.detector_info) == (None, None, None)
    with slot.using() as detector:
        assert detector is None
    slot.poll()
    with pytest.raises(PadimEdgeError):
        slot.swap(mine / "missing.onnx")
    slot.swap(mine / "b.onnx")
    assert slot.detector_info.threshold == slot.threshold
    slot.close()
