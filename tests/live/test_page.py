"""The page as its clients have it: parts, pictures, teaching; and judging that never waits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import itertools
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import SCRIPT, Line, Pupil, Viewer
from PIL import Image
from raw_http import ask, connected, get, until_closed
from scripted import END, Scripted, camera, pictures, wait_for, watching

pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'padim-edge[live]'")
pytest.importorskip("starlette", reason="needs starlette: pip install 'padim-edge[live]'")

from padim_edge.detect.calibration import Row
from padim_edge.detect.detector import Detector
from padim_edge.detect.overlay import Scale, overlay
from padim_edge.errors import ImageError
from padim_edge.images.decode import load_image
from padim_edge.images.frames import Frame
from padim_edge.live import album
from padim_edge.live.board import POINTS, Board
from padim_edge.live.page import channel
from padim_edge.live.page.app import Page, page
from padim_edge.live.page.draw import QUALITY, Drawn, draw
from padim_edge.live.page.teaching import Lesson, Teaching, Version
from padim_edge.live.pictures import JPEG_SIDE, to_jpeg
from padim_edge.live.swap import ModelSlot
from padim_edge.web.server import Server


@pytest.fixture(scope="module")
def good(photos):
    return sorted((photos / "test" / "good").iterdir())


@pytest.fixture(scope="module")
def bad(model_file, good, tmp_path_factory):
    """Photos with a hole that the detector sees."""
    paths = []
    with Detector(model_file, "ort", 1) as detector:
        for number, photo in enumerate(good):
            image = load_image(photo)
            image.paste((255, 0, 0), (20 + 8 * number, 20, 60 + 8 * number, 70))
            paths.append(tmp_path_factory.mktemp("bad") / f"{number}.png")
            image.save(paths[-1])
            assert detector(paths[-1]).is_anomalous
    return paths


@pytest.fixture
def line(model_file) -> Iterator[Line]:
    one = Line(model_file, ("top", SCRIPT), lambda: [{"address": "jsonl:e", "backlog": 0}])
    yield one
    one.slot.close()


@pytest.fixture
def served(line) -> Iterator[tuple[Line, str, Pupil]]:
    pupil = Pupil()
    with Server(page(line.board, {"top": pupil})) as server:
        yield line, server.url, pupil


@contextlib.contextmanager
def viewing(url: str, *args, **options) -> Iterator[Viewer]:
    viewer = Viewer(url, *args, **options)
    try:
        yield viewer
    finally:
        viewer.close()


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.float32)


def jpeg_of(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=QUALITY)
    return written.getvalue()


def teach(url: str, asked: object) -> tuple[int, dict]:
    body = json.dumps(asked).encode()
    head = get("/api/teach", "localhost", f"Content-Length: {len(body)}", method="POST")
    code, _, said = ask(url, head + body)
    return code, json.loads(said)


# ------------------------------------------------------------------------------------------ parts


def test_a_viewer_is_told_all_first_and_then_what_is_new(served, good, bad):
    line, url, _ = served
    first = line.show(bad[0], name=SCRIPT)
    line.say("source", SCRIPT)
    with viewing(url) as viewer:
        told, jpeg = viewer.part()
        assert told["newest"]["score"] == pytest.approx(first.outcome.score)
        assert told["newest"]["is_anomalous"] is True
        assert told["newest"]["name"] == SCRIPT
        assert [one["name"] for one in told["cameras"]] == ["top", SCRIPT]
        assert [one[2] for one in told["points"]] == [1]
        assert [one["id"] for one in told["anomalies"]] == [first.event.id]
        assert told["messages"][0]["message"] == SCRIPT
        assert told["sinks"] == [{"address": "jsonl:e", "backlog": 0}]
        assert told["camera"]["latency_ms"]["p50"] == pytest.approx(20, rel=0.02)
        assert pixels(jpeg).shape == (96, 96, 3)
        second = line.show(good[0])
        for told, jpeg in viewer.parts():  # noqa: B007 - used after it
            if told["newest"]["id"] == second.event.id:
                break
        assert len(told["points"]) == 1
        assert told["points"][0][1] == pytest.approx(second.outcome.score, rel=1e-4)
        assert "anomalies" not in told
        assert "messages" not in told
        assert jpeg


def test_parts_come_when_nothing_is_new_but_no_picture_again(served, good, monkeypatch):
    monkeypatch.setattr(channel, "QUIET", 0.05)
    line, url, _ = served
    line.show(good[0])
    with viewing(url) as viewer:
        assert viewer.part()[1]
        for _ in range(3):
            told, jpeg = viewer.part()
            assert (told["bytes"], jpeg, told["points"]) == (0, b"", [])
            assert "has_picture" not in told


def test_the_heat_map_is_what_overlay_draws(line, bad):
    seen = line.show(bad[0])
    result = seen.outcome
    frame = np.asarray(load_image(bad[0]))
    low = Scale.of(line.slot.detector_info.good_scores, result.threshold).low
    wanted = overlay(
        frame,
        result.score_map,
        result.seen,
        result.threshold,
        result.score,
        low,
        result.mask,
        caption=False,
    )
    assert draw(seen, line.slot, 1600, heat=True) == jpeg_of(wanted)
    assert draw(seen, line.slot, 1600, heat=False) == jpeg_of(Image.fromarray(frame))
    (kept,) = line.board.cameras["top"].anomalies
    wait_for(lambda: kept.picture is not None)
    assert isinstance(kept.seen.captured.picture, ImageError)  # its pixels are let go of
    again = pixels(draw(kept.seen, line.slot, 1600, True, kept.picture))
    assert np.abs(again - pixels(jpeg_of(wanted))).mean() < 4
    assert np.abs(again - pixels(jpeg_of(Image.fromarray(frame)))).mean() > 40


def test_pictures_are_shrunk_and_frames_without_any_are_said(served, tmp_path):
    line, url, _ = served
    large = tmp_path / "large.png"
    Image.new("RGB", (2000, 1000), "white").save(large)
    seen = line.show(large)
    assert pixels(draw(seen, line.slot, 800, heat=True)).shape == (400, 800, 3)
    assert pixels(draw(seen, line.slot, 800, heat=False)).shape == (400, 800, 3)
    # A line camera's, of more pixels than JPEG has, and a JPEG of fewer rows than it is shrunk by.
    wide = Frame(np.zeros((2, 70_000), np.uint8), "grey8")
    assert pixels(to_jpeg(wide)).shape == (2, JPEG_SIDE, 3)
    flat = tmp_path / "flat.jpg"
    Image.new("RGB", (6400, 4), "white").save(flat)
    assert pixels(to_jpeg(flat, longest=800)).shape == (1, 800, 3)
    line.show(None, error=SCRIPT)
    with viewing(url) as viewer:
        told, jpeg = viewer.part()
    assert told["newest"]["error"] == SCRIPT
    assert (told["has_picture"], jpeg) == (False, b"")


def test_pictures_of_files_are_as_bright_as_they_are_judged(line, tmp_path):
    """Of 16 bits, of which the camera fills 12."""
    file = tmp_path / "grey.png"
    Image.fromarray(np.full((96, 96), 3000, np.uint16)).save(file)
    with line.slot.using() as detector:
        info = detector.detector_info
        its = replace(info.preprocess, bit_depth=12)
        detector.detector_info = replace(info, preprocess=its)
        seen = line.show(file)
        outcome = replace(detector(file), is_anomalous=True)
    seen = replace(seen, captured=replace(seen.captured, picture=file), outcome=outcome)
    line.board(seen)
    anomaly = list(line.board.cameras["top"].anomalies)[-1]
    wait_for(lambda: anomaly.picture is not None)
    for jpeg in (draw(seen, line.slot, 1600, False), anomaly.picture):
        assert pixels(jpeg) == pytest.approx(3000 * 255 / 4095, abs=2)


def test_cameras_and_their_viewers_are_apart(served, good, bad):
    line, url, _ = served
    line.show(good[0])
    line.show(bad[0], SCRIPT)
    with viewing(url) as one, viewing(url, SCRIPT) as other, viewing(url, heat=False) as plain:
        (top, with_heat), (side, _), (_, without) = one.part(), other.part(), plain.part()
    assert (top["camera"]["name"], side["camera"]["name"]) == ("top", SCRIPT)
    assert (len(top["anomalies"]), len(side["anomalies"])) == (0, 1)
    assert [each["is_anomalous"] for each in top["cameras"]] == [False, True]
    assert (top["lesson"]["taken"], side["lesson"]) == (0, None)
    assert with_heat
    assert without
    assert ask(url, get("/api/live?camera=none"))[0] == 400


def test_scores_that_are_no_numbers_are_told(served, good):
    line, url, _ = served
    seen = line.show(good[0])
    seen.outcome.score_map[:] = np.nan
    point = line.board.cameras["top"].points
    point[0] = point[0].__class__(**{**point[0].__dict__, "score": float("nan")})
    object.__setattr__(seen.outcome, "score", float("nan"))
    with viewing(url) as viewer:
        told, jpeg = viewer.part()
    assert told["points"][0][1] is None
    assert told["newest"]["score"] is None
    assert jpeg


def test_of_many_good_scores_the_highest_are_told_and_each_with_its_rank(served, good, monkeypatch):
    line, url, _ = served
    scores = line.slot.detector_info.good_scores
    line.show(good[0])
    with viewing(url) as viewer:
        told, _ = viewer.part()
    assert told["good_count"] == len(scores)
    assert [rank for rank, _ in told["good"]] == list(range(1, len(scores) + 1))
    assert [score for _, score in told["good"]] == pytest.approx(sorted(scores), rel=1e-6)
    monkeypatch.setattr(channel, "GOOD", 5)
    with viewing(url, SCRIPT) as viewer:
        told, _ = viewer.part()
    ranks = [rank for rank, _ in told["good"]]
    assert (told["good_count"], len(ranks) <= 5) == (len(scores), True)
    assert (ranks[0], ranks[-1]) == (1, len(scores))
    assert ranks == sorted(set(ranks))
    for rank, score in told["good"]:
        assert score == pytest.approx(sorted(scores)[rank - 1], rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 25_000])
def test_scores_that_are_told_are_thin_where_they_matter_least(count):
    told = channel._ranked(tuple(float(place) for place in range(count)), 1000)
    assert len(told) <= 1000
    assert all(score == rank - 1 for rank, score in told)
    if count > 1000:
        assert [rank for rank, _ in told[-100:]] == list(range(count - 99, count + 1))
    # What is left out between two of them is a small share of what lies above.
    for (one, _), (other, _) in itertools.pairwise(told):
        assert other - one <= 1 + 0.02 * (count + 1 - one)


def test_the_chart_holds_the_last_verdicts_of_a_slow_viewer_too(served, good):
    line, url, _ = served
    with viewing(url) as viewer:
        told, _ = viewer.part()
        assert (told["points"], told["has_picture"]) == ([], False)  # which is told, too
        seen = line.show(good[0])
        for _ in range(POINTS + 50):
            line.board(seen)
        points = []
        while len(points) < POINTS:
            points += viewer.part()[0]["points"]
    assert len(points) <= POINTS + 51


# --------------------------------------------------------------------------- many, slow, held up


def test_of_a_hundred_viewers_each_sees_the_end_and_a_picture_is_drawn_once(
    model_file, monkeypatch
):
    """Half of them read, half do not; every frame is judged."""
    drawn: list[int] = []

    def counting(seen, *rest):
        drawn.append(seen.captured.sequence)
        return draw(seen, *rest)

    monkeypatch.setattr(channel, "draw", counting)
    slot = ModelSlot(lambda path: Detector(path, "ort", 1), model_file)
    source = Scripted([], is_live=False)
    watch, kept = watching([camera(slot, source)])
    board = Board(list(watch.statuses.values()))
    watch.observers.append(board)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    with Server(page(board)) as server, contextlib.ExitStack() as stack:
        for _ in range(50):
            stuck = stack.enter_context(connected(server.url))
            stuck.sendall(get("/api/live"))
        viewers = [stack.enter_context(viewing(server.url)) for _ in range(50)]
        for viewer in viewers:
            viewer.part()
        for frame in pictures(200):
            source.put(frame)
        wait_for(lambda: len(kept.seen) == 200)
        for viewer in viewers:
            told = next(told for told, _ in viewer.parts() if told["newest"] is not None)
            while told["newest"]["sequence"] != 199:
                told, _ = viewer.part()
        assert told["camera"]["judged"] == 200
    source.put(END)
    thread.join(60)
    slot.close()
    assert kept.sequences() == list(range(200))
    assert len(drawn) == len(set(drawn)) <= 200


def test_judging_does_not_wait_for_the_page(model_file, monkeypatch):
    """The picture that viewers wait for is not drawn before all frames are judged."""
    entered, go_on = threading.Event(), threading.Event()

    def held(*args):
        entered.set()
        assert go_on.wait(60)
        return draw(*args)

    monkeypatch.setattr(channel, "draw", held)
    slot = ModelSlot(lambda path: Detector(path, "ort", 1), model_file)
    source = Scripted(pictures(1), is_live=False)
    watch, kept = watching([camera(slot, source)])
    board = Board(list(watch.statuses.values()))
    watch.observers.append(board)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    with Server(page(board)) as server, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(server.url)).sendall(get("/api/live"))
        viewer = stack.enter_context(viewing(server.url))
        assert entered.wait(60)
        for step in (*pictures(99), END):
            source.put(step)
        thread.join(60)
        assert not thread.is_alive()
        assert kept.sequences() == list(range(100))
        assert watch.statuses["camera"].dropped == 0
        go_on.set()
        while True:
            told, _ = viewer.part()
            if told["newest"] and told["newest"]["sequence"] == 99:
                break
    slot.close()


def test_nothing_is_drawn_when_nobody_looks(line, good, monkeypatch):
    drawn = []
    monkeypatch.setattr(channel, "draw", lambda *args: drawn.append(args) or draw(*args))
    one = Page(line.board, {})
    with Server(one.app) as server:
        line.show(good[0])
        assert ask(server.url, get("/api/state"))[0] == 200
        assert drawn == []
        with viewing(server.url) as viewer:
            viewer.part()
        assert len(drawn) == 1
        wait_for(lambda: one._channels["top"]._running is None, "the end of the channel")
        later = line.show(good[1])
        with viewing(server.url, SCRIPT) as viewer:  # another camera's viewer
            viewer.part()
        assert len(drawn) == 1
        with viewing(server.url) as viewer:  # the next one is told of now, and not of then
            told, jpeg = viewer.part()
        assert (told["newest"]["id"], len(drawn)) == (later.event.id, 2)
        assert jpeg


def test_a_mistake_in_drawing_is_said_and_the_decision_is_told_without_a_picture(
    served, good, monkeypatch, caplog
):
    line, url, pupil = served
    monkeypatch.setattr(channel, "QUIET", 0.05)
    fails = [RuntimeError("no memory")]

    def failing(*args):
        if fails:
            raise fails.pop()
        return draw(*args)

    monkeypatch.setattr(channel, "draw", failing)
    first = line.show(good[0])
    with viewing(url) as viewer:
        told, jpeg = viewer.part()
        assert (told["newest"]["id"], told["has_picture"], jpeg) == (first.event.id, False, b"")
        assert "no memory" in caplog.text
        later = line.show(good[1])
        assert next(told["newest"]["id"] for told, jpeg in viewer.parts() if jpeg) == later.event.id
        # Whatever else fails is said as well, and tried again.
        mistakes, lesson = [RuntimeError("no lesson")], pupil.lesson
        pupil.lesson = lambda: lesson() if not mistakes else failing_with(mistakes.pop())
        last = line.show(good[0])
        while viewer.part()[0]["newest"]["id"] != last.event.id:
            pass
    assert "no lesson" in caplog.text


def failing_with(error: Exception) -> None:
    raise error


def test_a_mistake_in_making_a_part_is_said_and_ends_the_stream(served, good, monkeypatch, caplog):
    line, url, _ = served

    def failing(*_):
        raise RuntimeError("no such part")

    monkeypatch.setattr(channel.Channel, "_make", failing)
    line.show(good[0])
    with connected(url) as client:
        client.sendall(get("/api/live"))
        until_closed(client)
    assert "no such part" in caplog.text


def test_a_viewer_gets_parts_of_one_look_while_the_next_is_being_drawn(served, good, monkeypatch):
    line, url, _ = served
    entered, go_on = threading.Event(), threading.Event()
    first = line.show(good[0])
    with viewing(url) as early:
        early.part()

        def held(*args):
            entered.set()
            assert go_on.wait(60)
            return draw(*args)

        monkeypatch.setattr(channel, "draw", held)
        line.show(good[1])
        assert entered.wait(60)
        try:
            with viewing(url) as late:  # what it is told is whole, and of the look before
                told, jpeg = late.part()
            assert told["newest"]["id"] == first.event.id
            assert len(told["points"]) == 1
            assert jpeg
        finally:
            go_on.set()


@pytest.mark.parametrize(("seconds", "pause"), [(0.25, 1.0), (100.0, channel.LONGEST)])
def test_who_draws_slowly_draws_seldom_but_before_browsers_give_up(
    line, good, monkeypatch, seconds, pause
):
    line.show(good[0])
    pauses: list[float] = []
    look = channel.Channel._look

    def slow(self, wanted):
        return dataclasses.replace(look(self, wanted), seconds=seconds)

    async def run(pool) -> None:
        one = channel.Channel(line.board, "top", None, pool, lambda: [1])
        ended = asyncio.Event()

        async def noted(delay):
            pauses.append(delay)
            ended.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(channel.asyncio, "sleep", noted)
        one.enter(channel.Cursor(heat=True))
        await asyncio.wait_for(ended.wait(), 60)
        one.leave(channel.Cursor(heat=True))

    monkeypatch.setattr(channel.Channel, "_look", slow)
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(run(pool))
    assert pauses == [pytest.approx(pause)]
    script = (Path(channel.__file__).parent / "page.js").read_text()
    patience = int(re.search(r"patience: (\d+),", script)[1])
    assert patience >= 2 * 1000 * channel.LONGEST  # time enough to draw the next


# --------------------------------------------------------------------------------------- pictures


def test_anomalies_have_pictures_and_nothing_else_has(served, bad, good):
    line, url, _ = served
    anomaly, fine = line.show(bad[0]), line.show(good[0])
    code, head, body = ask(url, get(f"/api/picture?event={anomaly.event.id}&size=large"))
    assert code == 200
    assert b"content-type: image/jpeg" in head
    assert pixels(body).shape == (96, 96, 3)
    _, _, plain = ask(url, get(f"/api/picture?event={anomaly.event.id}&size=large&heat=0"))
    assert np.abs(pixels(plain) - pixels(body)).mean() > 8
    for event in (fine.event.id, "none", "..%2f..%2fetc%2fpasswd", "%00"):
        assert ask(url, get(f"/api/picture?event={event}"))[0] == 404
    assert ask(url, get(f"/api/picture?event={anomaly.event.id}&size=9999"))[0] == 400
    assert ask(url, get(f"/api/picture?camera=none&event={anomaly.event.id}"))[0] == 400


def test_judging_does_not_wait_for_pictures_of_anomalies(model_file, held):
    """The first picture is not made before all frames, anomalies each, are judged."""
    begun, go_on = held
    slot = ModelSlot(lambda path: Detector(path, "ort", 1, threshold=1e-3), model_file)
    source = Scripted([*pictures(100), END], is_live=False)
    watch, kept = watching([camera(slot, source)])
    board = Board(list(watch.statuses.values()))
    watch.observers.append(board)
    watch.run()
    slot.close()
    assert begun.wait(60)
    assert kept.sequences() == list(range(100))
    assert watch.statuses["camera"].anomalous == 100
    anomalies = list(board.cameras["camera"].anomalies)
    assert [one.lacks for one in anomalies] == [album.FOLLOWS] * album.ANOMALIES
    go_on.set()
    wait_for(lambda: not any(one.lacks for one in anomalies))
    assert [one.seen.captured.sequence for one in anomalies] == list(range(70, 100))
    assert all(one.picture.startswith(b"\xff\xd8") for one in anomalies)


def test_of_too_many_anomalies_the_worst_have_a_picture_and_the_others_say_so(
    served, bad, held, monkeypatch
):
    line, url, _ = served
    monkeypatch.setattr(album, "HELD", 3 * 96 * 96 * 3)
    begun, go_on = held
    with line.slot.using() as detector:
        least, *others, worst = sorted(bad, key=lambda photo: detector(photo).score)
    seen = [line.show(worst)]
    assert begun.wait(60)  # as the only one
    seen += [line.show(photo) for photo in (least, *others)]
    ids = [one.event.id for one in seen]
    follows, not_kept = album.FOLLOWS, album.NOT_KEPT
    asked = [ask(url, get(f"/api/picture?event={event}")) for event in ids]
    assert [code for code, _, _ in asked] == [200, 404, 200, 200]  # drawn of what is held
    assert json.loads(asked[1][2])["error"] == not_kept
    with viewing(url) as viewer:
        listed = (told["anomalies"] for told, _ in viewer.parts() if "anomalies" in told)
        states = ([one["lacks"] for one in reversed(each)] for each in listed)
        assert next(states) == [follows, not_kept, follows, follows]
        go_on.set()
        assert ["", not_kept, "", ""] in states


def test_a_picture_is_of_the_file_that_was_judged(line, bad, good, held, tmp_path):
    begun, go_on = held
    line.show(bad[0])
    assert begun.wait(60)
    seen = line.show(bad[1])
    shown = [tmp_path / "moved.png", tmp_path / "written over.png", tmp_path / "gone.png"]
    for path in shown:
        path.write_bytes(bad[1].read_bytes())
    shown[2].unlink()  # before the board heard of it
    for path in shown:
        line.board(replace(seen, captured=replace(seen.captured, picture=path)))
    shown[0].unlink()
    shown[1].write_bytes(good[0].read_bytes())
    go_on.set()
    anomalies = list(line.board.cameras["top"].anomalies)
    wait_for(lambda: all(one.source is None for one in anomalies))
    assert [one.lacks for one in anomalies] == [""] * 4 + [album.NO_FILE]
    assert {one.picture for one in anomalies[1:4]} == {to_jpeg(bad[1])}
    # That which was made for a sink, in full, is made smaller.
    large = jpeg_of(load_image(bad[1]).resize((2000, 1000)))
    line.board(replace(seen, event=replace(seen.event, picture=large)))
    last = list(line.board.cameras["top"].anomalies)[-1]
    wait_for(lambda: last.picture is not None)
    assert pixels(last.picture).shape == (800, 1600, 3)
    assert last.seen.event.picture is None
    # That which is small enough stays what it is, and is there at once.
    small = jpeg_of(load_image(bad[1]).resize((800, 1600)))
    line.board(replace(seen, event=replace(seen.event, picture=small)))
    last = list(line.board.cameras["top"].anomalies)[-1]
    assert (last.lacks, last.picture) == ("", small)
    assert last.seen.event.picture is None


def test_drawn_pictures_are_kept_in_bounded_memory():
    drawn, made = Drawn(most=1000), []

    def make(name):
        return lambda: made.append(name) or bytes(400)

    for name in "aabac":
        drawn.get(name, make(name))
    assert made == ["a", "b", "c"]
    drawn.get("b", make("b"))  # a was asked for later
    assert made == ["a", "b", "c", "b"]
    assert drawn.get("large", lambda: bytes(5000)) == bytes(5000)
    for number in range(10):  # what there is no picture of takes no room
        assert drawn.get(number, lambda: None) is None
    assert list(drawn._kept) == ["large"]


# --------------------------------------------------------------------------------------- teaching


def test_what_is_asked_of_the_teacher_and_what_it_says(served, bad):
    line, url, pupil = served
    assert isinstance(pupil, Teaching)
    versions = (Version("3", 2.0, SCRIPT, True), Version("2", 1.0, "fit"))
    pupil.now = Lesson(taken=40, promised=1 / 41, warnings=(SCRIPT,), versions=versions)
    event, other = (line.show(photo).event.id for photo in bad[:2])
    pupil.now = replace(pupil.now, said={event: "good", "e0": "bad"})
    for what, wanted in (
        ({"do": "take"}, ("take", True)),
        ({"do": "stop"}, ("take", False)),
        ({"do": "fit"}, ("fit",)),
        ({"do": "good", "event": event}, ("good", event)),
        ({"do": "bad", "event": event}, ("bad", event)),
        ({"do": "undo"}, ("undo", None)),
        ({"do": "undo", "step": "7"}, ("undo", 7)),
        ({"do": "take back", "event": event}, ("take back", event)),
        ({"do": "roll back", "version": "2"}, ("roll back", "2")),
    ):
        assert teach(url, {"camera": "top", **what}) == (200, {"done": what["do"]})
        assert pupil.asked.pop() == wanted
    with viewing(url) as viewer:
        told, _ = viewer.part()
    assert told["lesson"]["promised"] == pytest.approx(1 / 41)
    assert told["lesson"]["warnings"] == [SCRIPT]
    assert [one["name"] for one in told["versions"]] == ["3", "2"]
    assert {one["id"]: one["said"] for one in told["anomalies"]} == {event: "good", other: None}
    row = Row(0.01, (0.002, 0.03), 12.5, 0.75, (0.4, 0.9))
    pupil.found = [row]
    code, told = teach(url, {"camera": "top", "do": "recall"})
    assert (code, told["done"]) == (200, "recall")
    assert told["rows"] == [json.loads(json.dumps(dataclasses.asdict(row)))]
    pupil.refuses = "99 parts are needed"
    assert teach(url, {"camera": "top", "do": "fit"}) == (422, {"error": "99 parts are needed"})


def test_while_a_model_is_taught_more_is_refused_and_all_else_answers(served):
    _, url, pupil = served
    entered, go_on = threading.Event(), threading.Event()

    def slow():
        entered.set()
        assert go_on.wait(60)

    pupil.fit = slow
    fit = {"camera": "top", "do": "fit"}
    said = []
    first = threading.Thread(target=lambda: said.append(teach(url, fit)))
    first.start()
    try:
        assert entered.wait(60)
        for what in (fit, {"camera": "top", "do": "good", "event": "e000001"}):
            code, told = teach(url, what)
            assert (code, "taught already" in told["error"]) == (409, True)
        assert teach(url, {"camera": "top", "do": "stop"})[0] == 200
        assert [ask(url, get(path))[0] for path in ("/", "/api/state")] == [200, 200]
    finally:
        go_on.set()
        first.join()
    assert said == [(200, {"done": "fit"})]
    assert teach(url, fit)[0] == 200


@pytest.mark.parametrize(
    "asked",
    [
        *([], "fit", None, 7, {"do": 7}, {"do": "everything"}, {"do": "fit", "camera": "none"}),
        {"do": "fit", "camera": SCRIPT},
        {"do": {"take": True}},
        {"do": "undo", "step": "-1"},
        {"do": "undo", "step": "9" * 5000},
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(served, asked):
    _, url, pupil = served
    code, said = teach(url, asked)
    assert code == 400
    assert "\n" not in said["error"]
    assert pupil.asked == []


def test_what_is_no_json_is_refused(served):
    _, url, pupil = served
    for body in (b"", b"{", b"\xff", b"[" * 60000):
        head = get("/api/teach", "localhost", f"Content-Length: {len(body)}", method="POST")
        assert ask(url, head + body)[0] == 400
    assert ask(url, get("/api/teach?do=fit"))[0] == 405
    origin = get(
        "/api/teach",
        "localhost",
        "Content-Length: 12",
        "Origin: https://evil.example",
        method="POST",
    )
    assert ask(url, origin + b'{"do":"fit"}')[0] == 403
    assert pupil.asked == []


def test_the_files_of_the_page_are_four(served):
    url = served[1]
    for path, kind in (
        ("/", b"text/html"),
        ("/page.js", b"text/javascript"),
        ("/page.css", b"text/css"),
        ("/base.css", b"text/css"),
    ):
        code, head, _ = ask(url, get(path))
        assert (code, kind in head) == (200, True)
    for path in ("/app.py", "/page.py", "/index.html", "/page.js/", "/../app.py", "/%2e%2e/app.py"):
        assert ask(url, get(path))[0] in (307, 404), path
    code, _, body = ask(url, get("/api/live", method="HEAD"))
    assert (code, body) == (200, b"")
