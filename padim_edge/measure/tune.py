"""Tune: which configuration to deploy, by its latency on this machine and its separation.

1. `tune_candidates`   which there are; the embedding of each
2. `tune_separation`   each is fitted and measured on the same photos; kept by `tune_state`
3. `latencies`         those that could be are timed, taking turns
4. `front`, `tied`     which of them nothing beats, and which the photos cannot tell apart
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from padim_edge import __version__
from padim_edge.detect.detector import Detector
from padim_edge.detect.report.intervals import between
from padim_edge.errors import PadimEdgeError, UsageError, first_line
from padim_edge.files import atomic_write, check_distinct
from padim_edge.fit.fit import Fitted, fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.batches import refuse
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.bench import BLOCK, FULL_HD, interleave
from padim_edge.measure.camera import Camera
from padim_edge.measure.report import Latency, Machine, machine
from padim_edge.measure.tune_candidates import Candidate, opened
from padim_edge.measure.tune_separation import METRICS, Photos, Separation, separate
from padim_edge.measure.tune_state import Finished, State
from padim_edge.model.file import Model
from padim_edge.progress import Progress, silent
from padim_edge.runtime import trial
from padim_edge.runtime.graphs import GRAPHS

SCHEMA = 1
TOGETHER = 6
"""Detectors that are open at once to be timed."""


@dataclass(frozen=True)
class Plan:
    """What is the same for every candidate.

    Attributes:
        photos: to fit and measure on.
        work: a folder that takes what is made.
        preset: how a photo becomes the input, "whole" or "reference" (`Preprocess.choose`).
        bit_depth: of grey files of 16 bits, as there.
        engine: of the detectors; "auto" until `settled`.
        target: what runs an int8 backbone.
        threads: of the engine; 0 for all cores.
        camera: whose frames are timed.
        calls: counted calls of each.
        by: the metric of `METRICS` to compare by.
        fit_engine: what runs a bare backbone; "auto" where the engine was left to be chosen, whose
            choice is another for that, or runs none.
        described: of the engine, what runs where, in words; empty until `settled`.
        skipped: why engines before it do not run here, a line each.
    """

    photos: Photos
    work: Path
    preset: str = "whole"
    bit_depth: int | None = None
    engine: str = "auto"
    target: str = "cpu"
    threads: int = 0
    camera: Camera = FULL_HD
    calls: int = 60
    by: str = "image_auroc"
    fit_engine: str = "auto"
    described: str = ""
    skipped: tuple[str, ...] = ()

    def settled(self, progress: Progress = silent) -> Plan:
        """The same with one engine for all: what "auto" stands for here is found out once.

        Were each candidate to choose for itself, those that the first one refuses would be timed
        in another, beside the rest.

        Raises:
            PadimEdgeError: the engine does not run here.
        """
        if self.described:
            return self
        with tempfile.TemporaryDirectory(prefix="padim-edge-") as folder:
            file = Path(folder) / "trial.onnx"
            trial.write_model(file)
            with Detector(file, self.engine, self.threads, progress) as detector:
                return dataclasses.replace(
                    self,
                    engine=detector.engine.name,
                    fit_engine=self.engine if self.engine in GRAPHS else "auto",
                    described=detector.engine.describe(),
                    skipped=detector.skipped,
                )

    def conditions(self) -> dict[str, str]:
        """What separation depends on beside the candidate."""
        return {
            "padim-edge": __version__,
            "photos": self.photos.digest[:16],
            "preprocess": self.preset,
            "bit depth": str(self.bit_depth),
            "engine": self.engine,
            "engine of the fit": self.fit_engine,
            "target": self.target,
        }

    def preprocess(self, size: tuple[int, int]) -> Preprocess:
        """From a photo to an input of this size."""
        return Preprocess.choose(size, self.preset, bit_depth=self.bit_depth)

    def opened(
        self, candidate: Candidate, preprocess: Preprocess, progress: Progress = silent
    ) -> tuple[Model, Settings]:
        """Embedding and settings of a candidate: `padim_edge.measure.tune_candidates.opened`."""
        conditions = str(sorted(self.conditions().items()))
        return opened(
            candidate,
            self.work,
            self.photos.good,
            preprocess,
            self.target,
            conditions,
            refuse,
            progress,
        )

    def fitted(
        self,
        embedding: Model,
        photos: Sequence[Path],
        file: Path,
        settings: Settings,
        progress: Progress = silent,
    ) -> Fitted:
        """Fit a candidate on photos, into a file."""
        return fit_detector(
            embedding,
            photos,
            file,
            settings,
            engine=self.fit_engine,
            threads=self.threads,
            progress=progress,
        )


@dataclass(frozen=True)
class Row:
    """A candidate with all that is known of it.

    Attributes:
        number: by ascending latency, from 1.
        candidate: the configuration.
        file: its detector, fitted on ``Photos.good``.
        bytes: of that file.
        frame: ms from a camera's frame to the decision.
        graph: ms of the graph alone, from the prepared image.
        to_fastest: median of ``frame`` / that of the fastest.
        separation: on the photos.
        on_front: whether no other is at least as fast and separates at least as well, and one of
            the two better.
        tied_with: number of the fastest candidate of the front that is faster and that the photos
            cannot tell this one from; None if there is none: it separates measurably better than
            all of those.
    """

    number: int
    candidate: Candidate
    file: Path
    bytes: int
    frame: Latency
    graph: Latency
    to_fastest: float
    separation: Separation
    on_front: bool
    tied_with: int | None


@dataclass(frozen=True)
class Tuned:
    """What came of it; `to_json` is the stable form, docs/tune.schema.json.

    Attributes:
        date: when it was measured; ISO 8601, UTC.
        machine: where.
        plan: how, `Plan.settled`.
        rows: by ascending latency, at least one.
        failed: candidates that could not be, with the reason.
    """

    date: str
    machine: Machine
    plan: Plan
    rows: tuple[Row, ...]
    failed: tuple[tuple[Candidate, str], ...]

    def value(self, row: Row) -> float:
        """What a row is compared by."""
        return row.separation.metrics[self.plan.by] or 0.0

    def within(self, under: float | None) -> list[Row]:
        """Those whose median is at most so many ms."""
        return [row for row in self.rows if under is None or row.frame.p50 <= under]

    def best(self, under: float | None = None) -> Row:
        """The one that separates best, of those `within`; of equal ones the fastest.

        Raises:
            PadimEdgeError: there is none.
        """
        rows = self.within(under)
        if not rows:
            fastest = self.rows[0]
            raise PadimEdgeError(
                f"nothing here decides in {under:g} ms or less: the fastest is no. 1 "
                f"({fastest.candidate}) with {fastest.frame.p50:.2f} ms; try a smaller "
                "--image-size, fewer --dims, --precision int8 or a smaller --backbone"
            )
        return max(rows, key=lambda row: (self.value(row), -row.frame.p50))

    def alike(self, row: Row, under: float | None = None) -> list[Row]:
        """Others `within` that the photos cannot tell from a row."""
        return [
            other
            for other in self.within(under)
            if other is not row and tied(other.separation, row.separation, self.plan.by)
        ]

    def to_json(self, under: float | None) -> dict[str, Any]:
        """Plain values, with the version of the schema."""
        plan = self.plan
        return {
            "schema": SCHEMA,
            "date": self.date,
            "machine": asdict(self.machine),
            "photos": {
                "kind": "data set" if plan.photos.samples else "synthetic",
                "words": str(plan.photos),
                "sha256": plan.photos.digest,
            },
            "by": plan.by,
            "engine": plan.engine,
            "engine_description": plan.described,
            "threads": plan.threads,
            "camera": asdict(plan.camera),
            "calls": plan.calls,
            "under_ms": under,
            "chosen": self.best(under).number if self.within(under) else None,
            "candidates": [_row_json(row) for row in self.rows],
            "failed": [{"name": str(one), "error": why} for one, why in self.failed],
        }


def _row_json(row: Row) -> dict[str, Any]:
    one = row.candidate
    return {
        "number": row.number,
        "name": str(one),
        "embedding": one.source.label,
        "precision": one.precision or None,
        "preset": one.preset,
        "dims": one.dims,
        "constants": one.constants,
        "file": str(row.file),
        "bytes": row.bytes,
        "frame": asdict(row.frame),
        "graph": asdict(row.graph),
        "to_fastest": row.to_fastest,
        "metrics": row.separation.metrics,
        "intervals": {name: row.separation.interval(name) for name in METRICS},
        "front": row.on_front,
        "tied_with": row.tied_with,
    }


def tune(
    candidates: Sequence[Candidate],
    plan: Plan,
    resume: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    progress: Progress = silent,
) -> Tuned:
    """Fit and measure candidates; none that fails stops the rest.

    Args:
        candidates: at least one, each once.
        plan: how.
        resume: whether finished ones in the work folder are taken from there.
        tell: takes a line for each candidate, and a warning of masks that seem to be wrong.
        progress: called as work goes on.

    Raises:
        UsageError: there is no candidate, or the work folder holds results that are not to be, or
            cannot be, gone on with.
        PadimEdgeError: the engine does not run here, every candidate failed, or the work folder
            cannot be written to.
    """
    if not candidates:
        raise UsageError("no candidate was given: at least one is needed")
    plan = plan.settled(progress)
    warn = functools.cache(lambda text: tell(f"warning: {text}"))  # each once, not for each
    state = State.of(plan.work, plan.conditions(), resume)
    progress("candidates", 0, len(candidates))
    for done, candidate in enumerate(candidates, start=1):
        place = f"{done}/{len(candidates)} {candidate}"
        known = state.finished.get(candidate.key)
        if known and not known.error and _sha256(plan.work / known.file) == known.sha256:
            tell(f"{place}: as in the earlier run")
        else:
            state.keep(_finish(candidate, plan, warn, progress))
            tell(f"{place}: {_said(state.finished[candidate.key], plan.by)}")
        progress("candidates", done, len(candidates))
    finished = [(one, state.finished[one.key]) for one in candidates]
    failed = tuple((one, why) for one, of in finished if (why := _lacks(of, plan.by)))
    good = [(one, of) for one, of in finished if not _lacks(of, plan.by)]
    if not good:
        raise PadimEdgeError(
            f"none of {len(candidates)} candidate(s) could be measured; the first, {failed[0][0]}: "
            f"{failed[0][1]}"
        )
    files = {one.key: plan.work / of.file for one, of in good}
    frames, graphs = latencies(files, plan, progress)
    rows = _rows(good, files, frames, graphs, plan.by)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Tuned(date, machine(), plan, rows, failed)


def _finish(
    candidate: Candidate, plan: Plan, warn: Callable[[str], None], progress: Progress
) -> Finished:
    """Fit and measure one."""
    file = plan.work / candidate.file_name
    try:
        preprocess = plan.preprocess(candidate.source.size)
        embedding, settings = plan.opened(candidate, preprocess, progress)
        fitted = plan.fitted(embedding, plan.photos.good, file, settings, progress)
        with Detector(file, plan.engine, plan.threads, progress) as detector:
            separation = separate(detector, fitted, plan.photos, progress, warn)
    except (PadimEdgeError, OSError, MemoryError) as error:
        return Finished(candidate.key, error=first_line(error))
    except Exception as error:  # whatever a library makes of an unusual graph
        return Finished(candidate.key, error=f"{type(error).__name__}: {first_line(error)}")
    return Finished(candidate.key, file.name, _sha256(file), fitted.size, separation)


def _lacks(one: Finished, by: str) -> str:
    """Why a candidate cannot be compared, or nothing."""
    if one.separation and one.separation.metrics[by] is None:
        return f"has no {METRICS[by]}: no mask marks a pixel of its maps"
    return one.error


def _said(one: Finished, by: str) -> str:
    value = one.separation.metrics[by] if one.separation else None
    bounds = one.separation.interval(by) if one.separation else None
    if value is None or bounds is None:
        return f"left out: {_lacks(one, by)}"
    return f"{METRICS[by]} {value:.4f} ({bounds[0]:.4f} to {bounds[1]:.4f})"


def _sha256(file: Path) -> str:
    """Of a file; of none, nothing."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def deploy(row: Row, plan: Plan, output: Path, progress: Progress = silent) -> Fitted:
    """Write the detector of a row, fitted on all good photos.

    Once more: without a data set the held-out photos were not in its fit. With one it is the file
    that was measured, and the fit, which is not kept, only says what is to be known of the photos.

    Args:
        row: of a `Tuned`.
        plan: its.
        output: the file to write; once, when all else is done.
        progress: called as work goes on.

    Raises:
        PadimEdgeError: the file that was measured is gone, or as of `fit_detector`; what was at
            ``output`` is still there then.
    """
    plan = plan.settled(progress)  # what is made int8 is known by its engine
    preprocess = plan.preprocess(row.candidate.source.size)
    # An int8 backbone stays the one that was measured, calibrated on the photos of that fit.
    embedding, settings = plan.opened(row.candidate, preprocess, progress)
    check_distinct(embedding=embedding.path, output=output)

    def fitted(file: Path) -> Fitted:
        return plan.fitted(embedding, plan.photos.all_good, file, settings, progress)

    if not plan.photos.samples:
        return fitted(output)
    try:
        measured = row.file.read_bytes()
    except OSError as error:
        raise PadimEdgeError(
            f"cannot read {row.file}, which was measured: {error.strerror or error}; tune again"
        ) from error
    with atomic_write(output) as stream:
        with tempfile.TemporaryDirectory(prefix="padim-edge-") as folder:
            done = fitted(Path(folder) / "again.onnx")
        stream.write(measured)
    return done


