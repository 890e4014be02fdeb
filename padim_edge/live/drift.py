"""Drift: whether what comes now is still what the detector was fitted on.

Each number that a frame has (its score; brightness, sharpness and so on, `images.appearance`) is
held against those of the fit's photos by a sequential test. The N values of the photos leave N + 1
gaps. While all values are exchangeable, the next one falls into one of the outer t gaps, given that
c of the n before it did, with the probability (Polya's urn, whatever the distribution)

    P = (t + c) / (N + 1 + n)

Without c the photos would be taken for the whole truth, and N that happen to be dark would make
every frame look bright for ever. A gambler stakes the share b of his money on the outer gaps: it is
multiplied by b / P if the value falls there, else by (1 - b) / (1 - P), on average by 1. Nobody
knows when a drift begins; so one begins to bet at each n, with a share w_n = 1 / log2(n + 1) -
1 / log2(n + 2) of the money, which add up to 1. With the gain g_n of one who bets at n,

    S_n = (S_{n-1} + w_n) g_n        M_n = S_n + 1 / log2(n + 2)

M_n is a martingale that begins at 1, the mean of several (`BETS`, above and below) is one
too, and by Ville's inequality

    P(M_n >= 1 / alpha for any n) <= alpha

however long it goes on: that is the stated rate, of ever saying that there is drift where there is
none. It is split evenly among the numbers that are tested. (Ville 1939; Vovk, Nouretdinov,
Gammerman, Testing exchangeability on-line, 2003; bets that begin later: Vovk, Testing randomness
online, 2021.)

What it rests on, and how far that holds:

- Frames of a video are no independent draws. One is looked at each `EVERY` seconds, and none that
  shows what the one before it did: one a part, if parts come faster than that or stand still.
- Leave-one-out scores are of fits of N - 1 photos, those of frames of one of N: frames score lower
  by a hair. As P learns from all values, such a difference can gain no more than N photos tell of
  it, however many frames come. Statistics of images have none.
- Scores that "this was good" has added were chosen for being high: of a detector taught like that,
  the stated rate does not hold for its scores.
- Of a frame that is an alarm the score is not used: it may be a defect. The scores of accepted ones
  are those of the photos *below the threshold*: given that the threshold is the k-th smallest of
  independent draws, the k - 1 below it are draws from what is accepted.

A scene that stands still gives no draws, and where a line waits its light may change all the same.
But one scene can be held against itself: what moves its numbers is the light, the lens or the
camera, not another part. So there is a second rule, without a rate. The first `LOOKS` values of a
scene are what it was. Drift is said when all of the newest `LOOKS` lie beyond all of those by more
than the photos' last value on that side lies from their median: parts that change as the scene has
would look like none of the photos. And by more than the first differ among themselves, as where a
lamp flickers. That is said once; it ends when so many of the same scene in a row are less than half
as far out, or as the drift of parts does. No chance value can bring it about, sixteen in a row must
lie so; values that only change places would do so, however little beyond, in one of
C(16, 8) = 12870 orders. What changes together with the scene is told by the next parts alone.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.detect.detector import Result
from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.fit.copies import GRID, STILL, small
from padim_edge.images.appearance import Appearance
from padim_edge.model.metadata import DetectorInfo

if TYPE_CHECKING:
    from padim_edge.live.board import Seen
    from padim_edge.live.swap import ModelSlot

ALPHA = 0.01
"""Of ever saying that there is drift where there is none, from one start to the next."""

EVERY = 2.0
"""Seconds between two frames that are looked at."""

BETS = ((0.0, 0.8), (0.125, 0.8), (0.333, 0.8), (0.5, 0.75))
"""Share of the gaps that are the outer ones (one at least), and of the money staked on them: values
beyond those of all photos are what the first waits for, small changes the last."""

RECENT = 16
"""Values that what is now is told by, and whether a drift has ended."""

ENDED = 1.5
"""Standard deviations of the rank sum within which recent values are like those of the photos."""

LOOKS = 8
"""Values of a scene that it was known by, and that it is known by now."""

SAME = 0.3 * (3 * GRID**2) ** 0.5
"""Small pictures this close are of one scene in whatever light: at half or one and a half times the
brightness, or with red at .85, a bottle or a hazelnut lies within .25 of itself; with a camera's
noise alone within .01 (`padim_edge.fit.copies.STILL`). Different bottles do as well: then the scene
is the line, to which the same rule applies."""

SCORE = "score"
KINDS = {
    SCORE: "the scores of accepted frames have changed",
    "brightness": "the light has changed",
    "contrast": "the light has changed",
    "red": "the colour of the light has changed",
    "blue": "the colour of the light has changed",
    "sharpness": "the focus has changed",
    "across": "the position has changed",
    "down": "the position has changed",
}


class Test:
    """A test of one number.

    Attributes:
        wealth: M_n; 1 / alpha is reached with a probability of alpha at most.

    Args:
        usual: values of the photos, at least one.
    """

    __test__ = False  # pytest takes it for one of its own

    def __init__(self, usual: Sequence[float]) -> None:
        self._usual = sorted(map(float, usual))
        self._gaps = len(self._usual) + 1
        # Upwards and downwards in turn: outer gaps, values that fell there, stake.
        sizes = [max(1, round(share * self._gaps)) for share, _ in BETS for _ in range(2)]
        self._sizes = [min(size, self._gaps - 1) for size in sizes]
        self._fell = [0] * len(sizes)
        self._stakes = [stake for _, stake in BETS for _ in range(2)]
        self._bets = [0.0] * len(sizes)
        # Of each bet what it would be worth had it begun when that was best, and when that was.
        self._best = [(1.0, 0.0)] * len(sizes)
        self._count = 0
        self.wealth = 1.0

    def add(self, value: float, when: float = 0.0) -> float:
        """Take a new value; returns `wealth`. One that equals a photo's counts as further in."""
        gap = (
            self._gaps - 1 - bisect.bisect_left(self._usual, value),
            bisect.bisect_right(self._usual, value),
        )
        total = self._gaps + self._count
        self._count += 1
        share = 1 / math.log2(self._count + 1) - 1 / math.log2(self._count + 2)
        for place, stake in enumerate(self._stakes):
            is_outer = gap[place % 2] < self._sizes[place]
            chance = (self._sizes[place] + self._fell[place]) / total
            gain = stake / chance if is_outer else (1 - stake) / (1 - chance)
            self._fell[place] += is_outer
            self._bets[place] = (self._bets[place] + share) * gain
            worth, begun = self._best[place]
            self._best[place] = (worth * gain, begun) if worth > 1 else (gain, when)
        self.wealth = sum(self._bets) / len(self._bets) + 1 / math.log2(self._count + 2)
        return self.wealth

    @property
    def since(self) -> float:
        """When that which wins most began."""
        return self._best[max(range(len(self._bets)), key=self._bets.__getitem__)][1]


