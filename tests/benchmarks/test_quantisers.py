"""benchmarks/quantisers.py: its rows are what quantize, fit and eval say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")
import quantisers
from helpers import in_process

from padim_edge.images.synthetic import make_dataset
from padim_edge.runtime.quantise import TARGETS


@pytest.mark.slow  # three fits
def test_rows_are_what_the_commands_give_and_are_added_to_those_there(
    embedding_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_dataset(tmp_path / "set", train=12, good=3, per_defect=1, size=64)
    file = tmp_path / "q.json"
    common = [str(embedding_file), str(tmp_path / "set"), "--json", str(file), "--quantisers"]
    for names in ("none", "ort,ort-averaged"):
        monkeypatch.setattr(sys, "argv", ["quantisers.py", *common, names])
        quantisers.main()
    none, ort, averaged = json.loads(file.read_text())["rows"]
    assert set(none["change"].values()) == {0.0}
    assert all(0 < value < 0.3 for value in ort["change"].values())
    assert ort["change"] != averaged["change"]
    assert ort["bytes"] < none["bytes"]
    assert "averaged" not in TARGETS
    assert capsys.readouterr().out.count("| ort-averaged (onnxruntime ") == 1

    int8, model, results = (tmp_path / name for name in ("i.onnx", "p.onnx", "e.json"))
    in_process("quantize", embedding_file, tmp_path / "set" / "train", "-o", int8).worked()
    in_process("fit", int8, tmp_path / "set", "-o", model).worked()
    in_process("eval", model, tmp_path / "set", "--json", results).worked()
    said = json.loads(results.read_text())
    for name in ("image_auroc", "pixel_auroc", "pro"):
        assert ort[name] == pytest.approx(said[name], abs=1e-6)


def test_pairs_are_counted() -> None:
    good, bad = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0])
    assert quantisers.auroc(good, bad) == pytest.approx((1.5 + 3) / 6)


def test_what_cannot_be_is_refused(embedding_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["quantisers.py", str(embedding_file), ".", "--quantisers", "ort,best"]
    monkeypatch.setattr(sys, "argv", options)
    with pytest.raises(SystemExit, match="--quantisers best: choose among none, ort"):
        quantisers.main()
