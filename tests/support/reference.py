"""An independent float64 implementation of PaDiM, for the tests alone.

Written from the paper and the well-known reference implementation, with the slowest and
plainest tools: np.cov, dense inverse, SciPy's mahalanobis and gaussian_filter, torch's
interpolate. It shares no line with the product.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis


def embed(maps: list[np.ndarray]) -> np.ndarray:
    """Layer maps [N, d, h, w], finest first, as one [N, sum d, h, w] embedding (nearest)."""
    height, width = maps[0].shape[2:]
    up = [np.kron(m, np.ones((1, 1, height // m.shape[2], width // m.shape[3]))) for m in maps]
    return np.concatenate(up, axis=1).astype(np.float64)


def fit(embedding: np.ndarray, eps: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d, P] and inverse covariance [P, d, d] of an embedding [N, d, h, w]."""
    n, d = embedding.shape[:2]
    flat = embedding.reshape(n, d, -1)
    cov = np.stack(
        [
            np.cov(flat[:, :, p], rowvar=False).reshape(d, d) + eps * np.eye(d)
            for p in range(flat.shape[2])
        ]
    )
    return flat.mean(axis=0), np.linalg.inv(cov)


def distances(embedding: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Mahalanobis distance maps [N, h, w]."""
    n, d, h, w = embedding.shape
    flat = embedding.reshape(n, d, -1)
    out = np.empty((n, h * w))
    for i in range(n):
        for p in range(h * w):
            out[i, p] = mahalanobis(flat[i, :, p], mean[:, p], inverse[p])
    return out.reshape(n, h, w)


def pool(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A layer's maps [N, c, h, w] averaged over neighbourhoods of a grid's positions."""
    n, channels, height, width = maps.shape
    step = max(height // grid[0], 1)
    side = {1: 3, 2: 4, 4: 8}[step]
    rows, columns = height // step, width // step
    averaged = np.empty((n, channels, rows, columns))
    for y in range(rows):
        for x in range(columns):
            top, left = y * step - (side - step) // 2, x * step - (side - step) // 2
            inside = maps[:, :, max(top, 0) : top + side, max(left, 0) : left + side]
            averaged[:, :, y, x] = inside.mean(axis=(2, 3))
    if (rows, columns) == grid:
        return averaged
    resized = np.empty((n, channels, *grid))
    for y in range(grid[0]):
        for x in range(grid[1]):
            (top, bottom, down), (left, right, across) = (
                _between(y, grid[0], rows),
                _between(x, grid[1], columns),
            )
            resized[:, :, y, x] = (
                (1 - down) * (1 - across) * averaged[:, :, top, left]
                + (1 - down) * across * averaged[:, :, top, right]
                + down * (1 - across) * averaged[:, :, bottom, left]
                + down * across * averaged[:, :, bottom, right]
            )
    return resized


def _between(place: int, wanted: int, given: int) -> tuple[int, int, float]:
    """Of a pixel of the resized map, its two neighbours in the given one and the second's weight.

    Centres of pixels lie at half numbers; beyond the last centre its value goes on.
    """
    where = (place + 0.5) * given / wanted - 0.5
    low = int(np.floor(where))
    return max(low, 0), min(low + 1, given - 1), where - low


def whitened(fitted: np.ndarray, new: np.ndarray, dims: int, alpha: float) -> np.ndarray:
    """Distance maps [M, h, w] of new pooled features [M, C, h, w], fitted on others [N, C, h, w].

    By the definition: among the directions Q, the d largest eigenvectors of the mean C of all
    positions' covariances S_p, each over the root of its eigenvalue, position p has the covariance
    (1 - alpha) Q^T S_p Q + alpha I. Distances are in units of sqrt(1 - alpha).
    """
    n, channels, height, width = fitted.shape
    flat, tested = fitted.reshape(n, channels, -1), new.reshape(len(new), channels, -1)
    covariances = [np.cov(flat[:, :, p], rowvar=False) for p in range(flat.shape[2])]
    values, vectors = np.linalg.eigh(np.mean(covariances, axis=0))
    floor = 0.001 * values.mean()
    first = np.argsort(values)[::-1][:dims]
    directions = vectors[:, first] / np.sqrt(values[first] + floor)
    out = np.empty((len(new), height * width))
    for p, own in enumerate(covariances):
        shrunk = (1 - alpha) * directions.T @ own @ directions + alpha * np.eye(dims)
        inverse = np.linalg.inv(shrunk)
        mean = flat[:, :, p].mean(axis=0) @ directions
        for i in range(len(new)):
            out[i, p] = mahalanobis(tested[i, :, p] @ directions, mean, inverse)
    return out.reshape(len(new), height, width) * np.sqrt(1 - alpha)


def score_maps(distance_maps: np.ndarray, size: tuple[int, int], sigma: float = 4) -> np.ndarray:
    """Upsampled (bilinear, align_corners=False) and smoothed score maps [N, H, W]."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    up = F.interpolate(
        torch.from_numpy(distance_maps)[:, None], size=size, mode="bilinear", align_corners=False
    )[:, 0].numpy()
    return np.stack([gaussian_filter(m, sigma=sigma) for m in up])
