"""GigE Vision and USB3 Vision cameras, through Aravis' element for GStreamer.

Of Debian and Ubuntu: gstreamer1.0-plugins-bad, gstreamer1.0-tools and gir1.2-aravis-0.8 or
libaravis-0.8-0, which has the element aravissrc. `harvesters` was looked at, too: it needs the
transport layer of a camera's maker, a program of its own for each, and Python packages that lag
behind; Aravis needs none and is a package of the system.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from padim_edge.live import addresses
from padim_edge.live.addresses import Address
from padim_edge.live.source import Captured
from padim_edge.live.sources import Wanted, packed
from padim_edge.live.sources.gstreamer import Pipeline

# Our names -> what aravissrc calls them.
_CAPS = {
    **{"grey8": "video/x-raw,format=GRAY8", "grey16": "video/x-raw,format=GRAY16_LE"},
    **{"rgb": "video/x-raw,format=RGB", "bgr": "video/x-raw,format=BGR"},
    **{"yuyv": "video/x-raw,format=YUY2", "uyvy": "video/x-raw,format=UYVY"},
    **{
        f"bayer-{cell}": f"video/x-bayer,format={cell}" for cell in ("rggb", "bggr", "grbg", "gbrg")
    },
}

TIMEOUT = 10.0
"""Seconds without a frame after which a camera is lost; a wire that was pulled out says nothing."""


class GenicamSource:
    """A camera such as ``genicam:Basler-21234567``, by its name in arv-tool-0.8 or its address.

    ``genicam:`` is the first that is found. Options: ``size``, ``fps``, ``format`` (without, the
    first that Aravis offers: name it), ``exposure`` (us), ``gain`` (dB), ``features`` (assignments
    with spaces between, as ``TriggerMode=On TriggerSource=Line1``), ``timeout`` (seconds, 10; 0
    waits for ever, as a trigger may need). Frames are timed by the camera's stamps, put on our
    clock by `Clock`.

    Raises:
        SourceError: there is no such camera, or it does not give what was asked for.
        UsageError: an option is wrong, or GStreamer is missing.
    """

    is_live = True

    def __init__(self, address: Address, wanted: Wanted) -> None:
        names = ("size", "fps", "format", "exposure", "gain", "features", "timeout")
        address.check_options(names)
        self.address = str(address)
        width, height = address.option("size", addresses.size, (0, 0))
        fps = address.option("fps", addresses.number(), 0.0)
        form = address.option("format", _format, "")
        exposure = address.option("exposure", addresses.number(), 0.0)
        gain = address.option("gain", addresses.number(-1.0), -1.0)
        timeout = address.option("timeout", addresses.number(-1.0), TIMEOUT)
        # 50, the element's own number, would be old frames where we are slow.
        elements = ["aravissrc", "num-arv-buffers=8"]
        name = address.path.strip("/")
        # gst-launch puts its words together and reads them again: it keeps "Allied Vision-5" one
        # word, but not what quotes and backslashes make of it.
        if not name.isprintable() or set(name) & set("\"'\\"):
            raise address.refused(
                "a camera's name is printable, without quotes and backslashes: give it as "
                "arv-tool-0.8 shows it, or the camera's address"
            )
        if name:
            elements.append(f"camera-name={name}")
        if exposure:
            elements.append(f"exposure={exposure!r}")
        if gain >= 0:
            elements.append(f"gain={gain!r}")
        if "features" in address.options:
            elements.append(f"features={address.options['features']}")
        asked = f",width={width},height={height}" if width else ""
        if fps:
            rate = Fraction(fps).limit_denominator(1001)
            asked += f",framerate={rate.numerator}/{rate.denominator}"
        kinds = [_CAPS[form]] if form else ["video/x-raw", "video/x-bayer"] if asked else []
        if kinds:
            elements += ["!", ";".join(kind + asked for kind in kinds)]
        self._pipeline = Pipeline(self.address, elements, wanted.pixel_format, timeout or None)

    def describe(self) -> str:
        """Size and format, if a frame has come."""
        return f"{self.address}: {self._pipeline.describe()}"

    def __iter__(self) -> Iterator[Captured]:
        """The frames as they come.

        Raises:
            SourceError: the camera was lost.
        """
        return self._pipeline.frames()

    def close(self) -> None:
        """Wake whoever waits, and let go of the camera."""
        self._pipeline.close()


# GenICam's names, in small letters.
_GENICAM = {
    **{"mono8": "grey8", "mono16": "grey16", "rgb8": "rgb", "bgr8": "bgr"},
    **{"bayerrg8": "bayer-rggb", "bayerbg8": "bayer-bggr"},
    **{"bayergr8": "bayer-grbg", "bayergb8": "bayer-gbrg"},
}


def _format(text: str) -> str:
    name = _GENICAM.get(text.lower()) or packed.pixel_format(text)
    if name not in _CAPS:
        raise ValueError(f"allowed are {', '.join(_CAPS)}")
    return name
