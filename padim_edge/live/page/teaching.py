"""What the page asks of who teaches, `padim_edge.live.teach.Teacher`: one for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from padim_edge.detect.calibration import Row


@dataclass(frozen=True)
class Version:
    """A detector that was kept.

    Attributes:
        name: by which it is rolled back to.
        time: seconds since 1970 at which it was made.
        note: what made it: "fit on 40 parts", "part 41 was good (score 12.31)".
        is_current: it judges now.
    """

    name: str
    time: float
    note: str
    is_current: bool = False


@dataclass(frozen=True)
class Lesson:
    """How far teaching is.

    Attributes:
        is_taking: each frame that comes is taken as one of a good part.
        taken: good parts so far.
        needed: from how many on a detector can be fitted.
        promised: the least false-alarm rate, 0 to 1, that a threshold from these parts can keep;
            None below ``needed``.
        interval: where the share of good parts that will raise an alarm lies then, at 95 %; None
            likewise.
        wanted: the false-alarm rate that was asked for.
        warnings: of parts that were taken, the newest last: "part 7 is nearly equal to part 3".
        odd: numbers of parts of the next fit that are very unlike the others.
        doing: what is being done now, in words; "" if nothing.
        failed: why the last thing that was asked for was not done; "" if it was.
        undoable: what `Teaching.undo` would take back, in words; "" if nothing.
        step: by which `Teaching.undo` knows that it is what was looked at.
        bad: parts that were said to be bad, and are kept.
        said: "good" or "bad", by the event of which it was said and holds now.
        versions: that were kept, newest first.
    """

    is_taking: bool = False
    taken: int = 0
    needed: int = 2
    promised: float | None = None
    interval: tuple[float, float] | None = None
    wanted: float = 0.01
    warnings: tuple[str, ...] = ()
    odd: tuple[int, ...] = ()
    doing: str = ""
    failed: str = ""
    undoable: str = ""
    step: int = 0
    bad: int = 0
    said: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[Version, ...] = field(default=())


@runtime_checkable
class Teaching(Protocol):
    """Teaches a model. Every method may be called in any thread, and may take seconds.

    All but `lesson` raise PadimEdgeError, in one line for people: it cannot be done, and nothing
    has changed.
    """

    def lesson(self) -> Lesson:
        """How far it is; returns at once."""

    def take(self, on: bool) -> None:
        """Take the frames that come as good parts from now on, or no longer."""

    def fit(self) -> None:
        """Fit a detector on what was taken, and let it judge."""

    def was_good(self, event: str) -> None:
        """The part of this event, an anomaly, was good: learn it."""

    def was_bad(self, event: str) -> None:
        """The part of this event was bad: keep it for calibration."""

    def take_back(self, event: str) -> None:
        """What was said of this event was wrong: learn or keep its part no longer."""

    def recall(self) -> Sequence[Row]:
        """Which share of the bad parts is found, by false-alarm rate."""

    def leave_out(self, part: str) -> None:
        """Take a part, by its number, out of those of the next fit."""

    def undo(self, step: int | None = None) -> None:
        """Take back what was taught last, if that is still the one of `Lesson.step`."""

    def roll_back(self, version: str) -> None:
        """Let a kept version judge again."""
