"""Assemble: statistics and threshold become padim.onnx in memory."""

from __future__ import annotations

import numpy as np

from padim_edge.fit.settings import DEFAULT_FALSE_ALARM_RATE, Settings
from padim_edge.fit.state import _State
from padim_edge.fit.statistics import Statistics
from padim_edge.model import graph
from padim_edge.model.file import Model
from padim_edge.model.metadata import DetectorInfo
from padim_edge.model.threshold import smallest_false_alarm_rate, threshold_for


def _model(
    embedding: Model,
    count: int,
    statistics: Statistics,
    settings: Settings,
    earlier: _State | None,
) -> Model:
    """padim.onnx in memory."""
    scores = statistics.scores
    calibration = statistics.calibration
    if earlier:
        scores = np.concatenate([earlier.scores, scores])
        calibration += f", and {len(earlier.scores)} earlier ones as scored in their own fit"
    rate = settings.false_alarm_rate
    if rate is None:
        rate = max(DEFAULT_FALSE_ALARM_RATE, smallest_false_alarm_rate(len(scores)))
    detector_info = DetectorInfo(
        preprocess=settings.preprocess,
        covariance=settings.covariance,
        eps=settings.eps if settings.covariance == "sample" else 0.0,
        sigma=settings.sigma,
        constants=settings.constants,
        images=count + (earlier.moments.count if earlier else 0),
        threshold=threshold_for(scores, rate),
        false_alarm_rate=rate,
        calibration=calibration,
        good_scores=tuple(float(score) for score in np.sort(scores)),
    )
    pyramid = statistics.pyramid
    parts = [
        graph.distances(pyramid, statistics.means, statistics.whitening),
        graph.smoothing(pyramid, settings.preprocess.size, settings.sigma),
    ]
    proto = graph.detector(embedding.proto, embedding.backbone_info, parts)
    return Model(proto, embedding.backbone_info, detector_info, embedding.extra)
