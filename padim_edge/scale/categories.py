"""Categories: a whole one for each worker, fitted and measured there as in one process."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from padim_edge.detect.categories import Work
from padim_edge.scale.cluster import Cluster


def spread_out(
    cluster: Cluster,
    engine: str,
    threads: int,
    folder: Path | None,
    tell: Callable[[str], None],
    work: Work,
    pieces: Sequence[tuple[str, dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """A `padim_edge.detect.categories.AtOnce`, but for its first arguments.

    Args:
        cluster: of whose machines each sees data sets and detectors by the same paths.
        engine: of each worker.
        threads: CPUs that a category takes; 0 for one.
        folder: where paths of the work begin, see `padim_edge.scale.cluster.start_of`.
        tell: takes what a worker said of a category on stderr, line by line, when it is done.
        work: what is to be done; pickled.
        pieces: its arguments.
    """
    opened = functools.partial(_Worker, work)
    for said, found in cluster.spread(opened, pieces, engine, threads, folder):
        for line in said:
            tell(line)
        yield found


class _Worker:
    """Does work, and keeps what is said meanwhile."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, piece: tuple[str, dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            found = self._work(*piece)
        return said.getvalue().splitlines(), found
