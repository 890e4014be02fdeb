"""Judging: photos before detectors on many machines, and their verdicts in order."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from padim_edge.detect.detector import Detector, Result
from padim_edge.detect.judging import Verdict, judge
from padim_edge.errors import ImageError, ModelError
from padim_edge.images.decode import Head, read_head
from padim_edge.images.frames import files
from padim_edge.scale.cluster import Cluster, SameEngine, check_missing, start_of
from padim_edge.scale.features import RUN, runs

Judged = tuple[Verdict, Head | None]
"""A verdict, and what the head of its file says."""


def judge_on(
    cluster: Cluster,
    model: Path,
    paths: Sequence[Path],
    batch: int = 8,
    engine: str = "auto",
    threads: int = 0,
    threshold: float | None = None,
    maps: bool = True,
) -> Iterator[Judged]:
    """As `padim_edge.detect.judging.judge`, on a cluster.

    Args:
        cluster: of whose machines each sees the images by the same paths.
        model: a detector's file, which is sent to the workers.
        paths: images.
        batch: as there.
        engine: of each worker.
        threads: of each worker; 0 for one.
        threshold: instead of the file's.
        maps: whether score maps are wanted: without, a result has none, but has its regions.

    Yields:
        For each path its verdict, in order.

    Raises:
        PadimEdgeError: the file is no detector, or the cluster is of no use.
    """
    try:
        data = model.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {model}: {error.strerror or error}") from error
    opened = functools.partial(_Worker, data, engine, threads or 1, threshold, batch, maps)
    pieces, same = runs(paths, max(RUN, batch)), SameEngine()
    for name, answer in cluster.spread(opened, pieces, engine, threads, start_of(paths)):
        same(name)
        for verdict, head in answer:
            if isinstance(verdict.outcome, ImageError):
                check_missing(cluster, Path(verdict.name), verdict.outcome)
            yield verdict, head


class _Worker:
    """A detector in a process of Ray's."""

    def __init__(
        self,
        data: bytes,
        engine: str,
        threads: int,
        threshold: float | None,
        batch: int,
        maps: bool,
    ) -> None:
        # Gone with the worker; an engine may read constants from it for as long as it is open.
        self._folder = tempfile.TemporaryDirectory(prefix="padim-edge-")
        file = Path(self._folder.name) / "padim.onnx"
        file.write_bytes(data)
        self._detector = Detector(file, engine, threads, threshold=threshold)
        self._batch = batch
        self._maps = maps

    def __call__(self, paths: list[Path]) -> tuple[str, list[Judged]]:
        verdicts = judge(self._detector, files(paths), self._batch)
        return self._detector.engine.name, [
            (verdict if self._maps else _without_map(verdict), read_head(path))
            for path, verdict in zip(paths, verdicts, strict=True)
        ]


def _without_map(verdict: Verdict) -> Verdict:
    """A verdict with the regions of its map, and without the map."""
    if not isinstance(verdict.outcome, Result):
        return verdict
    regions = verdict.outcome.regions
    light = dataclasses.replace(verdict.outcome, score_map=np.empty((0, 0), np.float32))
    vars(light)["regions"] = regions  # found already
    return Verdict(verdict.name, light)
