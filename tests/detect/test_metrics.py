"""Metrics against hand-made tables, scikit-learn and slow, obvious implementations."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from padim_edge.detect.metrics import compute_metrics
from padim_edge.errors import MissingDependencyError, PadimEdgeError


def only_scores(good, defective, threshold=0.5):
    """Metrics of images without masks: good scores, then defective ones."""
    scores = np.array([*good, *defective], np.float64)
    labels = np.arange(scores.size) >= len(good)
    maps = np.zeros((scores.size, 2, 2), np.float32)
    return compute_metrics(labels, scores, threshold, [None] * scores.size, maps)


def of_maps(masks, maps):
    """Metrics of score maps; a mask of None makes a good image."""
    maps = np.array(maps, np.float32)
    labels = np.array([mask is not None for mask in masks])
    return compute_metrics(labels, maps.max((1, 2)), 0.5, masks, maps)


@pytest.mark.parametrize(
    ("good", "defective", "auroc"),
    [
        ([1, 2], [3, 4], 1.0),
        ([3, 4], [1, 2], 0.0),
        ([1, 1], [1, 1], 0.5),
        ([1, 3], [2, 4], 0.75),
        ([1, 2], [2, 3], 0.875),  # of four pairs three are in order and one is tied
    ],
)
def test_image_auroc_known_answers(good, defective, auroc):
    assert only_scores(good, defective).image_auroc == pytest.approx(auroc, abs=1e-15)


def test_image_auroc_counts_pairs():
    rng = np.random.default_rng(1)
    good, defective = rng.integers(0, 20, 31), rng.integers(5, 25, 23)
    pairs = [(d > g) + 0.5 * (d == g) for g in good for d in defective]
    assert_allclose(only_scores(good, defective).image_auroc, np.mean(pairs), rtol=1e-14)


@pytest.mark.parametrize(
    ("threshold", "f1", "precision", "recall", "false_alarm_rate"),
    [
        (0.0, 2 * 4 / (4 + 4 + 4), 0.5, 1.0, 1.0),
        (2.0, 2 * 3 / (3 + 1 + 4), 0.75, 0.75, 0.25),  # a score of exactly 2 is no alarm
        (4.0, 2 * 2 / (2 + 0 + 4), 1.0, 0.5, 0.0),
        (9.0, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_rates_at_the_stored_threshold(threshold, f1, precision, recall, false_alarm_rate):
    found = only_scores([1, 1, 2, 4], [2, 4, 5, 9], threshold)
    assert found.threshold == threshold
    assert_allclose(
        [found.f1, found.precision, found.recall, found.false_alarm_rate],
        [f1, precision, recall, false_alarm_rate],
        rtol=1e-15,
    )


def test_threshold_is_not_rounded_to_the_type_of_the_scores():
    scores = np.array([0.0, 0.1], np.float32)  # float32 0.1 is greater than 0.1
    maps = np.zeros((2, 1, 1), np.float32)
    found = compute_metrics(np.array([False, True]), scores, 0.1, [None, None], maps)
    assert found.recall == 1.0


@pytest.mark.parametrize(
    ("good", "defective", "f1", "threshold"),
    [
        ([1, 2], [3, 4], 1.0, 2.5),
        ([1, 3], [2, 4], 0.8, 1.5),  # three alarms, two of them right
        ([1, 2, 3], [3, 9, 9], 6 / 7, 2.5),  # the tied 3 and 3 fall together
        ([2, 5], [5, 5], 0.8, 3.5),
    ],
)
def test_best_f1_known_answers(good, defective, f1, threshold):
    found = only_scores(good, defective)
    assert (found.best_f1, found.best_f1_threshold) == pytest.approx((f1, threshold), abs=1e-15)


@pytest.mark.parametrize(
    ("good", "defective"),
    [
        ([5, 6], [1, 2]),  # best to call everything anomalous
        ([1e20, 2e20], [1e20, 1e20]),
        ([1.0, 1.0], [np.nextafter(1, 2), np.nextafter(1, 2)]),
        ([np.nextafter(1, 2)], [np.nextafter(np.nextafter(1, 2), 2)]),
    ],
)
def test_best_f1_threshold_reaches_it(good, defective):
    first = only_scores(good, defective)
    second = only_scores(good, defective, first.best_f1_threshold)
    assert second.f1 == pytest.approx(first.best_f1, abs=1e-15)


def test_best_f1_tries_all_thresholds():
    rng = np.random.default_rng(2)
    for _ in range(20):
        good, defective = rng.integers(0, 9, 8), rng.integers(2, 12, 5)
        best = max(only_scores(good, defective, cut - 0.5).f1 for cut in range(13))
        assert only_scores(good, defective).best_f1 == pytest.approx(best, abs=1e-15)


@pytest.mark.parametrize(
    ("small", "large", "pro"),
    [
        (99, [99, 99, 99], 1),
        (-1, [-1, -1, -1], 0),
        (99, [-1, -1, -1], 1 / 2),  # every region counts the same,
        (-1, [99, -1, -1], 1 / 6),  # whatever its size
        (8.5, [8.5, 8.5, 8.5], 2 / 3),  # after one of the three false positives allowed
        (99, [8.5, 99, -1], (1 / 2 + 1 / 6) + 1 / 6 * 2 / 3),
        (8, [8, 8, 8], 1.5 / 3),  # tied with the second: rises from one to two
        (6, [6, 6, 6], 0.25 / 3),  # rises from two to four, cut off half-way up
        (5, [5, 5, 5], 0),
    ],
)
def test_pro_known_answers(small, large, pro):
    """Regions of one and three pixels, and ten defect-free pixels: the limit is three."""
    mask = np.array([[1, 0, 1, 1, 1, 0, 0]], bool)
    defective = [[small, 9, *large, 6, 0]]
    good = [[8, 6, 3, 2, 1, 0, 0]]
    found = of_maps([mask, None], [defective, good])
    assert found.pro == pytest.approx(pro, abs=1e-15)


def test_regions_touch_at_corners_but_not_across_images():
    diagonal = np.eye(2, dtype=bool)
    corner = np.array([[1, 0], [0, 0]], bool)
    maps = [[[9, 0], [0, 0]], [[9, 0], [0, 0]], [[1, 1], [1, 1]]]
    # The diagonal is one region, found by half; the corner of the next image is another.
    assert of_maps([diagonal, corner, None], maps).pro == pytest.approx((0.5 + 1) / 2)


def slow_pro(masks, maps):
    """The definition: every threshold in turn, regions by flood fill, trapezoids to 0.3."""
    regions = []
    for image, mask in enumerate(masks):
        left = set(zip(*np.nonzero(mask), strict=True))
        while left:
            region, todo = [], [left.pop()]
            while todo:
                y, x = todo.pop()
                region.append((image, y, x))
                near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= near
                todo += near
            regions.append(tuple(np.transpose(region)))
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel()), reverse=True):
        found = maps >= threshold
        overlaps = [found[region].mean() for region in regions]
        points.append((found[~masks].mean(), np.mean(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < 0.3:
            end = min(x1, 0.3)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
            area += (end - x0) * (y0 + y_end) / 2
    return area / 0.3


@pytest.mark.parametrize("values", [3, 10, 50, 10**6])
def test_pixel_metrics_equal_brute_force(values):
    """From few values, where nearly all pixels are tied, to many, where none are."""
    rng = np.random.default_rng(values)
    for _ in range(5):
        masks = rng.random((4, 9, 11)) < 0.25
        masks[0] = False
        maps = rng.integers(0, values, masks.shape) + masks * rng.integers(0, values, masks.shape)
        maps = (maps / values).astype(np.float32)
        found = of_maps([None, *masks[1:]], maps)
        assert_allclose(found.pro, slow_pro(masks, maps), rtol=1e-12)
        assert_allclose(found.pixel_auroc, roc_auc_score(masks.ravel(), maps.ravel()), rtol=1e-12)


@pytest.mark.parametrize("unknown", [None, np.zeros((6, 6), bool)])
def test_defective_images_without_mask_leave_the_pixel_metrics(unknown):
    rng = np.random.default_rng(3)
    maps = rng.random((4, 6, 6)).astype(np.float32)
    masks = [None, rng.random((6, 6)) < 0.3, rng.random((6, 6)) < 0.3]
    labels, scores = np.array([False, True, True, True]), maps.max((1, 2))
    part = compute_metrics(labels[:3], scores[:3], 0.5, masks, maps[:3])
    found = compute_metrics(labels, scores, 0.5, [*masks, unknown], maps)
    assert (part.images_without_mask, found.images_without_mask) == (0, 1)
    assert (part.pixel_auroc, part.pro) == (found.pixel_auroc, found.pro)
    assert (part.good, part.defective, found.defective) == (1, 2, 3)


def test_no_masks_no_pixel_metrics():
    found = only_scores([1, 2], [3])
    assert (found.pixel_auroc, found.pro, found.images_without_mask) == (None, None, 1)


def test_to_json_survives_json():
    found = only_scores(np.float32([1, 2]), np.float32([2, 4]), threshold=np.float32(1.5))
    assert json.loads(json.dumps(found.to_json())) == {
        "good": 2,
        "defective": 2,
        "images_without_mask": 2,
        "image_auroc": 0.875,
        "pixel_auroc": None,
        "pro": None,
        "best_f1": 0.8,
        "best_f1_threshold": 1.5,
        "threshold": 1.5,
        "f1": 0.8,
        "precision": 2 / 3,
        "recall": 1.0,
        "false_alarm_rate": 0.5,
    }


def arguments():
    mask = np.array([[True, False]])
    maps = np.array([[[0, 1]], [[2, 1]]], np.float32)
    return {
        "labels": np.array([False, True]),
        "scores": np.array([1.0, 2.0]),
        "threshold": 1.5,
        "masks": [None, mask],
        "maps": maps,
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", np.array([False, False]), "none is defective"),
        ("labels", np.array([True, True]), "none is good"),
        ("labels", np.array([0, 1]), "labels must be bool"),
        ("scores", np.array([1.0, np.nan]), "NaN or infinite values in the scores"),
        ("scores", np.array([1.0, 2.0, 3.0]), r"2 labels need as many .* \(3,\)"),
        ("threshold", np.nan, "in the threshold"),
        ("maps", np.full((2, 1, 2), np.nan, np.float32), "in the maps"),
        ("maps", np.zeros((2, 1, 3), np.float32), r"mask 1 must be bool \(1, 3\)"),
        ("masks", [None], "as many"),
        ("masks", [None, np.array([[255, 0]], np.uint8)], "mask 1 must be bool.*uint8"),
        ("masks", [np.array([[True, False]]), None], "image 0 is labelled good"),
    ],
)
def test_refuses(name, value, message):
    compute_metrics(**arguments())
    with pytest.raises(PadimEdgeError, match=message):
        compute_metrics(**{**arguments(), name: value})


@pytest.mark.parametrize("package", ["sklearn.metrics", "scipy.ndimage"])
def test_missing_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"padim-edge\[eval\]"):
        compute_metrics(**arguments())
