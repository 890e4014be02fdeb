"""Delivery: a thread for each sink, which may fail as often as it likes and never stops judging."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from padim_edge.errors import PadimEdgeError, UsageError, first_line
from padim_edge.live.event import Event
from padim_edge.live.sink import AnySink, RefusedError, Sink, SinkError, State, StateSink
from padim_edge.live.sinks.jsonl import LineLog
from padim_edge.live.spool import Spool

FIRST_PAUSE = 0.5
"""Seconds after the first failure; each further one doubles it."""

LONGEST_PAUSE = 60.0
"""Seconds between two tries, at most; a PLC is tried again after a tenth of it."""

LONGEST_WISH = 3600.0
"""Seconds for which a receiver may ask to be left alone."""

TOGETHER = 100
"""Events that are sent at once, at most."""

TOGETHER_PICTURES = 8
"""The same with pictures, which are large."""

IDLE = 5.0
"""Seconds without an event after which a sink may look after its connection."""

ODD_FAILURES = 3
"""Failures in a row that nobody foresaw, after which it must be the event, which is set aside."""

REJECTED_BYTES = 50_000_000
"""Of the file of refused events, of which one earlier one stays; what is older is removed, counted,
and that is said."""


@dataclass(frozen=True)
class Status:
    """How a sink fares.

    Attributes:
        address: without a password.
        state: "connecting", "delivering", "waiting" (after a failure) or "ended".
        backlog: events that wait for it.
        delivered: events that it took, in this run; of a PLC, how often it was shown something.
        dropped: events that the spool had no room for, since it is a sink.
        rejected: events that it refused for good, in this run.
        error: why it is waiting; "" if it is not.
        since: seconds since 1970 at which that began; 0.
    """

    address: str
    state: str
    backlog: int
    delivered: int
    dropped: int
    rejected: int
    error: str
    since: float


class _Delivery:
    """A thread that opens a sink, works, and after a failure pauses and begins again."""

    _longest = LONGEST_PAUSE

    def __init__(self, spool: Spool, sink: AnySink, say: Callable[[str], None]) -> None:
        self._spool, self._say = spool, say
        self.address = sink.address
        self._any = sink
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._state, self._error, self._since = "connecting", "", 0.0
        self._delivered = self._rejected = self._failures = 0
        self._dice = random.Random()
        self._thread = threading.Thread(target=self._run, name="padim-edge-delivery", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self, drain: float) -> None:
        """Deliver what waits, for so many seconds at most, and end; returns at once."""
        self._deadline = time.monotonic() + drain
        self._stopping.set()
        self._spool.wake()

    def join(self, seconds: float) -> bool:
        """Wait for the end; whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _backlog(self) -> tuple[int, int]:
        """How many events wait, and how many were dropped."""
        return 0, 0

    def status(self) -> Status:
        """How it fares now; from any thread."""
        backlog, dropped = self._backlog()
        return Status(
            self.address,
            self._state,
            backlog,
            self._delivered,
            dropped,
            self._rejected,
            self._error,
            self._since,
        )

    def _run(self) -> None:
        while True:
            pause = 0.0
            try:
                self._any.open()
                self._state = "delivering"
                self._work()
                break
            except SinkError as error:
                self._failed(str(error))
                pause = min(error.retry_after, LONGEST_WISH)
            except UsageError as error:  # it will not change soon, but a person may mend it
                self._failed(str(error))
                pause = self._longest
            except PadimEdgeError as error:
                self._failed(str(error))
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                self._failed(f"{self.address}: this should not happen: {reason}")
            self._close()
            self._state = "waiting"
            grown = min(self._longest, FIRST_PAUSE * 2 ** min(self._failures - 1, 20))
            # Of many watches not all at once, when their broker is there again.
            self._pause(max(pause, grown * self._dice.uniform(0.5, 1.0)))
            if self._stopping.is_set() and time.monotonic() >= self._deadline:
                break
        self._close()
        self._state = "ended"

    def _pause(self, seconds: float) -> None:
        """Wait; while it ends for shorter times, and not beyond the end."""
        if not self._stopping.wait(seconds):
            return
        left = self._deadline - time.monotonic()
        if left > 0 and self._failures > 1:
            time.sleep(min(left, FIRST_PAUSE))

    def _work(self) -> None:
        """Deliver until the end.

        Raises:
            PadimEdgeError: it does not work now.
        """
        raise NotImplementedError

    def _failed(self, why: str) -> None:
        self._failures += 1
        if not self._error:  # once in a row
            self._since = time.time()
            backlog = self._backlog()[0]
            waiting = f"; {backlog} events wait" if backlog else ""
            self._tell(f"{why}; it is tried again{waiting}")
        self._error = why

    def _worked(self) -> None:
        self._failures = 0
        if self._error:
            self._error, self._since = "", 0.0
            self._tell(f"{self.address} takes events again")

    def _tell(self, message: str) -> None:
        if not self._stopping.is_set():  # nobody would deliver it
            self._say(message)

    def _close(self) -> None:
        with suppress(Exception):  # a broken connection may fail in whatever way
            self._any.close()


