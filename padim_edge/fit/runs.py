"""Runs of cells, done side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits

from padim_edge.progress import Progress
from padim_edge.system import available_cores


def in_threads(
    task: Callable[[slice], None],
    runs: list[slice],
    cells: int,
    threads: int,
    progress: Progress,
    stage: str = "statistics",
) -> None:
    """Do a task for each run of cells, one thread per core, each with a single BLAS thread.

    The matrices are small: BLAS threads would spend their time waiting for one another.
    """
    progress(stage, 0, cells)
    with threadpool_limits(1), ThreadPoolExecutor(threads or available_cores()) as pool:
        try:
            for run, _ in zip(runs, pool.map(task, runs), strict=True):
                progress(stage, run.stop, cells)
        finally:
            pool.shutdown(cancel_futures=True)
