"""How well scores and score maps agree with the labels and masks of a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import MissingDependencyError, PadimEdgeError

#: PRO is integrated up to this false-positive rate (Bergmann et al. 2021, section 4).
PRO_LIMIT = 0.3


@dataclass(frozen=True)
class Metrics:
    """Results on one test set; every rate and area lies in [0, 1].

    Attributes:
        good: number of good images.
        defective: number of defective images.
        images_without_mask: defective images left out of the pixel metrics, because they have
            no mask or an empty one.
        image_auroc: area under the ROC curve of the image scores.
        pixel_auroc: the same over all pixels of the maps; None if no image has a mask.
        pro: normalised area under the per-region overlap curve up to a false-positive rate of
            0.3; None if no image has a mask.
        best_f1: the highest F1 that any threshold reaches on these images. It is chosen on the
            test set and therefore optimistic.
        best_f1_threshold: the threshold that reaches it, midway between two scores.
        threshold: the threshold that the next four numbers were taken at. An image is
            anomalous when its score is greater.
        f1: harmonic mean of precision and recall.
        precision: defective share of the anomalous images; 0 if no image is anomalous.
        recall: anomalous share of the defective images.
        false_alarm_rate: anomalous share of the good images.
    """

    good: int
    defective: int
    images_without_mask: int
    image_auroc: float
    pixel_auroc: float | None
    pro: float | None
    best_f1: float
    best_f1_threshold: float
    threshold: float
    f1: float
    precision: float
    recall: float
    false_alarm_rate: float

    def to_json(self) -> dict[str, int | float | None]:
        """All fields by name, as values that ``json.dumps`` takes."""
        return asdict(self)


def compute_metrics(
    labels: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    threshold: float,
    masks: Sequence[NDArray[np.bool_] | None],
    maps: NDArray[np.float32],
) -> Metrics:
    """Compare the results of a detector with what is known about the images.

    Args:
        labels: bool [N], True for a defective image.
        scores: float [N], image scores; greater means more anomalous.
        threshold: the stored threshold, in units of the scores.
        masks: N ground-truth masks, bool [H, W], True where defective. The mask of a good image
            may be None; a defective image whose mask is None or empty is left out of the
            pixel metrics.
        maps: float32 [N, H, W], score maps.

    Raises:
        PadimEdgeError: one of the two kinds of image is missing, shapes or types do not match,
            a good image has defective pixels in its mask, or a value is NaN or infinite.
        MissingDependencyError: scikit-learn or SciPy is not installed.
    """
    roc_auc_score, label = _eval_extra()
    _check(labels, scores, threshold, masks, maps)
    # float32 scores would be compared with a threshold rounded to float32.
    exact = scores.astype(np.float64)

    alarms = exact > threshold
    hits = int((alarms & labels).sum())
    false_alarms = int((alarms & ~labels).sum())
    defective = int(labels.sum())
    good = labels.size - defective
    best_f1, best_f1_threshold = _best_f1(labels, exact)
    usable = [
        index
        for index, mask in enumerate(masks)
        if not labels[index] or (mask is not None and mask.any())
    ]
    pixel_auroc, pro = _pixel_metrics(usable, masks, maps, label)
    return Metrics(
        good=good,
        defective=defective,
        images_without_mask=labels.size - len(usable),
        image_auroc=float(roc_auc_score(labels, exact)),
        pixel_auroc=pixel_auroc,
        pro=pro,
        best_f1=best_f1,
        best_f1_threshold=best_f1_threshold,
        threshold=float(threshold),
        f1=2 * hits / (hits + false_alarms + defective),
        precision=hits / max(hits + false_alarms, 1),
        recall=hits / defective,
        false_alarm_rate=false_alarms / good,
    )


def _pixel_metrics(
    usable: Sequence[int],
    masks: Sequence[NDArray[np.bool_] | None],
    maps: NDArray[np.float32],
    label: Callable[..., Any],
) -> tuple[float | None, float | None]:
    """Pixel AUROC and PRO over the images ``usable``; (None, None) without any mask.

    A region is an 8-connected component of one image's mask, as in the evaluation code that
    comes with MVTec AD.
    """
    normal: list[NDArray[np.float32]] = []
    defect: list[NDArray[np.float32]] = []
    weight: list[NDArray[np.float64]] = []
    for index in usable:
        mask, score_map = masks[index], maps[index]
        if mask is None:
            normal.append(score_map.ravel())
            continue
        normal.append(score_map[~mask])
        regions = label(mask, structure=np.ones((3, 3)))[0][mask]
        if regions.size:
            defect.append(score_map[mask])
            weight.append(1 / np.bincount(regions)[regions])
    if not defect:
        return None, None
    negatives = np.concatenate(normal)
    normal.clear()  # some 100 MB at 500 images of 224 x 224, next to their concatenation
    negatives.sort()
    positives, overlap = np.concatenate(defect), np.concatenate(weight)
    order = np.argsort(positives)
    positives, overlap = positives[order], overlap[order]
    # Walking the thresholds down, the curve gains a defective pixel's weight while the number
    # of false positives goes from `before` (greater scores) to `after` (equal ones included).
    before = negatives.size - np.searchsorted(negatives, positives, side="right")
    after = negatives.size - np.searchsorted(negatives, positives, side="left")
    auroc = _area(before, after, np.ones(positives.size), negatives.size)
    return auroc, _area(before, after, overlap, PRO_LIMIT * negatives.size)


def _area(
    before: NDArray[np.int64], after: NDArray[np.int64], weight: NDArray[np.float64], limit: float
) -> float:
    """Area under a cumulative curve up to x = ``limit``, divided by ``limit``.

    The curve is the sum of one ramp per pixel: 0 up to ``before``, linear, ``weight`` from
    ``after`` on, in total 1. So the trapezoidal area over all distinct thresholds, with linear
    interpolation within ties and at the limit, is a sum of areas under single ramps: exact, in
    any order, without building the curve. With equal weights it is the area under the ROC
    curve, with 1 / (size of the region) the area under the PRO curve (Bergmann et al., "The
    MVTec Anomaly Detection Dataset", IJCV 2021).
    """
    rising = np.clip(limit, before, after) - before
    risen = np.maximum(limit - after, 0)
    areas = rising**2 / (2 * np.maximum(after - before, 1)) + risen
    return float(areas @ weight / (limit * weight.sum()))


def _best_f1(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[float, float]:
    """The highest F1 over all thresholds, and the greatest threshold that reaches it."""
    order = np.argsort(-scores)
    scores = scores[order]
    hits = np.cumsum(labels[order])
    # F1 = 2 TP / (TP + FP + P), where the first k images are the anomalous ones: k = TP + FP.
    f1 = 2 * hits / (np.arange(1, scores.size + 1) + hits[-1])
    below = np.append(scores[1:], np.nextafter(scores[-1], -np.inf))
    f1[scores == below] = 0  # equal scores cannot be told apart
    best = int(np.argmax(f1))
    middle = below[best] + (scores[best] - below[best]) / 2
    # Between neighbouring numbers the middle rounds, perhaps up to the score itself.
    return float(f1[best]), float(min(middle, np.nextafter(scores[best], -np.inf)))


def _check(
    labels: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    threshold: float,
    masks: Sequence[NDArray[np.bool_] | None],
    maps: NDArray[np.float32],
) -> None:
    if labels.ndim != 1 or labels.dtype != np.bool_:
        raise PadimEdgeError(
            f"labels must be bool [N], True for defective; got {labels.dtype} {labels.shape}"
        )
    if (
        scores.shape != labels.shape
        or len(masks) != len(labels)
        or maps.ndim != 3
        or len(maps) != len(labels)
    ):
        raise PadimEdgeError(
            f"{len(labels)} labels need as many scores, masks and maps [H, W]; got "
            f"{scores.shape}, {len(masks)} and {maps.shape}"
        )
    if labels.all() or not labels.any():
        missing = "good" if labels.size and labels.all() else "defective"
        raise PadimEdgeError(
            f"cannot evaluate on {labels.size} images of which none is {missing}: "
            f"add {missing} images to the test set"
        )
    for name, values in (("threshold", np.asarray(threshold)), ("scores", scores), ("maps", maps)):
        if not np.isfinite(values).all():
            raise PadimEdgeError(
                f"NaN or infinite values in the {name}: the model is broken; fit it again"
            )
    for index, (defective, mask) in enumerate(zip(labels, masks, strict=True)):
        if mask is None:
            continue
        if mask.shape != maps.shape[1:] or mask.dtype != np.bool_:
            raise PadimEdgeError(
                f"mask {index} must be bool {maps.shape[1:]} like its map; got "
                f"{mask.dtype} {mask.shape}"
            )
        if mask.any() and not defective:
            raise PadimEdgeError(
                f"image {index} is labelled good, but its mask has defective pixels: "
                "correct the label or the mask"
            )


def require_eval_extra(feature: str = "padim-edge eval") -> None:
    """Refuse early where the extra is missing.

    Raises:
        MissingDependencyError: scikit-learn or SciPy is not installed.
    """
    _eval_extra(feature)


def _eval_extra(
    feature: str = "padim-edge eval",
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``sklearn.metrics.roc_auc_score`` and ``scipy.ndimage.label``, from the extra ``eval``."""
    try:
        from scipy.ndimage import label
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise MissingDependencyError(feature, "scikit-learn", "eval") from error
    return roc_auc_score, label
