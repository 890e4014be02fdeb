"""What sinks that show a PLC what is now have in common: their options."""

from __future__ import annotations

from dataclasses import dataclass

from padim_edge.live.addresses import Address, number, one_of
from padim_edge.live.sink import State

OPTIONS = ("idle", "camera", "stale", "beat", "timeout")


@dataclass(frozen=True)
class Shown:
    """How the state is shown.

    Attributes:
        camera: the one that is shown; None for all.
        stale: seconds after which a verdict is none any more; 0 for never.
        beat: seconds between two heartbeats.
        timeout: seconds that the PLC has for an answer.
        idle: what stands for "nobody knows"; None for "leave it".
    """

    camera: str | None
    stale: float
    beat: float
    timeout: float
    idle: bool | None

    def value(self, state: State) -> bool | None:
        """What to write for "is it anomalous"; None for nothing."""
        return self.idle if state.is_anomalous is None else state.is_anomalous


def shown(address: Address) -> Shown:
    """Read the options.

    Raises:
        UsageError: one does not read so.
    """
    idle = address.option("idle", one_of("1", "0", "keep"), "1")

    def seconds(text: str) -> float:
        return 0.0 if text == "0" else number()(text)

    return Shown(
        address.options.get("camera"),
        address.option("stale", seconds, 5.0),
        address.option("beat", number(), 1.0),
        address.option("timeout", number(), 3.0),
        None if idle == "keep" else idle == "1",
    )
