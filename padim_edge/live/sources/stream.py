"""Live video through FFmpeg's libraries: RTSP, HTTP, and what V4L2 makes of a camera."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import av
import av.error

from padim_edge.errors import ImageError
from padim_edge.live import addresses
from padim_edge.live.addresses import Address
from padim_edge.live.sinks.secrets import PASSWORD, secret
from padim_edge.live.source import Captured, SourceError
from padim_edge.live.sources import Wanted, libav
from padim_edge.live.sources.background import Background
from padim_edge.live.sources.clock import Clock


class LibavSource:
    """Frames that come in their own time.

    Args:
        address: as given.
        wanted: of it, the pixel format.
        place: what FFmpeg opens.
        form: the name of its demuxer; None to find out.
        options: of the demuxer.
        timeout: seconds without an answer, or without a frame, after which it is lost; None
            waits for ever.
        may_end: whether something of known length is no fault at its end.
        stamps: "ours" if frames are stamped with our own clock, "theirs" if with another, "none"
            if stamps mean nothing.

    Raises:
        SourceError: it cannot be opened.
        UsageError: its pixels cannot be what they are said to be.
    """

    def __init__(
        self,
        address: Address,
        wanted: Wanted,
        *,
        place: str,
        form: str | None = None,
        options: Mapping[str, str],
        timeout: float | None,
        may_end: bool,
        stamps: str,
    ) -> None:
        self.address = str(address)
        self._wanted = wanted.pixel_format
        self._timeout = timeout
        self._stamps = stamps
        self._clock = Clock()
        begun = time.monotonic()
        try:
            container = av.open(
                place,
                format=form,
                options=dict(options),
                timeout=timeout,
                metadata_errors="replace",
            )
        except libav.Errors as error:
            raise self._lost(error, "cannot be opened", time.monotonic() - begun) from error
        try:
            stream = libav.first_video(container)
            if stream is None:
                raise SourceError(f"{self.address}: there is no video in this stream")
            # Threads that take a frame each would hold back as many frames as there are of them.
            stream.thread_type = "SLICE"
            layout = libav.layout_of(stream.codec_context, self._wanted)
            self._described = f"{self.address}: {libav.in_words(stream, layout)}"
            self.is_live = not may_end or container.duration is None
        except BaseException:
            container.close()
            raise
        self._container = container
        self._stream = stream
        self._lock = threading.Lock()
        self._begun = self._closed = False
        self._frames = Background(self._read(), self.address)

    def describe(self) -> str:
        """Size, codec, rate and format."""
        return self._described

    def __iter__(self) -> Iterator[Captured]:
        """The frames as they come.

        Raises:
            SourceError: the connection or the device was lost.
        """
        with self._lock:
            if self._closed:
                return
            self._begun = True
        try:
            yield from self._frames
        finally:
            self.close()

    def _read(self) -> Iterator[Captured]:
        """The frames, in the thread that waits for them."""
        with self._container as container:
            try:
                for sequence, frame in enumerate(libav.decoded(container, self._stream)):
                    yield self._captured(frame, sequence)
            except libav.Errors as error:
                raise self._lost(error, "was lost") from error
        if self.is_live:
            raise SourceError(f"{self.address} has ended: the other side sends no more")

    def _captured(self, frame: av.VideoFrame | ImageError, sequence: int) -> Captured:
        now = time.time()
        if isinstance(frame, ImageError):
            return Captured(ImageError(f"{self.address}: {frame}"), sequence, now)
        taken = self._taken(frame, now)
        try:
            return Captured(libav.to_frame(frame, self._wanted), sequence, taken)
        except ImageError as error:
            return Captured(ImageError(f"{self.address}: {error}"), sequence, taken)

    def _taken(self, frame: av.VideoFrame, now: float) -> float:
        if self._stamps == "theirs":
            return self._clock(frame.time, now)
        # A clock that was set meanwhile, or a driver without one.
        is_ours = self._stamps == "ours" and frame.time and 0 <= now - frame.time < 60
        return float(frame.time) if is_ours else now

    def _lost(self, error: BaseException, what: str, waited: float = 0.0) -> SourceError:
        # PyAV's own clock, of which some demuxers make an error of theirs.
        if isinstance(error, av.error.ExitError) or waited > (self._timeout or math.inf):
            return SourceError(f"{self.address} {what}: nothing came for {self._timeout:g} s")
        return SourceError(f"{self.address} {what}: {libav.reason(error)}")

    def close(self) -> None:
        """Give no more and let go, at the latest when the time-out ends."""
        with self._lock:
            already, self._closed = self._closed, True
        self._frames.close()
        if not already and not self._begun:
            self._container.close()


_PROTOCOLS = {
    "rtsp": "rtsp,rtp,rtcp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,srtp,rtcp,udp,tcp,tls",
    "http": "http,https,tcp,tls,crypto",
    "https": "https,tcp,tls,crypto",
}


class StreamSource(LibavSource):
    """A camera or server on the network: ``rtsp``, ``rtsps``, ``http``, ``https``.

    Options stand after ``#``, for what stands after ``?`` is the server's: ``timeout`` (seconds,
    5), ``password_from`` (``env:NAME`` or ``file:PATH``) and, of RTSP, ``transport`` (tcp, which
    loses nothing, or udp). Over HTTP a video of known
    length is a file and may end; anything else is live. Frames of RTSP are timed by `Clock`, those
    of HTTP as they arrive.

    Raises:
        SourceError: nothing answers, or not with video.
        UsageError: there is no host, or an option is wrong.
    """

    def __init__(self, address: Address, wanted: Wanted) -> None:
        is_rtsp = address.scheme.startswith("rtsp")
        if not address.host:
            raise address.refused(f"there is no host; {address.scheme}://host/path is needed")
        given: dict[str, Any] = {"given": address.fragment}
        names = ("timeout", PASSWORD, "transport")
        address.check_options(names[: 2 + is_rtsp], address.fragment)
        timeout = address.option("timeout", addresses.number(), 5.0, **given)
        options = {"protocol_whitelist": _PROTOCOLS[address.scheme]}
        if is_rtsp:
            transport = address.option("transport", addresses.one_of("tcp", "udp"), "tcp", **given)
            options |= {"rtsp_transport": transport, "allowed_media_types": "video"}
        else:
            options["rw_timeout"] = str(int(timeout * 1e6))
        # What it takes to know the stream is read and then given to us late: as little as will do.
        options |= {"flags": "low_delay", "analyzeduration": "1000000", "fpsprobesize": "2"}
        super().__init__(
            address,
            wanted,
            place=_with_password(address),
            options=options,
            timeout=timeout,
            may_end=not is_rtsp,  # cameras claim lengths, too
            stamps="theirs" if is_rtsp else "none",
        )


def _with_password(address: Address) -> str:
    """The URL that is opened: without our options, with the password that they point to."""
    url = address.given.partition("#")[0]
    if PASSWORD not in address.fragment:
        return url
    if address.password is not None or not address.user:
        raise address.refused(f"{PASSWORD} needs a user in the address, and no password there")
    found = quote(secret(address, PASSWORD, address.fragment[PASSWORD]), safe="")
    return url.replace("@", f":{found}@", 1)
