"""A pipeline of GStreamer in a process of its own.

The pipeline that the user gives goes on into ``gdppay ! fdsink``: GStreamer's own data protocol
brings each buffer with its time stamp, and before the first one what is in them (the caps), over a
pipe. So any pipeline will do, nothing of GStreamer is loaded into this process, and a driver that
crashes does not take the judging with it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from io import BufferedReader
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import ImageError, UsageError
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.live.addresses import Address, display
from padim_edge.live.source import Captured, SourceError
from padim_edge.live.sources import Wanted, packed
from padim_edge.live.sources.clock import Clock
from padim_edge.live.sources.pipe import Pipe, PipeClosedError

# gstdataprotocol.c of gst-plugins-bad: version, flags, a pad byte, type, length; of a buffer time
# stamp, duration, offset and its end; flags, and check sums, which gdppay leaves out.
_HEADER = struct.Struct(">2BBxHI4Q20x")
_BUFFER, _CAPS = 1, 2
_NONE = 2**64 - 1

_LARGEST = 1 << 30
"""Bytes of a buffer beyond which it is no frame, and the pipe out of step."""

START = 5.0
"""Seconds that are waited for a first frame before the source is taken to be open: a pipeline that
does not run says so by then, and one that waits for a trigger is in order."""

STOP = 2.0
"""Seconds for the pipeline to let go of its camera before it is killed."""

_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031

_SAID = 4096
"""Bytes of what it said last, for an error."""


class Caps:
    """What is in the buffers of a pipeline.

    Args:
        text: like ``video/x-raw, format=(string)NV12, width=(int)1920, height=(int)1080, ...``.
        wanted: the pixel format that it is said to be.

    Attributes:
        size: (w, h).
        pixel_format: our name.

    Raises:
        UsageError: it is no video in a format that we know.
    """

    def __init__(self, text: str, wanted: str | None = None) -> None:
        kind = re.split(r"[,;(]", text, maxsplit=1)[0].strip()
        fields = dict(re.findall(r"([\w-]+)=(?:\([\w/]+\))?\"?([^,;\"]*)\"?", text))
        help_ = "end the pipeline with  ! videoconvert ! video/x-raw,format=NV12"
        if kind not in ("video/x-raw", "video/x-bayer") or "width" not in fields:
            raise UsageError(
                f"the pipeline gives {kind or text!r}, which is no bare video: {help_}"
            )
        self.size = (int(fields["width"]), int(fields["height"]))
        given = fields.get("format", "").strip()
        try:
            if kind == "video/x-bayer":
                name = packed.pixel_format(f"bayer-{given}")
            else:
                name = packed.pixel_format(given) + _colours(fields.get("colorimetry", ""), given)
            self.pixel_format = packed.pixel_format(wanted or name)
            self.shape = packed.shape_of(self.pixel_format, *self.size)
        except ValueError as error:
            raise UsageError(f"the pipeline gives frames in {given} ({error}): {help_}") from error
        if packed.shape_of(name, *self.size) != self.shape:
            raise UsageError(f"the pipeline gives frames in {name}, which cannot be {wanted}")

    def __str__(self) -> str:
        """Size and format."""
        return f"{self.size[0]}x{self.size[1]} {self.pixel_format}"

    def pixels(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        """The array of a frame in the bytes of a buffer, whose rows are padded to four bytes.

        That is GStreamer's default layout (video-info.c); elements that cannot say another one
        downstream, as here, copy to it. Copied only where colour does not keep to rows.

        Raises:
            ImageError: there are more or fewer bytes.
        """
        width, height = self.size
        form = PIXEL_FORMATS[self.pixel_format]
        row = width * int(np.prod(self.shape[2:], initial=1)) * np.dtype(form.dtype).itemsize
        stride, rows = (row + 3) // 4 * 4, self.shape[0]
        if form.gapless:  # I420: the rows of colour are half as long, and padded, too
            colour = (width // 2 + 3) // 4 * 4
            expected = stride * height + colour * height
        else:
            expected = stride * rows
        if len(data) != expected:
            raise ImageError(f"a frame of {self} has {len(data)} bytes, {expected} are right")
        if not form.gapless:
            lines = data.reshape(rows, stride)[:, :row].view(form.dtype)
            return lines.reshape(self.shape) if self.shape[2:] or row == stride else lines
        if row == stride and colour * 2 == stride:
            return data.reshape(self.shape)
        whole = np.empty(self.shape, np.uint8)
        whole[:height] = data[: stride * height].reshape(height, stride)[:, :width]
        colours = data[stride * height :].reshape(2, height // 2, colour)[:, :, : width // 2]
        whole[height:] = colours.reshape(height // 2, width)
        return whole


def _colours(colorimetry: str, given: str) -> str:
    """The end of our name that says which YUV it is; "" where none is needed.

    Colorimetry is a name, or range:matrix:transfer:primaries as numbers (video-color.c).
    """
    if not given.upper().startswith(("NV12", "I420", "YUY2", "UYVY")) or not colorimetry:
        return ""
    limited, full, bt709, bt601 = "2", "1", "3", "4"
    names = {"bt601": (limited, bt601), "bt709": (limited, bt709)}
    parts = colorimetry.split(":")
    extent, matrix = names.get(parts[0], (parts[0], parts[1] if len(parts) > 1 else ""))
    if extent not in ("0", limited, full) or matrix not in ("0", bt709, bt601):
        raise ValueError(f"its colours are {colorimetry}; bt601 and bt709 are allowed")
    return "-709" * (matrix == bt709) + "-full" * (extent == full)


class Pipeline:
    """A child process that sends frames; see `GstreamerSource` for the errors.

    Args:
        address: for messages.
        elements: the pipeline, as words of a command line.
        wanted: the pixel format that it is said to give.
        timeout: seconds without a frame after which it is lost; None waits for ever.
    """

    def __init__(
        self,
        address: str,
        elements: Sequence[str],
        wanted: str | None,
        timeout: float | None = None,
    ) -> None:
        program = shutil.which("gst-launch-1.0")
        if program is None:
            raise UsageError(
                f"{address} needs gst-launch-1.0, which is not installed: of Debian and Ubuntu "
                "gstreamer1.0-tools, gstreamer1.0-plugins-good and gstreamer1.0-plugins-bad"
            )
        self.address = address
        self._wanted = wanted
        self._timeout = timeout
        self._caps: Caps | None = None
        self._clock = Clock()
        reading, writing = os.pipe()
        command = [
            program,
            "-q",
            *elements,
            *("!", "gdppay", "!", "fdsink", "sync=false"),
            f"fd={writing}",
        ]
        try:
            _enlarge(reading)
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(writing,),
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        except OSError as error:
            os.close(reading)
            raise SourceError(
                f"{address}: {program} cannot be started: {error.strerror}"
            ) from error
        finally:
            os.close(writing)
        self._said = b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._pipe = Pipe(reading)
        self._first: collections.deque[tuple[Any, ...]] = collections.deque()
        self._begun = False
        try:
            if self._pipe.wait(START):
                self._first.append(self._packet())
                while self._caps is None:
                    self._first.append(self._packet())
        except BaseException:
            self._end()
            raise

    def describe(self) -> str:
        """What frames there are, if any have come."""
        return str(self._caps or "no frame yet")

    def frames(self) -> Iterator[Captured]:
        """The frames as they come, until the pipeline ends or `close`.

        Raises:
            SourceError: it failed.
            UsageError: it gives what we cannot read.
        """
        self._begun = True
        count = start = 0
        newest = -1
        try:
            while True:
                if self._timeout and not self._first and not self._pipe.wait(self._timeout):
                    raise SourceError(f"{self.address}: no frame came for {self._timeout:g} s")
                kind, stamp, offset, end, data = (
                    self._first.popleft() if self._first else self._packet()
                )
                if kind != _BUFFER:
                    continue
                now = time.time()
                # Cameras count frames in the offset; others count bytes, or nothing.
                if count == 0:
                    start = offset
                counts = offset != _NONE and end == offset + 1 and offset - start > newest
                newest = offset - start if counts else newest + 1
                count += 1
                taken = self._clock(None if stamp == _NONE else stamp / 1e9, now)
                yield Captured(self._picture(data), newest, taken)
        except PipeClosedError:
            return
        except EOFError:
            trouble = self._trouble()
            if trouble:
                raise SourceError(f"{self.address} failed: {trouble}") from None
        finally:
            self._end()

    def close(self) -> None:
        """Wake whoever waits, and let go of the camera. Twice is harmless."""
        self._pipe.close()
        if not self._begun:
            self._end()

    def _picture(self, data: NDArray[np.uint8]) -> Frame | ImageError:
        assert self._caps is not None  # they come before any buffer
        try:
            return Frame(self._caps.pixels(data), self._caps.pixel_format)
        except ImageError as error:
            return ImageError(f"{self.address}: {error}")

    def _packet(self) -> tuple[Any, ...]:
        """(type, stamp, offset, its end, data); caps are kept, too."""
        head = bytearray(_HEADER.size)
        if self._pipe.read_into(head) < len(head):
            self._failed_early()
            raise EOFError
        _, _, _, kind, length, stamp, _, offset, end = _HEADER.unpack(head)
        if length > _LARGEST:
            raise SourceError(f"{self.address}: what comes from GStreamer makes no sense")
        data = np.empty(length, np.uint8)
        if length and self._pipe.read_into(data) < length:
            raise EOFError
        if kind == _CAPS:
            self._caps = Caps(data.tobytes().rstrip(b"\0").decode(errors="replace"), self._wanted)
        return kind, stamp, offset, end, data

    def _failed_early(self) -> None:
        """Say why there was never a frame, if there was none."""
        if self._caps is None:
            trouble = self._trouble() or "it ended without a frame"
            # A pipeline that cannot be built never will.
            wrong = "erroneous pipeline" in trouble or "could not be linked" in trouble
            kind = UsageError if wrong else SourceError
            raise kind(f"{self.address} does not run: {trouble}")

    def _trouble(self) -> str:
        """What the process said was wrong, in one line; "" if it ended well."""
        try:
            code = self._child.wait(STOP)
        except subprocess.TimeoutExpired:
            return "it closed its output and goes on"
        self._listener.join(STOP)  # not for ever: a child of its own may hold its stderr open
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines()]
        lines = [line for line in lines if line]
        marked = [line for line in lines if re.match(r"(ERROR|WARNING): ", line)]
        if not code and not any(line.startswith("ERROR") for line in marked):
            return ""
        said = (marked or lines or [f"exit code {code}"])[0]
        return display(re.sub(r"^(ERROR|WARNING): ", "", said))

    def _listen(self) -> None:
        """Keep the last of what the process says; a camera that complains does so for months."""
        stream = cast(BufferedReader, self._child.stderr)
        with stream:
            while chunk := stream.read1(_SAID):
                self._said = (self._said + chunk)[-_SAID:]

    def _end(self) -> None:
        """Stop the process, which lets go of its camera; kill it if it does not."""
        self._pipe.release()
        if self._child.poll() is None:
            self._signal(signal.SIGINT)
            try:
                self._child.wait(STOP)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                # A driver that hangs may hold it still: that is no reason for the watch to end.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(STOP)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._child.pid, number)
        except (ProcessLookupError, PermissionError):
            self._child.send_signal(number)


def _enlarge(descriptor: int) -> None:
    """More room in a pipe: fewer changes between processes."""
    import fcntl

    try:
        fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:  # more than the system allows this user
        return


class GstreamerSource:
    """What ``gst:PIPELINE`` gives, in its own format; the pipeline as gst-launch-1.0 takes it.

    It must end in frames in the computer's memory: of a Jetson's camera
    ``nvarguscamerasrc ! nvvidconv ! video/x-raw,format=NV12``. It goes on in a process of its own.
    An end without an error is an end; an error of the pipeline is a loss.

    Raises:
        SourceError: it does not run now.
        UsageError: it can never run, or gives something else than frames; or GStreamer is missing.
    """

    is_live = True

    def __init__(self, address: Address, wanted: Wanted) -> None:
        self.address = str(address)
        text = address.given.partition(":")[2]  # with any question mark in it
        try:
            elements = shlex.split(text)
        except ValueError as error:
            raise address.refused(f"the pipeline cannot be read ({error})") from error
        if not elements:
            raise address.refused("a pipeline is needed, like  gst:v4l2src ! videoconvert")
        self._pipeline = Pipeline(self.address, elements, wanted.pixel_format)

    def describe(self) -> str:
        """Size and format, if a frame has come."""
        return f"{self.address}: {self._pipeline.describe()}"

    def __iter__(self) -> Iterator[Captured]:
        """The frames as they come.

        Raises:
            SourceError: the pipeline failed.
        """
        return self._pipeline.frames()

    def close(self) -> None:
        """Wake whoever waits, and let go of the camera."""
        self._pipeline.close()
