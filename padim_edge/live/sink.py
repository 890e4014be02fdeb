"""What a sink of events is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from padim_edge.errors import PadimEdgeError
from padim_edge.live.event import Event


class SinkError(PadimEdgeError):
    """Events could not be delivered; another try may succeed."""


@runtime_checkable
class Sink(Protocol):
    """Where events go; made by `padim_edge.live.sinks.make_sink`, used by one thread.

    Attributes:
        address: as it was given, without a password.
        is_state: it shows what is, not what happened (a coil of a PLC): the newest verdict alone
            is worth sending, late ones are harmful.
        wants_pictures: of anomalous frames.
    """

    address: str
    is_state: bool
    wants_pictures: bool

    def open(self) -> None:
        """Connect, or open the file; called again after a SinkError.

        Raises:
            SinkError: it is not there now; another try may succeed.
            UsageError: it never will be (a missing package, a wrong option).
        """

    def send(self, events: Sequence[Event]) -> None:
        """Deliver, in order; all of them have been when it returns.

        Raises:
            SinkError: not all were delivered: all are sent again, so receivers go by ids.
        """

    def close(self) -> None:
        """Let go of it. Twice is harmless."""