class Delivery(_Delivery):
    """Sends what the spool has for a sink, in order, each event at least once.

    Args:
        spool: which knows the sink's address.
        sink: used by this thread alone.
        say: told, in words, when a sink fails and when it works again.
        rejected: a file of JSON lines for events that a sink will never take.
    """

    def __init__(
        self, spool: Spool, sink: Sink, say: Callable[[str], None], rejected: LineLog
    ) -> None:
        super().__init__(spool, sink, say)
        self._sink, self._set_aside = sink, rejected
        self._together = TOGETHER_PICTURES if sink.wants_pictures else TOGETHER
        self._odd = 0  # failures in a row that nobody foresaw
        self._alone = 0  # so many events are sent one by one, to find whose fault it is

    def _backlog(self) -> tuple[int, int]:
        return self._spool.backlog(self.address), self._spool.dropped(self.address)

    def _work(self) -> None:
        looked = time.monotonic()
        while not (self._stopping.is_set() and time.monotonic() >= self._deadline):
            seen = self._spool.appended
            together = 1 if self._alone else self._together
            events = self._spool.pending(self.address, together, pictures=self._sink.wants_pictures)
            if events:
                self._send(events)
                looked = time.monotonic()
            elif self._stopping.is_set():
                return
            else:
                if time.monotonic() - looked >= IDLE:
                    self._sink.send(())
                    looked = time.monotonic()
                self._spool.wait(seen, IDLE)

    def _send(self, events: Sequence[Event]) -> None:
        try:
            self._sink.send(events)
        except SinkError as error:
            if error.delivered:
                self._have(events[: error.delivered])
            if not isinstance(error, RefusedError):
                raise
            self._reject(events[error.delivered], error)
        except PadimEdgeError:
            raise
        except Exception as error:
            self._odd += 1
            self._alone = self._together
            if self._odd <= ODD_FAILURES or len(events) > 1:
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            self._reject(
                events[0], RefusedError(f"{self.address}: this should not happen: {reason}")
            )
        else:
            self._have(events)
            self._alone = max(0, self._alone - len(events))
        self._odd = 0

    def _have(self, events: Sequence[Event]) -> None:
        self._spool.delivered(self.address, events[-1].id)
        self._delivered += len(events)
        self._worked()

    def _reject(self, event: Event, error: RefusedError) -> None:
        record = {"sink": self.address, "why": str(error), "event": event.record}
        try:
            removed = self._set_aside.write_shared(record)
        except OSError as failed:
            raise SinkError(
                f"{error}; and {self._set_aside.path}, for events that are refused, cannot be "
                f"written: {first_line(failed)}"
            ) from failed
        if removed:
            self._tell(
                f"{self._set_aside.path} is full ({REJECTED_BYTES} bytes, and as many in the one "
                f"before it): the oldest {removed} events that were refused are removed from there "
                f"({self._set_aside.removed} so far)"
            )
        self._spool.delivered(self.address, event.id)
        self._rejected += 1
        if self._rejected & (self._rejected - 1) == 0:  # the 1st, 2nd, 4th, 8th...
            self._tell(
                f"{error}: event {event.id} is in {self._set_aside.path} now, the sink will never "
                f"take it ({self._rejected} so far)"
            )


