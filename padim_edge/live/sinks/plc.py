"""What sinks that show a PLC what is now have in common: their options."""

from __future__ import annotations

from collections.abc import Iterable

from padim_edge.live.addresses import Address, number, one_of
from padim_edge.live.sink import State

_OPTIONS = ("idle", "camera", "stale", "beat", "timeout")


class PlcSink:
    """The part of a `padim_edge.live.sink.StateSink` that knows no protocol.

    Args:
        address: with the options that all of them have.
        options: that this one has beside.

    Raises:
        UsageError: there is another option, or one does not read so.
    """

    is_state = True
    wants_pictures = False

    def __init__(self, address: Address, options: Iterable[str]) -> None:
        address.check_options((*options, *_OPTIONS))
        self.address = str(address)
        self.camera = address.options.get("camera")
        self.stale = address.option("stale", _seconds, 5.0)
        self.beat = address.option("beat", number(), 1.0)
        self._timeout = address.option("timeout", number(), 3.0)
        idle = address.option("idle", one_of("1", "0", "keep"), "1")
        self._idle = None if idle == "keep" else idle == "1"

    def _value(self, state: State) -> bool | None:
        """What to write for "is it anomalous"; None for nothing."""
        return self._idle if state.is_anomalous is None else state.is_anomalous


def _seconds(text: str) -> float:
    return 0.0 if text == "0" else number()(text)
