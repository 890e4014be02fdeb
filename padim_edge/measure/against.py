"""A benchmark against an earlier one: the same figures side by side, and which got worse."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padim_edge.errors import UsageError
from padim_edge.measure.report import SCHEMA, Report

READABLE = (2, 3, SCHEMA)
"""Schemas that can be compared with: whatever is compared has the same name in each."""


@dataclass(frozen=True)
class Change:
    """One figure, then and now; smaller is better.

    Attributes:
        figure: whose it is, what it is, and its unit.
        old: the earlier value.
        new: the one just measured.
        gates: whether the command fails when it gets worse.
    """

    figure: str
    old: float
    new: float
    gates: bool

    @property
    def share(self) -> float:
        """By what share of the old value it rose; negative where it fell."""
        return self.new / self.old - 1

    def worse(self, tolerance: float) -> bool:
        """Whether it rose by more than this share, and counts."""
        return self.gates and self.new > self.old * (1 + tolerance)


@dataclass(frozen=True)
class Comparison:
    """What two reports have in common, and a line for each thing that they have not."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Earlier:
    """Of a report what is compared; see `load`.

    Attributes:
        date: when it was measured.
        model: the file's hash and what the model is, in words.
        conditions: what must be the same, or milliseconds do not compare.
        software: versions, and what each engine says of itself, by name.
        devices: name by engine; None on the CPU.
        figures: by engine and batch size (None: for all) the name of each with its value.
        file_bytes: size of the model's file.
    """

    date: str
    model: tuple[str, str]
    conditions: dict[str, str]
    software: dict[str, str]
    devices: dict[str, str | None]
    figures: dict[tuple[str, int | None], dict[str, float]]
    file_bytes: float


def load(path: Path) -> Earlier:
    """Read the JSON of an earlier benchmark.

    Raises:
        UsageError: it cannot be read, is no such report, or is of a schema not in `READABLE`.
    """
    try:
        report = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--against {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--against {path}: no JSON: {error}") from error
    try:
        if report["schema"] in READABLE:
            return _take(report)
        _text(report["machine"]["processor"])  # or it is somebody else's schema
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"--against {path}: no report of padim-edge bench --json, or not a whole one"
        ) from error
    raise UsageError(
        f"--against {path}: its schema is {report['schema']!r}, and "
        f"one of {', '.join(map(str, READABLE))} is needed: "
        "measure again with this version"
    )


def check(old: Earlier, announced: Report, engines: Sequence[str], batches: Sequence[int]) -> None:
    """Refuse a comparison that would say nothing, before anything is measured.

    Args:
        old: the earlier report.
        announced: the new one, of which the engines may be missing still.
        engines: that will be measured; "auto" may become any.
        batches: that will be measured.

    Raises:
        UsageError: it was measured under other conditions, or of other engines and batches.
    """
    new = _take(announced.to_json())
    others = [
        f"{name} {old.conditions[name]} (now {value})"
        for name, value in new.conditions.items()
        if old.conditions[name] != value
    ]
    if others:
        raise UsageError(f"--against: milliseconds would not compare: it has {', '.join(others)}")
    if "auto" not in engines:
        _check_shared(old, [(engine, batch) for engine in engines for batch in batches])


def compare(old: Earlier, report: Report) -> Comparison:
    """Put a report beside an earlier one that `check` let pass.

    Raises:
        UsageError: they have no engine, batch and device in common.
    """
    new = _take(report.to_json())
    notes = []
    if old.model != new.model:
        notes.append(f"another model file: {old.model[1]}, now {new.model[1]}")
    changed = [
        f"{name} {old.software[name]}, now {text}"
        for name, text in new.software.items()
        if old.software.get(name, text) != text
    ]
    if changed:
        notes.append(f"other software: {'; '.join(changed)}")
    moved = [
        name for name, device in new.devices.items() if old.devices.get(name, device) != device
    ]
    notes += [f"not compared: {name} was on {old.devices[name]}" for name in moved]
    places = [place for place in new.figures if place[0] not in moved]
    before = {place: of for place, of in old.figures.items() if place[0] not in moved}
    now = {place: new.figures[place] for place in places}
    for words, some, others in (
        ("not in the earlier report", now, before),
        ("in the earlier report only", before, now),
    ):
        missing = _missing(some, others)
        if missing:
            notes.append(f"{words}: {'; '.join(missing)}")
    _check_shared(old, places, notes)
    changes = [
        Change(f"{_name(place)}: {figure}", old.figures[place][figure], value, gates=True)
        for place in places
        for figure, value in new.figures[place].items()
        if figure in old.figures.get(place, {})
    ]
    size = Change("model file, MB", old.file_bytes / 1e6, new.file_bytes / 1e6, gates=False)
    return Comparison((*changes, size), tuple(notes))


