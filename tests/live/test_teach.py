"""Teaching on the device: over a real slot, real ONNX Runtime, small embeddings."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import resource
import shutil
import time

import numpy as np
import pytest
from lessons import captured, seen, teaching
from PIL import Image

from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.saved import SavedMoments
from padim_edge.fit.settings import Settings
from padim_edge.images.formats import BIT_DEPTHS
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess
from padim_edge.live.page.teaching import Teaching
from padim_edge.live.teach import NICE, Teacher
from padim_edge.live.versions import Versions
from padim_edge.model.file import read
from padim_edge.model.threshold import rate_interval

SETTINGS = Settings(Preprocess.whole((64, 64)))


def until(condition, seconds=60.0):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def scores_of(path):
    return np.array(read(path, "padim").detector_info.good_scores)


@pytest.fixture
def bad(photos):
    return sorted((photos / "test").glob("[!g]*/*.png"))


@pytest.fixture
def other(photos):
    return sorted((photos / "test" / "good").iterdir())


def take_all(teacher, files):
    for file in files:
        assert teacher.take_frame(captured(file))


def test_from_nothing_to_a_detector_that_is_that_of_fit(embedding_file, good, tmp_path):
    with teaching(tmp_path / "state", embedding_file) as (teacher, slot):
        assert isinstance(teacher, Teaching)
        assert slot.path is None
        assert teacher.lesson().promised is None
        teacher.take(count=len(good))
        for file in good:
            before = len(teacher.versions.state.good)
            teacher(seen(slot, file))
            until(lambda before=before: len(teacher.versions.state.good) > before)
        until(lambda: not teacher.lesson().is_taking)
        lesson = teacher.lesson()
        assert lesson.taken == 12
        assert lesson.promised == pytest.approx(1 / 13)
        teacher.fit()
        assert slot.path == tmp_path / "state" / "versions" / "0001.onnx"
        (version,) = teacher.lesson().versions
        assert (version.name, version.is_current) == ("0001", True)
        assert version.note == "fit on 12 parts"
    fit_detector(embedding_file, good, tmp_path / "whole.onnx", SETTINGS)
    info = read(tmp_path / "whole.onnx", "padim").detector_info
    taught = read(tmp_path / "state" / "versions" / "0001.onnx", "padim").detector_info
    assert taught.good_scores == pytest.approx(info.good_scores, rel=1e-4)
    assert taught.digests == info.digests
    assert taught.appearance == info.appearance


def test_frames_are_kept_without_loss(embedding_file, good, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    grey = np.random.default_rng(1).integers(0, 256, (70, 90)).astype(np.uint8)
    with teaching(tmp_path, embedding_file) as (teacher, _):
        teacher.take_frame(captured(Frame(pixels[..., ::-1], "bgr")))
        teacher.take_frame(captured(Frame(grey, "grey8")))
        prepared = SETTINGS.preprocess(pixels)
        assert np.array_equal(np.asarray(Image.open(teacher.versions.photo(1))), prepared)
        assert np.array_equal(np.asarray(Image.open(teacher.versions.frame(1))), pixels)
        assert np.array_equal(np.asarray(Image.open(teacher.versions.frame(2))), grey)


@pytest.mark.parametrize("bits", BIT_DEPTHS)
def test_a_kept_frame_is_read_as_bright_as_it_was_judged(bits, embedding_file, tmp_path):
    values = np.random.default_rng(1).integers(0, 2**bits, (70, 90)).astype(np.uint16)
    frame = Frame(values, f"grey{bits}")
    with teaching(tmp_path, embedding_file) as (teacher, _):
        teacher.take_frame(captured(frame))
        kept = teacher.versions.frame(1)
        # Scaled without loss: each of the values can be told again.
        white = 2**bits - 1
        stored = np.asarray(Image.open(kept)).astype(np.int64)
        assert np.array_equal((stored * white + 32767) // 65535, values)
        judged = SETTINGS.preprocess(frame).astype(int)
        assert np.abs(SETTINGS.preprocess(kept).astype(int) - judged).max() <= 1
        assert np.array_equal(np.asarray(Image.open(teacher.versions.photo(1))), judged)
    # So is a file of 16 bits that the camera does not fill.
    file = tmp_path / "of a camera.png"
    Image.fromarray(values).save(file)
    its = dataclasses.replace(SETTINGS.preprocess, bit_depth=bits)
    settings = dataclasses.replace(SETTINGS, preprocess=its)
    with teaching(tmp_path / "files", embedding_file, settings=settings) as (teacher, _):
        teacher.take_frame(dataclasses.replace(captured(frame), picture=file))
        again = np.asarray(Image.open(teacher.versions.frame(1)))
        assert np.array_equal(again, stored)
        assert np.array_equal(np.asarray(Image.open(teacher.versions.photo(1))), judged)


def test_near_copies_do_not_count(embedding_file, good, tmp_path):
    rng = np.random.default_rng(0)
    first = np.asarray(Image.open(good[0]).convert("RGB"))
    noisy = np.clip(first + rng.normal(0, 3, first.shape), 0, 255).astype(np.uint8)
    with teaching(tmp_path, embedding_file) as (teacher, _):
        take_all(teacher, good[:3])
        assert not teacher.take_frame(captured(good[2])), "the same frame again"
        assert teacher.take_frame(captured(noisy))
        lesson = teacher.lesson()
        assert lesson.taken == 3
        assert "part 4 is nearly equal to part 1" in lesson.warnings[-1]
        assert lesson.interval == rate_interval(3, 1 / 4)
        teacher.fit()
        info = read(teacher.versions.model(1), "padim").detector_info
        assert (info.images, len(info.good_scores)) == (4, 3)


def test_a_part_that_stands_still_is_one_part(embedding_file, tmp_path):
    rng = np.random.default_rng(0)
    scene = np.repeat(np.mgrid[:288, :288].sum(axis=0)[..., None] * 0.4, 3, axis=2)
    with teaching(tmp_path, embedding_file) as (teacher, _):
        for _ in range(6):
            noisy = np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
            teacher.take_frame(captured(noisy))
        assert teacher.lesson().taken == 1
        assert teacher.skipped == 5
        with pytest.raises(PadimEdgeError, match="1 usable image given"):
            teacher.fit()
        assert teacher.lesson().failed.startswith("1 usable image")


def test_an_odd_part_is_named(embedding_file, good, tmp_path):
    odd = np.array(Image.open(good[0]).convert("RGB"))
    odd[20:70, 20:70] = [255, 0, 0]
    with teaching(tmp_path, embedding_file) as (teacher, _):
        take_all(teacher, good[1:])
        teacher.take_frame(captured(odd))
        assert any("part 12 is very unlike" in one for one in teacher.lesson().warnings)
        assert teacher.lesson().odd == (12,)
        teacher.leave_out("12")
        assert (teacher.lesson().taken, teacher.lesson().odd) == (11, ())
        with pytest.raises(UsageError, match="part 12 is none"):
            teacher.leave_out("12")
        with pytest.raises(UsageError, match="part 0 is none"):
            teacher.leave_out("x")


def test_what_ends_with_stop_is_looked_through_beside_judging(embedding_file, good, tmp_path):
    odd = np.array(Image.open(good[0]).convert("RGB"))
    odd[20:70, 20:70] = [255, 0, 0]
    settings = dataclasses.replace(SETTINGS, false_alarm_rate=0.1)
    with teaching(tmp_path, embedding_file, settings=settings) as (teacher, _):
        teacher.take()
        take_all(teacher, good[2:])  # the tenth is looked through, the next when there are twenty
        teacher.take_frame(captured(odd))
        lesson = teacher.lesson()
        assert lesson.odd == ()
        assert lesson.promised == 0.1  # what the fit will set, though 1 / 12 could be had
        assert lesson.interval == rate_interval(11, 0.1)
        teacher.take(False)
        until(lambda: teacher.lesson().odd == (11,))
        assert os.getpriority(os.PRIO_PROCESS, teacher._worker.native_id) >= NICE


def test_whatever_an_engine_raises_ends_taking_and_is_said(embedding_file, good, tmp_path):
    said = []
    with teaching(tmp_path, embedding_file, say=lambda *one: said.append(one)) as (teacher, slot):

        class Broken:
            shapes = teacher._backbone.shapes

            def __call__(self, _images):
                raise RuntimeError("CUDA error 700")

        working, teacher._backbone = teacher._backbone, Broken()
        for times in (1, 2):
            teacher.take()
            assert teacher.lesson().failed == ""  # what is said then is said of this
            teacher(seen(slot, good[0]))
            until(lambda: len(said) == times)  # noqa: B023 - called at once
            assert said[-1] == ("watch", None, "no more parts are taken: CUDA error 700")
            lesson = teacher.lesson()
            assert (lesson.failed, lesson.is_taking) == ("CUDA error 700", False)
        teacher._backbone = working
        teacher.take()
        teacher(seen(slot, good[0]))
        until(lambda: teacher.lesson().taken == 1)


def test_what_cannot_be_written_down_does_not_judge(embedding_file, good, tmp_path, monkeypatch):
    def full(_record):
        raise PadimEdgeError("the disk is full")

    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good[:4])

        def refused(do, *arguments):
            with monkeypatch.context() as patch:
                patch.setattr(teacher.versions, "_line", full)
                with pytest.raises(PadimEdgeError, match="the disk is full"):
                    do(*arguments)

        refused(teacher.fit)
        assert slot.path is None
        assert list((tmp_path / "versions").iterdir()) == []
        teacher.fit()
        teacher.fit()
        refused(teacher.undo)
        assert slot.path.stem == "0002"
        refused(teacher.roll_back, "0001")
        assert slot.path.stem == "0002"
        refused(teacher.fit)
        assert slot.path.stem == "0002"


@pytest.mark.parametrize("preset", ["reference", "whitened"])
def test_this_was_good_is_a_fit_of_all(
    preset, embedding_file, whole_embedding, good, other, bad, tmp_path
):
    embedding = embedding_file if preset == "reference" else whole_embedding
    settings = dataclasses.replace(SETTINGS, preset=preset, constants="float32")
    alarm = np.array(Image.open(other[0]).convert("RGB"))
    alarm[30:60, 30:60] = [255, 0, 0]
    with teaching(tmp_path / "state", embedding, settings=settings) as (teacher, slot):
        take_all(teacher, good)
        teacher.fit()
        frame = seen(slot, alarm)
        assert frame.outcome.is_anomalous
        teacher(frame)
        teacher.was_good(frame.event.id)
        assert [one.name for one in teacher.lesson().versions] == ["0002", "0001"]
        again = seen(slot, alarm).outcome
        assert not again.is_anomalous
        assert again.score < frame.outcome.score
        with slot.using() as detector:
            assert detector.detector_info.images == 13
        state, model = teacher.versions, read(embedding, "embedding")
        first = SavedMoments.load(state.moments(1), model, settings)
        taught = SavedMoments.load(state.moments(2), model, settings)
        # The score that joins is the one under the fit of all others, which raised the alarm.
        assert taught.scores[-1] == pytest.approx(frame.outcome.score, rel=2e-3)
        assert list(taught.scores[:-1]) == list(first.scores)
    Image.fromarray(alarm).save(tmp_path / "alarm.png")
    fit_detector(
        embedding,
        [*good, tmp_path / "alarm.png"],
        tmp_path / "all.onnx",
        # A basis is that of the first fit; so of a whitened preset the scale alone can be compared.
        settings,
        save_moments=tmp_path / "all.npz",
    )
    if preset == "reference":
        whole = SavedMoments.load(tmp_path / "all.npz", model, settings)
        for one, two in zip(taught.moments.means, whole.moments.means, strict=True):
            assert one == pytest.approx(two, abs=1e-5)
        for key, scatter in taught.moments.scatters.items():
            assert scatter == pytest.approx(whole.moments.scatters[key], abs=1e-4)
    else:
        assert np.array_equal(taught.basis.directions, first.basis.directions)


def test_a_good_part_that_is_nearly_known_is_left_out_with_its_like(embedding_file, good, tmp_path):
    alarm = np.array(Image.open(good[0]).convert("RGB"))
    alarm[40:48, 40:48] = 255 - alarm[40:48, 40:48]  # too small for the small picture to tell
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good)
        teacher.fit()
        frame = seen(slot, alarm)
        teacher(frame)
        teacher.was_good(frame.event.id)
        info = read(teacher.versions.model(2), "padim").detector_info
        assert (info.images, len(info.good_scores)) == (13, 12)


def test_bad_parts_set_nothing_and_tell_the_recall(embedding_file, good, bad, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good)
        teacher.fit()
        frames = [seen(slot, file) for file in bad[:3]]
        for frame in frames:
            teacher(frame)
            teacher.was_bad(frame.event.id)
        found = sum(frame.outcome.is_anomalous for frame in frames)
        opener, asked = slot.opener, []
        slot.opener = lambda path: asked.append(path) or opener(path)
        rows = teacher.recall()
        assert asked == [slot.path]  # judged by what the watch judges with
        assert rows[0].recall == pytest.approx(found / 3)
        assert rows[0].false_alarm_rate == pytest.approx(1 / 13)
        with pytest.raises(UsageError, match="kept as bad already"):
            teacher.was_bad(frames[0].event.id)
        assert len(teacher.lesson().versions) == 1


def test_what_was_said_of_an_event_can_be_taken_back(embedding_file, good, other, bad, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good)
        teacher.fit()
        was_good, was_bad, later = (seen(slot, file) for file in (other[0], bad[0], other[1]))
        for frame in (was_good, was_bad, later):
            teacher(frame)
        teacher.was_good(was_good.event.id)
        teacher.was_bad(was_bad.event.id)
        assert teacher.take_frame(captured(other[2]))  # waits for the next fit
        assert teacher.lesson().bad == 1
        assert teacher.lesson().said == {was_good.event.id: "good", was_bad.event.id: "bad"}
        for say, event in ((teacher.was_bad, was_good), (teacher.was_good, was_bad)):
            with pytest.raises(UsageError, match="already: take that back first"):
                say(event.event.id)
        with pytest.raises(UsageError, match=f"said of {later.event.id}: look again"):
            teacher.take_back(later.event.id)

        teacher.take_back(was_bad.event.id)
        assert (teacher.lesson().bad, slot.path.stem) == (0, "0002")
        with pytest.raises(UsageError, match="0 bad parts"):
            teacher.recall()
        # Though other things were done since, the detector is that of all others.
        teacher.take_back(was_good.event.id)
        assert slot.path.stem == "0003"
        assert teacher.lesson().said == {}
        assert scores_of(slot.path) == pytest.approx(scores_of(teacher.versions.model(1)), rel=1e-6)
        assert len(teacher.versions.state.good) == 13
        for event in (was_good.event.id, was_bad.event.id):
            with pytest.raises(UsageError, match="nothing holds now"):
                teacher.take_back(event)
    with teaching(tmp_path, embedding_file) as (teacher, slot):  # and it is known after a restart
        assert (slot.path.stem, teacher.lesson().said) == ("0003", {})
        teacher.undo()
        assert slot.path.stem == "0002"
        assert teacher.lesson().said == {was_good.event.id: "good"}
        teacher.undo()
        assert teacher.lesson().said == {was_good.event.id: "good", was_bad.event.id: "bad"}
        teacher.roll_back("0001")
        assert teacher.lesson().said == {was_bad.event.id: "bad"}  # it is good in no detector now


def test_a_part_that_was_taken_and_then_learnt_is_known_by_its_event(
    embedding_file, good, other, tmp_path
):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good)
        teacher.fit()
        frame = seen(slot, other[0])
        assert teacher.take_frame(frame.captured)
        teacher(frame)
        assert teacher.lesson().said == {}
        teacher.was_good(frame.event.id)
        assert teacher.lesson().said == {frame.event.id: "good"}
        teacher.undo()
        assert teacher.lesson().said == {}
        assert teacher.lesson().taken == 13


def test_what_cannot_be_taken_back_stays_as_it_was(embedding_file, good, other, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good[:3])
        teacher.fit()
        frame = seen(slot, other[0])
        teacher(frame)
        teacher.was_good(frame.event.id)
        teacher.roll_back("0001")
        teacher.versions.undo()
        settings = dataclasses.replace(teacher.settings, false_alarm_rate=0.22)  # needs four
        teacher.settings = settings
        with pytest.raises(PadimEdgeError, match="too few for a false-alarm rate"):
            teacher.take_back(frame.event.id)
        assert teacher.lesson().said == {frame.event.id: "good"}
        assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == [
            *("0001.npz", "0001.onnx", "0002.npz", "0002.onnx")
        ]


def test_of_two_who_undo_the_same_the_second_undoes_nothing(embedding_file, good, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, _):
        take_all(teacher, good[:3])
        step = teacher.lesson().step
        teacher.undo(step)
        with pytest.raises(UsageError, match=r"since this was asked for.*: part 2 was taken"):
            teacher.undo(step)
        assert teacher.lesson().taken == 2
        teacher.undo(teacher.lesson().step)
        assert teacher.lesson().taken == 1


def test_a_lesson_never_names_a_step_that_is_newer_than_what_it_says(
    embedding_file, good, tmp_path, monkeypatch
):
    with teaching(tmp_path, embedding_file) as (teacher, _):
        take_all(teacher, good[:2])
        said = teacher._undoable()

        def late():
            take_all(teacher, good[2:3])  # while the lesson is being put together
            return said

        with monkeypatch.context() as patch:
            patch.setattr(teacher, "_undoable", late)
            lesson = teacher.lesson()
        assert lesson.undoable == "part 2 was taken"
        with pytest.raises(UsageError, match=r"since this was asked for.*: part 3 was taken"):
            teacher.undo(lesson.step)


def test_a_step_is_counted_after_it_is_done(embedding_file, good, tmp_path, monkeypatch):
    changed = []

    def noting(self, name, value):
        changed.append(name)
        object.__setattr__(self, name, value)

    with teaching(tmp_path, embedding_file) as (teacher, _):
        monkeypatch.setattr(Versions, "__setattr__", noting)
        take_all(teacher, good[:1])
        assert [name for name in changed if name in ("state", "steps")] == ["state", "steps"]
        del changed[:]
        before = teacher.versions._before
        teacher.undo()
        assert [name for name in changed if name in ("state", "steps")] == ["state", "steps"]
        assert len(before) == 1  # who reads that list meanwhile finds it whole


def test_to_roll_back_twice_is_to_roll_back(embedding_file, good, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good)
        for _ in range(2):
            teacher.fit()
        for _ in range(2):
            teacher.roll_back("0001")
        teacher.undo()
        assert slot.path.stem == "0002"


def test_a_fit_ends_taking(embedding_file, good, tmp_path):
    """Or a defect that the detector finds would be in the next one."""
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        teacher.take()
        take_all(teacher, good[:4])
        teacher.fit()
        assert not teacher.lesson().is_taking
        teacher(seen(slot, good[5]))
        assert teacher._offered.empty()


def test_a_frame_that_waits_when_taking_ends_is_not_taken(embedding_file, good, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        with teacher._lock:  # as while something is fitted
            teacher.take()
            teacher(seen(slot, good[0]))
            until(teacher._offered.empty)
            teacher.take(False)
        until(teacher._offered.empty)
        assert teacher.lesson().taken == 0


def test_what_waits_for_its_turn_when_the_watch_ends_is_refused(embedding_file, good, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, _):
        take_all(teacher, good[:4])
        teacher.close()
        before = sorted((tmp_path / "photos").iterdir())
        for do in (teacher.fit, teacher.undo, lambda: teacher.take_frame(captured(good[5]))):
            with pytest.raises(PadimEdgeError, match="the watch is ending"):
                do()
        assert sorted((tmp_path / "photos").iterdir()) == before


def test_a_full_disk_changes_nothing(embedding_file, good, other, tmp_path):
    """The system itself refuses: files of this process may be so long and no longer."""

    @contextlib.contextmanager
    def full(most):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good[:4])
        with full(20_000), pytest.raises(PadimEdgeError, match="cannot write"):
            teacher.fit()
        assert slot.path is None
        assert list((tmp_path / "versions").iterdir()) == []
        teacher.fit()
        frame = seen(slot, other[0])
        teacher(frame)
        used, state = teacher.versions.bytes, teacher.versions.state
        journal = (tmp_path / "journal.jsonl").read_bytes()
        for most in (2000, len(journal) + 20):  # the photo is not written; then the line is not
            for say in (teacher.was_good, teacher.was_bad):
                with full(most), pytest.raises(PadimEdgeError, match="cannot write"):
                    say(frame.event.id)
                assert (teacher.versions.bytes, teacher.versions.state) == (used, state)
                assert (tmp_path / "journal.jsonl").read_bytes() == journal
                assert len(list((tmp_path / "photos").iterdir())) == 4
        teacher.was_good(frame.event.id)
        assert slot.path.stem == "0002"


def test_undo_goes_back_step_by_step(embedding_file, good, other, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        with pytest.raises(UsageError, match="nothing to undo"):
            teacher.undo()
        take_all(teacher, good)
        assert teacher.lesson().undoable == "part 12 was taken"
        teacher.undo()
        assert not teacher.versions.photo(12).exists()
        assert teacher.lesson().taken == 11
        teacher.fit()
        assert teacher.lesson().undoable == ""
        with pytest.raises(UsageError, match="the first detector has none before it"):
            teacher.undo()
        frame = seen(slot, other[0])
        teacher(frame)
        teacher.was_good(frame.event.id)
        assert slot.path.stem == "0002"
        teacher.undo()
        assert slot.path.stem == "0001"
        assert teacher.lesson().taken == 11
        teacher.was_good(frame.event.id)  # again
        assert slot.path.stem == "0003"


def test_every_version_can_be_taken_back_up(embedding_file, good, other, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good)
        teacher.fit()
        first = slot.path.read_bytes()
        for file in other[:2]:
            frame = seen(slot, file)
            teacher(frame)
            teacher.was_good(frame.event.id)
        assert teacher.lesson().taken == 14
        teacher.roll_back("0001")
        assert teacher.lesson().taken == 12
        assert slot.path.read_bytes() == first
        current = [one.name for one in teacher.lesson().versions if one.is_current]
        assert current == ["0001"]
        teacher.undo()
        assert slot.path.stem == "0003"
        for name in ("0009", "x", ""):
            with pytest.raises(UsageError, match="there is no version"):
                teacher.roll_back(name)


def test_it_goes_on_where_it_was(embedding_file, good, other, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good[:8])
        teacher.fit()
        take_all(teacher, good[8:])
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        assert slot.path.stem == "0001"
        assert teacher.lesson().taken == 12
        frame = seen(slot, other[0])
        teacher(frame)
        teacher.was_good(frame.event.id)
        info = read(slot.path, "padim").detector_info
        assert info.images == 9  # what was taken since waits for a fit
        teacher.fit()
        assert read(slot.path, "padim").detector_info.images == 13
        frame = seen(slot, other[1])
        assert teacher.take_frame(frame.captured)
        teacher(frame)
        teacher.was_good(frame.event.id)  # one that was taken already is not there twice
        assert len(teacher.versions.photos) == teacher.lesson().taken == 14
        assert read(slot.path, "padim").detector_info.images == 14


def test_only_its_own_cameras_and_only_held_frames(embedding_file, good, tmp_path):
    with teaching(tmp_path, embedding_file, cameras=["left"], held_bytes=4 * 3 * 96 * 96) as both:
        teacher, slot = both
        teacher.take()
        teacher(seen(slot, good[0], "right"))
        assert teacher._offered.empty()
        teacher.take(False)
        take_all(teacher, good)
        teacher.fit()
        frames = [seen(slot, file, "left") for file in good[:4]]
        for frame in frames:
            teacher(frame)
        with pytest.raises(UsageError, match=r"is not held any more.*choose a newer"):
            teacher.was_bad(frames[0].event.id)
        teacher.was_bad(frames[-1].event.id)


def test_of_a_file_the_part_that_was_judged_is_learnt(embedding_file, good, other, tmp_path):
    """Whatever becomes of it afterwards."""
    latest = tmp_path / "latest.png"

    def shown(photo, slot):
        one = seen(slot, photo)
        latest.write_bytes(photo.read_bytes())
        its = dataclasses.replace(one.captured, picture=latest, name=str(latest))
        return dataclasses.replace(one, captured=its)

    def is_of(number, photo):
        kept = np.asarray(Image.open(teacher.versions.photo(number)))
        whole = np.asarray(Image.open(teacher.versions.frame(number)))
        judged = np.asarray(Image.open(photo).convert("RGB"))
        return np.array_equal(kept, SETTINGS.preprocess(judged)) and np.array_equal(whole, judged)

    with teaching(tmp_path / "taught", embedding_file) as (teacher, slot):
        teacher.take()
        with teacher._lock:  # the thread that takes waits
            teacher(shown(good[0], slot))
            latest.write_bytes(other[0].read_bytes())
        until(lambda: teacher.lesson().taken == 1)
        assert is_of(1, good[0])
        teacher.take(False)
        take_all(teacher, good[1:])
        teacher.fit()
        for say, photo in ((teacher.was_bad, other[0]), (teacher.was_good, other[1])):
            frame = shown(photo, slot)
            teacher(frame)
            latest.write_bytes(good[0].read_bytes())
            say(frame.event.id)
            assert is_of(max(teacher.versions.photos), photo)
        assert sum(one._bytes for one in teacher._held) > 2 * 4096 + other[0].stat().st_size
        frame = shown(other[2], slot)
        latest.unlink()
        teacher(frame)
        with pytest.raises(ImageError, match=r"latest.png cannot be read any more \(No such"):
            teacher.was_bad(frame.event.id)


def test_what_does_not_fit_is_refused_in_one_line(embedding_file, good, tmp_path):
    unfit = {
        "ledoit-wolf has no moments": dataclasses.replace(SETTINGS, covariance="ledoit-wolf"),
        "preprocessing gives": Settings(Preprocess.whole((32, 32))),
    }
    for message, settings in unfit.items():
        with (
            pytest.raises(UsageError, match=message),
            teaching(tmp_path / "a", embedding_file, settings=settings),
        ):
            raise AssertionError
    with teaching(tmp_path / "b", embedding_file) as (teacher, _):
        with (
            pytest.raises(PadimEdgeError, match="in use by another process"),
            teaching(tmp_path / "b", embedding_file),
        ):
            raise AssertionError
        with pytest.raises(UsageError, match="no good parts were taken"):
            teacher.fit()
    other = dataclasses.replace(SETTINGS, sigma=2.0)
    with (
        pytest.raises(UsageError, match="was taught with another sigma"),
        teaching(tmp_path / "b", embedding_file, settings=other),
    ):
        raise AssertionError


def test_a_quantised_backbone_is_taught_like_any(embedding_file, good, tmp_path):
    pytest.importorskip("onnxruntime.quantization")
    from padim_edge.fit.quantised import quantise_embedding
    from padim_edge.images.batches import refuse
    from padim_edge.progress import silent

    made = quantise_embedding(
        read(embedding_file, "embedding"), good, SETTINGS.preprocess, "cpu", refuse, silent
    )
    with teaching(tmp_path, made.model) as (teacher, slot):
        take_all(teacher, good)
        teacher.fit()
        assert read(slot.path, "padim").backbone_info.precision == "int8"
        assert seen(slot, good[0]).outcome.score > 0


def test_watch_has_its_engine_run_the_backbone(embedding_file, tmp_path):
    pytest.importorskip("openvino", reason="needs openvino: pip install 'padim-edge[openvino]'")
    pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'padim-edge[live]'")
    pytest.importorskip("starlette", reason="needs starlette: pip install 'padim-edge[live]'")
    from padim_edge.live.assembly import Assembly, Plan, Voice, Wish

    voice = Voice(print, print, lambda *_: None, contextlib.nullcontext)
    for engine, runs in {"openvino": "OpenVINO", "openvino-bf16": "ONNX Runtime"}.items():
        plan = Plan(
            [Wish(embedding_file, str(tmp_path))],
            page="127.0.0.1:0",
            state=tmp_path / engine,
            engine=engine,
            threads=1,
        )
        with Assembly(plan, voice) as assembly:
            (teacher,) = (one for one in assembly.watch.observers if isinstance(one, Teacher))
            assert runs in teacher._backbone.described


def test_two_embeddings_of_one_name_are_refused_by_name(embedding_file, tmp_path):
    from padim_edge.live.assembly import Assembly, Plan, Voice, Wish

    voice = Voice(print, print, lambda *_: None, contextlib.nullcontext)
    other = tmp_path / "other" / embedding_file.name
    other.parent.mkdir()
    shutil.copy(embedding_file, other)
    plan = Plan(
        [Wish(embedding_file, str(tmp_path)), Wish(other, str(tmp_path))],
        page="127.0.0.1:0",
        state=tmp_path / "state",
    )
    both = f"{re.escape(str(embedding_file))} and of {re.escape(str(other))}"
    with pytest.raises(UsageError, match=f"{both} would be kept in the same folder"):
        Assembly(plan, voice).__enter__()
    assert not (tmp_path / "state").exists()


def test_a_full_folder_drops_old_versions_and_then_refuses(embedding_file, good, tmp_path):
    with teaching(tmp_path, embedding_file) as (teacher, slot):
        take_all(teacher, good)
        teacher.fit()
        each = teacher.versions.model(1).stat().st_size + teacher.versions.moments(1).stat().st_size
        photos = teacher.versions.bytes - each
        teacher.versions.max_bytes = photos + int(4.5 * each)
        for _ in range(5):
            teacher.fit()
        assert sorted(teacher.versions.dropped) == [1, 2]
        assert len(teacher.lesson().versions) == 4
        with pytest.raises(UsageError, match="0001 was removed for room"):
            teacher.roll_back("0001")
        teacher.versions.max_bytes = photos
        with pytest.raises(PadimEdgeError, match="are used up"):
            teacher.fit()
        assert slot.path.stem == "0006"
        assert not (tmp_path / "versions" / "0007.onnx").exists()
