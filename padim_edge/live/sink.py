"""What a sink of events is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from padim_edge.errors import PadimEdgeError
from padim_edge.live.event import Event


class SinkError(PadimEdgeError):
    """Events could not be delivered; another try may succeed.

    Args:
        message: why.
        delivered: how many, from the first one on, were.
        retry_after: seconds for which the receiver wants to be left alone.
    """

    def __init__(self, message: str, *, delivered: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.delivered = delivered
        self.retry_after = retry_after


class RefusedError(SinkError):
    """The event after the ``delivered`` ones will never be taken, however often it is sent."""


@runtime_checkable
class Sink(Protocol):
    """Where events go; made by `padim_edge.live.sinks.make_sink`, used by one thread.

    Attributes:
        address: as it was given, without a password.
        is_state: it shows what is, not what happened: see `StateSink`.
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

        Nothing is sent now and then, too, while nothing happens: time to look after a connection.

        Raises:
            SinkError: not all were delivered: the rest is sent again, so receivers go by ids.
            RefusedError: one of them never can be; it is set aside, and the rest sent again.
        """

    def close(self) -> None:
        """Let go of it. Twice is harmless."""


@dataclass(frozen=True)
class State:
    """What is now.

    Attributes:
        is_anomalous: whether a newest verdict is; None if nobody knows: no verdict yet or none of
            late, a frame that cannot be judged, a watch that ends.
        score: of the verdict that is furthest above its threshold; None likewise.
        verdicts: how many there were in this run.
        beat: a number that grows by one every `StateSink.beat` seconds, while the watch lives.
    """

    is_anomalous: bool | None
    score: float | None
    verdicts: int
    beat: int


@runtime_checkable
class StateSink(Protocol):
    """Where what is now is shown, such as a coil of a PLC: late verdicts would be harmful.

    Attributes:
        address: as it was given, without a password.
        is_state: true.
        wants_pictures: false.
        camera: the one that it shows; None for all of them together.
        stale: seconds after which a verdict is none any more; 0 for never.
        beat: seconds between two looks of whoever watches the watch.
    """

    address: str
    is_state: bool
    wants_pictures: bool
    camera: str | None
    stale: float
    beat: float

    def open(self) -> None:
        """As that of `Sink`."""

    def show(self, state: State) -> None:
        """Show it: at each change, and at each beat.

        Raises:
            SinkError: it was not shown.
        """

    def close(self) -> None:
        """As that of `Sink`."""


AnySink: TypeAlias = Sink | StateSink
