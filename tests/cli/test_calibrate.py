"""`padim-edge calibrate`: thresholds anew, and everything else as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import in_process, padim_edge, unchanged
from onnx import numpy_helper
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.model.file import read
from padim_edge.model.threshold import pixel_score, rate_interval, share_interval

GROWTH = Path(__file__).parents[1] / "model" / "format_1"


def info(path):
    return read(path, "padim").detector_info


@pytest.fixture
def more(photos):
    """Four good photos that are not in the fit."""
    return photos / "test" / "good"


@pytest.fixture
def defects(photos):
    return [photos / "test" / name for name in ("scratch", "stain")]


def test_a_higher_rate_is_another_threshold_and_nothing_else(model_file, tmp_path):
    output = tmp_path / "new.onnx"
    done = in_process("calibrate", model_file, "--false-alarm-rate", 0.25, "-o", output).worked()
    old, new = read(model_file, "padim"), read(output, "padim")
    scores = sorted(old.detector_info.good_scores)
    assert new.detector_info.threshold == scores[9]  # ceil(.75 x 13), of 12
    assert new.detector_info.false_alarm_rate == 0.25
    assert new.detector_info.pixel_threshold == old.detector_info.good_pixel_scores[9]
    assert new.detector_info.calibration == old.detector_info.calibration
    assert new.checksum == old.checksum
    for one, other in zip(old.proto.graph.initializer, new.proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))
    low, high = rate_interval(12, 0.25)
    assert f"{low:.2g} to {high:.2g}" in done.stdout
    with Detector(output, "ort") as detector:
        assert detector.threshold == scores[9]


def test_more_good_photos_join_those_of_the_fit(model_file, more, tmp_path):
    output = tmp_path / "new.onnx"
    done = in_process("calibrate", model_file, "--good", more, "-o", output).worked()
    old, new = info(model_file), info(output)
    paths = sorted(more.iterdir())
    with Detector(model_file, "ort") as detector:
        results = [detector(path) for path in paths]
    scores = [result.score for result in results]
    np.testing.assert_allclose(new.good_scores, sorted([*old.good_scores, *scores]), rtol=1e-5)
    pixels = [pixel_score(result.score_map) for result in results]
    np.testing.assert_allclose(
        new.good_pixel_scores, sorted([*old.good_pixel_scores, *pixels]), rtol=1e-5
    )
    assert len(new.digests) == 16
    assert "and 4 photos that are not in the fit" in new.calibration
    exceeded = sum(score > old.threshold for score in scores)
    assert f"{exceeded} of the 4 new good images exceeded the old threshold" in done.stdout
    # A lower rate than 12 images allow.
    again = in_process("calibrate", output, "--false-alarm-rate", 0.06, "-o", output.parent / "b")
    assert info(again.worked() and output.parent / "b").threshold == new.good_scores[15]
    # The same photos once more are known, and change nothing.
    third = in_process("calibrate", output, "--good", more, "-o", tmp_path / "c.onnx").worked()
    assert "4 of the good images are known to the detector" in third.warnings()[0]
    assert info(tmp_path / "c.onnx").good_scores == new.good_scores


def test_photos_of_the_fit_and_copies_do_not_count(model_file, good, more, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in good[:3]:
        shutil.copy(path, folder / path.name)
    first, *_ = sorted(more.iterdir())
    shutil.copy(first, folder / "new.png")
    Image.open(first).save(folder / "again.bmp")
    noisy = np.asarray(Image.open(first)).astype(int)
    noisy = noisy + np.random.default_rng(0).integers(-1, 2, noisy.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "near.png")
    for path in sorted(more.iterdir())[1:]:
        shutil.copy(path, folder / f"other-{path.name}")
    output = tmp_path / "new.onnx"
    done = in_process("calibrate", model_file, "--good", folder, "-o", output).worked()
    known, near = done.warnings()
    assert "4 of the good images are known" in known
    assert "1 good images are nearly equal to others" in near
    assert len(info(output).good_scores) == 16


def test_defective_photos_show_what_each_rate_finds(model_file, defects, tmp_path):
    output, table = tmp_path / "new.onnx", tmp_path / "table.json"
    plot = tmp_path / "recall.svg"
    done = in_process(
        *("calibrate", model_file, "--bad", defects[0], "--bad", defects[1], "-o", output),
        *("--false-alarm-rate", 0.2, "--json", table, "--plot", plot),
    ).worked()
    with Detector(model_file, "ort") as detector:
        paths = [path for folder in defects for path in sorted(folder.iterdir())]
        scores = [detector(path).score for path in paths]
    report = json.loads(table.read_text())
    assert report["threshold"] == info(output).threshold
    rates = [row["false_alarm_rate"] for row in report["rows"]]
    assert rates == [0.1, 0.2, 0.5]  # no lower ones: 12 images promise 1 in 13
    for row in report["rows"]:
        hits = sum(score > row["threshold"] for score in scores)
        assert row["recall"] == hits / 4
        assert row["true_recall"] == list(share_interval(hits, 4))
        assert f"{row['threshold']:.3f}" in done.stdout
    assert "0.2 *" in done.stdout
    assert "false-alarm rate" in plot.read_text()


def test_defective_photos_alone_show_the_table_and_write_nothing(model_file, defects, tmp_path):
    with unchanged(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = in_process("calibrate", model_file, "--bad", defects[0]).worked()
    assert "nothing was written: the threshold stays" in done.stdout


def test_a_good_photo_among_the_defective_is_said(model_file, good, defects, tmp_path):
    folder = Path(shutil.copytree(defects[0], tmp_path / "bad"))
    shutil.copy(good[0], folder / "good.png")
    done = in_process("calibrate", model_file, "--bad", folder).worked()
    assert "1 of the defective images are among the good ones" in done.warnings()[0]


def test_what_is_good_and_defective_at_once_is_good(model_file, more, defects, tmp_path):
    folder = Path(shutil.copytree(defects[0], tmp_path / "bad"))
    shutil.copy(sorted(more.iterdir())[0], folder / "good.png")
    table = tmp_path / "table.json"
    done = in_process(
        *("calibrate", model_file, "--good", more, "--bad", folder, "--json", table),
        *("-o", tmp_path / "new.onnx"),
    ).worked()
    assert "1 of the defective images are among the good ones" in done.warnings()[0]
    assert json.loads(table.read_text())["rows"][0]["recall"] in (0, 0.5, 1)
    (tmp_path / "none").mkdir()
    shutil.copy(sorted(more.iterdir())[0], tmp_path / "none")
    with unchanged(tmp_path):
        done = in_process(
            *("calibrate", tmp_path / "new.onnx", "--bad", tmp_path / "none", "--in-place"),
            *("--false-alarm-rate", 0.2, "--plot", tmp_path / "a.svg"),
        )
    done.failed(1, "no defective image could be judged")


def test_in_place(model_file, tmp_path):
    mine = Path(shutil.copy(model_file, tmp_path / "mine.onnx"))
    in_process("calibrate", mine, "--false-alarm-rate", 0.5, "--in-place").worked()
    assert info(mine).false_alarm_rate == 0.5


def test_a_file_from_before_pixel_scores_and_digests(tmp_path, more):
    output = tmp_path / "new.onnx"
    done = in_process("calibrate", GROWTH / "float16.onnx", "--good", more, "-o", output).worked()
    assert "does not know all of its images" in done.warnings()[-1]
    new = info(output)
    assert (new.pixel_threshold, new.good_pixel_scores) == (0.0, ())
    assert len(new.good_scores) == 16
    assert len(new.digests) == 4


def test_what_is_unknown_in_the_metadata_is_kept(model_file, tmp_path):
    proto = onnx.load(model_file)
    proto.metadata_props.add(key="mine", value="kept")
    onnx.save(proto, tmp_path / "extra.onnx")
    in_process(
        "calibrate", tmp_path / "extra.onnx", "--false-alarm-rate", 0.3, "--in-place"
    ).worked()
    assert read(tmp_path / "extra.onnx", "padim").extra == {"mine": "kept"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["nothing to calibrate by", "--false-alarm-rate"]),
        (("--false-alarm-rate", 0.01), ["12 images are too few", "at least 99", "0.077 or more"]),
        (("--false-alarm-rate", 1.5), ["--false-alarm-rate 1.5"]),
        (("--false-alarm-rate", 0.2, "--plot", "a.svg"), ["--plot a.svg", "--bad"]),
        (("--bad", "nowhere", "--in-place"), ["sets nothing"]),
        (("--good", "nowhere"), ["nowhere"]),
        (("--false-alarm-rate", 0.2, "--in-place", "-o", "b.onnx"), ["choose one"]),
    ],
)
def test_what_makes_no_sense_is_refused(model_file, tmp_path, arguments, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path):
        done = in_process("calibrate", model_file, *arguments)
    assert done.code in (1, 2)
    done.failed(done.code, *words)


def test_the_model_is_not_written_over_unless_asked(model_file, tmp_path):
    mine = Path(shutil.copy(model_file, tmp_path / "mine.onnx"))
    with unchanged(tmp_path):
        done = in_process("calibrate", mine, "--false-alarm-rate", 0.2, "-o", mine)
    done.failed(2, "must be different files")


def test_an_embedding_has_no_threshold(embedding_file, tmp_path):
    padim_edge("calibrate", embedding_file, "--false-alarm-rate", 0.2, cwd=tmp_path).failed(
        1, "this is an embedding"
    )
