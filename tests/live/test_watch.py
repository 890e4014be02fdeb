"""The watch over scripted cameras: what becomes of every frame."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripted import END, Scripted, camera, pictures, wait_for, watching

from padim_edge.detect.detector import Detector, Result
from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.images.frames import Frame
from padim_edge.live import capture, judge, queues, recorder
from padim_edge.live.board import Board, CameraStatus
from padim_edge.live.pictures import to_jpeg
from padim_edge.live.recorder import PAUSES, Recorder
from padim_edge.live.source import Captured, SourceError
from padim_edge.live.sources import open_source
from padim_edge.live.swap import ModelSlot
from padim_edge.live.watch import Watch


def opener(path: Path) -> Detector:
    return Detector(path, "ort", 1)


@pytest.fixture
def slot(model_file):
    slot = ModelSlot(opener, model_file)
    yield slot
    slot.close()


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Nothing is waited for but what the watch waits for."""
    monkeypatch.setattr(capture, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(capture, "LONGEST_PAUSE", 0.001)
    monkeypatch.setattr(judge, "PAUSES", (0.0, 0.0))


class Held:
    """An engine that waits to be let go on, or fails so many times."""

    def __init__(self, slot: ModelSlot, fails: int = 0) -> None:
        self.fails = fails
        self.batches: list[int] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        if fails:
            self.go_on.set()
        with slot.using() as detector:
            self._engine = detector.engine
            self._infer = self._engine.infer
            self._engine.infer = self

    def __call__(self, images):
        self.entered.set()
        assert self.go_on.wait(60)
        if self.fails:
            self.fails -= 1
            raise RuntimeError("CUDA error: device-side assert")
        self.batches.append(len(images))
        return self._infer(images)


def test_every_frame_of_all_is_judged_as_the_detector_does(slot, model_file):
    frames = pictures(30)
    watch, kept = watching([camera(slot, Scripted([*frames, END], is_live=False))])
    watch.run()
    assert kept.sequences() == list(range(30))
    with Detector(model_file, "ort", 1) as detector:
        wanted = [detector(frame).score for frame in frames]
    assert [seen.outcome.score for seen in kept.seen] == wanted
    status = watch.statuses["camera"]
    assert (status.captured, status.judged, status.dropped, status.lost) == (30, 30, 0, 0)
    assert status.policy == "all"
    assert status.latencies.count == 30


def test_events_are_numbered_in_their_order_and_are_plain_json(slot):
    broken = ImageError("no picture")
    watch, kept = watching([camera(slot, Scripted([*pictures(3), broken, END], is_live=False))])
    watch.run()
    ids = [event.id for event in kept.events]
    assert ids == sorted(set(ids))
    records = [event.record for event in kept.events if event.record["kind"] != "source"]
    assert [record["kind"] for record in records] == [
        *("watch", "verdict", "verdict", "verdict", "error", "watch")
    ]
    verdict, error, ends = records[1], records[4], records[5]
    assert verdict["sequence"] == 0
    assert verdict["model"] == "padim.onnx"
    assert verdict["latency_ms"] >= 0
    assert {"score", "threshold", "is_anomalous", "percentile", "regions"} <= set(verdict)
    assert error["error"] == "no picture"
    assert (ends["judged"], ends["unreadable"], ends["latency_ms"]["longest"] > 0) == (3, 1, True)
    for event in kept.events:
        event.to_json()


def test_of_latest_the_newest_is_judged_and_the_others_are_counted(slot):
    held = Held(slot)
    first, *others = pictures(10)
    source = Scripted([first])
    watch, kept = watching([camera(slot, source)])
    thread = threading.Thread(target=watch.run)
    thread.start()
    assert held.entered.wait(60)
    for frame in others:
        source.put(frame)
    wait_for(lambda: watch.statuses["camera"].dropped == 8)
    held.go_on.set()
    wait_for(lambda: len(kept.seen) == 2)
    watch.stop()
    thread.join(60)
    assert kept.sequences() == [0, 9]
    assert watch.statuses["camera"].dropped == 8
    assert watch.statuses["camera"].policy == "latest"


def test_frames_that_three_threads_drop_at_once_are_all_counted():
    both = threading.Barrier(2)

    class Slow(int):
        """A count that another thread may read while this one adds to it."""

        def __add__(self, other):
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.2)
            return int(self) + other

    status = CameraStatus("camera", "scripted:", ModelSlot(opener), "latest", dropped=Slow())
    threads = [threading.Thread(target=status.drop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert status.dropped == 2


@pytest.mark.parametrize(("policy", "judged"), [("all", 4), ("latest", 1)])
def test_at_the_end_what_waits_is_judged_or_dropped(slot, policy, judged):
    held = Held(slot)
    first, *others = pictures(4)
    source = Scripted([first])
    watch, kept = watching([camera(slot, source, policy=policy)])
    status = watch.statuses["camera"]
    thread = threading.Thread(target=watch.run)
    thread.start()
    assert held.entered.wait(60)
    for frame in others:
        source.put(frame)
    wait_for(lambda: status.captured == 4)
    watch.stop()
    wait_for(lambda: status.source == "stopped")
    held.go_on.set()
    thread.join(60)
    assert kept.sequences() == list(range(judged))
    assert status.captured == status.judged + status.dropped == 4


@pytest.mark.parametrize("stops", [1, 2])
def test_a_second_stop_ends_a_judge_that_hangs(slot, stops):
    held = Held(slot)
    watch, kept = watching([camera(slot, Scripted(pictures(1)))])
    thread = threading.Thread(target=watch.run)
    thread.start()
    assert held.entered.wait(60)
    watch.stop()
    wait_for(lambda: watch.statuses["camera"].source == "stopped")
    if stops == 2:
        watch.stop()
        thread.join(60)
        assert not thread.is_alive()
        assert not kept.seen
    held.go_on.set()
    thread.join(60)
    assert not thread.is_alive()
    assert len(kept.seen) == 1 or stops == 2


def test_nobody_to_tell_of_counts_ends_no_watch(slot):
    told = []

    def tell(line):
        told.append(line)
        raise BrokenPipeError(32, "Broken pipe")

    source = Scripted()
    watch, kept = watching([camera(slot, source)], stats=0.01, tell=tell)
    thread = threading.Thread(target=watch.run)
    thread.start()
    wait_for(lambda: len(told) > 1)
    source.put(pictures(1)[0])
    wait_for(lambda: len(kept.seen) == 1)
    watch.stop()
    thread.join(60)


def test_a_camera_that_is_lost_comes_back_and_its_numbers_go_on(slot):
    gone = SourceError("scripted: the cable is out")
    watch, kept = watching(
        [
            camera(
                slot,
                SourceError("scripted: not there"),
                Scripted([*pictures(3), gone]),
                gone,
                gone,
                Scripted([*pictures(1), 4, *pictures(2), END]),  # the end of a camera is a loss
                Scripted(pictures(2)),
                policy="all",
            )
        ],
        count=8,
    )
    watch.run()
    assert kept.sequences() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert watch.statuses["camera"].lost == 4
    said = kept.messages("source")
    assert [one.split(":")[0] for one in said if one.startswith(("is back", "opened"))] == [
        *("is back", "is back", "is back")
    ]
    assert sum("the cable is out; trying again in" in one for one in said) == 2
    assert "scripted: gives no more frames" in said[-2]


def test_a_file_that_waits_while_its_folder_is_lost_is_not_judged_twice(slot):
    first, second, third = pictures(3)

    class Keyed(Scripted):
        def __iter__(self):
            for captured in super().__iter__():
                yield dataclasses.replace(captured, keys=(str(captured.picture.pixels[0, 0]),))

    gone = SourceError("scripted: unmounted")
    held = Held(slot)
    watch, kept = watching(
        [
            camera(
                slot,
                Keyed([first, second, gone], is_live=False),
                Keyed([second, first, third, END], is_live=False),
            )
        ]
    )
    thread = threading.Thread(target=watch.run)
    thread.start()
    assert held.entered.wait(60)
    wait_for(lambda: watch.statuses["camera"].source == "ended")
    held.go_on.set()
    thread.join(60)
    assert kept.sequences() == [0, 1, 2]
    assert [seen.captured.picture.pixels.tobytes() for seen in kept.seen] == [
        frame.tobytes() for frame in (first, second, third)
    ]
    assert watch.statuses["camera"].lost == 0


def test_another_picture_under_the_same_name_of_the_same_date_and_size_is_judged(slot, tmp_path):
    inbox, new = tmp_path / "inbox", tmp_path / "new.bmp"
    inbox.mkdir()

    def put(pixels):
        Image.fromarray(pixels).save(new)
        os.utime(new, (1.6e9, 1.6e9))  # a camera without a clock
        new.rename(inbox / "part.bmp")

    source = open_source(f"hot:{inbox}?poll=0.01")
    watch, kept = watching([camera(slot, source)])
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        for count, pixels in enumerate(pictures(3), 1):
            put(pixels)
            wait_for(lambda count=count: len(kept.seen) == count)
    finally:
        watch.stop()
        thread.join(60)
    assert len({seen.outcome.score for seen in kept.seen}) == 3
    assert len({seen.captured.keys[0] for seen in kept.seen}) == 1
    assert kept.sequences() == [0, 1, 2]


def test_a_source_that_never_can_be_ends_it(slot):
    watch, kept = watching([camera(slot, UsageError("no source 'rstp'"))])
    with pytest.raises(UsageError, match="rstp"):
        watch.run()
    assert "ends: 0 judged" in kept.messages("watch")[-1]


def test_an_engine_that_fails_once_judges_the_same_frames_again(slot):
    Held(slot, fails=2)
    watch, kept = watching([camera(slot, Scripted([*pictures(5), END], is_live=False))])
    watch.run()
    assert kept.sequences() == list(range(5))
    assert all(isinstance(seen.outcome, Result) for seen in kept.seen)
    said = [one for one in kept.messages("watch") if "failed" in one]
    assert (
        said == ["the engine failed, the same frames once more: CUDA error: device-side assert"] * 2
    )


def test_an_engine_that_goes_on_failing_ends_it_and_no_frame_counts_as_judged(slot):
    Held(slot, fails=100)
    watch, kept = watching([camera(slot, Scripted(pictures(50)), policy="all")])
    with pytest.raises(PadimEdgeError, match="camera: the engine fails again and again: CUDA"):
        watch.run()
    assert kept.seen == []
    assert watch.statuses["camera"].judged == 0


def test_cameras_of_one_model_are_judged_together_where_that_is_wanted(slot, model_file):
    held = Held(slot)
    frames = {name: pictures(3, seed) for seed, name in enumerate("ab")}
    watch, kept = watching(
        [
            camera(slot, Scripted([*frames[name], END], is_live=False), name=name)
            for name in ("a", "b")
        ],
        batch=4,
    )
    thread = threading.Thread(target=watch.run)
    thread.start()
    assert held.entered.wait(60)
    wait_for(lambda: all(status.source == "ended" for status in watch.statuses.values()))
    held.go_on.set()
    thread.join(60)
    assert sum(held.batches) == 6
    assert max(held.batches) > 1
    with Detector(model_file, "ort", 1) as detector:
        for name in ("a", "b"):
            scores = [seen.outcome.score for seen in kept.seen if seen.camera == name]
            wanted = [detector(frame).score for frame in frames[name]]
            assert scores == pytest.approx(wanted, rel=1e-5)
            assert kept.sequences(name) == [0, 1, 2]


def test_no_camera_starves_beside_a_fast_one(slot):
    fast, slow = Scripted(pictures(40), is_live=False), Scripted(pictures(3), is_live=False)
    watch, kept = watching(
        [camera(slot, fast, name="fast"), camera(slot, slow, name="slow")], count=12
    )
    held = Held(slot)
    thread = threading.Thread(target=watch.run)
    thread.start()
    wait_for(lambda: watch.statuses["slow"].captured == 3)
    held.go_on.set()
    thread.join(60)
    assert kept.sequences("slow") == [0, 1, 2]


def test_without_a_detector_frames_are_seen_and_not_recorded():
    slot = ModelSlot(opener)
    watch, kept = watching([camera(slot, Scripted([*pictures(3), END], is_live=False))])
    watch.run()
    assert [seen.outcome for seen in kept.seen] == [None] * 3
    assert {event.record["kind"] for event in kept.events} == {"watch", "source"}
    assert watch.statuses["camera"].untaught == 3


def test_an_observer_that_fails_is_said_and_stops_nobody(slot):
    watch, kept = watching([camera(slot, Scripted([*pictures(3), END], is_live=False))])

    def observer(_seen):
        raise ZeroDivisionError("a mistake")

    watch.observers.insert(0, observer)
    watch.run()
    assert len(kept.seen) == 3
    assert [one for one in kept.messages("watch") if "mistake" in one] == [
        f"this should not happen: {observer.__qualname__} failed (ZeroDivisionError: a mistake)"
    ]


class Full:
    """A disk that has no room for what a test says; for the rest from the given try on."""

    def __init__(self, is_refused, tries: int) -> None:
        self.is_refused, self.tries = is_refused, tries
        self.events = []

    def append(self, events, _keys=()):
        if any(map(self.is_refused, events)) and self.tries:
            self.tries -= 1
            raise PadimEdgeError("cannot write the spool: no room")
        self.events.extend(events)
        return ()


@pytest.mark.parametrize(("tries", "is_lost"), [(1, False), (2, True)])
def test_a_full_disk_stops_no_judging_and_what_is_lost_is_said(slot, monkeypatch, tries, is_lost):
    monkeypatch.setattr("padim_edge.live.recorder.PAUSES", (0.0,))
    store = Full(lambda event: event.record.get("sequence") == 1, tries)
    recorder = Recorder(store)
    said = []
    recorder.told.append(said.append)
    watch = Watch([camera(slot, Scripted([*pictures(3), END], is_live=False))], recorder, count=3)
    watch.run()
    assert watch.statuses["camera"].judged == 3
    sequences = [event.record.get("sequence") for event in store.events]
    assert (1 in sequences) != is_lost
    complaints = [event for event in said if "no room" in event.record["message"]]
    assert len(complaints) == is_lost
    told = [event for event in store.events if "could not be recorded" in event.to_json()]
    assert len(told) == is_lost


def test_a_picture_that_cannot_be_made_ends_nothing_and_is_said_once(model_file, monkeypatch):
    def failing(*_):
        raise OSError("encoder error -2 when writing image file")

    monkeypatch.setattr(recorder, "to_jpeg", failing)
    slot = ModelSlot(lambda path: Detector(path, "ort", 1, threshold=1e-3), model_file)
    store = Full(lambda _: False, 0)
    one = Recorder(store, pictures=True)
    watch = Watch([camera(slot, Scripted([*pictures(3), END], is_live=False))], one)
    watch.run()
    slot.close()
    verdicts = [event for event in store.events if event.record["kind"] == "verdict"]
    assert [event.picture for event in verdicts] == [None] * 3
    said = [event.record.get("message", "") for event in store.events]
    assert len([text for text in said if "making a picture failed (OSError: encoder" in text]) == 1


def test_of_a_disk_that_is_full_to_the_end_it_is_said_how_many_events_are_lost(slot, monkeypatch):
    monkeypatch.setattr("padim_edge.live.recorder.PAUSES", ())
    recorder = Recorder(Full(lambda _: True, 10_000))
    said = []
    recorder.told.append(said.append)
    watch = Watch([camera(slot, Scripted([*pictures(5), END], is_live=False))], recorder)
    watch.run()
    # It begins, is opened, 5 verdicts, has ended, ends.
    assert said[-1].record["message"] == "9 events could not be recorded, and are lost"


def test_while_a_disk_is_full_each_event_is_tried_once(slot):
    store = Full(lambda _: True, 10_000)
    recorder = Recorder(store)
    waits = []
    recorder._hurry.wait = waits.append  # counted, and not waited for
    said = []
    recorder.told.append(said.append)
    watch = Watch([camera(slot, Scripted([*pictures(30), END], is_live=False))], recorder)
    watch.run()
    assert watch.statuses["camera"].judged == 30
    assert waits == list(PAUSES)
    assert len([event for event in said if "no room" in event.record["message"]]) == 1
    assert store.events == []


class Pixels(np.ndarray):
    """Pixels of which it is known whether they are still there."""


def test_frames_are_let_go_of(slot):
    alive: list[weakref.ref[Pixels]] = []
    most = 0

    class Endless(Scripted):
        def __iter__(self):
            for number in range(300):
                pixels = np.full((48, 64, 3), number % 256, np.uint8).view(Pixels)
                alive.append(weakref.ref(pixels))
                yield Captured(Frame(pixels), number, time.time())

    watch = Watch([camera(slot, Endless(is_live=False))], Recorder())

    def look(_seen):
        nonlocal most
        alive[:] = [one for one in alive if one() is not None]
        most = max(most, len(alive))

    watch.observers.append(look)
    watch.run()
    assert watch.statuses["camera"].judged == 300
    # In the queues, and in the hands of capture, judge and recorder.
    assert 0 < most <= queues.WAITING + 2 * recorder.WAITING + 4


def test_a_reader_that_goes_away_ends_it(slot):
    lines = []

    def line(text):
        lines.append(text)
        if len(lines) == 5:
            raise BrokenPipeError(32, "Broken pipe")

    watch = Watch([camera(slot, Scripted(pictures(60)), policy="all")], Recorder(None, line))
    with pytest.raises(BrokenPipeError):
        watch.run()
    assert len(lines) == 5


def test_cameras_need_names_of_their_own(slot):
    with pytest.raises(UsageError, match="cameras are named a, a: each needs its own"):
        watching([camera(slot, name="a"), camera(slot, name="a")])


def test_the_board_knows_what_is_now(slot, photos):
    defect = sorted((photos / "test").rglob("*.png"))[-1]
    slot.close()
    slot = ModelSlot(lambda path: Detector(path, "ort", 1, threshold=1e-3), slot.followed)
    recorder = Recorder()
    script = [*pictures(2), defect, ImageError("torn"), END]
    watch = Watch([camera(slot, Scripted(script, is_live=False))], recorder)
    board = Board(list(watch.statuses.values()))
    recorder.observers.append(board)
    recorder.told.append(board.said)
    before = board.version
    watch.run()
    slot.close()
    assert board.version > before
    now = board.cameras["camera"]
    assert isinstance(now.newest.outcome, ImageError)
    assert [point.is_anomalous for point in now.points] == [True] * 3
    anomalies = list(now.anomalies)
    assert [point.score for point in now.points] == [one.seen.outcome.score for one in anomalies]
    wait_for(lambda: not any(one.lacks for one in anomalies))
    assert all(one.source is None for one in anomalies)
    assert [one.seen.event.picture for one in anomalies] == [None] * 3
    for frame, one in zip((Frame(script[0]), Frame(script[1]), defect), anomalies, strict=True):
        assert one.picture == to_jpeg(frame)
    assert isinstance(anomalies[0].seen.captured.picture, ImageError)  # its pixels are let go of
    assert anomalies[-1].seen.captured.picture == defect
    shown = board.snapshot()["cameras"][0]
    assert (shown["judged"], shown["anomalous"], shown["unreadable"]) == (3, 3, 1)
    assert shown["latency_ms"]["p50"] <= shown["latency_ms"]["p99"]
    assert board.messages[0].record["message"] == "begins"