class StateDelivery(_Delivery):
    """Shows what is now, at each change and each beat; what nobody knows, and the end, as that.

    Args:
        spool: which knows the newest verdicts.
        sink: used by this thread alone.
        say: as that of `Delivery`.
        cameras: of the watch, by their names: what is good, is good of each that is shown.

    Raises:
        UsageError: the sink shows a camera that there is not.
    """

    _longest = LONGEST_PAUSE / 10

    def __init__(
        self, spool: Spool, sink: StateSink, say: Callable[[str], None], cameras: Sequence[str]
    ) -> None:
        super().__init__(spool, sink, say)
        if sink.camera is not None and sink.camera not in cameras:
            raise UsageError(
                f"{sink.address}: no camera is called {sink.camera!r}; there are "
                f"{', '.join(cameras)}"
            )
        self._sink = sink
        self._cameras = frozenset(cameras if sink.camera is None else [sink.camera])
        self._began = time.monotonic()

    def _work(self) -> None:
        shown = None
        while not self._stopping.is_set():
            seen = self._spool.appended
            now = self.state()
            if now != shown:
                self._show(now)
                shown = now
            phase = (time.monotonic() - self._began) % self._sink.beat
            self._spool.wait(seen, self._sink.beat - phase)
        now = self.state()
        self._show(State(None, None, now.verdicts, now.beat))

    def _show(self, state: State) -> None:
        self._sink.show(state)
        self._delivered += 1
        self._worked()

    def state(self) -> State:
        """What is now."""
        newest, verdicts = self._spool.newest()
        now = time.monotonic()
        stale = self._sink.stale or float("inf")
        fresh = [
            event.record
            for event, at in newest
            if event.record["camera"] in self._cameras
            and event.record["kind"] == "verdict"
            and now - at <= stale
        ]
        anomalous = any(record["is_anomalous"] for record in fresh)
        # One camera that sees a fault is enough, and all must see none: one that was never heard
        # of has not.
        is_known = anomalous or len(fresh) == len(self._cameras)
        scores = [record for record in fresh if record["score"] is not None]
        worst = max(scores, key=lambda it: it["score"] - it["threshold"], default=None)
        return State(
            anomalous if is_known else None,
            float(worst["score"]) if worst and is_known else None,
            verdicts,
            int((now - self._began) / self._sink.beat),
        )


class Deliveries:
    """All sinks of a watch.

    Args:
        spool: made for the addresses of those sinks that are not `StateSink`s (`spooled`).
        sinks: as `padim_edge.live.sinks.make_sink` makes them.
        cameras: of the watch, by their names.
        say: told in words what a person should know of a sink: makes an event, say.

    Raises:
        UsageError: a sink shows a camera that there is not.
    """

    def __init__(
        self,
        spool: Spool,
        sinks: Sequence[AnySink],
        cameras: Sequence[str],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        rejected = LineLog(rejected_file(spool.path), REJECTED_BYTES, keep=1, counts=True)
        self._all: list[_Delivery] = [
            Delivery(spool, sink, say, rejected)
            if isinstance(sink, Sink)
            else StateDelivery(spool, sink, say, cameras)
            for sink in sinks
        ]

    def start(self) -> None:
        """Begin."""
        for delivery in self._all:
            delivery.start()

    def statuses(self) -> list[dict[str, Any]]:
        """Each sink's `Status`, as plain values; from any thread."""
        return [asdict(delivery.status()) for delivery in self._all]

    def close(self, drain: float = 5.0) -> list[str]:
        """End: what waits is delivered, for so many seconds at most.

        Returns:
            What is not, and who does not end: in words, a line for each sink.
        """
        for delivery in self._all:
            delivery.finish(drain)
        deadline = time.monotonic() + drain + 1.0  # a moment for saying good-bye
        left = []
        for delivery in self._all:
            ended = delivery.join(max(0.0, deadline - time.monotonic()))
            status = delivery.status()
            if status.backlog:
                left.append(
                    f"{status.backlog} events wait for {status.address}, and are delivered at the "
                    "next start"
                )
            elif not ended:
                left.append(f"{status.address} does not answer, and is left behind")
        return left


def spooled(sinks: Iterable[AnySink]) -> list[str]:
    """The addresses that a spool must know."""
    return [sink.address for sink in sinks if not sink.is_state]


def rejected_file(spool: Path) -> Path:
    """Where events are set aside that a sink will never take: beside the spool."""
    return spool.with_name(f"{spool.stem}-rejected.jsonl")
