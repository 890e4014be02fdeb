"""eval as it is typed, and that it agrees with run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process, padim_edge


def test_eval(tmp_path, model_file, photos):
    pytest.importorskip("sklearn")
    done = padim_edge("eval", model_file, photos, "--json", tmp_path / "e.json").worked()
    kinds = {"good": 4, "missing_thread": 2, "scratch": 2, "stain": 2}
    folders = [f"{count} of {photos / 'test' / kind}" for kind, count in kinds.items()]
    assert done.stderr == f"images: {', '.join(folders)}\n"
    metrics = json.loads((tmp_path / "e.json").read_text())
    assert set(metrics) == {
        *("good", "defective", "images_without_mask", "image_auroc", "pixel_auroc", "pro"),
        *("best_f1", "best_f1_threshold", "threshold", "f1", "precision", "recall"),
        "false_alarm_rate",
    }
    assert (metrics["good"], metrics["defective"], metrics["images_without_mask"]) == (4, 6, 0)
    for name in ("image_auroc", "pixel_auroc", "pro", "best_f1", "f1", "recall"):
        assert 0 <= metrics[name] <= 1
    assert metrics["image_auroc"] > 0.5
    head, *rows = done.stdout.splitlines()
    assert head.strip() == "4 good, 6 defective"
    shown = {row.rsplit(maxsplit=1)[0]: float(row.rsplit(maxsplit=1)[1]) for row in rows}
    assert shown["image AUROC"] == pytest.approx(metrics["image_auroc"], abs=1e-4)
    assert shown["pixel AUROC"] == pytest.approx(metrics["pixel_auroc"], abs=1e-4)
    assert shown["false-alarm rate"] == pytest.approx(metrics["false_alarm_rate"], abs=1e-4)


def test_eval_agrees_with_run(tmp_path, model_file, photos):
    metrics_module = pytest.importorskip("sklearn.metrics")
    in_process("eval", model_file, photos, "--json", tmp_path / "e.json").worked()
    metrics = json.loads((tmp_path / "e.json").read_text())
    done = in_process("run", model_file, photos / "test", "--jsonl", "-").worked()
    records = [json.loads(line) for line in done.stdout.splitlines()]
    labels = ["good" not in Path(record["path"]).parts for record in records]
    auroc = metrics_module.roc_auc_score(labels, [record["score"] for record in records])
    assert metrics["image_auroc"] == pytest.approx(auroc)
    alarms = [r["is_anomalous"] for r, bad in zip(records, labels, strict=True) if not bad]
    assert metrics["false_alarm_rate"] == pytest.approx(np.mean(alarms))


def test_eval_takes_both_names_of_masks_and_does_without(tmp_path, model_file, photos):
    pytest.importorskip("sklearn")
    dataset = Path(shutil.copytree(photos, tmp_path / "set"))
    results = []
    for change in ("", "rename", "remove"):
        for mask in sorted((dataset / "ground_truth").rglob("*.png")):
            if change == "rename":
                mask.rename(mask.with_name(mask.name.replace("_mask", "")))
            elif change == "remove":
                mask.unlink()
        done = in_process("eval", model_file, dataset, "--json", tmp_path / "e.json").worked()
        results.append(json.loads((tmp_path / "e.json").read_text()))
    assert results[0] == results[1]
    assert results[2]["image_auroc"] == results[0]["image_auroc"]
    assert (results[2]["pixel_auroc"], results[2]["pro"]) == (None, None)
    assert "no masks" in done.stdout
    assert "6 defective image(s) have no mask" in done.stderr
