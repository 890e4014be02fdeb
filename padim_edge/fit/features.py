"""Features: images through the backbone, selected maps kept in tree order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError
from padim_edge.fit.moments import Array
from padim_edge.images.batches import OnError, read_batches, refuse
from padim_edge.images.preprocess import Preprocess
from padim_edge.model import graph
from padim_edge.model.file import Model
from padim_edge.model.names import FEATURES
from padim_edge.model.pyramid import Pyramid
from padim_edge.progress import Progress, silent
from padim_edge.runtime.graphs import open_graph

BATCH = 8
STORE_IN_MEMORY = 512 * 2**20
CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Features:
    """Selected maps of all images, in tree order.

    Attributes:
        pyramid: the levels, coarse to fine.
        levels: per level [at least N, cells, positions per cell x d] float32.
        count: N, the images.
        engine: what ran the backbone, in words.
        skipped: with engine "auto", why those before it were not taken, a line each.
    """

    pyramid: Pyramid
    levels: list[NDArray[np.float32]]
    count: int
    engine: str = ""
    skipped: tuple[str, ...] = ()

    def chunks(self) -> Iterator[slice]:
        """Runs of cells whose blocks and features take some `CHUNK_BYTES` in float64."""
        levels = self.pyramid.levels
        known = np.cumsum([level.channels for level in levels])
        values = sum(
            self.pyramid.positions_per_cell(index) * level.channels * (int(width) + self.count)
            for (index, level), width in zip(enumerate(levels), known, strict=True)
        )
        step = max(1, CHUNK_BYTES // (8 * values))
        for start in range(0, self.pyramid.cells, step):
            yield slice(start, min(start + step, self.pyramid.cells))

    def of(self, cells: slice) -> list[Array]:
        """Features of some cells, per level [P, N, d] float64."""
        result = []
        for index, level in enumerate(self.pyramid.levels):
            values = self.levels[index][: self.count, cells]
            split = values.reshape(self.count, -1, level.channels)
            result.append(np.ascontiguousarray(split.transpose(1, 0, 2), dtype=np.float64))
        return result


def extract(
    embedding: Model,
    images: Sequence[Path],
    preprocess: Preprocess,
    engine: str = "auto",
    threads: int = 0,
    on_error: OnError = refuse,
    progress: Progress = silent,
) -> Features:
    """Run images through the backbone and keep the selected maps.

    Args:
        embedding: the backbone.
        images: files, in the order in which they are kept.
        preprocess: from an image to the backbone's input.
        engine: of `padim_edge.runtime.graphs.GRAPHS`, or "auto".
        threads: of the engine on a CPU; 0 for all cores.
        on_error: told of each image that cannot be used, which is then left out.
        progress: called as work goes on.

    Raises:
        PadimEdgeError: an image cannot be read and ``on_error`` does not forgive it, or the
            features are not finite.
    """
    pyramid = Pyramid.coarse_to_fine(embedding.backbone_info.pyramid_layers())
    shapes = [
        (len(images), pyramid.cells, pyramid.positions_per_cell(index) * level.channels)
        for index, level in enumerate(pyramid.levels)
    ]
    levels = _store(shapes)
    count = 0
    names = embedding.feature_names()
    data = graph.subgraph(embedding.proto, ["image"], names).SerializeToString()
    progress("features", 0, len(images))
    reasons: list[str] = []
    with open_graph(
        data,
        engine,
        threads,
        progress=progress,
        skipped=lambda name, error: reasons.append(f"{name}: {error}"),
    ) as runner:
        described = runner.describe()
        for _, batch in read_batches(images, preprocess, BATCH, on_error):
            maps = dict(zip(names, runner.run({"image": batch}, names), strict=True))
            for index, level in enumerate(pyramid.levels):
                own = np.concatenate(
                    [maps[FEATURES + layer.name] for layer in level.layers], axis=1
                )
                if not np.isfinite(own).all():
                    raise PadimEdgeError(
                        f"the backbone gives NaN or infinity at {level.name}: check its weights"
                    )
                levels[index][count : count + len(batch)] = pyramid.to_tree(index, own)
            count += len(batch)
            progress("features", count, len(images))
    return Features(pyramid, levels, count, described, tuple(reasons))


def _store(shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """Arrays in memory, or in a temporary file that vanishes with them."""
    sizes = [4 * int(np.prod(shape)) for shape in shapes]
    if sum(sizes) <= STORE_IN_MEMORY:
        return [np.empty(shape, dtype=np.float32) for shape in shapes]
    arrays: list[NDArray[np.float32]] = []
    for shape, size in zip(shapes, sizes, strict=True):
        with tempfile.TemporaryFile(prefix="padim-edge-") as file:
            try:
                # A full disk must be an error here, not a crash when a page is written.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise PadimEdgeError(
                    f"no room for {sum(sizes) / 1e9:.1f} GB of features in "
                    f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a larger disk"
                ) from error
            arrays.append(np.memmap(file, dtype=np.float32, mode="r+", shape=shape))
    return arrays
