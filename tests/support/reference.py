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


def score_maps(distance_maps: np.ndarray, size: tuple[int, int], sigma: float = 4) -> np.ndarray:
    """Upsampled (bilinear, align_corners=False) and smoothed score maps [N, H, W]."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    up = F.interpolate(
        torch.from_numpy(distance_maps)[:, None], size=size, mode="bilinear", align_corners=False
    )[:, 0].numpy()
    return np.stack([gaussian_filter(m, sigma=sigma) for m in up])
