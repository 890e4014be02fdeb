"""Importing: another program's fit becomes a detector, with a threshold from good photos."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from padim_edge.detect.calibration import score_photos
from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError
from padim_edge.files import atomic_write
from padim_edge.fit.calibrate import Calibration, calibrate
from padim_edge.fit.imported import Foreign, import_gaussians
from padim_edge.fit.settings import Settings
from padim_edge.images.batches import OnError, refuse
from padim_edge.images.decode import aspect_ratios
from padim_edge.model.file import Model, write
from padim_edge.progress import Progress, silent

UNSET = Calibration(1.0, 0.0, 0.5, "not yet", (1.0,), ())


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
    """

    program: str
    model: Model
    size: int
    dense: bool
    known: tuple[Path, ...]
    near: int


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
        if not len(photos.scores):
            raise PadimEdgeError("no good photo could be judged: a threshold needs some")
        made = calibrate(
            photos.scores,
            photos.pixel_scores,
            settings.false_alarm_rate,
            f"{len(photos.scores)} photos that are not in the fit, which is {foreign.program}'s",
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
    return Imported(foreign.program, model, size, dense, photos.known, photos.near)
