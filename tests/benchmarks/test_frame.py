"""benchmarks/frame.py: its two tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("torch")
import frame


@pytest.mark.usefixtures("hurried")
def test_prepared_images_and_a_cameras_frames(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--batch", "1,2", "--calls", "10", "--constants", "int8"]
    options += ["--frame", "60x40,300x200", "--pixel-format", "nv12"]
    monkeypatch.setattr(sys, "argv", ["frame.py", *options])
    frame.main()
    lines = capsys.readouterr().out.splitlines()
    tables = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    prepared, camera = tables[2:4], tables[6:]
    assert tables[0] == list(frame.PREPARED)
    assert tables[4] == list(frame.CAMERA)
    assert [row[:2] for row in prepared] == [["int8", "1"], ["int8", "2"]]
    frames = ["60x40 nv12", "300x200 nv12"]
    assert [row[1:3] for row in camera] == [[batch, one] for batch in "12" for one in frames]
    for _, batch, _, bare, prepare, graph, rest, whole, ratio in camera:
        assert bare == prepared[int(batch) - 1][2]
        assert float(whole) >= float(graph) > 0
        assert min(float(prepare), float(rest)) >= 0
        assert float(ratio) == pytest.approx(float(whole) / float(bare), abs=0.01)
