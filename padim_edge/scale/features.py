"""Features: images through backbones on many machines; what comes of them is that of one process.

A worker is given a run of files, and answers with their features and what else is kept of them.
What depends on other images, such as which are copies, is done where the answers come together, in
the order of the files: so nothing depends on how many workers there are, nor on which of them died.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import ImageError
from padim_edge.fit.features import BATCH, Backbone, Features, Gathered, Seen
from padim_edge.images.batches import OnError, read_batches, refuse
from padim_edge.images.decode import read_head
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import Model
from padim_edge.progress import Progress, silent
from padim_edge.scale.cluster import Cluster, SameEngine, check_missing, start_of

RUN = 16
"""Files of a piece: some seconds of work, and some megabytes of answer."""


def runs(files: Sequence[Path], size: int) -> list[list[Path]]:
    """Files in pieces for workers."""
    return [list(files[start : start + size]) for start in range(0, len(files), size)]


def extract(
    cluster: Cluster,
    embedding: Model,
    images: Sequence[Path],
    preprocess: Preprocess,
    engine: str = "auto",
    threads: int = 0,
    on_error: OnError = refuse,
    progress: Progress = silent,
    earlier: Sequence[bytes] = (),
) -> Features:
    """As `padim_edge.fit.features.extract`, on a cluster.

    Args:
        cluster: of whose machines each sees the images by the same paths.
        embedding: as there; it is sent to the workers.
        images: as there.
        preprocess: as there.
        engine: as there, of each worker.
        threads: of each worker; 0 for one.
        on_error: as there.
        progress: as there.
        earlier: as there.

    Raises:
        PadimEdgeError: as there, or the cluster is of no use.
    """
    progress("features", 0, len(images))
    gathered = Gathered(embedding, len(images), earlier)
    opened = functools.partial(_Worker, embedding, preprocess, engine, threads or 1)
    done, described, same = 0, "", SameEngine()
    skipped: tuple[str, ...] = ()
    pieces = runs(images, RUN)
    answers = cluster.spread(opened, pieces, engine, threads, start_of(images))
    for piece, answer in zip(pieces, answers, strict=True):
        done += len(piece)
        same(answer.described)
        described, skipped = answer.described, answer.skipped
        for path, error in answer.errors:
            check_missing(cluster, path, error)
            on_error(path, error)
        for part in answer.parts:
            gathered(part.paths, part.seen, part.of, part.ratios)
        progress("features", done, len(images))
    return gathered.features(f"{described}, in workers of {cluster}", skipped)


@dataclass(frozen=True)
class _Part:
    """What a worker has of a batch; see `Gathered`."""

    paths: list[Path]
    seen: Seen
    levels: list[NDArray[np.float32]]
    ratios: list[float | None]

    def of(self, places: list[int]) -> list[NDArray[np.float32]]:
        return [level[places] for level in self.levels]


@dataclass(frozen=True)
class _Answer:
    """What a worker has of a piece."""

    parts: list[_Part]
    errors: list[tuple[Path, ImageError]]
    described: str
    skipped: tuple[str, ...]


class _Worker:
    """A backbone in a process of Ray's."""

    def __init__(self, embedding: Model, preprocess: Preprocess, engine: str, threads: int) -> None:
        self._preprocess = preprocess
        skipped: list[str] = []
        self._backbone = Backbone(
            embedding,
            engine,
            threads,
            skipped=lambda name, error: skipped.append(f"{name}: {error}"),
        )
        self._skipped = tuple(skipped)

    def __call__(self, files: list[Path]) -> _Answer:
        errors: list[tuple[Path, ImageError]] = []
        parts = [
            _Part(paths, Seen.of(whole), self._backbone(whole), list(map(_ratio, paths)))
            for paths, whole in read_batches(
                files, self._preprocess, BATCH, lambda *one: errors.append(one)
            )
        ]
        return _Answer(parts, errors, self._backbone.described, self._skipped)


def _ratio(path: Path) -> float | None:
    head = read_head(path)
    return head[0] / head[1] if head else None
