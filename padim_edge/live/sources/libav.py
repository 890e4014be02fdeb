"""Frames of FFmpeg's libraries (PyAV), in the decoder's own pixel format where we know it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from padim_edge.errors import ImageError, UsageError
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame

# av.error.FFmpegError is the parent of most of what PyAV raises, and OSError of some.
Errors = (av.error.FFmpegError, OSError, ValueError)

# AVCOL_SPC_BT709, AVCOL_SPC_BT470BG, AVCOL_RANGE_JPEG, AVCOL_RANGE_MPEG
_BT709, _BT601, _FULL, _LIMITED = 1, 5, 2, 1

# FFmpeg's name -> what it is repacked into without touching a value, and our name.
_YUV = {
    "nv12": ("nv12", "nv12"),
    "yuv420p": ("yuv420p", "i420"),
    "yuvj420p": ("yuvj420p", "i420"),
    "yuyv422": ("yuyv422", "yuyv"),
    "uyvy422": ("uyvy422", "uyvy"),
    "yuv422p": ("yuyv422", "yuyv"),
    "yuvj422p": ("yuyv422", "yuyv"),
    "yvyu422": ("yuyv422", "yuyv"),
}
_PLAIN = {
    **{"rgb24": "rgb", "bgr24": "bgr", "rgba": "rgba", "bgra": "bgra"},
    **{"rgb0": "rgba", "bgr0": "bgra", "gray": "grey8"},
    **{f"gray{bits}le": f"grey{bits}" for bits in (10, 12, 14, 16)},
    **{f"bayer_{cell}8": f"bayer-{cell}" for cell in ("rggb", "bggr", "grbg", "gbrg")},
}

WORST = 100
"""Packets that cannot be read, one after another, before a file or stream is given up."""


@dataclass(frozen=True)
class Layout:
    """What becomes of frames of one kind.

    Attributes:
        packed: FFmpeg's name of what they are repacked or converted into.
        pixel_format: our name of that.
        note: in words, if values change.
    """

    packed: str
    pixel_format: str
    note: str = ""


def turns_of(frame: VideoFrame) -> int:
    """Quarters by which a frame must be turned, against the clock, to stand upright: 0 to 3."""
    return int(frame.rotation) // 90 % 4


def layout_of(of: Any, wanted: str | None = None, turns: int = 0) -> Layout:
    """What becomes of frames of a decoder, or of one frame.

    Values are never touched where `padim_edge.images.formats` knows them. A stream that does not
    say which matrix its colours were made with is taken for BT.601, as FFmpeg and OpenCV take it.

    Args:
        of: a VideoFrame or a VideoCodecContext.
        wanted: the pixel format that it is said to be.
        turns: of `turns_of`. A format in which pixels share their colour with the one beside them,
            or have each one of it, cannot be turned and becomes rgb.

    Raises:
        UsageError: it cannot be what it is said to be.
    """
    name = str(of.pix_fmt if hasattr(of, "pix_fmt") else of.format.name)
    odd = (of.height % 2, of.width % 2)
    full = name.startswith("yuvj") or int(of.color_range or 0) == _FULL
    if name in _YUV:
        packed, ours = _YUV[name]
        even = PIXEL_FORMATS[ours].even
        turnable = not turns or ours in ("i420", "nv12")
        if turnable and not (even[0] and odd[0]) and not (even[1] and odd[1]):
            ours += "-709" * (int(of.colorspace or 0) == _BT709) + "-full" * full
            return _said(Layout(packed, ours), wanted)
    elif name in _PLAIN:
        limited = name.startswith("gray") and int(of.color_range or 0) == _LIMITED
        if not (name.startswith("bayer") and (any(odd) or turns)):
            note = "grey of limited range stretched to white" * limited
            return _said(Layout(name, _PLAIN[name], note), wanted)
    return _said(Layout("rgb24", "rgb", f"{name} converted to rgb"), wanted)


def _said(layout: Layout, wanted: str | None) -> Layout:
    if wanted is None:
        return layout
    ours, said = PIXEL_FORMATS[layout.pixel_format], PIXEL_FORMATS[wanted]
    # A camera whose sensor has a colour filter may call its pixels grey.
    mosaic = layout.pixel_format == "grey8" and wanted.startswith("bayer")
    if (said.shape, said.dtype) != (ours.shape, ours.dtype) and not mosaic:
        raise UsageError(
            f"the pixels come as {layout.pixel_format}, {ours.shape}, which cannot be {wanted}, "
            f"{said.shape}"
        )
    return Layout(layout.packed, wanted, layout.note)


def to_frame(frame: VideoFrame, wanted: str | None = None) -> Frame:
    """A decoded frame as it is, and upright.

    Formats of one plane are not copied: the pixels keep the decoder's buffer, which it does not
    write to while anybody holds it. Those of several planes are put together.

    Raises:
        ImageError: it is damaged.
        UsageError: it cannot be the pixel format ``wanted``.
    """
    if frame.is_corrupt:
        raise ImageError("a frame arrived damaged: data were lost on the way")
    turns = turns_of(frame)
    layout = layout_of(frame, wanted, turns)
    grey_is_limited = bool(layout.note) and layout.packed.startswith("gray")
    if layout.packed != frame.format.name:
        if frame.format.name.startswith("yuvj"):
            frame.color_range = _FULL  # or repacking would stretch the values
        # Said again: PyAV before 16 does not ask the frame; and where both sides are the same it
        # does nothing, though RGB has one range alone, and no matrix.
        matrix = _BT709 if int(frame.colorspace or 0) == _BT709 else _BT601
        extent = _FULL if int(frame.color_range or 0) == _FULL else _LIMITED
        to_rgb = layout.packed == "rgb24"
        frame = frame.reformat(
            format=layout.packed,
            src_colorspace=matrix,
            dst_colorspace=_BT601 if to_rgb else matrix,
            src_color_range=extent,
            dst_color_range=_LIMITED if to_rgb else extent,
        )
    pixels = _pixels(frame, layout.pixel_format)
    if grey_is_limited:
        pixels = _stretched(pixels, PIXEL_FORMATS[layout.pixel_format].white)
    if turns:
        pixels = _turned(pixels, layout.pixel_format, turns)
    return Frame(pixels, layout.pixel_format)


def _turned(pixels: NDArray[Any], pixel_format: str, turns: int) -> NDArray[Any]:
    """An array turned by quarters against the clock; where colour has planes, each by itself."""
    if not PIXEL_FORMATS[pixel_format].thirds:
        return np.rot90(pixels, turns)
    height, width = pixels.shape[0] * 2 // 3, pixels.shape[1]
    light, colour = pixels[:height], pixels[height:]
    half = height // 2, width // 2
    if pixel_format.startswith("nv12"):
        colours = [colour.reshape(*half, 2)]
    else:
        colours = list(colour.reshape(2, *half))
    planes = [np.rot90(plane, turns).ravel() for plane in (light, *colours)]
    return np.concatenate(planes).reshape(-1, height if turns % 2 else width)


def _stretched(grey: NDArray[Any], white: int) -> NDArray[Any]:
    """Grey of 16 to 235 (of 8 bits; alike with more) to 0 to white."""
    unit = (white + 1) // 256
    stretched = (grey.astype(np.float64) - 16 * unit) * (white / (219 * unit))
    whole: NDArray[Any] = stretched.round().clip(0, white).astype(grey.dtype)
    return whole


def _pixels(frame: VideoFrame, pixel_format: str) -> NDArray[Any]:
    """The array of a frame that is packed as ``pixel_format`` wants it."""
    height, width = frame.height, frame.width
    planes = [_rows(plane) for plane in frame.planes]
    if pixel_format.startswith("i420"):
        whole = np.empty((height * 3 // 2, width), np.uint8)
        whole[:height] = planes[0][:height, :width]
        colours = whole[height:].reshape(2, height // 2, width // 2)
        for colour, plane in zip(colours, planes[1:], strict=True):
            colour[:] = plane[: height // 2, : width // 2]
        return whole
    if pixel_format.startswith("nv12"):
        whole = np.empty((height * 3 // 2, width), np.uint8)
        whole[:height] = planes[0][:height, :width]
        whole[height:] = planes[1][: height // 2, :width]
        return whole
    form = PIXEL_FORMATS[pixel_format]
    rows = planes[0][:height].view(form.dtype)
    channels = form.pixel[0]
    if not channels:
        return rows[:, :width]
    return rows[:, : width * channels[0]].reshape(height, width, channels[0])


def _rows(plane: Any) -> NDArray[np.uint8]:
    """A plane [rows, bytes with padding], not copied."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)


def decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame | ImageError]:
    """The frames of a stream, and in place of what cannot be decoded why not.

    Raises:
        av.error.FFmpegError: nothing more can be read.
    """
    unread = 0
    while True:
        try:
            for packet in container.demux(stream):
                unread = 0
                try:
                    yield from packet.decode()
                except av.error.EOFError:
                    return
                except av.error.InvalidDataError as error:
                    yield ImageError(f"a frame cannot be decoded ({reason(error)})")
            return
        except av.error.InvalidDataError as error:
            unread += 1
            if unread == WORST:
                raise
            yield ImageError(f"a packet cannot be read ({reason(error)})")


def reason(error: BaseException) -> str:
    """What PyAV says, without the address, which may hold a password."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


def first_video(container: InputContainer) -> VideoStream | None:
    """The stream of pictures in a file or stream, if there is one."""
    return next(iter(container.streams.video), None)


def in_words(stream: VideoStream, layout: Layout, turns: int = 0) -> str:
    """Size, codec, rate and format of a stream; and by how much its frames are turned, if known."""
    context = stream.codec_context
    rate = stream.average_rate or stream.guessed_rate
    parts = [f"{context.width}x{context.height} {context.name}"]
    if rate:
        parts.append(f"{float(rate):.4g} frames/s")
    parts.append(f"as {layout.pixel_format}" + f" ({layout.note})" * bool(layout.note))
    if turns:
        parts.append(f"turned upright by {90 * turns} degrees against the clock")
    return ", ".join(parts)
