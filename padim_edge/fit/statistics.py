"""Statistics: moments of all images at every position, and what is made of them.

Moments of all positions at once would take gigabytes (WideResNet-50-2), so they exist for a run of
cells at a time: `estimate` makes those of a run, and what becomes of them is small: constants of
the graph (`whitening`), distances of the images that were left out (`held_out`), or the moments
themselves, to be saved (`saved`).
"""

from __future__ import annotations

from dataclasses import dataclass

from padim_edge.fit.features import Features
from padim_edge.fit.held_out import HeldOut, ScoreMaps
from padim_edge.fit.moments import Array, Moments, merge, moments_of
from padim_edge.fit.runs import in_threads
from padim_edge.fit.saved import Keeper, SavedMoments
from padim_edge.fit.settings import Settings
from padim_edge.fit.whitening import Gaussians, Whitening
from padim_edge.model.smoothing import Smoothing
from padim_edge.progress import Progress


@dataclass(frozen=True)
class Statistics:
    """What is known of the good images.

    Attributes:
        gaussians: means and whitening, as the graph holds them.
        scores: image scores of the new images, each as if it had been left out of the fit, [N].
        pixel_scores: pixel scores of the same (`padim_edge.model.threshold.pixel_score`), [N].
        how: how these scores were made, in words.
        maps: that they are of.
        moments: of all images, if they were to be kept.
    """

    gaussians: Gaussians
    scores: Array
    pixel_scores: Array
    how: str
    maps: ScoreMaps
    moments: Moments | None = None


def sample_statistics(
    features: Features,
    settings: Settings,
    smoothing: Smoothing,
    earlier: SavedMoments | None,
    keep: bool,
    threads: int,
    progress: Progress,
) -> Statistics:
    """Sample covariance + eps I, whitened coarse to fine; scores by exact leave-one-out.

    Args:
        features: of the new images.
        settings: how to fit.
        smoothing: from distances to score maps.
        earlier: moments of earlier images, to be merged with those of the new.
        keep: whether the moments of all are wanted.
        threads: runs of cells at a time; 0 for all cores.
        progress: called as work goes on.
    """
    total = features.count + (earlier.moments.count if earlier else 0)
    whitening = Whitening(features.pyramid, settings.constants, settings.eps)
    held_out = HeldOut(features.pyramid, features.groups, total, settings.eps)
    kept = Keeper(features.pyramid, total) if keep else None

    def of(cells: slice) -> None:
        """Everything for a run of cells; runs touch disjoint parts of what is filled."""
        own, moments = estimate(features, earlier, cells)
        whitening(cells, moments)
        held_out(cells, own, moments)
        if kept:
            kept(cells, moments)

    in_threads(of, list(features.chunks()), features.pyramid.cells, threads, progress)
    maps = held_out.maps(smoothing)
    return Statistics(
        whitening.gaussians(),
        *maps.scores(),
        f"exact leave-one-out over {features.described()}",
        maps,
        kept.moments if kept else None,
    )


def estimate(
    features: Features, earlier: SavedMoments | None, cells: slice
) -> tuple[list[Array], Moments]:
    """Features of the new images at a run of cells, and the moments of all images there.

    Args:
        features: of the new images.
        earlier: moments of others, merged exactly.
        cells: the run.

    Returns:
        Per level [P, N, d] float64, and moments.
    """
    own = features.of(cells)
    moments = moments_of(own)
    return own, merge(earlier.part(features.pyramid, cells), moments) if earlier else moments
