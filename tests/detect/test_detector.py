"""The Python interface."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from PIL import Image

import padim_edge
from padim_edge import Detector
from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.images.find import find_images
from padim_edge.images.frames import Frame
from padim_edge.model.file import read
from padim_edge.runtime.engines import ENGINES, open_engine


@pytest.fixture(scope="module")
def detector(model_file):
    with Detector(model_file) as opened:
        yield opened


def frame(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (480, 640), (31, 97), (1, 1), (2000, 50)])
def test_a_frame_of_any_size(detector, size):
    result = detector(frame(*size))
    assert result.score_map.shape == (64, 64)
    assert result.score_map.dtype == np.float32
    assert result.score == pytest.approx(result.score_map.max())
    assert result.threshold == detector.detector_info.threshold
    assert result.is_anomalous == (result.score > result.threshold)
    assert 0 <= result.percentile <= 100


def test_a_batch_equals_its_frames(detector):
    frames = [frame(64, 64, 1), frame(100, 80, 2), frame(300, 200, 3)]
    for one, together in zip(map(detector, frames), detector.batch(frames), strict=True):
        np.testing.assert_allclose(one.score_map, together.score_map, rtol=1e-4)
        assert one.percentile == together.percentile


def test_an_array_and_its_picture_are_judged_alike(detector):
    pixels = frame(120, 90)
    assert detector(pixels).score == detector(Image.fromarray(pixels)).score


def test_a_path_is_prepared_as_the_fit_did(detector, photos):
    path = find_images(photos / "test" / "good")[0]
    expected = detector.judge(detector.detector_info.preprocess(path)[None])[0].score
    assert detector(path).score == detector(str(path)).score == expected


def test_pixel_formats_of_the_detector_the_call_and_the_frame(model_file):
    rgb = frame(120, 90)
    bgr = rgb[..., ::-1]
    with Detector(model_file, pixel_format="bgr") as opened:
        expected = opened(Image.fromarray(rgb)).score
        assert opened(bgr).score == expected
        assert opened(rgb, pixel_format="rgb").score == expected
        assert opened(Frame(rgb)).score == expected
        assert [one.score for one in opened.batch([bgr, bgr])] == [opened(bgr).score] * 2
    with pytest.raises(UsageError, match="no pixel format 'bgr8'; allowed are rgb, bgr"):
        Detector(model_file, pixel_format="bgr8")


def test_a_large_frame_is_shared_among_threads(model_file):
    large = frame(1200, 1800)
    with Detector(model_file, threads=1) as alone, Detector(model_file, threads=3) as shared:
        np.testing.assert_array_equal(alone.prepare(large).taken, shared.prepare(large).taken)


def test_an_array_of_frames_is_a_batch(detector):
    frames = np.stack([frame(70, 80, 1), frame(70, 80, 2)])
    scores = [one.score for one in detector.batch(frames)]
    assert scores == pytest.approx([detector(one).score for one in frames], rel=1e-5)


@pytest.mark.parametrize("nothing", [None, 3, [[1, 2, 3]]])
def test_what_is_no_frame_at_all_is_refused(detector, nothing):
    with pytest.raises(UsageError, match="a frame is a "):
        detector(nothing)


def test_good_photos_score_below_noise(detector, photos):
    good = [detector(Image.open(path)) for path in find_images(photos / "test" / "good")]
    noise = detector(frame(64, 64))
    assert noise.is_anomalous
    assert noise.percentile == 100
    assert noise.score > max(result.score for result in good)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
    ],
    ids=["grey", "rgba", "float", "batch", "empty"],
)
def test_a_wrong_array_is_refused_saying_what_is_expected(detector, bad):
    with pytest.raises((UsageError, ImageError), match=r"uint8|pixel"):
        detector(bad)


@pytest.mark.parametrize(
    "prepared",
    [
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((1, 32, 64, 3), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.float32),
    ],
)
def test_wrongly_prepared_frames_are_refused(detector, prepared):
    with pytest.raises(UsageError, match=r"uint8 \[N, 64, 64, 3\]"):
        detector.judge(prepared)


def test_an_empty_batch_is_refused(detector):
    with pytest.raises(UsageError, match="at least one"):
        detector.batch([])


def test_a_score_that_is_no_number_raises_the_alarm(detector, monkeypatch):
    def broken(images):
        maps = np.full((len(images), 64, 64), np.nan, np.float32)
        return np.full(len(images), np.nan, np.float32), maps

    monkeypatch.setattr(detector.engine, "infer", broken)
    assert detector(frame(64, 64)).is_anomalous


def test_auto_takes_an_engine_that_runs_and_says_which(model_file):
    with Detector(model_file, engine="auto") as opened:
        assert opened.engine.name in ENGINES
        assert "ONNX Runtime" in opened.engine.describe()


def test_auto_says_why_nothing_runs(model_file):
    model = dataclasses.replace(read(model_file, "padim"), proto=onnx.ModelProto())
    with pytest.raises(PadimEdgeError, match="no engine runs here: ort: ONNX Runtime cannot load"):
        open_engine("auto", model)


def test_an_unknown_engine_is_refused(model_file):
    with pytest.raises(UsageError, match="choose auto, trt, trt/graph, ort-cuda, ort"):
        Detector(model_file, engine="tpu")


def test_stages_add_up_to_the_whole(detector):
    images = frame(64, 64)[None]
    seconds = detector.engine.stages(images)
    assert list(seconds) == ["backbone", "distances", "smoothing"]
    assert all(value > 0 for value in seconds.values())


def test_closing_twice_is_harmless(model_file):
    opened = Detector(model_file)
    opened.close()
    opened.close()


def test_public_names():
    for name in padim_edge.__all__:
        assert getattr(padim_edge, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = padim_edge.nothing


# --- what is no frame, no file, or no longer open ---------------------------------------------


@pytest.mark.parametrize("given", [None, 3, [1, 2], {}])
def test_what_is_no_frame(detector, given):
    with pytest.raises(UsageError, match=f"a frame is a {type(given).__name__}"):
        detector(given)


def test_a_path_simply_works(detector, good):
    for path in (good[0], str(good[0]), good[0].read_bytes()):
        assert detector(path).score == pytest.approx(detector(Image.open(good[0])).score)
    with pytest.raises(ImageError, match=r"nowhere.png: cannot be read"):
        detector("nowhere.png")


def test_a_batch_is_anything_that_gives_frames(detector):
    frames = np.stack([frame(64, 64, seed) for seed in range(3)])
    expected = [result.score for result in map(detector, frames)]
    for batch in (frames, list(frames), tuple(frames), (one for one in frames)):
        assert [result.score for result in detector.batch(batch)] == pytest.approx(expected)
    for wrong in ([], (), iter(()), frames[:0]):
        with pytest.raises(UsageError, match="at least one"):
            detector.batch(wrong)
    for wrong in (None, 3, "a.png", Image.new("RGB", (8, 8)), Frame(frames[0])):
        with pytest.raises(UsageError, match="a batch is a list of frames"):
            detector.batch(wrong)
    with pytest.raises(UsageError, match="a frame is an array"):
        detector.batch(frames[0])  # one frame: its rows are none


def test_a_closed_detector_says_so(model_file):
    detector = Detector(model_file, "ort")
    prepared = detector.prepare(frame(64, 64))
    detector.close()
    detector.close()
    for use in (
        lambda: detector(frame(64, 64)),
        lambda: detector.batch([frame(64, 64)]),
        lambda: detector.judge(prepared.taken[None]),
        lambda: detector.judge_prepared([prepared]),
    ):
        with pytest.raises(UsageError, match="this detector is closed"):
            use()


@pytest.mark.parametrize("path", [None, 3, b"padim.onnx"])
def test_what_is_no_path_of_a_model(path):
    with pytest.raises(UsageError, match="opened from a file's path"):
        Detector(path)


def test_a_threshold_of_ones_own(model_file, good):
    with Detector(model_file, "ort") as usual, Detector(model_file, "ort", threshold=1e-3) as own:
        assert usual.threshold == usual.detector_info.threshold
        for path in good:
            one, other = usual(path), own(path)
            assert (other.score, other.threshold) == (one.score, 1e-3)
            assert other.is_anomalous
            assert other.percentile == one.percentile
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="a positive number"):
            Detector(model_file, "ort", threshold=wrong)