Figures = Mapping[tuple[str, int | None], Mapping[str, float]]


def _missing(some: Figures, others: Figures) -> list[str]:
    """What the one has and the other has not: whole batch sizes, or single figures."""
    names = []
    for place, figures in some.items():
        if place in others:
            names += [f"{_name(place)}: {name}" for name in figures if name not in others[place]]
        elif place[1]:
            names.append(_name(place))
    return names


def _check_shared(
    old: Earlier, places: Sequence[tuple[str, int | None]], notes: Sequence[str] = ()
) -> None:
    if not any(batch and (engine, batch) in old.figures for engine, batch in places):
        had = "; ".join(_name(place) for place in old.figures if place[1])
        why = "".join(f"; {note}" for note in notes)
        raise UsageError(f"--against: nothing to compare with: the earlier report has {had}{why}")


def _name(place: tuple[str, int | None]) -> str:
    engine, batch = place
    return f"{engine}, batch {batch}" if batch else engine


def _take(report: Mapping[str, Any]) -> Earlier:
    """What is compared of the JSON of a report; any error means that it is none."""
    machine, model = report["machine"], report["model"]
    figures: dict[tuple[str, int | None], dict[str, float]] = {}
    for engine in report["engines"]:
        name = _text(engine["name"])
        for result in engine["results"]:
            values = {"graph, ms": _number(result["graph"]["p50"])}
            if result["ratio"] is not None:
                values["graph / bare backbone"] = _number(result["ratio"])
            figures[name, int(result["batch"])] = values | _from_frames(report, result)
        figures[name, None] = {
            "cold start, s": _number(engine["cold_start_seconds"]),
            "peak memory, MB": _number(engine["peak_memory_bytes"]) / 1e6,
        }
    height, width = model["image_size"]
    what = (
        f"{model['backbone']}, {model['channels']} channels, {height}x{width}, "
        f"{model['constants']} constants"
    )
    return Earlier(
        date=_text(report["date"]),
        model=(_text(model["sha256"]), what),
        conditions={
            "processor": _text(machine["processor"]),
            "cores": str(_number(machine["cores"])),
            "power mode": machine.get("power_mode") or "unknown",
            "threads": str(int(report["threads"])),
            "precision": _text(model["precision"]),
        },
        software={name: _text(version) for name, version in machine["versions"].items()}
        | {engine["name"]: _text(engine["description"]) for engine in report["engines"]},
        devices={
            engine["name"]: engine["device"] and _text(engine["device"]["device"])
            for engine in report["engines"]
        },
        figures=figures,
        file_bytes=_number(report["file_bytes"]),
    )


def _from_frames(report: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, float]:
    """What frames of a camera took; a report before schema 4 has one size, in RGB."""
    if report["schema"] < 4:
        height, width = report["frame_size"]
        return {f"{int(width)}x{int(height)} rgb, ms": _number(result["total"]["p50"])}
    values = {}
    for one in result["frames"]:
        camera = one["camera"]
        size = f"{int(camera['width'])}x{int(camera['height'])}"
        of = f"{size} {_text(camera['pixel_format'])}"
        values[f"{of}, ms"] = _number(one["whole"]["p50"])
        if one["ratio"] is not None:
            values[f"{of} / bare backbone"] = _number(one["ratio"])
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    """A figure: all of them are positive."""
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(value)
    return value
