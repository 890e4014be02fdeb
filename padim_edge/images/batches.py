"""Batches: frames taken and prepared in a few threads, ahead of who uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import ImageError, UsageError
from padim_edge.images.frames import Picture, Shot, files
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.stored_path import as_path
from padim_edge.system import available_cores

WORKERS = 4
"""Threads that take and prepare frames, at most."""

PATIENCE = 4
"""Batches' worth of frames after which one is handed on that bad frames kept from filling."""

T = TypeVar("T")
OnError = Callable[[Path, ImageError], None]
"""Told of an image that cannot be used; may raise to stop."""


def refuse(_path: Path, error: ImageError) -> None:
    """No image is forgiven: an `OnError`."""
    raise error


def prepared(
    shots: Iterable[Shot],
    prepare: Callable[[Picture], T],
    batch: int,
    ahead: int | None = None,
) -> Iterator[list[tuple[Shot, T | ImageError]]]:
    """Take frames and prepare them in a few threads.

    Args:
        shots: a source, of any length; read on as frames are needed.
        prepare: what to make of each frame, in any thread; its ImageErrors are prefixed by the
            shot's name.
        batch: frames in a batch, at least 1.
        ahead: shots that are read beside the one that is waited for. None is for files: a batch,
            and one for each thread. 0 is for a camera, whose frames would wait for those to come.

    Yields:
        Shots in their order, each with what was made of it, or why nothing could be: ``batch``
        good ones in each list but the last, with the bad ones among them.

    Raises:
        UsageError: ``batch`` is less than 1.
    """
    if batch < 1:
        raise UsageError(f"a batch of {batch} images makes no sense; it must be at least 1")

    def made(shot: Shot) -> T:
        picture = shot.take()
        try:
            return prepare(picture)
        except ImageError as error:
            if isinstance(picture, str | Path):  # which the message begins with already
                raise
            raise ImageError(f"{shot.name}: {error}") from error

    workers = min(WORKERS, available_cores())
    # What waits is small, already prepared; at most `workers` full images exist.
    waiting = batch + workers if ahead is None else ahead
    remaining = iter(shots)
    pending: deque[tuple[Shot, Future[T]]] = deque()
    taken: list[tuple[Shot, T | ImageError]] = []
    good = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="padim-edge-images")
    try:
        while True:
            more = islice(remaining, waiting + 1 - len(pending))
            pending.extend((shot, pool.submit(made, shot)) for shot in more)
            if not pending:
                break
            shot, future = pending.popleft()
            try:
                taken.append((shot, future.result()))
                good += 1
            except ImageError as error:
                taken.append((shot, error))
            if good == batch or len(taken) >= PATIENCE * batch:
                yield taken
                taken, good = [], 0
        if taken:
            yield taken
    finally:  # also when the consumer stops or Ctrl-C comes: waits for the decodes under way only
        pool.shutdown(cancel_futures=True)


def read_batches(
    paths: Iterable[Path], preprocess: Preprocess, batch: int, on_error: OnError
) -> Iterator[tuple[list[Path], NDArray[np.uint8]]]:
    """Read image files, leaving out those that cannot be used.

    Args:
        paths: image files, taken as they are needed.
        preprocess: what to make of each.
        batch: images per batch, at least 1.
        on_error: called for each image that cannot be used, in the order of ``paths`` and in the
            consumer's thread. The image is left out; what ``on_error`` raises ends the iteration.

    Yields:
        The paths, in order, and their images: uint8 [n, H, W, 3], the caller's own. n is
        ``batch`` but for the last, and after many bad images in a row; nothing is yielded if no
        image is good.
    """
    for taken in prepared(files(paths), preprocess, batch):
        names: list[Path] = []
        images: list[NDArray[np.uint8]] = []
        for shot, outcome in taken:
            path = as_path(shot.name)
            if isinstance(outcome, ImageError):
                on_error(path, outcome)
            else:
                names.append(path)
                images.append(outcome)
        if images:
            yield names, np.stack(images)
