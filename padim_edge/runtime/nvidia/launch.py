"""What the kernels and their host have in common: limits, formats, parameter structs, a launch.

On one stream, per batch of frames, there are two: first `mahalanobis` (see `whitening`), which
also sets the scores to 0, then `smooth` (see `smoothing`), which raises them. Where the frames are
as a camera gave them, `prepare` (see there) comes before, once a frame. numpy alone: nothing here
touches a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_LEVELS = 4
MOST_LAYERS = 8
FRAMES = (1, 2, 4, 8)
"""Frames that one pass over the constants can serve: a kernel each."""
FORMATS = ("float32", "float16", "int8")
DEFAULT_SHARED_LIMIT = 48 * 1024
"""Bytes of shared memory that a block gets on every device without being asked for."""

MOST_PLANES = 3
MOST_VALUES = 4

# The structs of kernels.cu and prepare.cu, passed by value.
SOURCE = np.dtype(
    [
        ("maps", np.uint64),
        ("frame", np.int64),
        ("plane", np.int32),
        ("column", np.int32),
        ("level", np.int32),
        ("pixels", np.int32),
    ],
    align=True,
)
LEVEL = np.dtype(
    [
        ("blocks", np.uint32),
        ("parts", np.uint32),
        ("sibling_bits", np.int32),
        ("strips", np.int32),
        ("first_line", np.int32),
        ("family_lines", np.int32),
        ("coarse_lines", np.int32),
        ("own_lines", np.int32),
        ("tread_bits", np.int32),
        ("rise", np.int32),
        ("channels", np.int32),
        ("column", np.int32),
        ("positions", np.int32),
        ("means", np.int32),
        ("pixels", np.int32),
        ("squared", np.int32),
        ("start", np.int32, (MOST_LEVELS,)),
        ("below", np.uint32, (MOST_LEVELS,)),
    ],
    align=True,
)
MAHALANOBIS = np.dtype(
    [
        ("weights", np.uint64),
        ("means", np.uint64),
        ("pixels", np.uint64),
        ("squared", np.uint64),
        ("scores", np.uint64),
        ("frame", np.int64),
        ("frames", np.int32),
        ("groups", np.uint32),
        ("levels", np.int32),
        ("half_maps", np.int32),
        ("level", LEVEL, (MOST_LEVELS,)),
        ("source", SOURCE, (MOST_LAYERS,)),
    ],
    align=True,
)
PLANE = np.dtype([(name, np.int32) for name in ("squared", "parts", "width", "factor", "size")])
SMOOTH = np.dtype(
    [
        ("squared", np.uint64),
        ("row_taps", np.uint64),
        ("column_taps", np.uint64),
        ("row_first", np.uint64),
        ("column_first", np.uint64),
        ("judged", np.uint64),
        ("map", np.uint64),
        ("scores", np.uint64),
        ("frame", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("row_count", np.int32),
        ("column_count", np.int32),
        ("plane", PLANE, (MOST_LEVELS,)),
    ],
    align=True,
)
RAW_PLANE = np.dtype(
    [
        ("pixels", np.uint64),
        ("row_taps", np.uint64),
        ("column_taps", np.uint64),
        ("row_first", np.uint64),
        ("column_first", np.uint64),
        ("pitch", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("channels", np.int32),
        ("values", np.int32),
        ("channel", np.int32, (MOST_VALUES,)),
        ("block_height", np.int32),
        ("block_width", np.int32),
        ("row_count", np.int32),
        ("column_count", np.int32),
        ("strip", np.int32),
        ("stride", np.int32),
    ],
    align=True,
)
PREPARE = np.dtype(
    [
        ("image", np.uint64),
        ("height", np.int32),
        ("width", np.int32),
        ("planes", np.int32),
        ("values", np.int32),
        ("white", np.uint32),
        ("means", np.int32),
        ("narrow", np.int32),
        ("mixed", np.int32),
        ("mix", np.int32, (3, MOST_VALUES + 1)),
        ("plane", RAW_PLANE, (MOST_PLANES,)),
    ],
    align=True,
)


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    ``argument`` is the kernel's only parameter, a struct by value: with pycuda
    ``function.prepare([numpy.dtype(("V", len(argument)))])``. Above `DEFAULT_SHARED_LIMIT` the
    function's attribute MAX_DYNAMIC_SHARED_SIZE_BYTES must be raised to ``shared_bytes`` first.
    """

    function: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    argument: bytes
