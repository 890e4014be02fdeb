"""Importing: another program's fit becomes a detector, with a threshold from good photos."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from padim_edge.detect.calibration import score_photos
from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError
from padim_edge.files import atomic_write
from padim_edge.fit.calibrate import Calibration, calibrate
from padim_edge.fit.imported import Foreign, import_gaussians
from padim_edge.fit.settings import Settings
from padim_edge.images.batches import OnError, read_batches, refuse
from padim_edge.images.decode import aspect_ratios
from padim_edge.model.file import Model, write
from padim_edge.progress import Progress, silent

UNSET = Calibration(1.0, 0.0, 0.5, "not yet", (1.0,), ())


ALIKE = 8
"""Photos that are asked whether the embedding is that of the Gaussians."""

FAR = 5.0
"""Times the channels that the squared distance of a good photo typically is, from where on the
embedding is said not to be that of the fit. Of the right one, squares are like those of a
chi-square of d degrees, of mean d; less, for what was added to the diagonal, and more where few
photos were fitted. ResNet-18, d = 100, 128 x 128, .01 added, fits of 10 to 100 photos of bottle,
and of 10 and 40 of magnetic tiles: the right one .2 to .4, and 1.1 to 2.3. Other channels 18 to 22,
and 7 to 10; other weights 98 to 109, and 18 to 24; photos of hazelnuts 7 to 9, and 4 to 5. Photos
cropped otherwise, 3 to 5 and 1 to 2, are not noticed."""


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Attributes:
        program: whose Gaussians they are.
        model: as it was written.
        size: of the file in bytes.
        dense: whether the whitening stays dense, for coarse layers are not repeated in it.
        known: photos that are there twice, and count once.
        near: photos that are nearly equal to others, and count once.
        distance: of a photo typically, squared, by the number of channels; beyond `FAR` the
            embedding is hardly that of the Gaussians.
    """

    program: str
    model: Model
    size: int
    dense: bool
    known: tuple[Path, ...]
    near: int
    distance: float


def import_detector(
    foreign: Foreign,
    embedding: Model,
    good: Sequence[Path],
    output: Path,
    settings: Settings,
    *,
    engine: str = "auto",
    threads: int = 0,
    on_error: OnError = refuse,
    progress: Progress = silent,
) -> Imported:
    """Make a detector of another program's Gaussians, and write it.

    Args:
        foreign: what `padim_edge.fit.imported.read_foreign` read.
        embedding: the backbone, weights, layers and channels of that fit.
        good: good photos that were not in that fit: their scores set the threshold.
        output: the file to write.
        settings: preprocessing, sigma, constants and false-alarm rate.
        engine: what judges the photos.
        threads: of the engine; 0 for all cores.
        on_error: told of each photo that cannot be read, which is left out; may raise to stop.
        progress: called as work goes on.

    Raises:
        PadimEdgeError: a file cannot be read, the two do not fit together, or there are too few
            photos.
    """
    with atomic_write(output) as stream, tempfile.TemporaryDirectory() as folder:
        model, dense = import_gaussians(foreign, embedding, settings, UNSET, threads, progress)
        trial = Path(folder) / "padim.onnx"
        with atomic_write(trial) as file:
            write(file, model)
        with Detector(trial, engine, threads) as detector:
            photos = score_photos(detector, good, on_error, progress)
            distance = _distance(detector, good)
        if not len(photos.scores):
            raise PadimEdgeError("no good photo could be judged: a threshold needs some")
        made = calibrate(
            photos.scores,
            photos.pixel_scores,
            settings.false_alarm_rate,
            f"{len(photos.scores)} photos that are taken not to be in the fit, "
            f"which is {foreign.program}'s",
        )
        info = model.detector_info
        assert info is not None  # `import_gaussians` made it
        model = dataclasses.replace(
            model,
            detector_info=dataclasses.replace(
                info,
                **made.fields(),
                digests=photos.digests,
                aspect_ratios=aspect_ratios(good),
            ),
        )
        size = write(stream, model)
    return Imported(foreign.program, model, size, dense, photos.known, photos.near, distance)


def _distance(detector: Detector, good: Sequence[Path]) -> float:
    """Squared, typical of some photos, by the number of channels.

    By way of score maps, whose mean is that of the distances but for what lies at the border;
    squared it is at most the mean of the squares.
    """
    preprocess = detector.detector_info.preprocess
    channels = len(detector.backbone_info.channels)
    photos = islice(read_batches(good, preprocess, ALIKE, lambda *_: None), 1)
    means = [one.score_map.mean() for _, images in photos for one in detector.judge(images)]
    return float(np.median(means)) ** 2 / channels
