"""eval as it is typed, and that it agrees with run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process, padim_edge
from PIL import Image


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


# --- masks ------------------------------------------------------------------------------------


def evaluated(tmp_path, model_file, dataset, *options):
    done = in_process("eval", model_file, dataset, "--json", tmp_path / "e.json", *options).worked()
    return done, json.loads((tmp_path / "e.json").read_text())


def masks_changed(tmp_path, photos, change):
    """A copy of the data set in which something was done to every mask."""
    dataset = Path(shutil.copytree(photos, tmp_path / "set"))
    for path in sorted((dataset / "ground_truth").rglob("*.png")):
        change(path, np.asarray(Image.open(path).convert("L")))
    return dataset


def test_masks_of_16_bits_and_of_zero_and_one(tmp_path, model_file, photos):
    def deep(path, values):
        Image.fromarray((values > 0).astype(np.uint16)).save(path)

    _, right = evaluated(tmp_path, model_file, photos)
    done, found = evaluated(tmp_path, model_file, masks_changed(tmp_path, photos, deep))
    assert found == right
    assert not done.warnings()


def test_masks_compressed_with_loss(tmp_path, model_file, photos):
    def jpeg(path, values):
        path.unlink()
        Image.fromarray(values).save(path.with_suffix(".jpg"), quality=60)

    _, right = evaluated(tmp_path, model_file, photos)
    _, found = evaluated(tmp_path, model_file, masks_changed(tmp_path, photos, jpeg))
    assert found == pytest.approx(right, abs=2e-3)


def test_inverted_masks_are_told_of(tmp_path, model_file, photos):
    dataset = masks_changed(
        tmp_path, photos, lambda path, values: Image.fromarray(255 - values).save(path)
    )
    done, _ = evaluated(tmp_path, model_file, dataset)
    (said,) = done.warnings()
    assert "6 of 6 masks mark more than half of their image, so they seem to be inverted" in said


def test_masks_that_mark_nothing_are_named(tmp_path, model_file, photos):
    def some(path, values):
        if path.parent.name == "stain":
            Image.fromarray(values * 0).save(path)

    done, found = evaluated(tmp_path, model_file, masks_changed(tmp_path, photos, some))
    (said,) = done.warnings()
    assert "2 mask(s) mark nothing" in said
    assert "stain/000_mask.png" in said
    assert found["images_without_mask"] == 2


def test_masks_of_another_shape_are_refused(tmp_path, model_file, photos):
    def wide(path, values):
        if path.parent.name == "stain":
            Image.fromarray(values).resize((128, 96)).save(path)

    done, found = evaluated(tmp_path, model_file, masks_changed(tmp_path, photos, wide))
    assert found["defective"] == 4
    first, _, total = done.warnings()
    assert "000_mask.png: 128 x 96 pixels, and its image 96 x 96" in first
    assert "2 unreadable image(s) were left out" in total


def test_masks_that_belong_to_no_image_are_named(tmp_path, model_file, photos):
    dataset = Path(shutil.copytree(photos, tmp_path / "set"))
    folder = dataset / "ground_truth" / "stain"
    shutil.copy(folder / "000_mask.png", folder / "100_mask.png")
    shutil.copy(folder / "000_mask.png", dataset / "ground_truth" / "lonely.png")
    done, _ = evaluated(tmp_path, model_file, dataset)
    (said,) = done.warnings()
    assert "2 mask(s) belong to no image" in said
    assert "100_mask.png" in said
    assert "lonely.png" in said


def test_the_mask_of_a_good_image_marks_nothing(tmp_path, model_file, photos):
    dataset = Path(shutil.copytree(photos, tmp_path / "set"))
    mask = dataset / "ground_truth" / "good" / "000_mask.png"
    mask.parent.mkdir()
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(mask)
    evaluated(tmp_path, model_file, dataset)
    Image.fromarray(np.ones((96, 96), np.uint8)).save(mask)
    done = in_process("eval", model_file, dataset)
    done.failed(1, "good/000.png is labelled good", str(mask))


def test_folders_named_by_the_user(tmp_path, model_file, photos):
    _, right = evaluated(tmp_path, model_file, photos)
    root = tmp_path / "other"
    root.mkdir()
    names = {"Images/Normal": "test/good"}
    names |= {
        f"Images/Bad/{kind}": f"test/{kind}" for kind in ("missing_thread", "scratch", "stain")
    }
    names |= {"Masks": "ground_truth"}
    for new, old in names.items():
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(photos / old, root / new)
    done, found = evaluated(
        tmp_path, model_file, root,
        *("--normal-dir", "Images/Normal", "--abnormal-dir", "Images/Bad", "--mask-dir", "Masks"),
    )  # fmt: skip
    assert found == right
    assert not done.warnings()
