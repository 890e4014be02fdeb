"""Assemble: backbone, Gaussians and threshold become padim.onnx in memory."""

from __future__ import annotations

from collections.abc import Sequence

from padim_edge.fit.calibrate import Calibration
from padim_edge.fit.copies import shortened
from padim_edge.fit.settings import Settings
from padim_edge.fit.whitening import Gaussians
from padim_edge.images.appearance import Appearance
from padim_edge.model import graph
from padim_edge.model.file import Model
from padim_edge.model.metadata import DetectorInfo
from padim_edge.model.smoothing import Smoothing


def assemble(
    embedding: Model,
    gaussians: Gaussians,
    calibration: Calibration,
    smoothing: Smoothing,
    settings: Settings,
    images: int,
    aspect_ratios: tuple[float, ...] = (),
    digests: Sequence[bytes] = (),
    appearance: Appearance | None = None,
) -> Model:
    """padim.onnx in memory.

    Args:
        embedding: the backbone.
        gaussians: means and whitening, which are emptied: they can be large.
        calibration: the threshold.
        smoothing: from distances to score maps.
        settings: how it was fitted.
        images: how many good images there are in the fit.
        aspect_ratios: the smallest and the largest width / height of theirs; none if unknown.
        digests: of the images (`padim_edge.fit.copies`); zeros where one is unknown.
        appearance: of the images; None if unknown.
    """
    detector_info = DetectorInfo(
        preprocess=settings.preprocess,
        covariance=settings.covariance,
        eps=settings.eps if settings.covariance == "sample" else 0.0,
        sigma=settings.sigma,
        constants=settings.constants,
        images=images,
        **calibration.fields(),
        digests=tuple(shortened(digest) for digest in digests if any(digest)),
        aspect_ratios=aspect_ratios,
        preset=settings.preset,
        shrinkage=settings.shrinkage or 0.0,
        judged=settings.roi.share if settings.roi else 1.0,
        appearance=appearance.field() if appearance else (),
    )
    parts = [
        graph.distances(gaussians.pyramid, gaussians.means, gaussians.whitening),
        graph.smoothing(smoothing),
    ]
    proto = graph.detector(embedding.proto, embedding.backbone_info, parts)
    # What the embedding's file says that this version does not know is true of the detector too.
    return Model(
        proto,
        embedding.backbone_info,
        detector_info,
        embedding.extra,
        frame_input=settings.frame_input,
    )