# --- latency --------------------------------------------------------------------------------------


def latencies(
    files: Mapping[str, Path], plan: Plan, progress: Progress = silent
) -> tuple[dict[str, Latency], dict[str, Latency]]:
    """Latency of detectors by name, from a camera's frame and of the graph alone.

    Blocks of their calls take turns, `TOGETHER` detectors at a time. Where there are more, the
    first is in every run: what a run took is scaled to its median in the first one, so that a
    machine that got slower in between favours nobody.
    """
    anchor, *others = files
    step = TOGETHER - 1
    runs = [others[start : start + step] for start in range(0, len(others), step)] or [[]]
    frames = plan.camera.frames()
    found: dict[tuple[str, str], list[float]] = {}
    calls = max(3 * BLOCK, plan.calls)
    for number, run in enumerate(runs):
        with contextlib.ExitStack() as stack:
            contenders: dict[tuple[str, str], Callable[[], object]] = {}
            for name in (anchor, *run):
                detector = stack.enter_context(
                    Detector(files[name], plan.engine, plan.threads, progress)
                )
                height, width = detector.backbone_info.image_size
                image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
                contenders[name, "frame"] = functools.partial(
                    _next, detector, itertools.cycle(frames), plan.camera.pixel_format
                )
                contenders[name, "graph"] = functools.partial(detector.engine.infer, image)
            show = functools.partial(_timed, progress, number * calls, len(runs) * calls)
            seconds = interleave(contenders, calls, show)
        for who, own in seconds.items():
            base = anchor, who[1]
            first = statistics.median(found.get(base, seconds[base]))
            scale = first / statistics.median(seconds[base])
            found.setdefault(who, [one * scale for one in own])
    of = {who: Latency.of(own, 1) for who, own in found.items()}
    by_kind = [{name: of[name, kind] for name in files} for kind in ("frame", "graph")]
    return by_kind[0], by_kind[1]


