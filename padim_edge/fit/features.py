"""Features: images through the backbone, selected maps kept in tree order."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError
from padim_edge.fit.copies import Copies, Signature
from padim_edge.fit.moments import Array
from padim_edge.images.appearance import look
from padim_edge.images.batches import OnError, read_batches, refuse
from padim_edge.images.decode import aspect_ratios
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
        count: N, the images; of those that are equal pixel by pixel, one.
        paths: their files, [N].
        groups: [N], a number for each image; nearly equal ones share it (`copies`).
        digests: [N], of what the backbone was given.
        equal: (file, the one that it equals; None if that was in an earlier fit), not among the N.
        engine: what ran the backbone, in words.
        skipped: with engine "auto", why those before it were not taken, a line each.
        brightest: value of all that the backbone was given, 0 to 255.
        looks: of each image (`padim_edge.images.appearance`), [N, values].
        ratios: the smallest and the largest width / height of the frames, where no files tell.
        file_ratios: width / height of each file, [N], None where its head does not say; empty where
            the files have not been asked yet.
    """

    pyramid: Pyramid
    levels: list[NDArray[np.float32]]
    count: int
    paths: tuple[Path, ...] = ()
    groups: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    digests: tuple[bytes, ...] = ()
    equal: tuple[tuple[Path, Path | None], ...] = ()
    engine: str = ""
    skipped: tuple[str, ...] = ()
    brightest: int = 255
    looks: Array = field(default_factory=lambda: np.zeros((0, 0)))
    ratios: tuple[float, ...] = ()
    file_ratios: tuple[float | None, ...] = ()

    def described(self) -> str:
        """How many there are, in words."""
        groups = len(np.unique(self.groups))
        together = "" if groups == self.count else f" in {groups} groups of nearly equal ones"
        return f"{self.count} images{together}"

    def aspect_ratios(self, earlier: Sequence[float] = ()) -> tuple[float, ...]:
        """The smallest and the largest width / height of the files, and of ``earlier`` ones."""
        known = (*self.ratios, *(ratio for ratio in self.file_ratios if ratio), *earlier)
        return aspect_ratios(() if self.ratios or self.file_ratios else self.paths, known)

    def firsts(self) -> NDArray[np.intp]:
        """The first image of each group."""
        return np.unique(self.groups, return_index=True)[1].astype(np.intp)

    def near(self) -> list[list[Path]]:
        """Files of the groups of nearly equal images, the largest group first."""
        members = [
            np.flatnonzero(self.groups == g) for g in np.flatnonzero(np.bincount(self.groups) > 1)
        ]
        members.sort(key=len, reverse=True)
        return [[self.paths[place] for place in own] for own in members]

    def without(self, paths: Container[Path]) -> Features:
        """The same without some images.

        The arrays of the levels are shared, and theirs moved up: this one is of no use afterwards.
        """
        kept = [place for place, path in enumerate(self.paths) if path not in paths]
        for level in self.levels:
            for place, earlier in enumerate(kept):
                level[place] = level[earlier]
        return dataclasses.replace(
            self,
            count=len(kept),
            paths=tuple(self.paths[place] for place in kept),
            groups=np.unique(self.groups[kept], return_inverse=True)[1].astype(np.intp),
            digests=tuple(self.digests[place] for place in kept),
            looks=self.looks[kept],
            file_ratios=tuple(self.file_ratios[place] for place in kept)
            if self.file_ratios
            else (),
        )

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
    earlier: Sequence[bytes] = (),
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
        earlier: digests of images that an earlier fit had, which are not taken again.

    Raises:
        PadimEdgeError: an image cannot be read and ``on_error`` does not forgive it, or the
            features are not finite.
    """
    read = 0
    progress("features", 0, len(images))
    reasons: list[str] = []
    with Backbone(
        embedding,
        engine,
        threads,
        progress=progress,
        skipped=lambda name, error: reasons.append(f"{name}: {error}"),
    ) as backbone:
        gathered = Gathered(embedding, len(images), earlier)
        for files, whole in read_batches(images, preprocess, BATCH, on_error):
            read += len(files)
            progress("features", read, len(images))
            # Of copies the backbone is not asked.
            gathered(files, Seen.of(whole), functools.partial(_of_some, backbone, whole))
    return gathered.features(backbone.described, reasons)


def _of_some(
    backbone: Backbone, images: NDArray[np.uint8], places: list[int]
) -> list[NDArray[np.float32]]:
    return backbone(images[places])


Extract = Callable[
    [Model, Sequence[Path], Preprocess, str, int, OnError, Progress, Sequence[bytes]], Features
]
"""`extract`, or what does the same elsewhere."""


@dataclass(frozen=True)
class Seen:
    """What is kept of prepared images themselves.

    Attributes:
        signatures: by which copies are found, [n].
        looks: `padim_edge.images.appearance`, [n].
        brightest: value of all, 0 to 255.
    """

    signatures: list[Signature]
    looks: list[Array]
    brightest: int

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> Seen:
        """Look at images, uint8 [n, H, W, 3]."""
        return cls(list(map(Signature.of, images)), list(map(look, images)), int(images.max()))


class Gathered:
    """Takes images with their features in order, and leaves out copies.

    Args:
        embedding: the backbone.
        most: images that may come.
        earlier: digests of images that an earlier fit had.
    """

    def __init__(self, embedding: Model, most: int, earlier: Sequence[bytes] = ()) -> None:
        self._pyramid = Pyramid.coarse_to_fine(embedding.backbone_info.pyramid_layers())
        self._levels = store([(most, *shape) for shape in shapes_of(self._pyramid)])
        self._copies = Copies(earlier)
        self._paths: list[Path] = []
        self._looks: list[Array] = []
        self._ratios: list[float | None] = []
        self._brightest = 0

    def __call__(
        self,
        paths: Sequence[Path],
        seen: Seen,
        maps: Callable[[list[int]], Sequence[NDArray[np.float32]]],
        ratios: Sequence[float | None] = (),
    ) -> None:
        """Take some.

        Args:
            paths: their files, [n].
            seen: what is kept of them.
            maps: gives the selected maps of those at some places, per level [places, ...].
            ratios: width / height of the files, [n], where these are known already.
        """
        self._brightest = max(self._brightest, seen.brightest)
        new = self._copies.take(paths, seen.signatures)
        if not new:
            return
        count = len(self._paths)
        for level, own in zip(self._levels, maps(new), strict=True):
            level[count : count + len(new)] = own
        self._paths += (paths[place] for place in new)
        self._looks += (seen.looks[place] for place in new)
        self._ratios += (ratios[place] for place in new) if ratios else ()

    def features(self, engine: str, skipped: Sequence[str]) -> Features:
        """Those of all; arguments as `Features` has them."""
        return Features(
            self._pyramid,
            self._levels,
            len(self._paths),
            tuple(self._paths),
            self._copies.groups(),
            tuple(self._copies.digests),
            tuple(self._copies.found),
            engine,
            tuple(skipped),
            self._brightest,
            np.array(self._looks),
            file_ratios=tuple(self._ratios),
        )


def shapes_of(pyramid: Pyramid) -> list[tuple[int, int]]:
    """Per level (cells, values per cell) of an image."""
    return [
        (pyramid.cells, pyramid.positions_per_cell(index) * level.channels)
        for index, level in enumerate(pyramid.levels)
    ]


class Backbone:
    """The backbone of an embedding, opened; a context manager, too.

    Attributes:
        pyramid: levels of what it gives.
        shapes: per level (cells, values per cell) of an image.
        described: what runs it, in words.

    Args:
        embedding: as read.
        engine: of `padim_edge.runtime.graphs.GRAPHS`, or "auto".
        threads: of the engine on a CPU; 0 for all cores.
        progress: called while a plan is built.
        skipped: told by "auto" of each engine before the one that is taken.
    """

    def __init__(
        self,
        embedding: Model,
        engine: str = "auto",
        threads: int = 0,
        *,
        progress: Progress = silent,
        skipped: Callable[[str, PadimEdgeError], None] | None = None,
    ) -> None:
        self.pyramid = Pyramid.coarse_to_fine(embedding.backbone_info.pyramid_layers())
        self.shapes = shapes_of(self.pyramid)
        self._names = embedding.feature_names()
        data = graph.subgraph(embedding.proto, ["image"], self._names).SerializeToString()
        self._runner = open_graph(data, engine, threads, progress=progress, skipped=skipped)
        self.described = self._runner.describe()

    def __call__(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Selected maps of prepared images uint8 [n, H, W, 3]: per level [n, *shape], tree order.

        Raises:
            PadimEdgeError: they are not finite.
        """
        made = self._runner.run({"image": images}, self._names)
        maps = dict(zip(self._names, made, strict=True))
        levels = []
        for index, level in enumerate(self.pyramid.levels):
            own = np.concatenate([maps[FEATURES + layer.name] for layer in level.layers], axis=1)
            if not np.isfinite(own).all():
                raise PadimEdgeError(
                    f"the backbone gives NaN or infinity at {level.name}: check its weights"
                )
            levels.append(self.pyramid.to_tree(index, own))
        return levels

    def close(self) -> None:
        """Free it. Closing twice is harmless."""
        self._runner.close()

    def __enter__(self) -> Backbone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def store(shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
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
