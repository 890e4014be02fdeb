"""Whether a photo's heat map lies where the score map says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from padim_edge import Result


def check_heat(before: NDArray[np.int_], after: NDArray[np.int_], result: Result) -> bool:
    """Compare a photo without heat and with it, [H, W, 3], with what Python says of it.

    Returns:
        Whether the graph saw less than the photo, so that there was something outside to check.
    """
    left, top, right, bottom = result.seen
    # Half of the threshold is where colour begins; from the map's pixels to the photo's.
    rows, columns = result.score_map.shape
    y = np.clip((np.arange(before.shape[0]) + 0.5 - top) / (bottom - top) * rows, 0, rows - 1)
    x = np.clip(
        (np.arange(before.shape[1]) + 0.5 - left) / (right - left) * columns, 0, columns - 1
    )
    share = result.score_map[y.astype(int)][:, x.astype(int)] / result.threshold - 0.5
    inside = np.zeros(share.shape, bool)
    inside[round(top) + 1 : round(bottom) - 1, round(left) + 1 : round(right) - 1] = True
    changed = (after != before).any(axis=2)
    assert changed[inside & (share > 0.15)].all()
    assert not changed[inside & (share < -0.15)].any()
    outside = np.ones(share.shape, bool)
    outside[
        max(0, round(top) - 1) : round(bottom) + 1, max(0, round(left) - 1) : round(right) + 1
    ] = False
    assert not changed[outside].any()
    return bool(outside.any())
