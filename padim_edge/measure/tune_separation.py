"""Separation: how well a candidate tells good from defective, on real defects or painted ones.

With defects: a detector is fitted on the good photos for training and judges the test set. Without:
some good photos are held out, the rest is fitted on; the leave-one-out scores of these are the good
ones, and the held-out photos with defects painted onto them (`padim_edge.images.painted`) the
defective ones. Either way the metrics are those of `eval`, with the bootstrap of its report.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.detect.evaluation import Judged, judge_samples
from padim_edge.detect.judging import judge
from padim_edge.detect.report.intervals import between, draws
from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.fit.copies import group_near, small
from padim_edge.fit.fit import Fitted
from padim_edge.images.batches import OnError, refuse
from padim_edge.images.dataset import Sample
from padim_edge.images.decode import load_image
from padim_edge.images.frames import Shot
from padim_edge.images.masks import load_masks
from padim_edge.images.painted import KINDS, SIZES, paint
from padim_edge.images.preprocess import Preprocess
from padim_edge.progress import Progress, silent

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pro": "PRO (to 0.3)"}
"""That candidates are compared by, with their names in tables."""

BATCH = 8
HELD_OUT = 40
"""Photos that are painted on, at most; a quarter of all otherwise."""

LEAST = 8
"""Good photos that painting takes: six to fit on and two to paint on."""

LOOK = (128, 128)
"""Pixels at which photos are compared to find nearly equal ones."""

SHOWN = 512
"""Pixels of the longer side of painted photos that are kept to be looked at."""


@dataclass(frozen=True)
class Photos:
    """What separation is measured on.

    Attributes:
        good: to fit on.
        samples: a test set with defects; empty without one.
        parts: those of ``good`` whose leave-one-out scores count: of nearly equal ones the first
            alone, as in the threshold. Found at one size for all candidates, so that their
            replicates are paired; empty with a test set.
        held_out: good photos to paint on; empty with a test set.
        seed: of the paintings.
        digest: of all of these, contents and all.
    """

    good: tuple[Path, ...]
    samples: tuple[Sample, ...]
    parts: tuple[Path, ...]
    held_out: tuple[Path, ...]
    seed: int
    digest: str

    @property
    def all_good(self) -> tuple[Path, ...]:
        """What the detector that is deployed is fitted on."""
        return tuple(sorted(self.good + self.held_out))

    def __str__(self) -> str:
        """What they are, in words, with what that is worth."""
        if self.samples:
            bad = sum(sample.is_anomalous for sample in self.samples)
            return (
                f"fitted on {len(self.good)} good photos, measured on {len(self.samples) - bad} "
                f"good and {bad} defective ones of the data set"
            )
        return (
            f"leave-one-out scores of {len(self.parts)} good photos against "
            f"{len(KINDS) * len(self.held_out)} synthetic defects ({', '.join(KINDS)} of "
            f"{', '.join(f'{x:.0%}' for x in SIZES)} of the shorter side that is seen, seed "
            f"{self.seed}) painted onto {len(self.held_out)} held-out ones: "
            "these rank configurations, and promise nothing of real defects"
        )


@dataclass(frozen=True)
class Separation:
    """How well a candidate separates.

    Attributes:
        metrics: by the names of `METRICS`; None where no defect has a mask.
        draws: of each metric that there is, its bootstrap replicates, paired between candidates.
    """

    metrics: dict[str, float | None]
    draws: dict[str, list[float]]

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Where it lies, at 95 %."""
        return between(np.array(self.draws[metric])) if metric in self.draws else None


