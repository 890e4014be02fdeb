"""Batches: images decoded and prepared in a few threads, ahead of who uses them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import ImageError, UsageError
from padim_edge.images.decode import load_image
from padim_edge.images.preprocess import Preprocess


def read_batches(
    paths: Iterable[Path],
    preprocess: Preprocess,
    batch: int,
    on_error: Callable[[Path, ImageError], None],
) -> Iterator[tuple[list[Path], NDArray[np.uint8]]]:
    """Decode images in a few threads, up to a batch ahead of the consumer.

    Args:
        paths: image files, taken as they are needed.
        preprocess: what to make of each.
        batch: images per batch, at least 1.
        on_error: called for each image that cannot be used, in the order of ``paths`` and in the
            consumer's thread. The image is left out; what ``on_error`` raises ends the iteration.

    Yields:
        The paths, in order, and their images: uint8 [n, H, W, 3], the caller's own. n is
        ``batch`` but for the last; nothing is yielded if no image is good.
    """
    if batch < 1:
        raise UsageError(f"a batch of {batch} images makes no sense; it must be at least 1")

    def read(path: Path) -> NDArray[np.uint8]:
        image = load_image(path)
        try:
            return preprocess(image)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error

    workers = min(4, os.cpu_count() or 1)
    remaining = iter(paths)
    pending: deque[tuple[Path, Future[NDArray[np.uint8]]]] = deque()
    names: list[Path] = []
    images: list[NDArray[np.uint8]] = []
    pool = ThreadPoolExecutor(workers, thread_name_prefix="padim-edge-images")
    try:
        # What waits here is small, already preprocessed; at most `workers` full images exist.
        pending.extend(
            (path, pool.submit(read, path)) for path in islice(remaining, batch + workers)
        )
        while pending:
            path, future = pending.popleft()
            pending.extend((path, pool.submit(read, path)) for path in islice(remaining, 1))
            try:
                images.append(future.result())
                names.append(path)
            except ImageError as error:
                on_error(path, error)
            if len(images) == batch:
                yield names, np.stack(images)
                names, images = [], []
        if images:
            yield names, np.stack(images)
    finally:  # also when the consumer stops or Ctrl-C comes: waits for the decodes under way only
        pool.shutdown(cancel_futures=True)
