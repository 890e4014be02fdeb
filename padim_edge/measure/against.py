"""A benchmark against an earlier one: the same figures side by side, and which got worse."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padim_edge.errors import UsageError
from padim_edge.measure.report import SCHEMA, Report, row_label

READABLE = (2, 3, 4, SCHEMA)
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
class EarlierModel:
    """A model of a report: its hash, what it is in words, its backbone's precision, its bytes."""

    sha256: str
    what: str
    precision: str
    file_bytes: float


@dataclass(frozen=True)
class EarlierRow:
    """A model in an engine.

    Attributes:
        file: of the model, as the report calls it.
        engine: its name.
        software: what the engine says of itself.
        device: its name; None on the CPU.
        figures: by batch size (None: for all) the name of each with its value.
    """

    file: str
    engine: str
    software: str
    device: str | None
    figures: dict[int | None, dict[str, float]]


@dataclass(frozen=True)
class Earlier:
    """Of a report what is compared; see `load`.

    Attributes:
        date: when it was measured.
        conditions: what must be the same, or milliseconds do not compare.
        versions: of packages, by name.
        models: by file, as the report calls it.
        rows: each model in each engine.
    """

    date: str
    conditions: dict[str, str]
    versions: dict[str, str]
    models: dict[str, EarlierModel]
    rows: tuple[EarlierRow, ...]


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
        UsageError: it was measured under other conditions, or of other models, engines and batches.
    """
    new = _take(announced.to_json())
    others = [
        f"{name} {old.conditions[name]} (now {value})"
        for name, value in new.conditions.items()
        if old.conditions[name] != value
    ]
    others += [
        f"{_of(file)}precision {before.precision} (now {now.precision})"
        for file, before, now in _pairs(old, new)
        if before.precision != now.precision
    ]
    if others:
        raise UsageError(f"--against: milliseconds would not compare: it has {', '.join(others)}")
    if "auto" not in engines:
        named = _named(old, new)
        rows = itertools.product(new.models, engines)
        labels = [row_label(file if named else None, engine) for file, engine in rows]
        _check_shared(_places(old, named), itertools.product(labels, batches))


def compare(old: Earlier, report: Report) -> Comparison:
    """Put a report beside an earlier one that `check` let pass.

    Raises:
        UsageError: they have no model, engine, batch and device in common.
    """
    new = _take(report.to_json())
    named = _named(old, new)
    notes = [
        f"{_of(file)}another model file: {before.what}, now {now.what}"
        for file, before, now in _pairs(old, new)
        if before.sha256 != now.sha256
    ]
    changed = [
        f"{name} {_software(old, named)[name]}, now {text}"
        for name, text in _software(new, named).items()
        if _software(old, named).get(name, text) != text
    ]
    if changed:
        notes.append(f"other software: {'; '.join(changed)}")
    before, now = _places(old, named), _places(new, named)
    devices = _devices(old, named)
    moved = [
        label
        for label, device in _devices(new, named).items()
        if devices.get(label, device) != device
    ]
    notes += [f"not compared: {label} was on {devices[label]}" for label in moved]
    before, now = (
        {place: of for place, of in places.items() if place[0] not in moved}
        for places in (before, now)
    )
    for words, some, others in (
        ("not in the earlier report", now, before),
        ("in the earlier report only", before, now),
    ):
        missing = _missing(some, others)
        if missing:
            notes.append(f"{words}: {'; '.join(missing)}")
    _check_shared(_places(old, named), now, notes)
    changes = [
        Change(f"{_name(place)}: {figure}", before[place][figure], value, gates=True)
        for place, figures in now.items()
        for figure, value in figures.items()
        if figure in before.get(place, {})
    ]
    sizes = [
        Change(
            f"{_of(file)}model file, MB",
            was.file_bytes / 1e6,
            now_is.file_bytes / 1e6,
            gates=False,
        )
        for file, was, now_is in _pairs(old, new)
    ]
    return Comparison((*changes, *sizes), tuple(notes))


Place = tuple[str, "int | None"]
"""A row by its label, and a batch size; None for what is of all."""

Figures = Mapping[Place, Mapping[str, float]]


def _named(old: Earlier, new: Earlier) -> bool:
    """Whether rows are told apart by their model, too: a report with one calls it as it likes."""
    return max(len(old.models), len(new.models)) > 1


def _pairs(old: Earlier, new: Earlier) -> list[tuple[str | None, EarlierModel, EarlierModel]]:
    """Models that are compared: by file, or without one where there is but one in each."""
    if not _named(old, new):
        return [(None, next(iter(old.models.values())), next(iter(new.models.values())))]
    return [(file, old.models[file], now) for file, now in new.models.items() if file in old.models]


def _of(file: str | None) -> str:
    return f"{file}: " if file else ""


def _label(row: EarlierRow, named: bool) -> str:
    return row_label(row.file if named else None, row.engine)


def _places(report: Earlier, named: bool) -> dict[Place, dict[str, float]]:
    return {
        (_label(row, named), batch): of for row in report.rows for batch, of in row.figures.items()
    }


def _devices(report: Earlier, named: bool) -> dict[str, str | None]:
    return {_label(row, named): row.device for row in report.rows}


def _software(report: Earlier, named: bool) -> dict[str, str]:
    return report.versions | {_label(row, named): row.software for row in report.rows}


def _missing(some: Figures, others: Figures) -> list[str]:
    """What the one has and the other has not: whole batch sizes, or single figures."""
    names = []
    for place, figures in some.items():
        if place in others:
            names += [f"{_name(place)}: {name}" for name in figures if name not in others[place]]
        elif place[1]:
            names.append(_name(place))
    return names


def _check_shared(old: Figures, places: Iterable[Place], notes: Sequence[str] = ()) -> None:
    if not any(batch and (label, batch) in old for label, batch in places):
        had = "; ".join(_name(place) for place in old if place[1])
        why = "".join(f"; {note}" for note in notes)
        raise UsageError(f"--against: nothing to compare with: the earlier report has {had}{why}")


def _name(place: Place) -> str:
    label, batch = place
    return f"{label}, batch {batch}" if batch else label


def _take(report: Mapping[str, Any]) -> Earlier:
    """What is compared of the JSON of a report; any error means that it is none."""
    machine = report["machine"]
    if report["schema"] < 5:  # of one model alone, whose size stands beside it
        models = [report["model"] | {"file_bytes": report["file_bytes"]}]
    else:
        models = report["models"]
    first = _text(models[0]["file"])
    return Earlier(
        date=_text(report["date"]),
        conditions={
            "processor": _text(machine["processor"]),
            "cores": str(_number(machine["cores"])),
            "power mode": machine.get("power_mode") or "unknown",
            "threads": str(int(report["threads"])),
        },
        versions={name: _text(version) for name, version in machine["versions"].items()},
        models={_text(model["file"]): _model(model) for model in models},
        rows=tuple(_row(report, row, first) for row in report["engines"]),
    )


def _model(model: Mapping[str, Any]) -> EarlierModel:
    height, width = model["image_size"]
    what = (
        f"{model['backbone']}, {model['channels']} channels, {height}x{width}, "
        f"{model['constants']} constants"
    )
    return EarlierModel(
        _text(model["sha256"]), what, _text(model["precision"]), _number(model["file_bytes"])
    )


def _row(report: Mapping[str, Any], row: Mapping[str, Any], only: str) -> EarlierRow:
    """A model in an engine; ``only`` is the model of a report before schema 5."""
    figures: dict[int | None, dict[str, float]] = {}
    for result in row["results"]:
        values = {"graph, ms": _number(result["graph"]["p50"])}
        if result["ratio"] is not None:
            values["graph / bare backbone"] = _number(result["ratio"])
        figures[int(result["batch"])] = values | _from_frames(report, result)
    figures[None] = {
        "cold start, s": _number(row["cold_start_seconds"]),
        "peak memory, MB": _number(row["peak_memory_bytes"]) / 1e6,
    }
    return EarlierRow(
        file=only if report["schema"] < 5 else _text(row["model"]),
        engine=_text(row["name"]),
        software=_text(row["description"]),
        device=row["device"] and _text(row["device"]["device"]),
        figures=figures,
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
