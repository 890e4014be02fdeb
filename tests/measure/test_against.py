"""A benchmark against an earlier one: what is compared, what is said, what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Outcome, in_process, unchanged
from reports import SMALL, earlier, validate, with_gpu

from padim_edge.errors import UsageError
from padim_edge.measure.against import Change, check, compare, load
from padim_edge.measure.camera import Camera
from padim_edge.measure.report import Report


def test_what_is_worse() -> None:
    change = Change("graph, ms", 10.0, 11.5, gates=True)
    assert change.share == pytest.approx(0.15)
    assert change.worse(0.1)
    assert not change.worse(0.2)
    assert not Change("graph, ms", 10.0, 5.0, gates=True).worse(0)
    assert not Change("graph, ms", 10.0, 10.0, gates=True).worse(0)
    assert not Change("file", 10.0, 11.5, gates=False).worse(0.1)


def test_the_figures_side_by_side(report: Report, tmp_path: Path) -> None:
    comparison = compare(load(earlier(report, tmp_path, graph=2, ratio=0.5)), report)
    assert comparison.notes == ()
    shares = {change.figure: round(change.share, 6) for change in comparison.changes}
    frame = "120x90 bgr"
    one = {"graph, ms": -0.5, "graph / bare backbone": 1}
    one |= {f"{frame}, ms": 0, f"{frame} / bare backbone": 0}
    assert shares == {
        **{f"ort, batch {n}: {name}": share for n in (1, 4) for name, share in one.items()},
        "ort: cold start, s": 0,
        "ort: peak memory, MB": 0,
        "model file, MB": 0,
    }
    first = comparison.changes[0]
    assert first.new == report.engines[0].results[0].graph.p50
    assert first.old == 2 * first.new


@pytest.mark.parametrize("figure", ["graph", "whole", "ratio", "start", "memory"])
@pytest.mark.usefixtures("remeasured")
def test_worse_than_before(report: Report, model_file: Path, tmp_path: Path, figure: str) -> None:
    old, new, picture = (
        earlier(report, tmp_path, **{figure: 0.8}),
        tmp_path / "n",
        tmp_path / "p.svg",
    )
    arguments = ("bench", model_file, "--engine", "ort", "--batch", "1,4", *SMALL, "--against", old)
    done = in_process(*arguments, "--json", new, "--plot", picture)
    many = 1 if figure in ("start", "memory") else 2
    done.failed(1, f"{many} of 11 figures rose by more than 10 %")
    marked = [line for line in done.stdout.splitlines() if line.endswith("worse")]
    assert len(marked) == many
    assert all("+25.0%" in line for line in marked)
    validate(json.loads(new.read_text()))
    assert picture.exists()
    done = in_process(*arguments, "--tolerance", "0.3").worked()
    assert "worse" not in done.stdout


@pytest.mark.usefixtures("remeasured")
def test_no_worse_than_before(report: Report, model_file: Path, tmp_path: Path) -> None:
    """Faster and smaller is well; a larger file is no matter of time."""
    faster = dict.fromkeys(("graph", "whole", "ratio", "start", "memory"), 3.0)
    old = earlier(report, tmp_path, **faster, file=0.1)
    arguments = ("bench", model_file, "--engine", "ort", *SMALL, "--against", old)
    done = in_process(*arguments, "--tolerance", 0).worked()
    assert "worse" not in done.stdout
    assert "-66.7%" in done.stdout
    assert "+900.0%" in done.stdout
    assert done.stderr == ""


@pytest.mark.usefixtures("hurried")
def test_against_itself_as_it_is_typed(
    measured: tuple[Outcome, Path], model_file: Path, tmp_path: Path
) -> None:
    """The whole way, for real: no machine is ten thousand times slower a moment later."""
    done = in_process(
        *("bench", model_file, "--engine", "ort", *SMALL, "--batch", "4,2"),
        *("--against", measured[1], "--tolerance", 1e4, "--plot", tmp_path / "bench.png"),
    ).worked()
    assert done.stderr.splitlines() == [
        "not in the earlier report: ort, batch 2",
        "in the earlier report only: ort, batch 1",
    ]
    assert "ort, batch 4: graph, ms " in done.stdout
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_report_of_schema_2_is_read(report: Report) -> None:
    """A real one: what it calls otherwise is nothing that is compared."""
    file = Path(__file__).parents[2] / "benchmarks" / "results" / "bench.json"
    value = json.loads(file.read_bytes())
    assert value["schema"] == 2
    assert "passed_over" in value["engines"][0]
    old = load(file)
    assert old.date == value["date"]
    assert [(row.engine, list(row.figures)) for row in old.rows] == [
        (engine, [1, 32, None]) for engine in ("ort", "openvino", "openvino-bf16")
    ]
    assert {row.file for row in old.rows} == set(old.models) == {value["model"]["file"]}
    one = value["engines"][0]["results"][0]
    assert old.rows[0].figures[1] == {
        "graph, ms": one["graph"]["p50"],
        "graph / bare backbone": one["ratio"],
        "900x900 rgb, ms": one["total"]["p50"],
    }
    changes = {change.figure: change for change in compare(old, report).changes}
    assert changes["ort, batch 1: graph, ms"].old == one["graph"]["p50"]
    assert changes["ort, batch 1: graph, ms"].new == report.engines[0].results[0].graph.p50
    assert changes["ort: cold start, s"].old == value["engines"][0]["cold_start_seconds"]


@pytest.mark.parametrize("schema", [2, 3, 4])
def test_against_one_of_an_older_schema(report: Report, tmp_path: Path, schema: int) -> None:
    """Its frames were RGB, and of one size; all else compares as ever."""
    old = earlier(report, tmp_path, graph=0.8)
    value = json.loads(old.read_text())
    value["schema"] = schema
    (value["model"],) = value.pop("models")
    value["file_bytes"] = value["model"].pop("file_bytes")
    for engine in value["engines"]:
        del engine["model"]
        if schema == 2:
            engine["passed_over"] = engine.pop("skipped")
        for result in engine["results"] if schema < 4 else ():
            result["total"] = result.pop("frames")[0]["whole"]
            result["stages"]["preprocess"] = result["total"]
            value["frame_size"] = [90, 120]
    old.write_text(json.dumps(value))
    comparison = compare(load(old), report)
    worse = [change.figure for change in comparison.changes if change.worse(0.1)]
    assert worse == ["ort, batch 1: graph, ms", "ort, batch 4: graph, ms"]
    if schema == 4:
        assert comparison.notes == ()
        assert comparison.changes[-1].figure == "model file, MB"
        assert comparison.changes[-1].share == 0
        return
    assert comparison.notes[1].startswith("in the earlier report only: ort, batch 1: 120x90 rgb")
    rgb = Camera(120, 90, "rgb")
    engines = [
        dataclasses.replace(
            engine,
            results=tuple(
                dataclasses.replace(
                    result, frames=(dataclasses.replace(result.frames[0], camera=rgb),)
                )
                for result in engine.results
            ),
        )
        for engine in report.engines
    ]
    comparison = compare(load(old), dataclasses.replace(report, engines=tuple(engines)))
    changes = {change.figure: change for change in comparison.changes}
    one = report.engines[0].results[0].frames[0]
    assert changes["ort, batch 1: 120x90 rgb, ms"].new == one.whole.p50
    assert changes["ort, batch 1: 120x90 rgb, ms"].share == 0


def test_no_figure_vanishes_in_silence(report: Report, tmp_path: Path) -> None:
    both, one = with_gpu(report), report.engines[0]
    frames = one.results[0].frames
    results = (dataclasses.replace(one.results[0], ratio=None, frames=frames[:0]),)
    fewer = dataclasses.replace(report, engines=(dataclasses.replace(one, results=results),))
    gone = (
        "ort, batch 1: graph / bare backbone; ort, batch 1: 120x90 bgr, ms; "
        "ort, batch 1: 120x90 bgr / bare backbone; ort, batch 4; trt, batch 1; trt, batch 4"
    )
    assert compare(load(earlier(both, tmp_path)), fewer).notes == (
        f"in the earlier report only: {gone}",
    )
    assert compare(load(earlier(fewer, tmp_path)), both).notes == (
        f"not in the earlier report: {gone}",
    )


def test_nothing_in_common_says_why(report: Report, tmp_path: Path) -> None:
    _, trt = with_gpu(report).engines
    alone = dataclasses.replace(report, engines=(trt,))
    value = json.loads(earlier(alone, tmp_path).read_text())
    value["engines"][0]["device"]["device"] = "Nano"
    (tmp_path / "old.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match=r"nothing to compare .*; not compared: trt was on Nano$"):
        compare(load(tmp_path / "old.json"), alone)


CONDITIONS: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "processor": (lambda v: v["machine"].update(processor="Z80"), ["processor Z80 (now "]),
    "cores": (lambda v: v["machine"].update(cores=1000), ["cores 1000 (now "]),
    "power": (lambda v: v["machine"].update(power_mode="25W"), ["power mode 25W (now unknown)"]),
    "threads": (lambda v: v.update(threads=7), ["threads 7 (now 1)"]),
    "precision": (lambda v: v["models"][0].update(precision="float16"), ["float16 (now float32)"]),
    "engines": (lambda v: v["engines"][0].update(name="trt"), ["nothing to compare", "trt, batch"]),
    "batches": (
        lambda v: [one.update(batch=16 * one["batch"]) for one in v["engines"][0]["results"]],
        ["nothing to compare", "ort, batch 16; ort, batch 64"],
    ),
    "schema": (
        lambda v: v.update(schema=1),
        ["its schema is 1", "one of 2, 3, 4, 5 is needed", "measure again"],
    ),
    "no report": (lambda v: v.clear(), ["no report of padim-edge bench"]),
    "no models": (lambda v: v["models"].clear(), ["no report"]),
    "not whole": (lambda v: v["engines"][0]["results"][1].pop("graph"), ["no report", "whole"]),
    "no number": (
        lambda v: v["engines"][0]["results"][1]["graph"].update(p50="fast"), ["no report"]
    ),
    "no camera": (
        lambda v: v["engines"][0]["results"][1]["frames"][0]["camera"].clear(), ["no report"]
    ),
    "not finite": (
        lambda v: v["engines"][0].update(cold_start_seconds=float("nan")), ["no report"]
    ),
    "zero": (lambda v: v["engines"][0]["results"][0].update(ratio=0), ["no report"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.usefixtures("not_measured")
def test_a_report_that_does_not_compare(
    report: Report, model_file: Path, tmp_path: Path, name: str
) -> None:
    spoil, words = CONDITIONS[name]
    old = earlier(report, tmp_path)
    value = json.loads(old.read_text())
    spoil(value)
    old.write_text(json.dumps(value))
    arguments = ("bench", model_file, "--engine", "ort", *SMALL, "--against", old)
    in_process(*arguments).failed(2, "--against", *words)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 10**6, "no JSON"),
        (b"[]", "no report"),
        (b"17", "no report"),
        (b'{"schema": 2}', "no report"),
        (b'{"schema": 4}', "no report"),
        (b'{"schema": 5}', "no report"),
        (b'{"schema": 6, "machine": {}}', "no report"),
        (None, "No such file"),
    ],
)
@pytest.mark.usefixtures("not_measured")
def test_a_file_that_is_no_report(
    model_file: Path, tmp_path: Path, content: bytes | None, word: str
) -> None:
    old = tmp_path / "old.json"
    if content is not None:
        old.write_bytes(content)
    with unchanged(tmp_path):
        done = in_process("bench", model_file, "--against", old, "--json", tmp_path / "new.json")
    done.failed(2, f"--against {old}", word)


def test_what_is_said_and_compared(report: Report, tmp_path: Path) -> None:
    old = earlier(with_gpu(report), tmp_path)
    value = json.loads(old.read_text())
    value["models"][0].update(sha256="0" * 64, constants="int8")
    value["machine"]["versions"]["numpy"] = "1.0"
    value["engines"][1]["device"]["device"] = "Nano"
    del value["engines"][0]["results"][0]
    old.write_text(json.dumps(value))
    comparison = compare(load(old), with_gpu(report))
    model, software, device, missing = comparison.notes
    assert model.startswith("another model file: ")
    assert "int8 constants, now " in model
    assert software == f"other software: numpy 1.0, now {np.__version__}"
    assert device == "not compared: trt was on Nano"
    assert missing == "not in the earlier report: ort, batch 1"
    figures = [change.figure for change in comparison.changes]
    assert "ort, batch 4: graph, ms" in figures
    assert not [name for name in figures if name.startswith(("trt", "ort, batch 1"))]


def twice(report: Report) -> Report:
    """A report of a second model, which was made up."""
    (facts,), (row,) = report.models, report.engines
    other = dataclasses.replace(facts, file="int8.onnx", precision="int8", sha256="1" * 64)
    return dataclasses.replace(
        report,
        models=(facts, other),
        engines=(row, dataclasses.replace(row, model="int8.onnx")),
    )


def test_models_are_compared_by_name_where_there_are_several(
    report: Report, tmp_path: Path
) -> None:
    both, name = twice(report), report.models[0].file
    comparison = compare(load(earlier(both, tmp_path, graph=0.5)), both)
    assert comparison.notes == ()
    figures = [change.figure for change in comparison.changes]
    assert [change.figure for change in comparison.changes if change.worse(0.1)] == [
        f"{file}, ort, batch {batch}: graph, ms" for file in (name, "int8.onnx") for batch in (1, 4)
    ]
    assert figures[-2:] == [f"{name}: model file, MB", "int8.onnx: model file, MB"]
    # Of one alone, the other's figures are missing, and that is said.
    comparison = compare(load(earlier(both, tmp_path)), report)
    gone = "int8.onnx, ort, batch 1; int8.onnx, ort, batch 4"
    assert comparison.notes == (f"in the earlier report only: {gone}",)
    comparison = compare(load(earlier(report, tmp_path)), both)
    assert comparison.notes == (f"not in the earlier report: {gone}",)


def test_one_model_may_be_called_otherwise_but_not_one_of_several(
    report: Report, tmp_path: Path
) -> None:
    def called(file: str) -> Report:
        (facts,), (row,) = report.models, report.engines
        return dataclasses.replace(
            report,
            models=(dataclasses.replace(facts, file=file),),
            engines=(dataclasses.replace(row, model=file),),
        )

    assert compare(load(earlier(called("a.onnx"), tmp_path)), report).notes == ()
    with pytest.raises(UsageError, match=r"nothing to compare with: .* a\.onnx, ort, batch 1; a"):
        compare(load(earlier(called("a.onnx"), tmp_path)), twice(report))
    other = called("int8.onnx")  # in float32, there
    with pytest.raises(UsageError, match=r"int8.onnx: precision float32 \(now int8\)"):
        check(load(earlier(other, tmp_path)), twice(report), ["ort"], [1])
    with pytest.raises(UsageError, match="nothing to compare with"):
        check(load(earlier(called("a.onnx"), tmp_path)), twice(report), ["ort"], [1])


def test_auto_is_compared_with_what_it_chose(report: Report, tmp_path: Path) -> None:
    value = json.loads(earlier(report, tmp_path).read_text())
    value["engines"][0]["name"] = "trt"
    (tmp_path / "old.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match="nothing to compare with"):
        compare(load(tmp_path / "old.json"), report)


@pytest.mark.parametrize("tolerance", ["-0.1", "nan", "inf"])
def test_a_tolerance_that_makes_no_sense(
    measured: tuple[Outcome, Path], model_file: Path, tolerance: str
) -> None:
    done = in_process("bench", model_file, "--against", measured[1], "--tolerance", tolerance)
    done.failed(2, f"--tolerance {tolerance}")


def test_a_tolerance_for_nothing(model_file: Path) -> None:
    in_process("bench", model_file, "--tolerance", "0.1").failed(2, "--tolerance", "--against")
