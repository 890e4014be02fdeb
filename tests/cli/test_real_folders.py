"""Which real photos are fitted: the bottles of MVTec AD in folders as people have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process, unchanged
from PIL import Image

from padim_edge.model.file import read

LANCZOS = ("--interpolation", "lanczos")
RIGHT = {"threshold": 21.066, "recall": 0.921}


@pytest.fixture
def bottle(data: Path) -> Path:
    return data / "data" / "mvtec-256" / "bottle"


def test_good_and_defective_ones_beside_each_other(tmp_path, real_embedding, bottle):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "OK").symlink_to(bottle / "train" / "good")
    (tmp_path / "set" / "NG").symlink_to(bottle / "test" / "broken_large")
    fit = ("fit", real_embedding, tmp_path / "set", *LANCZOS, "-o", tmp_path / "padim.onnx")
    with unchanged(tmp_path):
        in_process(*fit).failed(1, "NG (20), OK (209)", "--normal-dir OK")
    done = in_process(*fit, "--normal-dir", "OK").worked()
    assert f"images: 209 of {tmp_path / 'set' / 'OK'}\n" in done.stderr
    info = read(tmp_path / "padim.onnx", "padim").detector_info
    assert info.threshold == pytest.approx(RIGHT["threshold"], abs=0.01)


def test_a_data_set_in_capitals(tmp_path, real_embedding, bottle):
    names = {"train/good": "Train/Good", "test/good": "Test/Good", "ground_truth": "Ground_Truth"}
    names |= {
        f"test/{kind}": f"Test/{kind}" for kind in ("broken_large", "broken_small", "contamination")
    }
    for old, new in names.items():
        (tmp_path / "set" / new).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / new).symlink_to(bottle / old)
    model, results = tmp_path / "padim.onnx", tmp_path / "results.json"
    in_process("fit", real_embedding, tmp_path / "set", *LANCZOS, "-o", model).worked()
    in_process("eval", model, tmp_path / "set", "--json", results).worked()
    metrics = json.loads(results.read_text())
    assert {name: metrics[name] for name in RIGHT} == pytest.approx(RIGHT, abs=0.01)
    assert metrics["pro"] > 0.95


# --- photos that are there twice ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["copied", "stored again"])
def test_thirty_photos_each_stored_twice(tmp_path, real_embedding, bottle, kind):
    """The same 30 once: threshold 20.4, false alarms .10. Twice it was 7.05 and 1.0."""
    folder, model = tmp_path / "twice", tmp_path / "padim.onnx"
    folder.mkdir()
    for path in sorted((bottle / "train" / "good").iterdir())[:30]:
        shutil.copy(path, folder)
        if kind == "copied":
            shutil.copy(path, folder / f"{path.stem}-copy.png")
        else:
            Image.open(path).save(folder / f"{path.stem}-copy.jpg", quality=90)
    done = in_process("fit", real_embedding, folder, *LANCZOS, "-o", model).worked()
    told = "30 image(s) equal others" if kind == "copied" else "60 images are nearly equal"
    assert any(told in line for line in done.warnings())
    info = read(model, "padim").detector_info
    assert info.false_alarm_rate == pytest.approx(1 / 31)
    assert info.threshold == pytest.approx(20.4, abs=0.05 if kind == "copied" else 3)
    in_process("eval", model, bottle, "--json", tmp_path / "e.json").worked()
    metrics = json.loads((tmp_path / "e.json").read_text())
    assert metrics["false_alarm_rate"] <= 0.1


def test_five_equal_photos(tmp_path, real_embedding, bottle):
    for number in range(5):
        shutil.copy(bottle / "train" / "good" / "000.png", tmp_path / f"{number}.png")
    with unchanged(tmp_path):
        done = in_process("fit", real_embedding, tmp_path, "-o", tmp_path / "padim.onnx")
    done.failed(1, "1 usable image given, 4 equal to others", "at least 3 good images")


# --- masks ------------------------------------------------------------------------------------


def test_masks_as_people_store_them(tmp_path, real_embedding, bottle):
    """16 bits with 0 and 1 were no masks; JPEG's noise was marked, PRO .870 instead of .953."""
    model = tmp_path / "padim.onnx"
    in_process("fit", real_embedding, bottle, *LANCZOS, "-o", model).worked()
    pro = {}
    for kind in ("png", "deep", "jpeg", "inverted"):
        folder = tmp_path / kind
        for path in sorted((bottle / "ground_truth").rglob("*.png")):
            values = np.asarray(Image.open(path).convert("L"))
            target = folder / path.relative_to(bottle / "ground_truth")
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "deep":
                Image.fromarray((values > 0).astype(np.uint16)).save(target)
            elif kind == "jpeg":
                Image.fromarray(values).save(target.with_suffix(".jpg"), quality=75)
            else:
                Image.fromarray(255 - values if kind == "inverted" else values).save(target)
        done = in_process(
            "eval", model, bottle, "--mask-dir", folder, "--json", tmp_path / "e.json"
        ).worked()
        metrics = json.loads((tmp_path / "e.json").read_text())
        pro[kind] = metrics["pro"]
        assert metrics["images_without_mask"] == 0
        said = [line for line in done.warnings() if "inverted" in line]
        assert len(said) == (kind == "inverted")
    assert pro["png"] == pytest.approx(0.953, abs=0.002)
    assert pro["deep"] == pro["png"]
    assert pro["jpeg"] == pytest.approx(pro["png"], abs=0.003)
