"""A video file: every frame, as fast as they are taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import av
from av.container import InputContainer

from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.live.addresses import Address
from padim_edge.live.source import Captured
from padim_edge.live.sources import Wanted, libav

# Files that only name others, which must not make us fetch what they name.
_INDIRECT = {"hls", "dash", "concat", "imf", "sdp", "rtp", "rtsp"}
_FORMATS = ",".join(sorted(av.formats_available - _INDIRECT))


class VideoSource:
    """The frames of a video file, in the decoder's own pixel format.

    A frame that cannot be decoded comes as an ImageError in its place. Time is that of decoding.

    Raises:
        PadimEdgeError: there is no such file, or no video in it.
        UsageError: it cannot be what ``pixel_format`` says.
    """

    is_live = False

    def __init__(self, address: Address, wanted: Wanted) -> None:
        address.check_options(())
        self.address = str(address)
        self._path = address.path
        self._wanted = wanted.pixel_format
        self._closed = threading.Event()
        try:
            self._container = self._opened()
        except libav.Errors as error:
            raise PadimEdgeError(
                f"cannot read the video {self._path}: {libav.reason(error)}; give a video file "
                "that is readable and whole"
            ) from error
        try:
            stream = libav.first_video(self._container)
            if stream is None:
                raise PadimEdgeError(f"there is no video in {self._path}; give a file with one")
            stream.thread_type = "AUTO"
            self._stream = stream
            turns = self._turns()
            layout = libav.layout_of(stream.codec_context, self._wanted, turns)
            # Now: a stream whose container is closed must not be asked.
            self._described = f"video {self.address}: {libav.in_words(stream, layout, turns)}"
        except BaseException:
            self._container.close()
            raise

    def _opened(self) -> InputContainer:
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        return av.open(f"file:{self._path}", options=options)

    def _turns(self) -> int:
        """Of the first frame: nothing but a frame says it, and taken here it would be missing."""
        try:
            with self._opened() as container:
                for frame in libav.decoded(container, container.streams.video[0]):
                    if not isinstance(frame, ImageError):
                        return libav.turns_of(frame)
        except libav.Errors:  # told of where the frames are taken
            pass
        return 0

    def describe(self) -> str:
        """Size, codec, rate and format."""
        return self._described

    def __iter__(self) -> Iterator[Captured]:
        """Each frame once.

        Raises:
            PadimEdgeError: the file cannot be read any more.
        """
        # The container is closed where it is used: libav does not bear it from another thread.
        with self._container:
            try:
                for sequence, frame in enumerate(libav.decoded(self._container, self._stream)):
                    if self._closed.is_set():
                        return
                    yield self._captured(frame, sequence)
            except libav.Errors as error:
                raise PadimEdgeError(
                    f"cannot read on in the video {self._path}: {libav.reason(error)}"
                ) from error

    def _captured(self, frame: av.VideoFrame | ImageError, sequence: int) -> Captured:
        now = time.time()
        if isinstance(frame, ImageError):
            return Captured(ImageError(f"{self._path}: {frame}"), sequence, now, self._path)
        name = self._path if frame.time is None else f"{self._path} at {_clock(frame.time)}"
        try:
            return Captured(libav.to_frame(frame, self._wanted), sequence, now, name)
        except ImageError as error:
            return Captured(ImageError(f"{name}: {error}"), sequence, now, name)

    def close(self) -> None:
        """Give no more; whoever takes frames lets go of the file."""
        self._closed.set()


def _clock(seconds: float) -> str:
    """A moment in a video: 0:01:02.345."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes) // 60}:{int(minutes) % 60:02}:{rest:06.3f}"
