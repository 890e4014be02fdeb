"""Judging a stream: verdicts as they come, in bounded memory, whatever the source."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from padim_edge.detect.detector import Detector
from padim_edge.detect.judging import Verdict, judge
from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.images.batches import PATIENCE
from padim_edge.images.decode import load_image
from padim_edge.images.find import find_images
from padim_edge.images.frames import Frame, Shot, files
from padim_edge.runtime.engines import FrameEngine


@pytest.fixture(scope="module")
def detector(model_file):
    with Detector(model_file, "ort") as detector:
        yield detector


def camera(count=None, bad=()):
    """A source that never ends, or after some frames; notes how many were asked for."""
    generator = np.random.default_rng(0)
    asked = []

    def shots():
        for number in itertools.count() if count is None else range(count):
            asked.append(number)
            frame = generator.integers(0, 256, (48, 80, 3), dtype=np.uint8)

            def take(number=number, frame=frame):
                if number in bad:
                    raise ImageError(f"frame {number}: torn")
                return frame

            yield Shot(f"frame {number}", take)

    return shots(), asked


def test_files_are_judged_as_the_detector_judges_each(detector, photos):
    paths = find_images(photos / "test")
    verdicts = list(judge(detector, files(paths), batch=3))
    assert [verdict.name for verdict in verdicts] == paths
    for path, verdict in zip(paths, verdicts, strict=True):
        alone = detector(load_image(path))
        np.testing.assert_allclose(verdict.outcome.score_map, alone.score_map, rtol=1e-4)
        assert verdict.to_json()["path"] == str(path)


def test_a_camera_gets_its_verdict_before_the_next_frame_is_asked_for(detector):
    shots, asked = camera()
    for number, verdict in zip(range(5), judge(detector, shots, batch=1, ahead=0), strict=False):
        assert asked == list(range(number + 1))
        assert verdict.to_json()["name"] == f"frame {number}"


@pytest.mark.parametrize(("batch", "ahead"), [(1, 0), (1, 2), (4, 0), (3, None)])
def test_a_stream_without_end_is_read_no_further_than_said(detector, batch, ahead):
    shots, asked = camera()
    verdicts = judge(detector, shots, batch, ahead)
    for number in range(3 * batch):
        next(verdicts)
        reach = batch + 4 if ahead is None else ahead
        assert len(asked) <= (number // batch + 1) * batch + reach
    verdicts.close()


@pytest.mark.parametrize("ahead", [None, 0])
def test_bad_frames_are_verdicts_in_their_place(detector, ahead):
    shots, _ = camera(7, bad={0, 2, 3, 6})
    verdicts = list(judge(detector, shots, 2, ahead))
    assert [verdict.name for verdict in verdicts] == [f"frame {number}" for number in range(7)]
    bad = [isinstance(verdict.outcome, ImageError) for verdict in verdicts]
    assert bad == [True, False, True, True, False, False, True]
    assert verdicts[2].to_json() == {"name": "frame 2", "error": "frame 2: torn"}


def test_a_good_frame_does_not_wait_for_ever_behind_bad_ones(detector):
    shots, asked = camera(bad=range(1, 10**6))
    first = next(judge(detector, shots, 2, ahead=0))
    assert not isinstance(first.outcome, ImageError)
    assert len(asked) <= PATIENCE * 2 + 1


def test_a_source_that_fails_is_the_end(detector):
    def torn():
        yield from itertools.islice(camera()[0], 2)
        raise PadimEdgeError("the camera went away")

    verdicts = judge(detector, torn(), 1, ahead=0)
    assert isinstance(next(verdicts), Verdict)
    assert isinstance(next(verdicts), Verdict)
    with pytest.raises(PadimEdgeError, match="went away"):
        next(verdicts)


# --- engines that prepare frames themselves ---------------------------------------------------


class Resizing:
    """Around a real engine: prepares frames wider than high itself, and notes what it was given."""

    def __init__(self, detector):
        self.inner = detector.engine
        self.preprocess = detector.detector_info.preprocess
        self.whole, self.arrays = [], []

    def takes(self, frame):
        return frame.pixels.shape[1] > frame.pixels.shape[0]

    def infer_frames(self, frames):
        self.whole += frames
        return self.inner.infer(np.stack([self.preprocess(frame) for frame in frames]))

    def frame_stages(self, frames):
        raise NotImplementedError

    def infer(self, images):
        self.arrays += list(images)
        return self.inner.infer(images)


def test_an_engine_that_can_resize_is_given_the_frame_and_the_others_are_prepared(
    detector, monkeypatch
):
    assert not isinstance(detector.engine, FrameEngine)
    generator = np.random.default_rng(1)
    shapes = [(48, 80, 3), (80, 48, 3), (50, 90, 3), (64, 64, 3)]
    frames = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    expected = [result.score for result in map(detector, frames)]
    engine = Resizing(detector)
    monkeypatch.setattr(detector, "engine", engine)
    assert isinstance(engine, FrameEngine)
    found = [result.score for result in detector.batch([*frames[:2], Frame(frames[2]), frames[3]])]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # Not copies: the very pixels of the camera.
    assert all(frame.pixels is frames[i] for frame, i in zip(engine.whole, (0, 2), strict=True))
    assert {frame.pixel_format for frame in engine.whole} == {"rgb"}
    assert [image.shape for image in engine.arrays] == [(64, 64, 3)] * 2


def test_a_pixel_format_that_would_be_taken_for_another_is_refused():
    with pytest.raises(UsageError, match="no pixel format 'rbg'; allowed are rgb"):
        Frame(np.zeros((2, 2, 3), np.uint8), "rbg")


def test_a_stream_reaches_such_an_engine_unprepared(detector, monkeypatch):
    engine = Resizing(detector)
    monkeypatch.setattr(detector, "engine", engine)
    shots, _ = camera(3)
    assert len(list(judge(detector, shots, 2))) == 3
    assert [frame.pixels.shape for frame in engine.whole] == [(48, 80, 3)] * 3
    assert not engine.arrays
