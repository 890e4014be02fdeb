"""The demo: the whole way, at its real size."""

from __future__ import annotations

import pytest
from helpers import names, padim_edge


def test_demo(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    folder = tmp_path / "demo"
    done = padim_edge("demo", "--folder", folder, timeout=600).worked()
    for step in ("export", "fit", "inspect", "run", "eval", "bench"):
        assert f"$ padim-edge {step} " in done.stdout
    assert "RANDOM weights" in done.stderr
    assert {"embedding.onnx", "padim.onnx", "photos", "maps"} <= {
        path.name for path in folder.iterdir()
    }
    judged = list((folder / "photos" / "test").rglob("*.png"))
    assert len(names(folder / "maps")) == len(judged) == 50
    (auroc,) = (line.split()[-1] for line in done.stdout.splitlines() if "image AUROC" in line)
    assert float(auroc) > 0.9
    assert f"Look at {folder / 'maps'}" in done.stdout
