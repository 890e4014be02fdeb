"""Reports of the benchmark for its tests: made up, altered, and held against their schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from padim_edge.measure import bench
from padim_edge.measure.power import Power
from padim_edge.measure.report import Kernel, Report
from padim_edge.runtime.engines import DeviceFigures

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "bench.schema.json"
SMALL = ("--calls", 10, "--frame", "120x90", "--threads", 1)
"""Options of a benchmark that is over soon."""


def hurry(patch: pytest.MonkeyPatch) -> None:
    """One fresh process for each row, and few calls: where it is not figures that are looked at."""
    patch.setattr(bench, "STARTS", 1)
    patch.setattr(bench, "BLOCK", 2)
    patch.setattr(bench, "REST_SECONDS", 0)


def validate(report: dict[str, Any]) -> None:
    """Hold a report's JSON against the schema."""
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(report)


def with_gpu(report: Report) -> Report:
    """A report with a second engine that was made up."""
    (ort,) = report.engines
    results = [
        dataclasses.replace(
            result,
            stages=dict.fromkeys(("upload", "backbone", "distances", "smoothing"), result.graph),
            bare=None,
            ratio=None,
            to_first=0.5,
            frames=tuple(dataclasses.replace(one, ratio=None) for one in result.frames),
            kernel=Kernel(2_000_000, 40e9, 0.8),
            power=Power({"VDD_IN": 9.0}, 9.0, 12.0),
        )
        for result in ort.results
    ]
    trt = dataclasses.replace(
        ort,
        name="trt",
        description="TensorRT 10.3 on Orin",
        device=DeviceFigures("Orin (sm_87)", 64_000_000, 2_000_000, 50e9),
        results=tuple(results),
    )
    return dataclasses.replace(report, engines=(ort, trt))


def earlier(report: Report, folder: Path, **factors: float) -> Path:
    """A JSON whose figures are those of a report, some of them multiplied."""
    value = json.loads(json.dumps(report.to_json()))
    for model in value["models"]:
        model["file_bytes"] *= factors.get("file", 1)
    for engine in value["engines"]:
        engine["cold_start_seconds"] *= factors.get("start", 1)
        engine["peak_memory_bytes"] *= factors.get("memory", 1)
        for result in engine["results"]:
            result["graph"]["p50"] *= factors.get("graph", 1)
            if result["ratio"]:
                result["ratio"] *= factors.get("ratio", 1)
            for one in result["frames"]:
                one["whole"]["p50"] *= factors.get("whole", 1)
    file = folder / "earlier.json"
    file.write_text(json.dumps(value))
    return file
