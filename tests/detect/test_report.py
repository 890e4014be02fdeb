"""Reports without a browser: intervals, pictures, and what stands in the file."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.detect.evaluation import Judged
from padim_edge.detect.judging import judge
from padim_edge.detect.metrics import compute_metrics
from padim_edge.detect.overlay import Scale, overlay
from padim_edge.detect.report import intervals
from padim_edge.detect.report.common import shortened
from padim_edge.detect.report.contents import Group, Kind, Report, Role
from padim_edge.detect.report.judged import JudgedReport
from padim_edge.detect.report.page import check_place, page
from padim_edge.detect.report.pictures import SIDE, layers
from padim_edge.errors import UsageError
from padim_edge.images.dataset import Sample
from padim_edge.images.frames import files
from padim_edge.images.preprocess import Preprocess

# --- intervals ------------------------------------------------------------------------------------


def a_test_set(seed: int = 0, good: int = 20, defective: int = 30) -> Judged:
    """Made up: scores that overlap, some of them equal, maps of 24 x 24, one mask missing."""
    random = np.random.default_rng(seed)
    labels = np.arange(good + defective) >= good
    maps = random.gamma(4, 1, (len(labels), 24, 24)).astype(np.float32)
    masks: list = [None] * len(labels)
    for place in np.flatnonzero(labels)[1:]:
        mask = np.zeros((24, 24), bool)
        top, left = random.integers(0, 16, 2)
        mask[top : top + 6, left : left + 5] = True
        mask[22:, :2] = place % 2
        maps[place][mask] += random.gamma(2, 1)
        masks[place] = mask
    scores = np.round(maps.max(axis=(1, 2)).astype(float), 1)
    samples = [
        Sample(Path(f"{place}.png"), "stain" if bad else "good") for place, bad in enumerate(labels)
    ]
    return Judged(samples, labels, scores, maps, masks, float(np.median(scores)))


def test_metrics_of_what_was_drawn_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    judged = a_test_set()
    weights = np.concatenate(list(intervals._drawn(judged.labels)))
    assert weights.shape == (intervals.REPLICATES, 50)
    assert (weights[:, :20].sum(axis=1) == 20).all()  # stratified
    assert (weights[:, 20:].sum(axis=1) == 30).all()
    found = intervals._image_metrics(weights[:20], judged)
    alarms = judged.scores > judged.threshold
    for place, own in enumerate(weights[:20]):
        given = {"y_true": judged.labels, "sample_weight": own}
        scored, decided = given | {"y_score": judged.scores}, given | {"y_pred": alarms}
        wanted = {
            "image_auroc": metrics.roc_auc_score(**scored),
            "average_precision": metrics.average_precision_score(**scored),
            "f1": metrics.f1_score(**decided),
            "precision": metrics.precision_score(**decided),
        }
        assert {name: found[name][place] for name in wanted} == pytest.approx(wanted, abs=1e-9)


def test_pixel_metrics_of_what_was_drawn_are_those_of_a_set_with_copies():
    pytest.importorskip("scipy")
    judged = a_test_set()
    pixels = intervals._pixel_histograms(judged)
    weights = next(intervals._drawn(judged.labels))[:5]
    found = intervals._pixel_metrics(weights, pixels)
    for place, own in enumerate(weights.astype(int)):
        copies = np.repeat(np.arange(len(own)), own)
        exact = compute_metrics(
            judged.labels[copies],
            judged.scores[copies],
            judged.threshold,
            [judged.masks[copy] for copy in copies],
            judged.maps[copies],
        )
        assert found["pixel_auroc"][place] == pytest.approx(exact.pixel_auroc, abs=1e-3)
        assert found["pro"][place] == pytest.approx(exact.pro, abs=1e-3)


def test_intervals_hold_the_value_and_are_the_same_each_time():
    pytest.importorskip("sklearn")
    judged = a_test_set()
    metrics = judged.metrics()
    found = intervals.bootstrap(judged)
    assert found == intervals.bootstrap(judged)
    for name in ("image_auroc", "pixel_auroc", "pro", "f1", "precision"):
        low, high = found[name]
        assert low < getattr(metrics, name) < high, name


@pytest.mark.slow
def test_intervals_are_as_wide_as_the_bootstrap_of_another_program_makes_them():
    stats = pytest.importorskip("scipy.stats")
    metrics = pytest.importorskip("sklearn.metrics")
    judged = a_test_set()
    good, bad = judged.scores[~judged.labels], judged.scores[judged.labels]

    def auroc(a, b):
        return metrics.roc_auc_score(np.r_[a * 0, b * 0 + 1], np.r_[a, b])

    other = stats.bootstrap(
        (good, bad), auroc, n_resamples=1000, vectorized=False, method="percentile", rng=1
    ).confidence_interval
    # Two draws of 1000: their ends differ by some 0.01.
    assert intervals.bootstrap(judged)["image_auroc"] == pytest.approx(tuple(other), abs=0.02)


@pytest.mark.slow
def test_more_images_make_intervals_narrower():
    pytest.importorskip("sklearn")
    few = intervals.bootstrap(a_test_set(1, 20, 20))["image_auroc"]
    many = intervals.bootstrap(a_test_set(1, 200, 200))["image_auroc"]
    assert 2 * np.ptp(many) < np.ptp(few)


def test_a_set_without_masks_has_no_interval_of_pixels():
    pytest.importorskip("sklearn")
    judged = a_test_set()
    found = intervals.bootstrap(replace(judged, masks=[None] * len(judged.masks)))
    assert "pixel_auroc" not in found
    assert "pro" not in found


# --- pictures -------------------------------------------------------------------------------------


def decoded(uri: str) -> np.ndarray:
    """A picture of a data URI, [h, w, 4]."""
    data = base64.b64decode(uri.partition(",")[2], validate=True)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


SCALE = Scale(2.0, 10.0)


def ramp(size: int = 64) -> np.ndarray:
    """A map that grows from left to right, from 0 to 20."""
    return np.tile(np.linspace(0, 20, size, dtype=np.float32), (size, 1))


def test_the_heat_map_is_that_of_overlays(photo):
    made = layers(photo, Preprocess.whole((64, 64)), SCALE, ramp(), ramp() > 10)
    assert (made.width, made.height) == (300, 200)
    heat = decoded(made.heat)
    assert heat.shape == (100, 150, 4)
    drawn = overlay(np.zeros((200, 300, 3), np.uint8), ramp(), (0, 0, 300, 200), 10.0, 20.0, 2.0)
    wanted = np.asarray(drawn)[:200][::2, ::2].astype(float)
    over_black = heat[..., :3] * (heat[..., 3:] / 255)
    inside = np.s_[:, :70]  # left of the contour, which an overlay has and the heat map has not
    assert np.abs(over_black - wanted)[inside].max() <= 3


def test_the_mask_lies_where_it_is_in_the_map(photo):
    made = layers(photo, Preprocess.whole((64, 64)), SCALE, ramp(), ramp() > 15)
    mask = decoded(made.mask)
    assert mask.shape == (200, 300, 4)
    marked = mask[100, :, 3] > 0
    assert np.flatnonzero(marked)[0] == pytest.approx(300 * 15 / 20, abs=3)
    assert marked[-1]


def test_what_the_graph_does_not_see_is_dark(photo):
    made = layers(photo, Preprocess.reference((64, 64)), SCALE, ramp(), ramp() > 10)
    heat = decoded(made.heat)
    assert tuple(heat[50, 0]) == (0, 0, 0, 166)  # 0.65 of black
    assert heat[50, 75, 3] < 255
    assert not decoded(made.mask)[100, 0, 3]


def test_truth_is_of_the_image_at_any_size(photo):
    truth = np.zeros((20, 30), bool)
    truth[:, :10] = True
    made = layers(photo, Preprocess.whole((64, 64)), SCALE, ramp(), ramp() > 10, truth)
    marked = decoded(made.truth)[100, :, 3] > 0
    assert np.flatnonzero(~marked)[0] in (100, 101)  # a dark line outside
    assert not marked[110:].any()


@pytest.mark.parametrize("score_map", [None, np.full((64, 64), np.nan, np.float32)])
def test_without_a_map_there_is_a_photo(photo, score_map):
    made = layers(photo, Preprocess.whole((64, 64)), SCALE, score_map, None)
    assert decoded(made.photo).shape == (200, 300, 4)
    assert (made.heat, made.mask, made.truth) == (None, None, None)


def test_pictures_are_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3000, 2000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png", compress_level=1)
    made = layers(tmp_path / "large.png", Preprocess.whole((64, 64)), SCALE, ramp(), ramp() > 10)
    assert (made.width, made.height) == (213, SIDE)
    assert sum(len(one) for one in (made.photo, made.heat, made.mask)) < 100_000  # noise at that


# --- the page -------------------------------------------------------------------------------------

EVIL = "</script><script>alert(1)</script><!-- \u2028 \"quoted' & $data"


def a_report(**changes) -> Report:
    report = Report(
        Kind.RUN, "photos", (("Detector", "padim.onnx"),), 2.0, 2.0, (1.0, 3.0),
        (Group("photos", Role.UNKNOWN, (1.0, 2.5)),), (), (),
    )  # fmt: skip
    return replace(report, **changes)


def test_names_cannot_leave_the_json():
    text = page(a_report(title=EVIL, groups=(Group(EVIL, Role.UNKNOWN, (1.0,)),))).decode()
    plain = page(a_report()).decode()
    assert text.count("<script") == plain.count("<script") == 2
    assert text.count("<!--") == plain.count("<!--")
    data = re.search(r'id="data">(.*?)</script>', text)[1]
    assert not set(data) & set("<>&")
    values = json.loads(data)
    assert (values["title"], values["groups"][0]["name"]) == (EVIL, EVIL)


def test_a_name_that_is_no_unicode_is_no_error():
    name = b"\xff.png".decode(errors="surrogateescape")
    assert b"\\udcff.png" in page(a_report(title=name))


def test_the_page_names_no_other_file():
    text = page(a_report()).decode()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    addresses = set(re.findall(r"\w+://[^\s\"']+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name space


@pytest.mark.parametrize("name", ["a.png", "padim.onnx", "report", "report.json"])
def test_a_report_is_called_html(name):
    with pytest.raises(UsageError, match=r"\.html"):
        check_place(Path(name))
    check_place(Path("report.HTML"))
    check_place(None)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/test/good/0.png", "a/test/bad/0.png"], ["good/0.png", "bad/0.png"]),
        (["a/b/0.png", "a/b/1.png"], ["b/0.png", "b/1.png"]),
        (["0.png", "1.png"], ["0.png", "1.png"]),
        (["/x/0.png", "y/0.png"], ["/x/0.png", "y/0.png"]),
        (["a/b/0.png", "a/b/c/0.png"], ["b/0.png", "b/c/0.png"]),
        ([], []),
    ],
)
def test_names_are_without_the_folders_that_all_have(paths, names):
    assert shortened([Path(path) for path in paths]) == names


# --- photos that go -------------------------------------------------------------------------------


def test_a_photo_that_has_gone_since_it_was_judged_is_named(model_file, photos, tmp_path):
    folder = Path(shutil.copytree(photos / "test" / "stain", tmp_path / "mine"))
    paths = sorted(folder.iterdir())
    with Detector(model_file, "ort") as detector:
        verdicts = list(judge(detector, files(paths)))
        paths[0].unlink()
        collected = JudgedReport(detector, model_file, paths)
        for verdict in verdicts:
            collected(verdict)
        report = collected.report("mine")
    assert [Path(image.name).name for image in report.shown] == [paths[1].name]
    assert [Path(image.name).name for image in report.named] == [paths[0].name]
    assert report.named[0].score == pytest.approx(verdicts[0].outcome.score)
