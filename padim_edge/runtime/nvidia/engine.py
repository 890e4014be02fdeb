"""What the engines on NVIDIA GPUs have in common: a batch's way over the device.

    upload -> (backbone -> distances -> smoothing, or whatever a subclass enqueues) -> download

Prepared images are uploaded as they are; frames of a camera become such images on the device
(`preparer`). All on one stream, in memory that was taken before, with one wait at the end. Where
all stages can be, they are recorded for each batch size as a CUDA graph, which is one call.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.images.frames import Frame
from padim_edge.model.file import Model
from padim_edge.runtime.engines import DeviceFigures
from padim_edge.runtime.nvidia.device import Device, Event
from padim_edge.runtime.nvidia.preparer import Preparer
from padim_edge.runtime.nvidia.recording import Recording
from padim_edge.runtime.nvidia.scorer import Scorer

MOST = 32
"""Frames that go over the device at once; larger batches are split."""

Step = Callable[[int], None]
"""Enqueues a stage for a number of frames."""

_KEPT = 4  # batch sizes of which recordings are kept
_TRIES = 2  # to record: what else goes on in the process can spoil one
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())  # a library stays silent unless it is asked


class GpuEngine:
    """An engine on a GPU, opened by a subclass's `_open`.

    Safe to use from several threads; they take turns.
    """

    name = ""
    _can_record = False  # whether all stages do nothing but enqueue

    def __init__(self, model: Model) -> None:
        self._lock = threading.Lock()
        # By batch size, the latest at the end: recordings by the stage that they begin with, None
        # where these stages ran once, unrecorded.
        self._sizes: dict[int, dict[int, Recording | None]] = {}
        # By first stage and batch size: how often a recording was refused, and why.
        self._refused: dict[tuple[int, int], tuple[int, str]] = {}
        self._steps: list[tuple[str, Step]] = []
        self._events: list[Event] = []
        self._scorer: Scorer | None = None
        self._preparer: Preparer | None = None
        self._description = ""
        self._image_shape = (*model.backbone_info.image_size, 3)
        self._device = Device()
        # Before the context goes, and not at the mercy of the interpreter's last minutes.
        closing = weakref.WeakMethod(self.close)
        self._at_exit = lambda: (closing() or (lambda: None))()
        atexit.register(self._at_exit)
        try:
            with self._device.current():
                self._images = self._device.staging((MOST, *self._image_shape), np.uint8)
                self._maps = self._device.staging((MOST, *self._image_shape[:2]), np.float32)
                # Never mapped: blocks raise a frame's score one after another, which is slow,
                # and on some devices not atomic, in the host's memory.
                self._scores = self._device.staging((MOST,), np.float32, mapped=False)
                stages = self._open(model)
                self._steps = [("upload", self._upload), *stages, ("download", self._download)]
                self._events = self._device.events(len(self._steps) + 1)
        except BaseException:
            with contextlib.suppress(PadimEdgeError):  # after a fault: the first error tells more
                self.close()
            raise

    def _open(self, model: Model) -> list[tuple[str, Step]]:
        """Load everything; the stages between upload and download. Runs on the device."""
        raise NotImplementedError

    def _most(self, total: int) -> int:  # noqa: ARG002  # as a subclass has it
        """How many of ``total`` frames go over the device at once. Runs on the device."""
        return MOST

    def _release(self) -> None:
        """Let go of what `_open` made, before the device's memory goes. Runs on the device."""

    def _score(
        self, model: Model, outputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> tuple[dict[str, int], list[tuple[str, Step]]]:
        """Memory for a backbone's outputs, and the stages that make scores of them.

        Where kernels run, frames can be prepared by one, too.

        Args:
            model: whose constants.
            outputs: sides of one frame, and type, of each selected map.

        Raises:
            PadimEdgeError: the maps are of types or sides that the kernels do not take.
        """
        kinds = {dtype for _, dtype in outputs.values()}
        if len(kinds) != 1 or not kinds <= {np.dtype(np.float32), np.dtype(np.float16)}:
            raise PadimEdgeError(
                f"the backbone gives maps of {', '.join(sorted(map(str, kinds)))}: the kernels "
                "take float32 or float16, one for all; export again"
            )
        for level in model.pyramid().levels:
            for layer in level.layers:
                sides = outputs[f"features.{layer.name}"][0]
                if sides != (layer.channels, layer.height, layer.width):
                    raise PadimEdgeError(
                        f"layer {layer.name} gives maps of {sides}, and "
                        f"{(layer.channels, layer.height, layer.width)} was fitted: fit again"
                    )
        addresses = {
            name: self._device.allocate(MOST * int(np.prod(sides)) * dtype.itemsize)
            for name, (sides, dtype) in outputs.items()
        }
        scorer = Scorer(
            self._device,
            model,
            addresses,
            kinds == {np.dtype(np.float16)},
            MOST,
            self._maps.address,
            self._scores.address,
        )
        self._scorer = scorer
        if model.detector_info is not None and model.detector_info.preprocess.reduce:
            preprocess = model.detector_info.preprocess
            self._preparer = Preparer(self._device, preprocess, self._images.address)
        return addresses, [("distances", scorer.distances), ("smoothing", scorer.smoothing)]

    def _upload(self, count: int) -> None:
        self._device.to_device(self._images, count)

    def _download(self, count: int) -> None:
        self._device.to_host(self._maps, count)
        self._device.to_host(self._scores, count)

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch; see `padim_edge.runtime.engines.Engine`."""
        with self._lock:
            self._check(images)
            return self._score_all(len(images), lambda part: self._take(images[part]), 0)

    def takes(self, frame: Frame) -> bool:
        """Whether frames like this one are prepared on the device; asked in any thread."""
        return self._preparer is not None and self._preparer.takes(frame)

    def infer_frames(
        self, frames: Sequence[Frame]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch of frames as they are; see `padim_edge.runtime.engines.FrameEngine`."""
        with self._lock:
            preparer = self._check_frames(frames)
            return self._score_all(len(frames), lambda part: preparer.bring(frames[part]), 1)

    def _score_all(
        self, total: int, bring: Callable[[slice], int], first_step: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores and maps of ``total`` frames.

        Args:
            total: how many.
            bring: takes a part of them, as the stages want it.
            first_step: the stage with which they begin.
        """
        scores = np.empty(total, np.float32)
        maps = np.empty((total, *self._image_shape[:2]), np.float32)
        with self._device.current():
            most = self._most(total)
            for first in range(0, total, most):
                part = slice(first, first + most)
                with self._drained():
                    count = bring(part)
                    self._enqueue(first_step, count)
                    self._device.synchronize()
                scores[part] = self._scores.host[:count]
                maps[part] = self._maps.host[:count]
        return scores, maps

    def _enqueue(self, first: int, count: int) -> None:
        """Enqueue the stages from one on: in one call, where they are recorded."""
        size = self._size(count)
        recording = size.get(first)
        if recording is not None:
            recording.enqueue()
        # Recorded when it comes again: the first run is TensorRT's to get ready for a batch size.
        elif first not in size or not self._record(size, first, count):
            self._enqueue_steps(first, count)
            size[first] = None

    def _record(self, size: dict[int, Recording | None], first: int, count: int) -> bool:
        """Record the stages from one on, and enqueue them; False if none of it was done."""
        tries, _ = self._refused.get((first, count), (0, ""))
        if not self._can_record or tries == _TRIES:
            return False
        try:
            size[first] = recording = self._device.record(lambda: self._enqueue_steps(first, count))
            recording.enqueue()
        except PadimEdgeError as error:
            reason = str(error)  # the error itself holds what it came through
            self._refused[first, count] = (tries + 1, reason)
            if tries + 1 == _TRIES:
                _logger.warning("batches of %d go on without CUDA graphs: %s", count, reason)
            refused, size[first] = size[first], None
            if refused is not None:
                refused.close()
            return False
        self._refused.pop((first, count), None)
        return True

    def _enqueue_steps(self, first: int, count: int) -> None:
        for _, step in self._steps[first:]:
            step(count)

    def _size(self, count: int) -> dict[int, Recording | None]:
        """What is kept for a batch size, which is the latest now; nothing must be running."""
        size = self._sizes.pop(count, None)
        if size is None:
            if len(self._sizes) == _KEPT:
                self._forget(next(iter(self._sizes)))
            size = {}
        self._sizes[count] = size
        return size

    def _forget(self, count: int) -> None:
        """Let go of what is kept for a batch size; nothing must be running."""
        with contextlib.ExitStack() as each:  # all of them, whichever fails
            for recording in self._sizes.pop(count).values():
                if recording is not None:
                    each.callback(recording.close)

    def stages(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Run one batch with an event after each stage; seconds of each by the GPU's clock.

        They run one by one, not as a CUDA graph. What the host does before and after (copies to and
        from page-locked memory) is in none.
        """
        seconds: defaultdict[str, float] = defaultdict(float)
        with self._lock:
            self._check(images)
            with self._device.current():
                most = self._most(len(images))
                for first in range(0, len(images), most):
                    count = self._take(images[first : first + most])
                    self._run_marked(self._steps, count, seconds)
        return dict(seconds)

    def frame_stages(self, frames: Sequence[Frame]) -> dict[str, float]:
        """As `stages`, of frames as they are: after "upload" comes "prepare", the kernel.

        Copies to page-locked memory are in none, and "upload" is 0 of frames that are there.
        """
        seconds = {"upload": 0.0, "prepare": 0.0} | dict.fromkeys(
            (name for name, _ in self._steps[1:]), 0.0
        )
        with self._lock:
            preparer = self._check_frames(frames)
            with self._device.current(), self._drained():
                most = self._most(len(frames))
                for first in range(0, len(frames), most):
                    self._run_frames_marked(preparer, frames[first : first + most], seconds)
        return seconds

    def _run_frames_marked(
        self, preparer: Preparer, frames: Sequence[Frame], seconds: dict[str, float]
    ) -> None:
        marks = self._device.events(3 * len(frames))
        preparer.bring(frames, iter(marks))
        self._run_marked(self._steps[1:], len(frames), seconds)
        for start, uploaded, prepared in zip(marks[::3], marks[1::3], marks[2::3], strict=True):
            seconds["upload"] += self._device.seconds(start, uploaded)
            seconds["prepare"] += self._device.seconds(uploaded, prepared)

    def _run_marked(
        self, steps: Sequence[tuple[str, Step]], count: int, seconds: dict[str, float]
    ) -> None:
        """Run steps to their end, and add up what each took."""
        self._size(count)
        events = self._events[: len(steps) + 1]
        self._device.mark(events[0])
        for (_, step), event in zip(steps, events[1:], strict=True):
            step(count)
            self._device.mark(event)
        self._device.synchronize()
        for (name, _), pair in zip(steps, itertools.pairwise(events), strict=True):
            seconds[name] += self._device.seconds(*pair)

    def figures(self) -> DeviceFigures:
        """The device's part of a benchmark; measures a copy's bandwidth on each call."""
        with self._lock:
            self._check()
            with self._device.current():
                return DeviceFigures(
                    f"{self._device.name} ({self._device.architecture})",
                    self._device.taken_memory(),
                    self._scorer.constants_bytes if self._scorer else 0,
                    self._device.copy_bandwidth(),
                )

    def describe(self) -> str:
        """What runs where, in one line."""
        # Copies: another thread may be in the middle of a batch.
        sizes, refused = list(self._sizes.values()), list(self._refused.values())
        graphs = " in CUDA graphs" if any(any(list(size.values())) for size in sizes) else ""
        if refused:
            graphs += f"{' and' if graphs else ''} without CUDA graphs ({refused[-1][1]})"
        return f"{self._description}{graphs} on {self._device.name} ({self._device.architecture})"

    def _check(self, images: NDArray[np.uint8] | None = None) -> None:
        if not self._steps:
            raise PadimEdgeError(f"the engine {self.name} is closed")
        if images is not None and (
            images.dtype != np.uint8 or images.shape[1:] != self._image_shape or not len(images)
        ):
            raise UsageError(
                f"images {images.dtype} {images.shape} were given: uint8 (N, "
                f"{', '.join(map(str, self._image_shape))}) with N of at least 1 are needed"
            )

    def _check_frames(self, frames: Sequence[Frame]) -> Preparer:
        self._check()
        if self._preparer is None:
            raise UsageError(
                f"the engine {self.name} does not prepare frames of this model: give it images "
                "that the model's preprocessing made of them"
            )
        if not frames:
            raise UsageError("no frames were given: a batch needs at least one")
        return self._preparer

    @contextlib.contextmanager
    def _drained(self) -> Iterator[None]:
        """On an error wait for what is under way, before its memory is used for something else."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(PadimEdgeError):
                self._device.synchronize()
            raise

    def _take(self, images: NDArray[np.uint8]) -> int:
        """Bring images into page-locked memory, from where the device fetches them."""
        self._images.host[: len(images)] = images
        return len(images)

    def close(self) -> None:
        """Free everything, from the inside out. Closing twice is harmless."""
        with self._lock:
            self._steps = []
            self._scorer = None
            try:
                with self._device.current():
                    try:
                        # A step that failed may have left work behind, using what goes now.
                        self._device.synchronize()
                    finally:
                        self._events = []
                        self._preparer = None
                        with contextlib.ExitStack() as each:
                            each.callback(self._release)  # the last
                            for count in self._sizes:
                                each.callback(self._forget, count)
            finally:
                self._device.close()
        atexit.unregister(self._at_exit)

    def __del__(self) -> None:
        if hasattr(self, "_at_exit"):
            with contextlib.suppress(PadimEdgeError):
                self.close()
