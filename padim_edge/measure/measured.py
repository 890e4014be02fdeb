"""What `doctor --gpu` measured beside what the roofline predicts: floors and facts in one table."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.measure.counting import Storage, Work, count
from padim_edge.measure.devices import DEVICES
from padim_edge.measure.proof import SCHEMA
from padim_edge.measure.proof_detectors import NETWORKS, make
from padim_edge.measure.proof_line import Spec
from padim_edge.measure.roofline import Estimate, estimate
from padim_edge.model.file import Model
from padim_edge.runtime.engines import STAGES

BESIDE = ("Orin Nano 8GB Super", "Orin NX 16GB", "AGX Orin 64GB", "Thor T5000")
"""Devices whose floors are shown; `padim-edge bench --roofline` shows all."""


def load(path: Path) -> dict[str, Any]:
    """A report of `padim-edge doctor --gpu`.

    Raises:
        PadimEdgeError: it cannot be read.
        UsageError: it is none, or of another schema.
    """
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise PadimEdgeError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"--measured {path}: it is no JSON, or not whole") from error
    if not isinstance(report, dict) or not {"lines", "sizes", "device"} <= report.keys():
        raise UsageError(
            f"--measured {path}: it is no report of padim-edge doctor --gpu --json; give one"
        )
    if report.get("schema") != SCHEMA:
        raise UsageError(
            f"--measured {path}: its schema is {report.get('schema')}, this version reads {SCHEMA}"
        )
    return report


def beside(report: dict[str, Any]) -> list[str]:
    """Lines of text: per batch size measured ms beside each device's floor; then by stage.

    Raises:
        UsageError: nothing was timed in this report.
    """
    timed = [
        one for one in report["lines"] if one["area"] == "speed" and "batches" in one["figures"]
    ]
    if not timed:
        raise UsageError("--measured: no engine was timed in this report: nothing to set beside")
    full = "" if report["full"] else ", NOT in full sizes"
    text = [
        f"MEASURED on {report['device']} ({report['machine']}), {report['date']}{full}; "
        "PREDICTED floors beside it",
        "ms per call at the median; a floor is what a call must cost at least, for that device",
    ]
    side = int(report["sizes"]["image"])
    for batch in report["sizes"]["batches"]:
        text += ["", _head(f"batch {batch}")]
        text += [_row(one, one["name"], "graph", side, batch) for one in timed]
    first = report["sizes"]["batches"][0]
    for stage in STAGES:
        text += ["", _head(f"{stage}, batch {first}")]
        text += [
            _row(one, one["name"], stage, side, first)
            for one in timed
            if stage in one["figures"]["batches"][str(first)]
        ]
    return text


def _head(title: str) -> str:
    return f"{title:<48} {'measured':>9}" + "".join(f" {name:>19}" for name in BESIDE)


def _row(one: dict[str, Any], name: str, stage: str, side: int, batch: int) -> str:
    measured = one["figures"]["batches"][str(batch)][stage][0]
    floors = "".join(
        f" {'-' if each is None else format(each, '.3g'):>19}"
        for each in _floors(name, stage, side, batch)
    )
    return f"{name:<48} {measured:>9.3g}{floors}"


def _floors(name: str, stage: str, side: int, batch: int) -> Iterator[float | None]:
    """Of each device in `BESIDE`; None where it has no rate, or nothing is made to be counted."""
    engine, detector = name.split(" ", 1)
    spec = Spec.parse(detector)
    if spec.network not in NETWORKS:
        yield from (None for _ in BESIDE)
        return
    storage = Storage(spec.backbone, spec.constants, kernels=engine != "trt/graph")
    work = _work(spec.network, spec.preset, side, batch, storage)
    devices = {device.name: device for device in DEVICES}
    for other in BESIDE:
        if getattr(devices[other], spec.backbone) is None:
            yield None
            continue
        found = estimate(work, batch, devices[other], storage)
        yield found.floor if stage == "graph" else _of(found, stage)


def _of(found: Estimate, name: str) -> float:
    return next(stage.floor for stage in found.stages if stage.name == name)


@functools.cache
def _work(network: str, preset: str, side: int, batch: int, storage: Storage) -> list[Work]:
    int8 = storage.backbone == "int8"
    return count(_shapes(network, preset, "int8" if int8 else "float32", side), batch, storage)


@functools.lru_cache(4)
def _shapes(network: str, preset: str, backbone: str, side: int) -> Model:
    """A detector for its shapes alone: the storage says what it is counted in.

    Raises:
        MissingDependencyError: an int8 backbone needs onnxruntime.
    """
    return make(Spec(network, preset, backbone, "none"), side)
