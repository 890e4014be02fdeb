"""The report of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim_edge.detect.detector import Detector
from padim_edge.detect.evaluation import Judged
from padim_edge.detect.metrics import Metrics, require_eval_extra
from padim_edge.detect.overlay import Scale
from padim_edge.detect.regions import labelled
from padim_edge.detect.report import intervals
from padim_edge.detect.report.common import DETECTED, about_pictures, facts, shortened
from padim_edge.detect.report.contents import (
    NAMED,
    PICTURES,
    Curve,
    Group,
    Image,
    Kind,
    Metric,
    Report,
    Role,
    Shown,
)
from padim_edge.detect.report.pictures import layers
from padim_edge.errors import ImageError
from padim_edge.images.dataset import GOOD
from padim_edge.images.masks import load_masks
from padim_edge.model.threshold import share_interval
from padim_edge.progress import Progress, silent

POINTS = 500
"""Of a curve, at most."""


def evaluated(
    title: str,
    model: Path,
    detector: Detector,
    judged: Judged,
    metrics: Metrics,
    unreadable: Sequence[tuple[str, str]] = (),
    progress: Progress = silent,
) -> Report:
    """The report of an evaluation: every figure of `Metrics`, and how far each can be trusted.

    Args:
        title: what was judged.
        model: the detector's file.
        detector: what judged.
        judged: the test set.
        metrics: of it.
        unreadable: (name, why) of files that were left out.
        progress: called as pictures are made.

    Raises:
        MissingDependencyError: scikit-learn or SciPy is not installed.
    """
    require_eval_extra()
    info = detector.detector_info
    scale = Scale.of(info.good_scores, judged.threshold)
    groups = _groups(judged)
    places = {group.name: place for place, group in enumerate(groups)}
    names = shortened([sample.path for sample in judged.samples])
    images = [
        Image(name, places[sample.defect], float(score))
        for name, sample, score in zip(names, judged.samples, judged.scores, strict=True)
    ]
    beyond = judged.scores - judged.threshold
    order = np.argsort(np.where(judged.labels, beyond, -beyond), kind="stable")
    shown, named = [], []
    for done, place in enumerate(order[:PICTURES], start=1):
        sample, image = judged.samples[place], images[place]
        try:
            truth = load_masks(sample.masks, sample.path) if sample.masks else None
            made = layers(
                sample.path,
                info.preprocess,
                scale,
                judged.maps[place],
                labelled(judged.maps[place], judged.threshold, info.pixel_threshold) > 0,
                truth if sample.is_anomalous else None,
            )
        except ImageError:  # gone since it was judged
            named.append(image)
            continue
        shown.append(Shown(image.name, image.group, image.score, made))
        progress("pictures", done, min(len(order), PICTURES))
    return Report(
        Kind.EVAL,
        title,
        facts(model, detector.backbone_info, info, detector.engine.describe()),
        judged.threshold,
        info.threshold,
        (scale.low, scale.top),
        tuple(groups),
        tuple(shown),
        (*named, *(images[place] for place in order[PICTURES : PICTURES + NAMED])),
        max(0, len(order) - PICTURES - NAMED),
        tuple(unreadable),
        _metrics(judged, metrics),
        _curves(judged),
        notes=_notes(metrics, info.judged, about_pictures("the most wrong first")),
    )


def _groups(judged: Judged) -> list[Group]:
    """The good images, and those of each kind of defect by name."""
    kinds = np.array([sample.defect for sample in judged.samples])
    good = judged.scores[~judged.labels]
    groups = [Group(GOOD, Role.GOOD, _sorted(good))]
    for kind in sorted(set(kinds[judged.labels])):
        own = judged.scores[kinds == kind]
        auroc = _auroc(np.r_[np.zeros(len(good)), np.ones(len(own))], np.r_[good, own])
        groups.append(Group(str(kind), Role.DEFECTIVE, _sorted(own), auroc))
    return groups


def _metrics(judged: Judged, metrics: Metrics) -> tuple[Metric, ...]:
    """All of them with their intervals."""
    by_bootstrap = intervals.bootstrap(judged)
    hits = round(metrics.recall * metrics.defective)
    alarms = round(metrics.false_alarm_rate * metrics.good)
    exact = {
        "recall": share_interval(hits, metrics.defective),
        "false_alarm_rate": share_interval(alarms, metrics.good),
    }
    known = by_bootstrap | exact

    def of(field: str, name: str, value: float | None, at_threshold: bool = False) -> Metric:
        low, high = known.get(field, (None, None))
        return Metric(name, value, low, high, at_threshold)

    return (
        of("image_auroc", "image AUROC", metrics.image_auroc),
        of("average_precision", "average precision", _average_precision(judged)),
        of("pixel_auroc", "pixel AUROC", metrics.pixel_auroc),
        of("pro", "PRO (to 0.3)", metrics.pro),
        of("best_f1", "best F1", metrics.best_f1),
        of("recall", "recall", metrics.recall, True),
        of("precision", "precision", metrics.precision, True),
        of("false_alarm_rate", "false-alarm rate", metrics.false_alarm_rate, True),
        of("f1", "F1", metrics.f1, True),
    )


def _curves(judged: Judged) -> tuple[Curve, ...]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    false, true, _ = roc_curve(judged.labels, judged.scores)
    precision, recall, _ = precision_recall_curve(judged.labels, judged.scores)
    return (
        Curve("ROC", ("false-alarm rate", _thinned(false)), ("recall", _thinned(true))),
        Curve(
            "Precision and recall",
            ("recall", _thinned(recall)),
            ("precision", _thinned(precision)),
        ),
    )


def _thinned(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Some of a curve's points, its ends among them."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).astype(int))
    return tuple(values[places].tolist())


def _notes(metrics: Metrics, share: float, pictures: str) -> tuple[str, ...]:
    notes = [
        f"Intervals are those of 95 %. Of recall and false-alarm rate, which are shares, the exact "
        f"binomial ones (Clopper and Pearson). Of all others by bootstrap over images: the "
        f"{metrics.good} good and the {metrics.defective} defective images are drawn anew with "
        f"replacement, each kind for itself, {intervals.REPLICATES} times from the fixed seed "
        f"{intervals.SEED}; the interval is that between the 2.5 % and the 97.5 % quantile. For "
        "the intervals of pixel metrics scores are put into some 2000 bins. Where every drawing "
        "gives the same, as of images that are all told apart, the interval has no width: that "
        "says nothing of images that are not in this set.",
        "PRO is the mean share of each defect's region that is found, over false-positive rates "
        "of pixels up to 0.3. Best F1 is that of the threshold which fits these very images best, "
        "and so optimistic.",
    ]
    if metrics.images_without_mask:
        notes.append(
            f"{metrics.images_without_mask} defective images have no mask, or none where the map "
            "is judged, and are left out of the metrics of pixels."
        )
    if share < 1:
        notes.append(
            f"{share:.0%} of what the graph sees is judged. All other pixels count as good ones, "
            "which raises the metrics of pixels."
        )
    return (*notes, pictures, DETECTED)


def _auroc(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _average_precision(judged: Judged) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(judged.labels, judged.scores))


def _sorted(scores: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.sort(scores).tolist())