@dataclass(frozen=True)
class Change:
    """A drift that begins or ends.

    Attributes:
        statistic: what: "score", or one of `padim_edge.images.appearance.STATISTICS`.
        begins: else it ends.
        since: seconds since 1970 at which it seems to have begun.
        usual: lowest, median and highest value of the fit's photos.
        now: median of the newest values.
        before: median of the same scene before it changed; None where it is told by the parts.
    """

    statistic: str
    begins: bool
    since: float
    usual: tuple[float, float, float]
    now: float
    before: float | None = None

    def __str__(self) -> str:
        low, median, high = self.usual
        clock = time.strftime("%H:%M:%S", time.localtime(self.since))
        now = f"{self.statistic} {self.now:.4g}"
        photos = f"in the photos {low:.4g} to {high:.4g} (median {median:.4g})"
        if self.before is not None:
            now += f", in this scene before {self.before:.4g}"
            if not self.begins:
                return f"{self.statistic} is as it was in this scene again: {now}"
        elif not self.begins:
            return f"{self.statistic} is as in the photos again: {now}, {photos}"
        return f"{KINDS[self.statistic]}: {now}, {photos}, since {clock}"

    def fields(self) -> dict[str, Any]:
        """What an event has beside the message."""
        return {
            "statistic": self.statistic,
            "begins": self.begins,
            "since": self.since,
            "usual": list(self.usual),
            "now": self.now,
            "before": self.before,
        }


BEYOND, BACK = "beyond", "back"


