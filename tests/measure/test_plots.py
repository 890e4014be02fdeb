"""The picture of a benchmark: its formats, what it shows, and what goes wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import blocking, in_process, padim_edge, unchanged
from reports import SMALL, earlier, validate, with_gpu

from padim_edge.measure.report import Report


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG\r\n"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")]
)
@pytest.mark.usefixtures("remeasured")
def test_formats(model_file: Path, tmp_path: Path, name: str, start: bytes) -> None:
    in_process("bench", model_file, "--engine", "ort", "--plot", tmp_path / name).worked()
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_the_picture_shows(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from padim_edge.measure.plots import draw

    with (tmp_path / "a.svg").open("wb") as stream:
        draw(with_gpu(report), stream, "svg")
    text = (tmp_path / "a.svg").read_text()
    (ort,) = report.engines
    words = ["batch 1", "batch 4", ">ort<", ">trt<", "upload", "distances", "bare backbone (ort)"]
    words += [
        "whole graph",
        "120x90 bgr",
        "prepare",
        "rest",
        "ms per frame",
        report.date,
        report.machine.processor[:20],
        "numpy",
    ]
    words += [f"{one.graph.p50 / one.batch:.3g}" for one in ort.results]
    assert [word for word in words if word not in text] == []


@pytest.mark.usefixtures("remeasured")
def test_a_picture_that_fails_costs_no_figures(
    report: Report, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def fail(*_: object) -> None:
        raise MemoryError("no room for a picture")

    monkeypatch.setattr("padim_edge.measure.plots.draw", fail)
    old, new = earlier(report, tmp_path, graph=0.5), tmp_path / "new.json"
    done = in_process(
        *("bench", model_file, "--engine", "ort", "--batch", "1,4", *SMALL, "--against", old),
        *("--json", new, "--plot", tmp_path / "a.png"),
    )
    done.failed(1, "no room for a picture")
    validate(json.loads(new.read_text()))
    assert "graph: image to score" in done.stdout
    assert "worse" in done.stdout
    assert not (tmp_path / "a.png").exists()


@pytest.mark.usefixtures("not_measured")
def test_pictures_that_cannot_be_drawn(model_file: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        for name in ("a", "a.jpg", "a.png.txt"):
            done = in_process("bench", model_file, "--plot", tmp_path / name)
            done.failed(2, f"--plot {tmp_path / name}", ".png, .svg, .pdf")
        missing = tmp_path / "no" / "a.png"
        in_process("bench", model_file, "--plot", missing).failed(1, f"cannot write {missing}")


def test_without_matplotlib(model_file: Path, tmp_path: Path) -> None:
    # Measuring would be another error.
    fail = "from padim_edge.measure import bench; bench.run_benchmark = None\n"
    with unchanged(tmp_path):
        done = padim_edge(
            *("bench", model_file, "--plot", tmp_path / "a.png", "--json", tmp_path / "a.json"),
            prelude=blocking("matplotlib") + fail,
        )
    done.failed(1, "--plot", "matplotlib", "pip install 'padim-edge[dev]'")
