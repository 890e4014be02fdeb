"""State: what a later fit needs to go on, in a file of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from padim_edge.errors import (
    ModelError,
    PadimEdgeError,
    UsageError,
)
from padim_edge.fit.features import Features
from padim_edge.fit.moments import Array, Moments
from padim_edge.fit.settings import Settings
from padim_edge.model.file import Model


@dataclass(frozen=True)
class _State:
    """What a later fit needs to go on: moments, held-out scores, and under what they were made."""

    embedding_sha256: str
    settings: Settings
    moments: Moments
    scores: Array

    def part(self, features: Features, cells: slice) -> Moments:
        """The moments of some cells."""
        where = [
            features.pyramid.positions_in(i, cells) for i in range(len(features.pyramid.levels))
        ]
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
            {"count": self.moments.count, **_identity(self.embedding_sha256, self.settings)}
        )
        arrays["header"] = np.frombuffer(header.encode(), dtype=np.uint8)
        np.savez(stream, scores=self.scores, **arrays)

    @classmethod
    def load(cls, path: Path, embedding: Model, settings: Settings) -> _State:
        """Read moments saved for the same embedding and settings.

        Raises:
            PadimEdgeError: the file cannot be read, is damaged or is of another fit.
        """
        pyramid = embedding.pyramid()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(bytes(arrays["header"]))
                count = header.pop("count")
                wanted = _identity(embedding.sha256, settings)
                different = [key for key in wanted if header.get(key) != wanted[key]]
                if different:
                    raise UsageError(
                        f"{path} was saved with another {' and '.join(different)}: fit with the "
                        "same, or fit all images together"
                    )

                def part(name: str, *shape: int) -> Array:
                    """An array of float64 of this shape, finite."""
                    values: Array = arrays[name]
                    if values.dtype != np.float64 or values.shape != shape:
                        raise ValueError(f"{name} has a wrong type or shape")
                    if not np.isfinite(values).all():
                        raise ValueError(f"{name} holds NaN or infinity")
                    return values

                levels = pyramid.levels
                means = [
                    part(f"mean.{i}", level.positions, level.channels)
                    for i, level in enumerate(levels)
                ]
                scatters = {
                    (i, j): part(
                        f"scatter.{i}.{j}", level.positions, level.channels, levels[j].channels
                    )
                    for i, level in enumerate(levels)
                    for j in range(i + 1)
                }
                scores = part("scores", count)
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
        return cls(embedding.sha256, settings, Moments(count, means, scatters), scores)


def _identity(embedding_sha256: str, settings: Settings) -> dict[str, Any]:
    """What two fits must share for their moments to be added."""
    return {
        "embedding": embedding_sha256,
        "preprocess": settings.preprocess.to_json(),
        "eps": settings.eps,
        "sigma": settings.sigma,
    }