class _Scene:
    """One number of one scene: where it was, where it is, and whether that is far from there."""

    def __init__(self, usual: NDArray[np.float64]) -> None:
        middle = float(np.median(usual))
        self._room = middle - float(usual[0]), float(usual[-1]) - middle
        self._first: list[float] = []
        self._newest: deque[tuple[float, float]] = deque(maxlen=LOOKS)

    def add(self, value: float, when: float) -> str:
        """`BEYOND`, `BACK`, or "" in between, and as long as too little is known."""
        if len(self._first) < LOOKS:
            self._first.append(value)
            return ""
        self._newest.append((value, when))
        if len(self._newest) < LOOKS:
            return ""
        low, high = min(self._first), max(self._first)
        below, above = (max(room, high - low) for room in self._room)
        values = [value for value, _ in self._newest]
        if max(values) < low - below or min(values) > high + above:
            return BEYOND
        is_back = min(values) >= low - below / 2 and max(values) <= high + above / 2
        return BACK if is_back else ""

    @property
    def before(self) -> float:
        return float(np.median(self._first))

    @property
    def now(self) -> float:
        return float(np.median([value for value, _ in self._newest]))

    @property
    def since(self) -> float:
        return self._newest[0][1]


class _Watched:
    """One number: its test, and what it is now."""

    def __init__(self, name: str, usual: Sequence[float], alpha: float) -> None:
        self.name = name
        self._usual = np.sort(np.asarray(usual, np.float64))
        self._limit = 1 / alpha
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._scene = _Scene(self._usual)
        self._restart()

    def _restart(self) -> None:
        self._test = Test(self._usual.tolist())
        self.since: float | None = None
        self._after = 0
        self._by_scene = False  # drift was said of the scene that is seen still

    def look(self, value: float, when: float, is_same: bool) -> Change | None:
        """Take a value of a scene, which is the same as that before or another."""
        if not is_same:
            # Of another scene nobody knows how it was before: only parts can tell of the end now.
            self._scene, self._by_scene = _Scene(self._usual), False
        moved = self._scene.add(value, when)
        if self.since is None and moved == BEYOND:
            self.since, self._by_scene = self._scene.since, True
            return self._of_scene(True, self.since)
        if self.since is not None and self._by_scene and moved == BACK:
            change = self._of_scene(False, self.since)
            self._restart()
            return change
        return None

    def _of_scene(self, begins: bool, since: float) -> Change:
        return dataclasses.replace(
            self._change(begins, since), now=self._scene.now, before=self._scene.before
        )

    def add(self, value: float, when: float) -> Change | None:
        self._recent.append(value)
        if self.since is not None:
            self._after += 1
            if self._after < RECENT or not self._is_usual():
                return None
            change = self._change(False, self.since)
            self._restart()
            return change
        if self._test.add(value, when) < self._limit:
            return None
        self.since = self._test.since
        return self._change(True, self.since)

    def _change(self, begins: bool, since: float) -> Change:
        usual = self._usual
        spread = float(usual[0]), float(np.median(usual)), float(usual[-1])
        # Of what came since alone: the median of more would be that of before for a while.
        newest = list(self._recent)[-RECENT // 2 :] or [math.nan]  # of a scene there may be none
        return Change(self.name, begins, since, spread, float(np.median(newest)))

    def _is_usual(self) -> bool:
        """By the rank sum of the newest values among the photos' (Mann and Whitney, 1947)."""
        new, old = np.array(self._recent), self._usual
        below = np.searchsorted(old, new, "left") + np.searchsorted(old, new, "right")
        n, m = len(new), len(old)
        deviation = (n * m * (n + m + 1) / 12) ** 0.5
        return bool(abs(below.sum() / 2 - n * m / 2) <= ENDED * deviation)


class Drift:
    """Takes frames of one camera that a detector has judged, and says when they have drifted.

    Attributes:
        notes: what cannot be told of this file, a line each.

    Args:
        info: of the detector.
        alpha: of ever saying that there is drift where there is none, of all numbers together.
        threshold: that frames are accepted by, if not the file's.
    """

    def __init__(
        self, info: DetectorInfo, alpha: float = ALPHA, threshold: float | None = None
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self._appearance = Appearance.from_field(info.appearance)
        usual: dict[str, Sequence[float]] = {}
        limit = info.threshold if threshold is None else threshold
        accepted = [score for score in info.good_scores if score < limit]
        if len(accepted) >= 2:
            usual[SCORE] = accepted
        else:
            self.notes += ("its scores are too few to tell whether those of frames drift",)
        if self._appearance:
            usual |= {name: self._appearance.values[name] for name in self._appearance.values}
        else:
            self.notes += (
                "it does not say how its photos look (it was fitted before padim-edge kept that, "
                "or imported): changes of light, focus and position are not told; fit again for it",
            )
        self._watched = {
            name: _Watched(name, values, alpha / len(usual)) for name, values in usual.items()
        }

    def __call__(
        self,
        result: Result | None,
        image: NDArray[np.uint8],
        when: float,
        is_new: bool = True,
        is_same: bool = False,
    ) -> list[Change]:
        """Take a frame.

        Args:
            result: what the detector says; None if it has not judged it.
            image: what it was given, uint8 [H, W, 3].
            when: seconds since 1970.
            is_new: it shows something else than the one before, and so is a draw.
            is_same: it is of one scene with it, in whatever light.
        """
        values: dict[str, float] = self._appearance(image) if self._appearance else {}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        found = [
            self._watched[name].look(value, when, is_same)
            for name, value in values.items()
            if name in self._watched
        ]
        if not is_new:
            return [change for change in found if change is not None]
        if result is not None and not result.is_anomalous:
            values[SCORE] = result.score
        found += [
            self._watched[name].add(value, when)
            for name, value in values.items()
            if name in self._watched and math.isfinite(value)
        ]
        return [change for change in found if change is not None]

    @property
    def drifting(self) -> Mapping[str, float]:
        """What drifts now, and since when."""
        return {name: one.since for name, one in self._watched.items() if one.since is not None}


@dataclass(frozen=True, eq=False)
class _Last:
    """What was looked at last of a camera.

    Attributes:
        when: seconds since 1970.
        draw: the small picture of the last frame that was a draw.
        scene: that of the first of its scene.
    """

    when: float
    draw: NDArray[np.float32]
    scene: NDArray[np.float32]


class DriftWatch:
    """Looks for drift in what a watch sees: an observer, of the cameras of one slot.

    Args:
        slot: whose detector judges; another one begins anew.
        say: told of changes: `Watch.say`, with kind "drift", the camera, a message, and fields.
        cameras: whose frames are looked at; None for all.
        alpha: see `Drift`; of each camera.
        every: seconds between two frames of a camera that are looked at, in the frames' own time.
    """

    def __init__(
        self,
        slot: ModelSlot,
        say: Callable[..., object],
        cameras: Sequence[str] | None = None,
        alpha: float = ALPHA,
        every: float = EVERY,
    ) -> None:
        self._slot, self._say, self._alpha, self._every = slot, say, alpha, every
        self._cameras = None if cameras is None else frozenset(cameras)
        self._info: DetectorInfo | None = None
        self._threshold: float | None = None
        self._drifts: dict[str, Drift] = {}
        self._last: dict[str, _Last] = {}

    def __call__(self, seen: Seen) -> None:
        """Look at a frame, if it is time; some 0.3 ms then, beside that of preparing it again."""
        result, picture = seen.outcome, seen.captured.picture
        if result is None or isinstance(result, ImageError) or isinstance(picture, ImageError):
            return
        if self._cameras is not None and seen.camera not in self._cameras:
            return
        info = self._slot.detector_info
        if info is None:
            return
        if info is not self._info or result.threshold != self._threshold:
            self._info, self._threshold = info, result.threshold
            self._begin_anew()
        when = seen.captured.time
        last = self._last.get(seen.camera)
        if last is not None and 0 <= when - last.when < self._every:
            return
        try:
            image = info.preprocess(picture)
        except PadimEdgeError:  # a file that has gone meanwhile, a frame in a GPU
            return
        looks = small(image)
        is_new = last is None or np.linalg.norm(looks - last.draw) >= STILL
        is_same = last is not None and bool(np.linalg.norm(looks - last.scene) < SAME)
        self._last[seen.camera] = _Last(
            when,
            looks if is_new or last is None else last.draw,
            last.scene if is_same and last is not None else looks,
        )
        drift = self._drifts.get(seen.camera)
        if drift is None:
            drift = self._drifts[seen.camera] = Drift(info, self._alpha, result.threshold)
            for note in drift.notes:
                self._say("drift", seen.camera, note)
        for change in drift(result, image, when, bool(is_new), is_same):
            self._say("drift", seen.camera, str(change), **change.fields())

    def _begin_anew(self) -> None:
        """Another detector judges: what drifted by the one before is over, and that is said."""
        for camera, drift in self._drifts.items():
            for name in drift.drifting:
                message = f"{name}: another detector judges, whose photos it is held against now"
                self._say("drift", camera, message, statistic=name, begins=False)
        self._drifts.clear()
