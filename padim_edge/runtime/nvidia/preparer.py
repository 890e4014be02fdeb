"""Preparing frames on the GPU by our kernel: from a camera's pixels to the backbone's input.

A frame of the host is copied once, into page-locked memory (on GPUs that share the host's, the
kernel reads it there), and one kernel does the rest. Of two such places one is filled while the
other is under way, so that a batch of large frames needs no more than two of them. A frame in the
memory of the GPU stays where it is.

What frames of one format, size and row pitch have in common (`prepare`) is computed, and brought
to the device, once.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from padim_edge.errors import PadimEdgeError
from padim_edge.images.device_arrays import DeviceArray
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess
from padim_edge.runtime.nvidia.compiler import kernels
from padim_edge.runtime.nvidia.device import Device, Event, Staging
from padim_edge.runtime.nvidia.plan_cache import PlanCache
from padim_edge.runtime.nvidia.prepare import Preparation, pack_preparation, row_bytes

_KEPT = 16  # formats and sizes whose tables are kept: some 20 kB each
_ALIGNED = 16  # bytes; the kernel reads rows in words where they begin at whole ones

Kind = tuple[str, tuple[int, ...], int]
"""Pixel format, shape and row pitch of a frame."""


class Preparer:
    """The kernel for one model on a device, which must be current, and which frees everything.

    Args:
        device: where.
        preprocess: what is to be done, with ``reduce``.
        image: address of what the backbone reads, uint8 [N, H, W, 3].
    """

    def __init__(self, device: Device, preprocess: Preprocess, image: int) -> None:
        self._device = device
        self._image = image
        self._image_bytes = preprocess.size[0] * preprocess.size[1] * 3
        pack = functools.partial(pack_preparation, preprocess, shared_limit=device.shared_limit)
        self._pack: Callable[..., Preparation] = functools.lru_cache(_KEPT)(pack)
        self._tables: OrderedDict[Kind, int] = OrderedDict()
        self._places = [_Place(device, event) for event in device.events(2)]
        code = kernels("prepare.cu", device.architecture, PlanCache(), device.cuda)
        self._prepare = device.load(code)
        # A kernel that does not run is told of here, and not at the first frame.
        self.bring([Frame(np.zeros((*preprocess.size, 3), np.uint8))])
        device.synchronize()

    def takes(self, frame: Frame) -> bool:
        """Whether frames like this one can be prepared; in any thread, the device need not be."""
        try:
            self._pack(*_kind(frame))
        except PadimEdgeError:
            return False
        return True

    def bring(self, frames: Sequence[Frame], marks: Iterator[Event] | None = None) -> int:
        """Enqueue what makes the backbone's input of some frames, and say how many they are.

        What was enqueued before must be done.

        Args:
            frames: as many as there is room for; they must stay as they are until all is done.
            marks: events for each frame's times before it is uploaded, after, and when it is ready.

        Raises:
            PadimEdgeError: the kernel does not take such frames.
        """

        def mark() -> None:
            if marks is not None:
                self._device.mark(next(marks))

        for index, frame in enumerate(frames):
            kind = _kind(frame)
            preparation = self._pack(*kind)
            tables = self._tables_of(kind, preparation)
            place = None
            if isinstance(frame.pixels, DeviceArray):
                address = frame.pixels.address
                other = frame.pixels.announce(self._device.stream)
                if other is not None:
                    self._device.wait_for_stream(other)
                mark()
            else:
                place = self._places[index % len(self._places)]
                staging = place.fill(frame, kind, preparation.nbytes)
                mark()
                self._device.to_device(staging, preparation.nbytes)
                address = staging.address
            mark()
            image = self._image + index * self._image_bytes
            self._prepare(preparation.launch(tables, address, image))()
            mark()
            if place is not None:
                self._device.mark(place.free)
        return len(frames)

    def _tables_of(self, kind: Kind, preparation: Preparation) -> int:
        """The address of a preparation's tables, uploaded if they are not there."""
        if kind not in self._tables:
            if len(self._tables) == _KEPT:
                self._device.synchronize()
                self._device.free(self._tables.popitem(last=False)[1])
            self._tables[kind] = self._device.upload(preparation.tables)
        self._tables.move_to_end(kind)
        return self._tables[kind]


class _Place:
    """Page-locked memory for one frame, as large as the largest so far.

    Attributes:
        free: marked in the stream behind the last use of the content.
    """

    def __init__(self, device: Device, free: Event) -> None:
        self.free = free
        self._device = device
        self._staging: Staging | None = None

    def fill(self, frame: Frame, kind: Kind, nbytes: int) -> Staging:
        """Copy a frame's pixels, once the content before is no longer needed."""
        self._device.wait(self.free)
        if self._staging is None or self._staging.host.nbytes < nbytes:
            if self._staging is not None:
                self._device.free(self._staging)
                self._staging = None
            self._staging = self._device.staging((nbytes,), np.uint8)
        pixels = frame.in_host_memory()
        strides = kind[2], *np.empty(pixels.shape[1:], pixels.dtype).strides
        rows = np.ndarray(pixels.shape, pixels.dtype, self._staging.host, strides=strides)
        np.copyto(rows, pixels)
        return self._staging


def _kind(frame: Frame) -> Kind:
    """What a frame has in common with others.

    Raises:
        PadimEdgeError: it is in the memory of a GPU, with gaps between pixels.
    """
    layout = frame.layout
    pitch = row_bytes(frame.pixel_format, layout.shape)
    if isinstance(frame.pixels, DeviceArray):
        if not layout[0].flags.c_contiguous or (len(layout) > 1 and layout.strides[0] < pitch):
            raise PadimEdgeError("pixels of a frame in the memory of a GPU must have no gaps")
        if len(layout) > 1:
            pitch = layout.strides[0]
    elif not frame.format.gapless:
        pitch += -pitch % _ALIGNED
    return frame.pixel_format, layout.shape, pitch
