"""Smoothing matrices without their zeros, as kernels.cu reads them, and the launch that uses them.

numpy alone: nothing here touches a device. `pack_smoothing` brings the matrices of a model into
arrays to be uploaded once; `Smoothing.smooth` then gives launches for device addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from padim_edge.errors import PadimEdgeError
from padim_edge.model.pyramid import Pyramid
from padim_edge.runtime.nvidia.launch import DEFAULT_SHARED_LIMIT, SMOOTH, Launch
from padim_edge.runtime.nvidia.whitening import Whitening

_TILE_ROWS, _TILE_COLUMNS = 8, 64


@dataclass(frozen=True)
class SmoothingAddresses:
    """Device addresses: the uploaded arrays of `Smoothing`, the distances, and results.

    squared: what `mahalanobis` wrote.
    map: N x height x width float32, written whole.
    scores: N float32, as `mahalanobis` left them; raised to the maxima of the maps.
    judged: height x width uint8, 0 where the map is; 0 for no such array, and all is judged.
    """

    row_taps: int
    row_first: int
    column_taps: int
    column_first: int
    squared: int
    map: int
    scores: int
    judged: int = 0


@dataclass(frozen=True)
class Smoothing:
    """What `smooth` reads: the two matrices without their zeros, and the parameters.

    row_taps, column_taps: float32 [taps, height] and [taps, width].
    row_first, column_first: int32, the row or column of the distance map of tap 0.
    shared_bytes: for the largest part of the distance map that a tile of the map depends on.
    """

    row_taps: NDArray[np.float32]
    row_first: NDArray[np.int32]
    column_taps: NDArray[np.float32]
    column_first: NDArray[np.int32]
    shared_bytes: int
    parameters: NDArray[np.void]

    def smooth(
        self,
        frames: int,
        addresses: SmoothingAddresses,
        *,
        shared_limit: int = DEFAULT_SHARED_LIMIT,
    ) -> Launch:
        """Score maps and image scores of ``frames`` frames.

        Raises:
            PadimEdgeError: a tile depends on more distances than ``shared_limit`` bytes hold.
        """
        if self.shared_bytes > shared_limit:
            raise PadimEdgeError(
                f"the smoothing is too wide for the kernels on this device: a block needs "
                f"{self.shared_bytes} bytes of shared memory and gets {shared_limit}; "
                "fit with a smaller --sigma or choose --engine trt/graph, which needs no kernels"
            )
        argument = self.parameters.copy()
        for name in ("row_taps", "row_first", "column_taps", "column_first", "judged"):
            argument[name] = getattr(addresses, name)
        argument["squared"] = addresses.squared
        argument["map"] = addresses.map
        argument["scores"] = addresses.scores
        tiles_across = -(-int(argument["width"]) // _TILE_COLUMNS)
        tiles_down = -(-int(argument["height"]) // _TILE_ROWS)
        return Launch(
            "smooth",
            (tiles_across, tiles_down, frames),
            (256, 1, 1),
            self.shared_bytes,
            argument.tobytes(),
        )


def pack_smoothing(
    pyramid: Pyramid, whitening: Whitening, rows: ArrayLike, columns: ArrayLike
) -> Smoothing:
    """Pack the matrices of score map = rows D columns^T, D the distance map.

    Args:
        pyramid: levels.
        whitening: whose result is to be smoothed.
        rows: [height of the map, height of D].
        columns: [width of the map, width of D].
    """
    row_taps, row_first = _taps(rows)
    column_taps, column_first = _taps(columns)
    parameters = np.zeros((), SMOOTH)
    parameters["frame"] = whitening.squared_floats
    parameters["height"], parameters["width"] = len(row_first), len(column_first)
    parameters["row_count"], parameters["column_count"] = len(row_taps), len(column_taps)
    parameters["plane"]["factor"] = 1
    for plane, level, described in zip(
        parameters["plane"], pyramid.levels, whitening.parameters["level"], strict=False
    ):
        plane["squared"] = described["squared"]
        plane["parts"] = described["parts"]
        plane["width"] = level.width
        plane["factor"] = pyramid.width // level.width
        plane["size"] = level.positions
    window = widest(row_first, len(row_taps), _TILE_ROWS) + _TILE_ROWS
    shared_bytes = 4 * window * widest(column_first, len(column_taps), _TILE_COLUMNS)
    return Smoothing(row_taps, row_first, column_taps, column_first, shared_bytes, parameters)


def widest(first: NDArray[np.int32], taps: int, tile: int) -> int:
    """Most rows or columns of the distance map that ``tile`` ones of the map depend on."""
    start = np.arange(0, len(first), tile)
    end = np.minimum(start + tile, len(first)) - 1
    return int((first[end] - first[start]).max()) + taps


def _taps(matrix: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A band matrix [n, m] as taps [count, n] and the column of each row's first tap, ascending."""
    dense = np.asarray(matrix, dtype=np.float32)
    used = dense != 0
    used[~used.any(axis=1)] = True
    begin = used.argmax(axis=1)
    end = dense.shape[1] - used[:, ::-1].argmax(axis=1)
    # Ascending, whatever the matrix: the kernel takes the rows between the first and the last.
    begin = np.minimum.accumulate(begin[::-1])[::-1]
    end = np.maximum.accumulate(end)
    count = int((end - begin).max())
    first = np.minimum(begin, dense.shape[1] - count)
    taps = np.take_along_axis(dense, first[:, None] + np.arange(count), axis=1)
    return np.ascontiguousarray(taps.T), first.astype(np.int32)
