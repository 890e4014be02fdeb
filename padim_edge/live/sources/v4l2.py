"""Cameras of Linux: V4L2 devices, through FFmpeg's demuxer."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from padim_edge.live import addresses
from padim_edge.live.addresses import Address
from padim_edge.live.source import SourceError
from padim_edge.live.sources import Wanted
from padim_edge.live.sources.stream import LibavSource

# Our names of what a camera may be asked for -> FFmpeg's.
FORMATS = {
    **{"yuyv": "yuyv422", "uyvy": "uyvy422", "nv12": "nv12", "i420": "yuv420p"},
    **{"rgb": "rgb24", "bgr": "bgr24", "grey8": "gray", "mjpeg": "mjpeg", "h264": "h264"},
}


class V4l2Source(LibavSource):
    """A device such as ``v4l2:/dev/video0?size=1920x1080&fps=30&format=mjpeg``, or its path alone.

    Frames have the driver's time stamps. Options: ``size``, ``fps``, ``format`` (of `FORMATS`;
    the driver's choice without), ``timeout`` (seconds without a frame after which the device is
    lost; none without, for a camera may wait for its trigger).

    Raises:
        SourceError: there is no such device, or it does not give what was asked for.
        UsageError: an option is wrong, or the path is something else.
    """

    def __init__(self, address: Address, wanted: Wanted) -> None:
        address.check_options(("size", "fps", "format", "timeout"))
        device = Path(address.path)
        width, height = address.option("size", addresses.size, (0, 0))
        fps = address.option("fps", addresses.number(), 0.0)
        form = address.option("format", addresses.one_of(*FORMATS), "")
        timeout = address.option("timeout", addresses.number(), 0.0)
        try:
            is_device = stat.S_ISCHR(device.stat().st_mode)
        except OSError as error:
            raise SourceError(
                f"{address} cannot be opened: {os.strerror(error.errno or 0)}"
            ) from error
        if not is_device:
            raise address.refused("it is no device; /dev/video0 is one")
        options = {"timestamps": "abs"}
        if width:
            options["video_size"] = f"{width}x{height}"
        if fps:
            options["framerate"] = f"{fps:g}"
        if form:
            options["input_format"] = FORMATS[form]
        super().__init__(
            address,
            wanted,
            place=str(device),
            form="v4l2",
            options=options,
            timeout=timeout or None,
            may_end=False,
            stamps="ours",
        )
