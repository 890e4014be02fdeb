"""benchmarks/accuracy.py: what it judges is what the commands give, and its tables are its rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("torch")
pytest.importorskip("sklearn")
import accuracy
from helpers import in_process

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
    in_process("fit", work / "resnet18.onnx", tmp_path / "sets" / "cloth", *options).worked()
    in_process("eval", model, tmp_path / "sets" / "cloth", "--json", results).worked()
    said = json.loads(results.read_text())
    assert {name: rows[0][name] for name in said} == pytest.approx(said, abs=1e-6)
    assert rows[0]["false_alarms"] == round(said["false_alarm_rate"] * 6)
    assert "| resnet18 | reference | float32 | float16 |" in capsys.readouterr().out


def row(category: str, preset: str, image: float, **others: Any) -> dict[str, Any]:
    return {
        "category": category, "backbone": "resnet18", "preset": preset, "constants": "float16",
        "backbone_precision": "float32", "image_auroc": image, "pixel_auroc": 0.9, "pro": 0.8,
        "good": 10, "false_alarms": 1, "target": 0.05, "shrinkage": 0.0, "bytes": 2e6, **others,
    }  # fmt: skip


def test_means_are_over_categories_that_all_have_and_alarms_are_added_up() -> None:
    rows = [row("a", "reference", 0.8, ms=3.25), row("b", "reference", 0.9)]
    rows += [row("a", "whitened", 0.9)]  # b is missing
    rows += [row("b", "whitened", 0, refused="it changes too much")]
    lines = accuracy.tables({"runs": {}, "rows": rows}).splitlines()
    means = [line for line in lines if line.startswith("| resnet18 ")]
    assert means == [
        "| resnet18 | reference | float32 | float16 | 0.8500 | 0.9000 | 0.8000 "
        "| 2 of 20: 0.100 (0.012 to 0.317) | 3.2 | 2.0 |"
    ]
    assert "- not made: b resnet18 whitened float32 float16: it changes too much" in lines


def test_categories_without_masks_have_image_figures_alone() -> None:
    bare = {"pixel_auroc": None, "pro": None}
    rows = [row("a", "reference", 0.8), row("bottle", "published", 0.9, **bare)]
    rows += [row("b", "reference", 0.9, **bare), row("c", "published", 0.7)]
    text = accuracy.tables({"runs": {}, "rows": rows})
    assert "| resnet18 | reference | float32 | float16 | 0.8500 | - | - | 2 of 20" in text
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
