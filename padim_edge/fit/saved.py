"""Saved moments: what a later fit needs to go on, in a file of its own (.npz, no pickles)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from padim_edge.errors import ModelError, PadimEdgeError, UsageError
from padim_edge.fit.basis import Basis
from padim_edge.fit.copies import DIGEST
from padim_edge.fit.moments import Array, Moments, empty_moments
from padim_edge.fit.settings import Settings
from padim_edge.images.appearance import LOOK
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import Model
from padim_edge.model.pooling import pooled_layers
from padim_edge.model.pyramid import Layer, Pyramid


class Keeper:
    """Takes moments, keeps them all.

    Attributes:
        moments: of all positions, filled run by run.
    """

    def __init__(self, pyramid: Pyramid, count: int) -> None:
        self._pyramid = pyramid
        means = [np.empty((level.positions, level.channels)) for level in pyramid.levels]
        self.moments = empty_moments(count, means)

    def __call__(self, cells: slice, moments: Moments) -> None:
        """Keep those of a run of cells."""
        for index, mean in enumerate(moments.means):
            self.moments.means[index][self._pyramid.positions_in(index, cells)] = mean
        for (index, other), scatter in moments.scatters.items():
            place = self._pyramid.positions_in(index, cells)
            self.moments.scatters[index, other][place] = scatter


@dataclass(frozen=True)
class SavedMoments:
    """Moments of good images, their held-out scores, and under what both were made.

    Attributes:
        embedding_sha256: of the embedding's file.
        settings: of the fit.
        moments: per level [P, ...], in tree order.
        scores: image scores as their own fit gave them, one for each group of nearly equal images.
        pixel_scores: pixel scores of the same; empty if a version saved them that had none.
        digests: of the images (`padim_edge.fit.copies`), [N], so that none is counted twice;
            zeros for those that a version saved which had none.
        aspect_ratios: the smallest and the largest width / height of the images; none if unknown.
        basis: of a whitened preset, the one that the moments are in: kept by whatever goes on.
        looks: how the images look (`padim_edge.images.appearance`), a row each but for nearly equal
            ones; None if a version saved them that did not know.
    """

    embedding_sha256: str
    settings: Settings
    moments: Moments
    scores: Array
    pixel_scores: Array
    digests: tuple[bytes, ...]
    aspect_ratios: tuple[float, ...] = ()
    basis: Basis | None = None
    looks: Array | None = None

    def part(self, pyramid: Pyramid, cells: slice) -> Moments:
        """The moments of some cells."""
        where = [pyramid.positions_in(index, cells) for index in range(len(pyramid.levels))]
        return Moments(
            self.moments.count,
            [mean[place] for mean, place in zip(self.moments.means, where, strict=True)],
            {key: scatter[where[key[0]]] for key, scatter in self.moments.scatters.items()},
        )

    def save(self, stream: BinaryIO) -> None:
        """Write as .npz without pickles."""
        arrays: dict[str, Any] = {f"mean.{i}": m for i, m in enumerate(self.moments.means)}
        arrays |= {f"scatter.{i}.{j}": s for (i, j), s in self.moments.scatters.items()}
        header = json.dumps(
            {"count": self.moments.count, **identity_of(self.embedding_sha256, self.settings)}
        )
        arrays["header"] = np.frombuffer(header.encode(), dtype=np.uint8)
        arrays["digests"] = np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, DIGEST)
        if self.aspect_ratios:
            arrays["aspect_ratios"] = np.array(self.aspect_ratios)
        if self.basis:
            arrays["basis.directions"] = self.basis.directions
            arrays["basis.offset"] = self.basis.offset
            arrays["basis.shrinkage"] = np.array([self.basis.shrinkage])
            if self.basis.images is not None:
                arrays["basis.images"] = np.array([self.basis.images], np.float64)
        if self.looks is not None:
            arrays["looks"] = self.looks
        if len(self.pixel_scores):
            arrays["pixel_scores"] = self.pixel_scores
        np.savez(stream, scores=self.scores, **arrays)

    @classmethod
    def load(cls, path: Path, embedding: Model, settings: Settings) -> SavedMoments:
        """Read moments saved for the same embedding and settings.

        Raises:
            PadimEdgeError: the file cannot be read, is damaged or is of another fit.
        """
        head = settings.head()
        pyramid = Pyramid.coarse_to_fine([head]) if head else embedding.pyramid()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                count = _count(arrays, identity_of(embedding.sha256, settings), path)
                moments = _moments(arrays, pyramid, count)
                scores = _scores(arrays, count)
                known = "pixel_scores" in arrays
                pixel_scores = _array(arrays, "pixel_scores", len(scores)) if known else np.empty(0)
                digests = _digests(arrays, count)
                ratios = _array(arrays, "aspect_ratios", 2) if "aspect_ratios" in arrays else ()
                basis = _basis(arrays, embedding, head, count) if head else None
                looks = _array(arrays, "looks", len(scores), LOOK) if "looks" in arrays else None
        except UsageError:
            raise
        except OSError as error:
            raise PadimEdgeError(
                f"cannot read the moments {path}: {error.strerror or error}"
            ) from error
        except Exception as error:  # zipfile, numpy and json each have their own for damage
            raise ModelError(
                f"{path} is not a file of moments of this embedding, or it is damaged: save one "
                "with padim-edge fit --save-moments"
            ) from error
        aspect_ratios = tuple(map(float, ratios))
        return cls(
            embedding.sha256,
            settings,
            moments,
            scores,
            pixel_scores,
            digests,
            aspect_ratios,
            basis,
            looks,
        )


def _count(arrays: Any, wanted: dict[str, Any], path: Path) -> int:
    """How many images the moments are of, after checking that they are of the same fit."""
    header = json.loads(bytes(arrays["header"]))
    count: int = header.pop("count")
    # Fields that came later have the defaults that are true of older moments.
    header["preprocess"] = Preprocess.from_json(header["preprocess"]).to_json()
    header = {"preset": "reference", "dims": None, "roi": None} | header
    different = [key for key in wanted if header.get(key) != wanted[key]]
    if different:
        raise UsageError(
            f"{path} was saved with another {' and '.join(different)}: fit with the same, or fit "
            "all images together"
        )
    return count


def _moments(arrays: Any, pyramid: Pyramid, count: int) -> Moments:
    levels = pyramid.levels
    means = [
        _array(arrays, f"mean.{i}", level.positions, level.channels)
        for i, level in enumerate(levels)
    ]
    scatters = {
        (i, j): _array(
            arrays, f"scatter.{i}.{j}", level.positions, level.channels, levels[j].channels
        )
        for i, level in enumerate(levels)
        for j in range(i + 1)
    }
    return Moments(count, means, scatters)


def _scores(arrays: Any, count: int) -> Array:
    """At most one for each image, and at least one."""
    scores: Array = arrays["scores"]
    if not 1 <= scores.size <= count:
        raise ValueError("scores has a wrong shape")
    return _array(arrays, "scores", scores.size)


def _digests(arrays: Any, count: int) -> tuple[bytes, ...]:
    if "digests" not in arrays:
        _array(arrays, "scores", count)  # one for each image then
        return (bytes(DIGEST),) * count
    digests = arrays["digests"]
    if digests.dtype != np.uint8 or digests.shape != (count, DIGEST):
        raise ValueError("digests has a wrong type or shape")
    return tuple(row.tobytes() for row in digests)


def _basis(arrays: Any, embedding: Model, head: Layer, count: int) -> Basis:
    channels = sum(layer.channels for layer in pooled_layers(embedding.backbone_info))
    images = _array(arrays, "basis.images", 1)[0] if "basis.images" in arrays else None
    if images is not None and not (images.is_integer() and 1 <= images <= count):
        raise ValueError("basis.images is no number of images of the fit")
    return Basis(
        _array(arrays, "basis.directions", channels, head.channels),
        _array(arrays, "basis.offset", head.channels),
        float(_array(arrays, "basis.shrinkage", 1)[0]),
        None if images is None else int(images),
    )


def _array(arrays: Any, name: str, *shape: int) -> Array:
    """An array of float64 of this shape, finite."""
    values: Array = arrays[name]
    if values.dtype != np.float64 or values.shape != shape:
        raise ValueError(f"{name} has a wrong type or shape")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values


def identity_of(embedding_sha256: str, settings: Settings) -> dict[str, Any]:
    """What two fits must share for their moments to be added."""
    head = settings.head()
    return {
        "embedding": embedding_sha256,
        "preprocess": settings.preprocess.to_json(),
        "eps": settings.eps,
        "sigma": settings.sigma,
        "preset": settings.preset,
        "roi": settings.roi.sha256 if settings.roi else None,
        **(
            {
                "dims": head.channels,
                "grid": [head.height, head.width],
                "shrinkage": settings.shrinkage,
            }
            if head
            else {"dims": settings.dims}
        ),
    }
