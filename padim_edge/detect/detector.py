"""The detector: a frame of any size in, score, decision and map out."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.detect.regions import Box, Region, labelled, regions_of
from padim_edge.errors import ModelError, UsageError
from padim_edge.images.formats import check_pixel_format
from padim_edge.images.frames import Frame, Picture
from padim_edge.images.threads import Threads
from padim_edge.model.file import read
from padim_edge.model.names import ROI
from padim_edge.model.threshold import percentile
from padim_edge.progress import Progress
from padim_edge.runtime.engines import FrameEngine, open_engine
from padim_edge.system import available_cores

THREADS = 4
"""Among which a large frame is shared, at most: from there on memory is what limits."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A frame in the form that the engine takes.

    Attributes:
        taken: uint8 [H, W, 3] of the graph's size, or the frame itself.
        size: (h, w) of the frame.
    """

    taken: NDArray[np.uint8] | Frame
    size: tuple[int, int]


@dataclass(frozen=True)
class Result:
    """What a detector says of one frame.

    Attributes:
        score: maximum of the score map; a smoothed Mahalanobis distance, not normalised.
        threshold: the detector's. The file's own is exceeded by a good frame at the false-alarm
            rate of the fit.
        is_anomalous: score > threshold.
        percentile: per cent of the good images of the fit (each scored as if left out of it)
            that score no higher.
        score_map: float32 [H, W] over the part of the frame that the graph sees
            (`Detector.seen`).
        pixel_threshold: a pixel whose score exceeds it may belong to a region; 0 if the file has
            none, and the threshold takes its place.
        size: (h, w) of the frame.
        seen: (left, top, right, bottom) of what the map covers, in pixels of the frame.
    """

    score: float
    threshold: float
    is_anomalous: bool
    percentile: float
    score_map: NDArray[np.float32]
    pixel_threshold: float
    size: tuple[int, int]
    seen: Box

    @functools.cached_property
    def regions(self) -> tuple[Region, ...]:
        """Where the frame is anomalous, the highest score first; none if it is not.

        Found when they are first asked for, in a millisecond or so.
        """
        return regions_of(self.score_map, self._labels, self.seen, self.size)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """What of the score map belongs to a region: bool [H, W]."""
        return self._labels > 0

    @functools.cached_property
    def _labels(self) -> NDArray[np.intp]:
        return labelled(self.score_map, self.threshold, self.pixel_threshold)


def check_threshold(threshold: float | None) -> None:
    """Refuse what is no threshold of one's own; None is none.

    Raises:
        UsageError: it is not a positive, finite number.
    """
    if threshold is not None and not 0 < threshold < math.inf:
        raise UsageError(f"a threshold of {threshold} makes no sense: a positive number is one")


class Detector:
    """A padim.onnx opened in an engine.

        with Detector("padim.onnx", pixel_format="bgr") as detector:
            result = detector(frame)  # as OpenCV's camera.read() returns it

    Attributes:
        backbone_info: backbone, channels and weights, as export stored them.
        detector_info: preprocessing, threshold and scores of good images, as fit stored them.
        engine: what runs the graph.
        skipped: with engine "auto", why those before the chosen one do not run here, a line
            each.
        pixel_format: of frames that are bare arrays.
        threshold: a frame whose score exceeds it is anomalous.
        is_given: whether that is one of one's own, and not the file's.
        roi: bool [H, W], where the score map is judged (`fit --roi`); None for everywhere.

    Args:
        path: a file made by ``padim-edge fit``.
        engine: a name from `padim_edge.runtime.engines.ENGINES`, or "auto".
        threads: of the engine, and to share a large frame among; 0 for all cores.
        progress: called while the engine is prepared, where that takes long.
        pixel_format: of frames that are bare arrays, from
            `padim_edge.images.formats.PIXEL_FORMATS`.
        threshold: instead of the file's own, which its false-alarm rate was set for.

    Raises:
        UsageError: there is no such pixel format or engine, or a threshold is not positive.
        PadimEdgeError: the file is not such a model, or the engine does not run here.
    """

    def __init__(
        self,
        path: str | Path,
        engine: str = "auto",
        threads: int = 0,
        progress: Progress | None = None,
        pixel_format: str = "rgb",
        threshold: float | None = None,
    ) -> None:
        check_pixel_format(pixel_format)
        self.pixel_format = pixel_format
        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"a detector is opened from a file's path; {path!r} was given")
        check_threshold(threshold)
        model = read(path, "padim", lazily=True)
        if model.detector_info is None:
            raise ModelError(f"{path} is no detector")
        self.backbone_info = model.backbone_info
        self.detector_info = model.detector_info
        self.is_given = threshold is not None
        self.threshold = self.detector_info.threshold if threshold is None else float(threshold)
        self.roi = model.constant(ROI).astype(bool) if model.detector_info.judged < 1 else None
        self._closed = False
        reasons: list[str] = []
        self.engine = open_engine(
            engine,
            model,
            threads,
            progress=progress,
            skipped=lambda name, error: reasons.append(f"{name}: {error}"),
        )
        self.skipped = tuple(reasons)
        self._threads = Threads(min(THREADS, threads or available_cores()))

    def __call__(self, frame: Picture, pixel_format: str | None = None) -> Result:
        """Judge one frame.

        Args:
            frame: pixels of any size and strides, a `Frame`, an image file's path or bytes, or a
                Pillow image. A file is prepared as fit does it; a Pillow image as it was decoded.
                The engines trt and ort-cuda take pixels in the memory of the GPU, too (see
                `Frame`).
            pixel_format: of bare pixels, if not the detector's own.

        Raises:
            UsageError: it is no such frame.
            ImageError: it cannot be decoded, or not be brought to the graph's size.
        """
        return self.batch([frame], pixel_format)[0]

    def batch(self, frames: Sequence[Picture], pixel_format: str | None = None) -> list[Result]:
        """Judge several frames, of any sizes, in one run of the engine.

        Args:
            frames: at least one, each as in a call; an array of them is as good as a list.
            pixel_format: of bare pixels, if not the detector's own.

        Raises:
            UsageError: these are no frames, or none.
            ImageError: as in a call.
        """
        if isinstance(frames, str | bytes | Path | Frame | Image.Image) or not isinstance(
            frames, Iterable
        ):
            raise UsageError(
                f"a batch is a list of frames, and a {type(frames).__name__} was given: call the "
                "detector itself with a single frame"
            )
        frames = list(frames)
        if not frames:
            raise UsageError("no frames were given: a batch needs at least one")
        return self.judge_prepared([self.prepare(frame, pixel_format) for frame in frames])

    def prepare(self, frame: Picture, pixel_format: str | None = None) -> Prepared:
        """Bring a frame into the form that the engine takes; in any thread. Raises as a call."""
        self._check_open()
        if not isinstance(frame, Frame | Image.Image | str | Path | bytes):
            frame = Frame(frame, pixel_format or self.pixel_format)
        engine = self.engine
        if isinstance(engine, FrameEngine) and isinstance(frame, Frame) and engine.takes(frame):
            return Prepared(frame, frame.size)
        return Prepared(*self.detector_info.preprocess.prepare(frame, self._threads))

    def judge_prepared(self, prepared: Sequence[Prepared]) -> list[Result]:
        """Judge what `prepare` made of one or more frames, in their order.

        In one run of the engine; in two if it takes some of them as they are and others not.
        """
        self._check_open()
        arrays = [one.taken for one in prepared if isinstance(one.taken, np.ndarray)]
        frames = [one.taken for one in prepared if isinstance(one.taken, Frame)]
        said: dict[type, Iterator[tuple[float, NDArray[np.float32]]]] = {}
        if arrays:
            said[np.ndarray] = zip(*self.engine.infer(np.stack(arrays)), strict=True)
        if frames and isinstance(self.engine, FrameEngine):
            said[Frame] = zip(*self.engine.infer_frames(frames), strict=True)
        return [self._result(*next(said[type(one.taken)]), one.size) for one in prepared]

    def judge(self, images: NDArray[np.uint8]) -> list[Result]:
        """Judge frames that are prepared already: uint8 [N, H, W, 3] of the graph's size.

        Regions are in pixels of these.

        Raises:
            UsageError: another type or shape, or no frame at all.
        """
        self._check_open()
        shape = (*self.backbone_info.image_size, 3)
        if not isinstance(images, np.ndarray):
            raise UsageError(f"prepared frames are an array; a {type(images).__name__} was given")
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            raise UsageError(
                f"prepared frames of type {images.dtype} and shape {images.shape} were given: "
                f"uint8 [N, {shape[0]}, {shape[1]}, 3] with N of at least 1 is needed"
            )
        scores, maps = self.engine.infer(images)
        seen = (0.0, 0.0, float(shape[1]), float(shape[0]))
        return [
            self._result(score, one, shape[:2], seen)
            for score, one in zip(scores, maps, strict=True)
        ]

    def _result(
        self,
        score: float,
        score_map: NDArray[np.float32],
        size: tuple[int, int],
        seen: Box | None = None,
    ) -> Result:
        return Result(
            score=float(score),
            threshold=self.threshold,
            # A score that is not a number is no proof of a good part.
            is_anomalous=not score <= self.threshold,
            percentile=percentile(self.detector_info.good_scores, float(score)),
            score_map=score_map,
            pixel_threshold=self.detector_info.pixel_threshold,
            size=size,
            seen=seen or self.seen(size[1], size[0]),
        )

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what the graph sees of a frame of this size."""
        return self.detector_info.preprocess.seen(width, height)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this detector is closed: open another, or judge before it is closed")

    def close(self) -> None:
        """Free the engine. Closing twice is harmless."""
        self._closed = True
        self.engine.close()
        self._threads.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
