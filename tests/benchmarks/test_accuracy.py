"""benchmarks/accuracy.py: what it judges is what the commands give, and its tables are its rows."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("torch")
pytest.importorskip("sklearn")
import accuracy
from helpers import in_process

from padim_edge.detect.evaluation import Judged
from padim_edge.images.dataset import Sample
from padim_edge.images.synthetic import make_dataset

SIZE = (64, 64)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(accuracy, "SIZE", SIZE)
    monkeypatch.setattr(accuracy, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *map(str, arguments)])
    accuracy.main()


@pytest.mark.slow  # an export and three fits
def test_rows_are_what_fit_and_eval_say_and_a_second_run_adds_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "sets" / "cloth", train=30, good=6, per_defect=2, size=64)
    file, work = tmp_path / "a.json", tmp_path / "work"
    common = (tmp_path / "sets", "--backbones", "resnet18=random", "--precisions", "float32")
    common = (*common, "--constants", "float16", "--json", file, "--work", work, "--presets")
    run(monkeypatch, *common, "reference", "--skip-times")
    (kept,) = work.glob("cloth-*.onnx")
    (plain,) = work.glob("resnet18-*.onnx")
    for path in (kept, None):  # of what is there, and of what is not, which is made again
        run(monkeypatch, *common, "published,reference", "--only-times")
        (first,) = json.loads(file.read_text())["rows"]
        assert first["ms"] > 0
        assert [*work.glob("cloth-*.onnx")] == [kept]
        if path:
            path.unlink()
    run(monkeypatch, *common, "published,reference", "--skip-times")
    rows = json.loads(file.read_text())["rows"]
    assert [row["preset"] for row in rows] == ["reference", "published"]
    assert rows[0] == first
    assert (rows[1]["constants"], rows[1]["backbone_precision"]) == ("float32", "float32")
    assert rows[1]["bytes"] > rows[0]["bytes"]

    model, results = tmp_path / "padim.onnx", tmp_path / "eval.json"
    options = ("--dims", "100", "--false-alarm-rate", "0.05", "-o", model)
    in_process("fit", plain, tmp_path / "sets" / "cloth", *options).worked()
    in_process("eval", model, tmp_path / "sets" / "cloth", "--json", results).worked()
    said = json.loads(results.read_text())
    assert {name: rows[0][name] for name in said} == pytest.approx(said, abs=1e-6)
    assert rows[0]["false_alarms"] == round(said["false_alarm_rate"] * 6)
    # Nothing of test is in train.
    assert rows[0]["unseen_image_auroc"] == pytest.approx(rows[0]["image_auroc"])
    assert (rows[0]["unseen_good"], rows[0]["unseen_false_alarms"]) == (6, rows[0]["false_alarms"])
    assert "| resnet18 | reference | float32 | float16 |" in capsys.readouterr().out

    # Another rate is another row, of another detector; what was refused is tried again.
    report = json.loads(file.read_text())
    report["rows"] = [
        {name: row[name] for name in (*accuracy.KEY, "of")} | {"refused": "it was busy"}
        for row in rows[::-1]
    ]
    file.write_text(json.dumps(report))
    shown = [*common, "reference", "--skip-times"]
    run(monkeypatch, *shown)
    run(monkeypatch, *shown, "--false-alarm-rate", "0.2")
    again = json.loads(file.read_text())["rows"]
    assert [row.get("target") for row in again] == [None, 0.05, 0.2]
    assert {name: again[1][name] for name in said} == pytest.approx(said, abs=1e-6)
    assert again[2]["threshold"] < again[1]["threshold"]
    assert "false_alarm_rate 0.2" in capsys.readouterr().out


def test_photos_that_show_what_one_of_train_shows_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path, train=12, good=4, per_defect=1, size=64)
    monkeypatch.setattr(accuracy, "SIZE", SIZE)
    accuracy.seen.cache_clear()
    assert accuracy.seen(tmp_path) == set()
    train = sorted((tmp_path / "train" / "good").iterdir())
    equal, lit, other = sorted((tmp_path / "test" / "good").iterdir())[:3]
    shutil.copy(train[2], next((tmp_path / "test" / "stain").iterdir()))  # no defect is ever seen
    equal.write_bytes(train[0].read_bytes())
    Image.open(train[1]).point(lambda value: value * 0.9).save(lit)
    accuracy.seen.cache_clear()
    assert accuracy.seen(tmp_path) == {equal, lit}

    samples = [Sample(equal, "good"), Sample(other, "good"), Sample(tmp_path / "a.png", "hole")]
    scores, labels = np.array([9.0, 3.0, 5.0]), np.array([False, False, True])
    maps = np.zeros((3, 2, 2), np.float32)
    judged = Judged(samples, labels, scores, maps, [None] * 3, 4.0)
    row = accuracy.unseen(judged, frozenset({equal, lit}))
    assert row == {"unseen_good": 1, "unseen_false_alarms": 0, "unseen_image_auroc": 1.0}
    assert accuracy.unseen(judged, frozenset({equal, other}))["unseen_image_auroc"] is None


def test_a_row_is_of_its_photos_and_weights(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a" / "cloth", train=2, good=1, per_defect=1, size=64)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, other = (accuracy.photos_digest(tmp_path / name / "cloth") for name in "ab")
    assert one == other
    accuracy.photos_digest.cache_clear()
    (tmp_path / "b" / "cloth" / "test" / "good" / "more.png").write_bytes(b"more")
    assert accuracy.photos_digest(tmp_path / "b" / "cloth") != one
    (tmp_path / "w.pth").write_bytes(b"1")
    assert accuracy.weights_digest(str(tmp_path / "w.pth")).startswith("6b86b273ff34fce1")
    assert accuracy.weights_digest("random") == "random"


def row(category: str, preset: str, image: float, **others: Any) -> dict[str, Any]:
    return {
        "category": category, "backbone": "resnet18", "preset": preset, "constants": "float16",
        "backbone_precision": "float32", "image_auroc": image, "pixel_auroc": 0.9, "pro": 0.8,
        "good": 10, "false_alarms": 1, "target": 0.05, "shrinkage": 0.0, "bytes": 2e6, **others,
    }  # fmt: skip


def test_means_are_over_categories_that_all_have_and_alarms_are_added_up() -> None:
    of = {"unseen_image_auroc": 0.75, "unseen_good": 4, "unseen_false_alarms": 0}
    rows = [row("a", "reference", 0.8, ms=3.25, **of), row("b", "reference", 0.9, **of)]
    rows += [row("a", "whitened", 0.9)]  # b is missing
    rows += [row("b", "whitened", 0, refused="it changes too much")]
    lines = accuracy.tables({"runs": {}, "rows": rows}).splitlines()
    means = [line for line in lines if line.startswith("| resnet18 ")]
    assert means == [
        "| resnet18 | reference | float32 | float16 | 0.8500 | 0.7500 | 0.9000 | 0.8000 "
        "| 2 of 20: 0.100 (0.012 to 0.317) | 0 of 8: 0.000 (0.000 to 0.369) | 3.2 | 2.0 |"
    ]
    assert "- not made: b resnet18 whitened float32 float16: it changes too much" in lines


def test_categories_without_masks_have_image_figures_alone() -> None:
    bare = {"pixel_auroc": None, "pro": None}
    rows = [row("a", "reference", 0.8), row("bottle", "published", 0.9, **bare)]
    rows += [row("b", "reference", 0.9, **bare), row("c", "published", 0.7)]
    text = accuracy.tables({"runs": {}, "rows": rows})
    assert "| resnet18 | reference | float32 | float16 | 0.8500 | - | - | - | 2 of 20" in text
    assert "| bottle | 0.9000 | 0.996 | -0.0960 | - | 0.981 | - |" in text


def test_the_published_figures_stand_beside_ours() -> None:
    rows = [row("bottle", "published", 0.9968), row("mine", "published", 0.5)]
    text = accuracy.tables({"runs": {}, "rows": rows})
    assert "| bottle | 0.9968 | 0.996 | +0.0008 | 0.9000 | 0.981 | -0.0810 |" in text
    assert "| mine | 0.5" not in text


def test_peers_stand_in_a_table_of_their_own() -> None:
    peer = {
        "category": "bottle", "method": "anomalib, PaDiM", "version": "anomalib 2.7.0",
        "image_auroc": 0.99, "pixel_auroc": 0.98, "pro": 0.9, "bytes": 130e6,
        "command": "python accuracy_peers.py bottle", "date": "2026-11-28",
    }  # fmt: skip
    report = {"runs": {}, "rows": [row("bottle", "reference", 0.9)], "peers": [peer]}
    text = accuracy.tables(report)
    assert "| anomalib, PaDiM | bottle | 0.9900 | 0.9800 | 0.9000 | 130.0 |" in text
    assert "anomalib 2.7.0, 2026-11-28: `python accuracy_peers.py bottle`" in text
    assert "Peers: not run" in accuracy.tables(report | {"peers": []})


def test_data_sets_are_found_at_three_depths(tmp_path: Path) -> None:
    for place in (".", "b", "c/d", "e/f/g"):
        (tmp_path / place / "train" / "good").mkdir(parents=True)
        (tmp_path / place / "test" / "good").mkdir(parents=True)
    assert accuracy.data_sets(tmp_path) == [tmp_path, tmp_path / "b", tmp_path / "c" / "d"]
    assert accuracy.data_sets(tmp_path / "b" / "train") == []


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no data set in"):
        run(monkeypatch, tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(SystemExit, match="--presets paper: choose among published, reference"):
        run(monkeypatch, tmp_path, "--presets", "paper")
