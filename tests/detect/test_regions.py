"""Regions: against SciPy's labelling, and from frames of any size to pixels of the frame."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers import in_process
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from padim_edge.detect.detector import Detector, Result
from padim_edge.detect.overlay import overlay
from padim_edge.detect.regions import labelled, regions_of
from padim_edge.images.frames import Frame

ndimage = pytest.importorskip("scipy.ndimage")


def expected_labels(score_map, threshold, pixel_threshold):
    """By SciPy, parts without a pixel above the threshold taken away."""
    found, count = ndimage.label(score_map > pixel_threshold, np.ones((3, 3)))
    kept = [part for part in range(1, count + 1) if score_map[found == part].max() > threshold]
    # SciPy's numbers need not be those of the first pixels' order.
    kept.sort(key=lambda part: np.flatnonzero(found == part)[0])
    labels = np.zeros(score_map.shape, int)
    for number, part in enumerate(kept, start=1):
        labels[found == part] = number
    return labels


@settings(max_examples=300, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 10**6),
    low=st.floats(0.05, 0.95),
    high=st.floats(0, 1),
)
def test_parts_are_those_of_scipy(shape, seed, low, high):
    score_map = np.random.default_rng(seed).random(shape, dtype=np.float32)
    threshold = low + (1 - low) * high
    found = labelled(score_map, threshold, low)
    np.testing.assert_array_equal(found, expected_labels(score_map, threshold, low))


def test_a_large_map():
    noise = np.random.default_rng(0).random((224, 224), dtype=np.float32)
    for sigma in (0, 1, 4):
        score_map = ndimage.gaussian_filter(noise, sigma)
        low, high = np.quantile(score_map, [0.6, 0.97])
        found = labelled(score_map, float(high), float(low))
        np.testing.assert_array_equal(found, expected_labels(score_map, float(high), float(low)))


def test_a_spiral_is_one_part():
    spiral = np.array(
        [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 0, 1], [1, 0, 0, 1, 0, 1],
         [1, 0, 9, 1, 0, 1], [1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]], np.float32,
    )  # fmt: skip
    assert set(np.unique(labelled(spiral, 5, 0.5))) == {0, 1}
    np.testing.assert_array_equal(labelled(spiral, 5, 0.5) > 0, spiral > 0)


def test_there_is_a_region_if_and_only_if_the_frame_is_anomalous():
    score_map = np.full((8, 8), 1.0, np.float32)
    score_map[2:4, 2:4] = 3
    assert not labelled(score_map, 3.0, 2.0).any()  # no pixel exceeds 3
    assert labelled(score_map, 2.9, 2.0).sum() == 4
    score_map[6, 6] = 2.5  # above the pixel threshold, but no summit
    assert labelled(score_map, 2.9, 2.0).sum() == 4
    # Without a pixel threshold, or with a lower threshold of one's own, that takes its place.
    assert labelled(score_map, 2.9, 0.0).sum() == 4
    assert (labelled(score_map, 2.4, 2.9) > 0).sum() == 5
    # A threshold that the map's own type rounds up to the score.
    threshold = math.nextafter(float(np.float32(3.1)), 0)
    score_map[2, 2] = 3.1
    assert not (score_map > threshold).any()
    assert float(score_map.max()) > threshold
    assert (labelled(score_map, threshold, 0.0) > 0).sum() == 1


def test_a_region_in_pixels_of_the_frame():
    score_map = np.zeros((4, 8), np.float32)
    score_map[1, 2:5] = 2, 5, 2
    score_map[3, 7] = 4
    # The map covers a crop of the frame: 80 x 40 of 100 x 60, from (10, 10).
    labels = labelled(score_map, 3, 1)
    first, second = regions_of(score_map, labels, (10.0, 10.0, 90.0, 50.0), (60, 100))
    assert first.box == (30, 20, 60, 30)
    assert first.area == 300
    assert (first.score, first.peak, first.centroid) == (5.0, (45.0, 25.0), (45.0, 25.0))
    assert second.box == (80, 40, 90, 50)
    assert second.peak == (85.0, 45.0)


def test_many_regions_are_those_of_each_part_alone_to_the_bit():
    score_map = np.random.default_rng(0).random((96, 80), dtype=np.float32).round(2)  # with ties
    place = (3.3, -2, 90.1, 70.7), (60, 80)
    for low, high in ((0.75, 0.8), (0.4, 0.99), (2, 2)):
        labels = labelled(score_map, high, low)
        count = labels.max()
        alone = [
            regions_of(
                score_map, (labels == number).astype(np.intp), (3.3, -2, 90.1, 70.7), (60, 80)
            )
            for number in range(1, count + 1)
        ]
        for number, (region,) in enumerate(alone, start=1):
            y, x = np.nonzero(labels == number)
            best = int(score_map[y, x].argmax())
            across, down = (90.1 - 3.3) / 80, 72.7 / 96
            assert region.score == float(score_map[y, x].max())
            assert region.peak == (3.3 + (x[best] + 0.5) * across, -2 + (y[best] + 0.5) * down)
            assert region.centroid == (
                3.3 + (float(x.mean()) + 0.5) * across,
                -2 + (float(y.mean()) + 0.5) * down,
            )
            assert region.box[0] == math.floor(3.3 + x.min() * across + 1e-6)
            assert region.box[3] == min(60, math.ceil(-2 + (y.max() + 1) * down - 1e-6))
        expected = sorted((one for (one,) in alone), key=lambda region: -region.score)
        assert regions_of(score_map, labels, *place) == tuple(expected)
    assert count == 0


def test_the_work_for_many_regions_grows_with_pixels_and_not_with_regions_too():
    class Counted(np.ndarray):
        """Pixels that its comparisons looked at."""

        looked = 0

        def __eq__(self, other):
            Counted.looked += self.size
            return super().__eq__(other)

    noise = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    labels = labelled(noise, 0.9, 0.9)
    assert labels.max() > 200
    found = regions_of(noise, labels.view(Counted), (0, 0, 64, 64), (64, 64))
    assert len(found) == labels.max()
    assert Counted.looked <= 10 * labels.size


@pytest.mark.parametrize("size", [(48, 80), (640, 200), (64, 64), (31, 997)])
@pytest.mark.parametrize("form", ["array", "frame", "pillow", "png", "jpeg", "rotated"])
def test_a_frame_of_any_size_and_form(model_file, tmp_path, size, form):
    height, width = size
    # As a whole the same gradient; every map has all of it.
    pixels = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    image = Image.fromarray(pixels)
    path = tmp_path / f"a.{'png' if form == 'png' else 'jpg'}"
    if form == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    else:
        image.save(path)
    picture = {"array": pixels, "frame": Frame(pixels), "pillow": image}.get(form, path)
    with Detector(model_file, "ort", threshold=1e-3) as detector:
        result = detector(picture)
    assert result.size == size
    (region,) = result.regions
    assert region.box == (0, 0, width, height)
    assert region.area == height * width
    assert result.mask.all()
    y, x = np.unravel_index(result.score_map.argmax(), result.score_map.shape)
    assert region.score == result.score
    assert region.peak == pytest.approx(((x + 0.5) * width / 64, (y + 0.5) * height / 64))
    assert region.centroid == pytest.approx((width / 2, height / 2))


def test_a_good_frame_has_none(model_file, good):
    with Detector(model_file, "ort") as detector:
        results = [detector(path) for path in good]
    assert any(not result.is_anomalous for result in results)
    for result in results:
        assert bool(result.regions) == result.is_anomalous == result.mask.any()


def test_lines_of_run_hold_them(model_file, photos, tmp_path):
    lines = tmp_path / "lines.jsonl"
    stains = photos / "test" / "stain"
    in_process("run", model_file, stains, "--jsonl", lines, "--threshold", 5).worked()
    with Detector(model_file, "ort", threshold=5) as detector:
        for line in map(json.loads, lines.read_text().splitlines()):
            result = detector(line["path"])
            assert len(line["regions"]) == len(result.regions) > 0
            for said, region in zip(line["regions"], result.regions, strict=True):
                assert said["box"] == list(region.box)
                assert said["area"] == region.area
                assert said["score"] == pytest.approx(region.score, rel=1e-4)
                assert said["peak"] == pytest.approx(region.peak, abs=0.01)
                left, top, right, bottom = said["box"]
                x, y = said["centroid"]
                assert left <= x <= right
                assert top <= y <= bottom


def test_an_overlay_surrounds_the_mask():
    score_map = np.zeros((32, 32), np.float32)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    grey = np.full((32, 32, 3), 100, np.uint8)
    picture = np.asarray(overlay(grey, score_map, (0, 0, 32, 32), 5.0, 6.0, 1.0, mask))
    white = (picture[:32] == 255).all(axis=2)
    rim = mask & ~ndimage.binary_erosion(mask)
    np.testing.assert_array_equal(white, rim)


def test_a_score_map_that_is_no_number_has_no_region():
    score_map = np.full((4, 4), math.nan, np.float32)
    result = Result(math.nan, 1.0, True, 0.0, score_map, 0.5, (4, 4), (0.0, 0.0, 4.0, 4.0))
    assert result.regions == ()


def test_masks_overlap_the_true_defects(real_embedding, data, tmp_path):
    """Better by far than what exceeds the image's threshold; measured on bottle, with 60 photos."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import test_samples, train_images
    from padim_edge.images.masks import load_masks
    from padim_edge.images.preprocess import Preprocess

    bottle = data / "data" / "mvtec-256" / "bottle"
    model = tmp_path / "p.onnx"
    photos = train_images(bottle)[:60]
    fit_detector(real_embedding, photos, model, Settings(Preprocess.whole((224, 224))))
    ours, plain = [], []
    with Detector(model, "ort") as detector:
        for sample in test_samples(bottle)[::3]:
            if sample.is_anomalous:
                result = detector(sample.path)
                marked = Image.fromarray(load_masks(sample.masks, sample.path))
                truth = detector.detector_info.preprocess.mask(marked)
                above = result.score_map > result.threshold
                for found, overlaps in ((result.mask, ours), (above, plain)):
                    overlaps.append((found & truth).sum() / (found | truth).sum())
    assert np.mean(ours) > 0.45
    assert np.mean(ours) > 1.3 * np.mean(plain)