def _timed(progress: Progress, before: int, total: int, done: int) -> None:
    progress("latency", before + done, total)


def _next(detector: Detector, frames: Any, pixel_format: str) -> None:
    detector(next(frames), pixel_format)


# --- the front ------------------------------------------------------------------------------------


def front(latency: Sequence[float], value: Sequence[float]) -> list[bool]:
    """Which points no other dominates: at least as fast and as good, and one of the two better."""
    points = list(zip(latency, value, strict=True))
    return [
        not any(a <= latency_ and b >= value_ and (a < latency_ or b > value_) for a, b in points)
        for latency_, value_ in points
    ]


def tied(one: Separation, other: Separation, by: str) -> bool:
    """Whether photos drawn anew could turn round which of two is better.

    The 95 % interval of the difference, replicates paired, holds 0.
    """
    difference = np.array(one.draws[by]) - np.array(other.draws[by])
    low, high = between(difference)
    return low <= 0 <= high


def _rows(
    good: Sequence[tuple[Candidate, Finished]],
    files: Mapping[str, Path],
    frames: Mapping[str, Latency],
    graphs: Mapping[str, Latency],
    by: str,
) -> tuple[Row, ...]:
    measured = [(one, of, of.separation) for one, of in good if of.separation]
    measured.sort(key=lambda each: frames[each[0].key].p50)
    values = [separation.metrics[by] or 0.0 for _, _, separation in measured]
    times = [frames[one.key].p50 for one, _, _ in measured]
    on_front = front(times, values)
    rows: list[Row] = []
    for place, (one, of, separation) in enumerate(measured):
        faster = (row for row in rows if row.on_front)
        same = (row.number for row in faster if tied(row.separation, separation, by))
        rows.append(
            Row(
                number=place + 1,
                candidate=one,
                file=files[one.key],
                bytes=of.size,
                frame=frames[one.key],
                graph=graphs[one.key],
                to_fastest=times[place] / times[0],
                separation=separation,
                on_front=on_front[place],
                tied_with=next(same, None) if on_front[place] else None,
            )
        )
    return tuple(rows)