def gather(
    good: Sequence[Path],
    samples: Sequence[Sample],
    seed: int,
    on_error: OnError = refuse,
    progress: Progress = silent,
    bit_depth: int | None = None,
) -> Photos:
    """Look at all photos once, so that every candidate is measured on the same ones.

    Args:
        good: photos of good parts.
        samples: a test set; none: good photos are held out to be painted on.
        seed: of which are, and of the paintings.
        on_error: told of each file that cannot be read, which no candidate is given then.
        progress: called as work goes on.
        bit_depth: of grey files of 16 bits, as of `Preprocess`.

    Raises:
        PadimEdgeError: too few are left.
    """
    digest = hashlib.sha256(str((seed, bool(samples))).encode())
    total = len(good) + len(samples)
    looked = itertools.count(1)
    looks: list[NDArray[np.float32]] = []  # of usable good photos

    def readable(path: Path, masks: Sequence[Path] = ()) -> bool:
        progress("looking at photos", next(looked), total)
        try:
            image = load_image(path, bit_depth)
            if masks:
                load_masks(masks, path)
        except ImageError as error:
            on_error(path, error)
            return False
        if not samples:
            looks.append(small(np.asarray(image.resize(LOOK, Image.Resampling.BOX))))
        for file in (path, *masks):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return True

    usable = [path for path in good if readable(path)]
    tested = []
    for sample in samples:
        if readable(sample.path, sample.masks):
            digest.update(sample.defect.encode())
            tested.append(sample)
    if samples:
        for what, there in (("good", False), ("defective", True)):
            if all(sample.is_anomalous != there for sample in tested):
                raise PadimEdgeError(f"no {what} photo of the test set can be read")
        return Photos(tuple(usable), tuple(tested), (), (), seed, digest.hexdigest())
    if len(usable) < LEAST:
        raise PadimEdgeError(
            f"{len(usable)} usable photos given: without defects, tune needs {LEAST} good ones to "
            "fit on some and paint on others, and 100 to say much"
        )
    count = min(HELD_OUT, len(usable) // 4)
    places = set(np.random.default_rng(seed).permutation(len(usable))[:count].tolist())
    kept = [place for place in range(len(usable)) if place not in places]
    groups = group_near(np.stack([looks[place] for place in kept]))
    return Photos(
        tuple(usable[place] for place in kept),
        (),
        tuple(usable[kept[first]] for first in np.unique(groups, return_index=True)[1]),
        tuple(path for place, path in enumerate(usable) if place in places),
        seed,
        digest.hexdigest(),
    )


def separate(
    detector: Detector,
    fitted: Fitted,
    photos: Photos,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda _: None,
) -> Separation:
    """Measure a detector that was fitted on ``photos.good``.

    Args:
        detector: that was fitted.
        fitted: the fit.
        photos: to measure it on.
        progress: called as work goes on.
        warn: takes a sentence about masks that seem to be wrong.

    Raises:
        PadimEdgeError: a score is not finite, or (of painted defects) the photos are too few for
            leave-one-out scores of this preset to be worth anything.
    """
    groups = None
    if photos.samples:
        judged = judge_samples(detector, photos.samples, BATCH, refuse, progress, warn)
    else:
        if fitted.new_images < fitted.wanted:
            raise PadimEdgeError(
                f"{fitted.new_images} photos make leave-one-out scores of this preset too low to "
                f"rank it by: {fitted.wanted} or more are needed to fit on, or real defects"
            )
        judged, groups = _against_painted(detector, fitted, photos, progress)
    metrics = judged.metrics()
    found = draws(judged, groups)
    return Separation(
        {name: getattr(metrics, name) for name in METRICS},
        {name: np.round(found[name], 6).tolist() for name in METRICS if name in found},
    )


def _against_painted(
    detector: Detector, fitted: Fitted, photos: Photos, progress: Progress
) -> tuple[Judged, NDArray[np.intp]]:
    """Leave-one-out maps of the fit's photos, then painted ones; and the photo of each."""
    place_of = {path: place for place, path in enumerate(fitted.paths)}
    # Equal to another one once it is small, a photo has that one's place.
    place_of |= {path: place_of[other] for path, other in fitted.equal if other in place_of}
    places = [place_of[path] for path in photos.parts]
    tasks = paintings(photos)
    samples = [Sample(path, "good") for path in photos.parts]
    samples += [Sample(path, kind) for path, kind, _, _ in tasks]
    maps = [fitted.maps(place).astype(np.float32) for place in places]
    scores = [float(fitted.scores[place]) for place in places]
    preprocess = detector.detector_info.preprocess
    masks: list[NDArray[np.bool_] | None] = [None] * len(samples)

    def take(place: int, task: _Task) -> NDArray[np.uint8]:
        painted, where = _painted(*task, preprocess)
        masks[len(places) + place] = preprocess.mask(Image.fromarray(where))
        return painted

    shots = (Shot(task[0], functools.partial(take, at, task)) for at, task in enumerate(tasks))
    for done, verdict in enumerate(judge(detector, shots, BATCH), start=1):
        progress("painted photos", done, len(tasks))
        if isinstance(verdict.outcome, ImageError):
            raise verdict.outcome
        scores.append(verdict.outcome.score)
        maps.append(verdict.outcome.score_map)
    labels = np.array([sample.is_anomalous for sample in samples])
    judged = Judged(samples, labels, np.array(scores), np.stack(maps), masks, detector.threshold)
    _, groups = np.unique([str(sample.path) for sample in samples], return_inverse=True)
    return judged, groups.astype(np.intp)


_Task = tuple[Path, str, float, tuple[int, ...]]


def paintings(photos: Photos) -> list[_Task]:
    """Photo, kind, size and seed of every painted defect: each photo once with each kind.

    The sizes take turns, so that of three photos each kind has each size once.
    """
    return [
        (path, kind, SIZES[(place + turn) % len(SIZES)], (photos.seed, place, turn))
        for place, path in enumerate(photos.held_out)
        for turn, kind in enumerate(KINDS)
    ]


def _painted(
    path: Path, kind: str, size: float, seed: tuple[int, ...], preprocess: Preprocess
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A photo as the detector is given it, painted where the graph sees it; and where that is."""
    painted = np.array(load_image(path, preprocess.bit_depth))
    height, width = painted.shape[:2]
    left, top, right, bottom = preprocess.seen(width, height)
    # Whole pixels within; of a photo enlarged to the crop one at least.
    first, rows = math.ceil(top), max(1, math.floor(bottom) - math.ceil(top))
    start, columns = math.ceil(left), max(1, math.floor(right) - math.ceil(left))
    seen = slice(first, first + rows), slice(start, start + columns)
    where = np.zeros((height, width), np.bool_)
    painted[seen], where[seen] = paint(painted[seen], kind, size, seed)
    return painted, where


def keep_examples(photos: Photos, preprocess: Preprocess, folder: Path) -> None:
    """Write the first painted photos, three of each kind, for whoever wants to look at them."""
    folder.mkdir(exist_ok=True)
    for path, kind, size, seed in paintings(photos)[: len(KINDS) * len(SIZES)]:
        picture = Image.fromarray(_painted(path, kind, size, seed, preprocess)[0])
        picture.thumbnail((SHOWN, SHOWN))
        picture.save(folder / f"{kind}-{size:.0%}-{seed[1]}.png".replace("%", ""))
