"""Which real photos are fitted: the bottles of MVTec AD in folders as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import in_process, unchanged

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
