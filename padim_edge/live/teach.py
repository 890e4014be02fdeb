"""Teaching: a detector for one model's cameras, made on the device of the frames that come.

Frames are offered by the watch (`Teacher.__call__`, an observer). What is taken of them goes
through the backbone at once, in a thread of its own, so that a fit is only the statistics. Photos,
detectors and their moments are kept by `versions.Versions`; nothing is said to be done before it
would survive a kill.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.detect.calibration import NO_PHOTOS, Photos, Row, recalibrate
from padim_edge.errors import ImageError, PadimEdgeError, UsageError, first_line
from padim_edge.fit.copies import STILL, group_near, small
from padim_edge.fit.features import STORE_IN_MEMORY, Backbone, Features
from padim_edge.fit.fit import Made, check_settings, fit_features
from padim_edge.fit.outliers import LEAST
from padim_edge.fit.saved import SavedMoments, identity_of
from padim_edge.fit.settings import DEFAULT_FALSE_ALARM_RATE, Settings
from padim_edge.images.appearance import look
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess
from padim_edge.live.page.teaching import Lesson
from padim_edge.live.page.teaching import Version as Listed
from padim_edge.live.photos import to_image
from padim_edge.live.versions import MAX_BYTES, Photo, Version, Versions
from padim_edge.model.file import Model, read, write
from padim_edge.model.pooling import with_pooled
from padim_edge.model.threshold import images_needed, rate_interval, smallest_false_alarm_rate

if TYPE_CHECKING:
    from padim_edge.live.board import Seen
    from padim_edge.live.source import Captured
    from padim_edge.live.swap import ModelSlot

EVERY = 0.5
"""Seconds between two frames that are taken."""

NICE = 10
"""Of the threads that take and fit: judging goes before."""

HELD = 256 * 2**20
"""Bytes of frames that are held so that it may be said of them what they were: three quarters for
the anomalous ones, which are asked for, the rest for the newest others, a missed defect among them.
"""

WARNINGS = 20
"""That are kept."""

Answer = TypeVar("Answer")

Say = Callable[[str, str | None, str], object]
"""Told of a kind of event, a camera and a message: `Watch.say`."""


def say_nothing(_kind: str, _camera: str | None, _message: str) -> None:
    """Tell nobody."""


@dataclass(eq=False)
class _Taken:
    """What is known of a photo: as the graph is given it, and what follows from that."""

    image: NDArray[np.uint8]
    digest: bytes
    small: NDArray[np.float32]
    look: NDArray[np.float64]
    ratio: float
    levels: list[NDArray[np.float32]] | None = None

    @classmethod
    def of(cls, image: NDArray[np.uint8], ratio: float) -> _Taken:
        digest = hashlib.sha256(image.tobytes()).digest()
        return cls(image, digest, small(image), look(image), ratio)


@dataclass(frozen=True, eq=False)
class _Shown:
    """A frame that may be learnt, held as it was when it came.

    Attributes:
        picture: its pixels; or the bytes of its image file, which may be another one later, or
            gone; or why there are none.
        time: as of `Captured`.
        name: the same.
    """

    picture: Frame | bytes | ImageError
    time: float
    name: str

    @classmethod
    def of(cls, captured: Captured) -> _Shown:
        picture: Frame | Path | bytes | ImageError = captured.picture
        if isinstance(picture, Path):
            try:
                picture = picture.read_bytes()
            except OSError as error:
                reason = error.strerror or error
                picture = ImageError(
                    f"{captured.picture} cannot be read any more ({reason}): let files lie until "
                    "their verdict is told"
                )
            except PadimEdgeError as error:  # of a store
                picture = ImageError(first_line(error))
        return cls(picture, captured.time, captured.name)

    @property
    def held(self) -> int:
        """Bytes of memory."""
        if isinstance(self.picture, Frame):
            return int(self.picture.layout.nbytes)
        return 4096 + (len(self.picture) if isinstance(self.picture, bytes) else 0)


class Teacher:
    """Teaches the detector of a slot. An observer of a watch; its methods may be called anywhere.

    While something is fitted, judging goes on. Every method but `lesson` returns when what it asks
    for is done, or raises PadimEdgeError in one line, and nothing has changed then.

    Attributes:
        versions: photos and detectors, kept.
        settings: how is fitted.
        skipped: frames that were not taken because they show what the one before them did.

    Args:
        folder: where everything is kept; a teacher goes on where the last one was.
        embedding: a file made by export, or what was read from it; quantised ones, too.
        slot: whose detector is swapped.
        settings: how to fit; None for the defaults. Of a whitened preset the embedding has all
            channels.
        cameras: whose frames are taken; None for all.
        say: told of what happens.
        engine: what runs the backbone: of `padim_edge.runtime.graphs.GRAPHS`, or "auto".
        threads: of it and of the statistics; 0 for all cores.
        every: seconds between two frames that are taken.
        max_bytes: of the folder.
        held_bytes: of frames that are held, so that one can say what they were.

    Raises:
        UsageError: settings that have no moments (Ledoit-Wolf) or do not fit the embedding, or the
            folder is of others.
        PadimEdgeError: the folder cannot be written, or a kept detector does not open.
    """

    def __init__(
        self,
        folder: str | Path,
        embedding: str | Path | Model,
        slot: ModelSlot,
        settings: Settings | None = None,
        *,
        cameras: Sequence[str] | None = None,
        say: Say = say_nothing,
        engine: str = "auto",
        threads: int = 0,
        every: float = EVERY,
        max_bytes: int = MAX_BYTES,
        held_bytes: int = HELD,
    ) -> None:
        if not isinstance(embedding, Model):
            embedding = read(embedding, "embedding")
        self._embedding = embedding
        self.settings = settings or Settings(Preprocess.whole(embedding.backbone_info.image_size))
        check_settings(embedding, self.settings, moments=True)
        self.skipped = 0
        self._slot, self._say, self._threads, self._every = slot, say, threads, every
        self._cameras = None if cameras is None else frozenset(cameras)
        self._lock = threading.RLock()  # of all that is done, one thing at a time
        self._files = contextlib.ExitStack()
        try:
            identity = identity_of(embedding.sha256, self.settings)
            self.versions = Versions(folder, identity, max_bytes)
            self._files.callback(self.versions.close)
            head = self.settings.head()
            self._backbone = self._files.enter_context(
                Backbone(with_pooled(embedding, head) if head else embedding, engine, threads)
            )
            each = 4 * sum(cells * values for cells, values in self._backbone.shapes)
            self._most = max(3, STORE_IN_MEMORY // (2 * each))  # a fit has them twice
            good = self.versions.state.good
            self._taken = {number: self._stored(number) for number in good}
            if self.versions.state.version:
                slot.swap(self.versions.model(self.versions.state.version))
        except BaseException:
            self._files.close()
            raise
        self._held = (_Held(held_bytes * 3 // 4), _Held(held_bytes // 4))
        self._warnings: deque[str] = deque(maxlen=WARNINGS)
        self._doing = self._failed = ""
        self._is_taking = False
        self._left: int | None = None
        self._counting = threading.Lock()  # of these two: orders come while a frame is taken
        self._next = 0.0
        self._odd_at = LEAST
        self._looked: tuple[int, ...] = ()
        self._odd: tuple[int, ...] = ()
        self._closing = False
        self._offered: queue.Queue[_Shown | None] = queue.Queue(1)
        self._worker = threading.Thread(target=self._work, name="padim-edge-teach", daemon=True)
        self._worker.start()

    # --- frames ----------------------------------------------------------------------------------

    def __call__(self, seen: Seen) -> None:
        """Look at a frame of the watch; takes microseconds, and reads its file if it is one."""
        if isinstance(seen.outcome, ImageError) or isinstance(seen.captured.picture, ImageError):
            return
        if self._cameras is not None and seen.camera not in self._cameras:
            return
        now = time.monotonic()
        is_wanted = self._is_taking and now >= self._next
        if seen.outcome is None and not is_wanted:
            return
        shown = _Shown.of(seen.captured)
        if seen.outcome is not None:
            self._held[0 if seen.outcome.is_anomalous else 1].add(seen.event.id, shown)
        if is_wanted:
            with contextlib.suppress(queue.Full):
                self._offered.put_nowait(shown)
                self._next = now + self._every

    def take(self, on: bool = True, count: int | None = None) -> None:
        """Take the frames that come as ones of good parts, or no longer.

        One at most every so many seconds, and none that shows what the last one did.

        Args:
            on: whether to.
            count: how many, after which it ends; None for no end.
        """
        with self._counting:
            self._left, self._next, self._failed = count, 0.0, ""
            self._is_taking = on and count != 0
        if not self._is_taking:
            with contextlib.suppress(queue.Full):  # the frame that waits is not taken any more
                self._offered.put_nowait(None)

    def _work(self) -> None:
        """Take what is offered; when taking has ended, look for odd ones."""
        _be_nice()  # taking a frame may be a whole fit, which looks for odd ones
        while not self._closing:
            shown = self._offered.get()
            try:
                with self._lock:  # what was ordered while something else was done holds
                    if self._is_taking and shown is not None:
                        self._take(shown)
                    elif not (self._is_taking or self._closing):
                        self._warn_of_odd_ones()
            except Exception as error:  # whatever an engine raises: the thread goes on
                self._failed = first_line(error)
                # A single bad frame is none; a full disk, or memory, is the end of it.
                if not isinstance(error, ImageError):
                    self._is_taking = False
                    self._say("watch", None, f"no more parts are taken: {self._failed}")

    def take_frame(self, captured: Captured) -> bool:
        """Take a frame as one of a good part.

        Returns:
            Whether it was; not if it shows what the last one did.

        Raises:
            ImageError: it cannot be prepared.
            PadimEdgeError: no room, on the disk or in memory.
        """
        return self._take(_Shown.of(captured))

    def _take(self, shown: _Shown) -> bool:
        with self._lock:
            self._check_open()
            taken = self._prepared(shown)
            good = self.versions.state.good
            if good and self._is_still(taken, self._taken[good[-1]]):
                self.skipped += 1
                return False
            if self._known(taken):
                self.skipped += 1
                return False
            if len(good) >= self._most:
                raise PadimEdgeError(
                    f"{len(good)} good parts are held, as many as there is memory for: fit on them"
                )
            taken.levels = [level[0] for level in self._backbone(taken.image[None])]
            photo = self._new_photo(shown, taken, is_good=True)
            self._taken[photo.number] = taken
            self._add_photo(photo)
            self._failed = ""
            self._warn_if_near(photo.number)
            with self._counting:
                if self._left is not None:
                    self._left = max(self._left - 1, 0)
                    self._is_taking = self._is_taking and self._left > 0
            parts = self._independent()
            if parts >= self._odd_at or (parts >= LEAST and not self._is_taking):
                self._odd_at = 2 * parts
                self._warn_of_odd_ones()
            return True

    def _add_photo(self, photo: Photo) -> None:
        try:
            self.versions.add_photo(photo)
        except BaseException:
            self.versions.discard(photo)
            raise

    def _prepared(self, shown: _Shown) -> _Taken:
        picture = shown.picture
        if isinstance(picture, ImageError):
            raise picture
        try:
            image, (height, width) = self.settings.preprocess.prepare(picture)
        except ImageError as error:
            raise ImageError(f"{shown.name}: {error}" if shown.name else str(error)) from error
        return _Taken.of(image, width / height)

    def _stored(self, number: int) -> _Taken:
        """A kept photo; its features follow when they are needed."""
        path = self.versions.photo(number)
        try:
            with Image.open(path) as file:
                image = np.array(file.convert("RGB"))
                ratio = float(file.info.get("ratio", image.shape[1] / image.shape[0]))
        except (OSError, ValueError, SyntaxError) as error:
            raise PadimEdgeError(
                f"{path} cannot be read ({first_line(error)}): bring it back, or give another "
                "folder"
            ) from error
        return _Taken.of(image, ratio)

    def _new_photo(self, shown: _Shown, taken: _Taken, is_good: bool, event: str = "") -> Photo:
        files: list[Callable[[BinaryIO], object]] = [
            lambda stream: _write_png(stream, Image.fromarray(taken.image), ratio=taken.ratio)
        ]
        picture = shown.picture
        assert not isinstance(picture, ImageError)  # or it was not prepared
        whole = _whole(picture, self.settings.preprocess.bit_depth)
        if whole is not None:
            files.append(lambda stream: _write_png(stream, whole))
        return self.versions.new_photo(is_good, shown.time, event, shown.name, files)

    @staticmethod
    def _is_still(one: _Taken, other: _Taken) -> bool:
        return bool(np.linalg.norm(one.small - other.small) < STILL)

    def _known(self, taken: _Taken) -> bool:
        """Whether a photo equals one of those of the next fit pixel by pixel."""
        good = self.versions.state.good
        return any(self._taken[number].digest == taken.digest for number in good)

    def _groups(self, numbers: Sequence[int]) -> NDArray[np.intp]:
        """The group of each photo: nearly equal ones share a number."""
        if not numbers:
            return np.zeros(0, np.intp)
        return group_near(np.stack([self._taken[number].small for number in numbers]), STILL)

    def _independent(self) -> int:
        return len(np.unique(self._groups(self.versions.state.good)))

    def _warn_if_near(self, number: int) -> None:
        numbers = self.versions.state.good
        groups = self._groups(numbers)
        like = [n for n, group in zip(numbers, groups, strict=True) if group == groups[-1]]
        if len(like) > 1:
            self._warn(
                f"part {number} is nearly equal to part {like[0]}: they count as one; show another"
            )

    def _warn_of_odd_ones(self) -> None:
        """Say which parts are very unlike the others, by their leave-one-out scores."""
        with self._lock:
            good = self.versions.state.good
            if good == self._looked or self._independent() < LEAST:
                return
            self._looked = good
            try:
                made = self._fitted(good, keep=False)
            except PadimEdgeError:  # too few of them, or too alike: the fit itself says so
                return
            finally:
                self._doing = ""  # which the fit's progress has set
            self._name_odd_ones(made)

    def _name_odd_ones(self, made: Made) -> None:
        self._odd = tuple(int(odd.path.stem) for odd in made.outliers)
        for number, odd in zip(self._odd, made.outliers, strict=True):
            self._warn(
                f"part {number} is very unlike the others (score {odd.score:.1f}, "
                f"{odd.deviations:.1f} deviations): look at it, and leave it out if it is not good"
            )

    def _warn(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.append(message)

    # --- fits ------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Fit a detector on the parts that were taken, and let it judge.

        Taking ends with it: of what comes once a detector judges, defects would be taken for good.

        Raises:
            PadimEdgeError: too few parts, or they do not differ.
        """
        with self._counting:
            self._is_taking = False
        self._aside(self._fit)

    def _fit(self) -> None:
        with self._busy("fitting"):
            good = self.versions.state.good
            made = self._fitted(good, keep=True)
            self._looked = good
            self._name_odd_ones(made)
            parts = len(made.features.firsts())
            near = len(good) - parts
            beside = f" ({near} nearly equal to others)" if near else ""
            self._let_judge(made, good, f"fit on {parts} parts{beside}")

    def was_good(self, event: str) -> None:
        """Learn that the part of an event, a false alarm, was good.

        The moments of all photos become those with this one, exactly, and the threshold is set
        anew with its score. Where it is nearly equal to an earlier photo all are fitted again, so
        that both are left out together.

        Raises:
            UsageError: there is no detector yet, the frame is not held any more, or the detector
                has learnt it already.
        """
        self._aside(lambda: self._learn(event))

    def _learn(self, event: str) -> None:
        with self._busy("learning a good part"):
            self._check_unsaid(event)
            shown = self._frame_of(event)
            state = self.versions.state
            if not state.version:
                raise UsageError("nothing was judged yet: take good parts and fit first")
            taken = self._prepared(shown)
            # Of photos that were taken since, the detector knows nothing.
            known = self.versions.versions[state.version].photos
            self._hold(known)
            if any(self._taken[number].digest == taken.digest for number in known):
                raise UsageError(f"the frame of {event} is one that the detector has learnt")
            # One that was taken since is learnt as what it is.
            twins = (n for n in state.good if self._taken[n].digest == taken.digest)
            if (twin := next(twins, None)) is not None:
                photo = dataclasses.replace(self.versions.photos[twin], event=event)
            else:
                photo = self._new_photo(shown, taken, is_good=True, event=event)
                self._taken[photo.number] = taken
            try:
                everyone = (*known, photo.number)
                groups = self._groups(everyone)
                if (groups[:-1] == groups[-1]).any():
                    made = self._fitted(everyone, keep=True)
                else:
                    moments = self.versions.moments(state.version)
                    earlier = SavedMoments.load(moments, self._embedding, self.settings)
                    made = self._fitted((photo.number,), keep=True, earlier=earlier)
                what = f"part {photo.number} was good (score {made.statistics.scores[-1]:.2f})"
                self._let_judge(
                    made, everyone, what, lambda version: self.versions.add_version(version, photo)
                )
            except BaseException:
                self.versions.discard(photo)
                raise

    def was_bad(self, event: str) -> None:
        """Keep the frame of an event as one of a bad part: `recall` tells how many are found.

        Raises:
            UsageError: the frame is not held any more.
        """
        with self._busy("keeping a bad part"):
            self._check_unsaid(event)
            shown = self._frame_of(event)
            photo = self._new_photo(shown, self._prepared(shown), is_good=False, event=event)
            self._add_photo(photo)

    def _check_unsaid(self, event: str) -> None:
        """Refuse to be told of an event twice, or one thing and then the other."""
        if photo := self.versions.said.get(event):
            how = "learnt as good" if photo.is_good else "kept as bad"
            raise UsageError(f"the frame of {event} is {how} already: take that back first")

    def take_back(self, event: str) -> None:
        """Take back what was said of an event, however long ago: that its part was good, or bad.

        A bad one is kept no longer. Where one was learnt as good, all others that the detector
        rests on are fitted anew, and judge; what was taken since the last fit waits for the next.

        Raises:
            UsageError: nothing was said of it that holds now.
            PadimEdgeError: the others are too few for a detector.
        """
        self._aside(lambda: self._take_back(event))

    def _take_back(self, event: str) -> None:
        with self._busy("taking back what was said"):
            photo = self.versions.said.get(event)
            if photo is None:
                raise UsageError(f"nothing holds now that was said of {event}: look again")
            what = f"part {photo.number} was taken back"
            if not photo.is_good:
                self.versions.take_back(photo, what)
                return
            learnt = self.versions.versions[self.versions.state.version].photos
            rest = [number for number in learnt if number != photo.number]
            self._let_judge(
                self._fitted(rest, keep=True),
                rest,
                what,
                lambda version: self.versions.take_back(photo, what, version),
            )

    def recall(self) -> tuple[Row, ...]:
        """Which share of the bad parts that were kept is found, by false-alarm rate.

        Raises:
            UsageError: there is no detector, or no bad part was kept.
        """
        return self._aside(self._recall)

    def _recall(self) -> tuple[Row, ...]:
        with self._busy("judging the bad parts"):
            state = self.versions.state
            if not (state.version and state.bad):
                raise UsageError(
                    "a detector and a part that was bad are needed: there are "
                    f"{'a' if state.version else 'no'} detector and {len(state.bad)} bad parts"
                )
            path = self.versions.model(state.version)
            with self._slot.opener(path) as detector:  # by the engine that judges
                images = (self._stored(number).image[None] for number in state.bad)
                scores = np.array([detector.judge(image)[0].score for image in images])
            bad = Photos(scores, np.empty(0), (), (), 0)
            return recalibrate(read(path, "padim"), None, NO_PHOTOS, bad).rows

    def _fitted(
        self, numbers: Sequence[int], keep: bool, earlier: SavedMoments | None = None
    ) -> Made:
        """Fit photos."""
        features = self._features(numbers)
        return fit_features(
            self._embedding,
            features,
            self.settings,
            earlier,
            keep,
            threads=self._threads,
            progress=self._progress,
        )

    def _features(self, numbers: Sequence[int]) -> Features:
        """What the backbone gave for photos, in the form that a fit takes."""
        if not numbers:
            raise UsageError("no good parts were taken: take some first")
        self._hold(numbers)
        for number in numbers:
            taken = self._taken[number]
            if taken.levels is None:
                taken.levels = [level[0] for level in self._backbone(taken.image[None])]
        photos = [self._taken[number] for number in numbers]
        ratios = [photo.ratio for photo in photos]
        return Features(
            self._backbone.pyramid,
            [np.stack(level) for level in zip(*(p.levels or () for p in photos), strict=True)],
            len(photos),
            tuple(self.versions.photo(number) for number in numbers),
            self._groups(numbers),
            tuple(photo.digest for photo in photos),
            engine=self._backbone.described,
            brightest=max(int(photo.image.max()) for photo in photos),
            looks=np.stack([photo.look for photo in photos]),
            ratios=(min(ratios), max(ratios)),
        )

    def _let_judge(
        self,
        made: Made,
        photos: Sequence[int],
        what: str,
        note: Callable[[Version], None] | None = None,
    ) -> None:
        """Keep what a fit made, swap it in, and note that (``note``; None: it is a version)."""
        info, saved = made.model.detector_info, made.saved
        if info is None or saved is None:
            raise PadimEdgeError("the fit gave no detector")
        self._doing = "writing the detector"
        version = self.versions.new_version(
            what,
            photos,
            info.threshold,
            info.false_alarm_rate,
            (lambda stream: write(stream, made.model), saved.save),
        )
        path = self.versions.folder / "versions" / f"{version.name}.onnx"
        try:
            with self._judging(path):
                (note or self.versions.add_version)(version)
        except BaseException:
            self.versions.discard(version)
            raise
        self._say("model", None, f"version {version.name}: {what}, threshold {info.threshold:.3f}")

    @contextlib.contextmanager
    def _judging(self, path: Path) -> Iterator[None]:
        """Let another detector judge; if the block fails, the one before does again."""
        self._doing = "letting it judge"
        judged = self._slot.path
        self._slot.swap(path)
        try:
            yield
        except BaseException:
            if judged is None:
                self._slot.empty()
            else:
                with contextlib.suppress(PadimEdgeError):  # listeners are told
                    self._slot.swap(judged)
            raise

    # --- back ------------------------------------------------------------------------------------

    def undo(self, step: int | None = None) -> None:
        """Take back what was taught last.

        Args:
            step: of the `Lesson` that said what that is; None for whatever it is.

        Raises:
            UsageError: there is nothing, it was the first detector, or it is another one by now:
                of two who undo the same thing at once, or one who clicks twice, the second.
        """
        with self._busy("undoing"):
            if step is not None and step != self.versions.steps:
                last = self.versions.undoable
                raise UsageError(
                    "something was done since this was asked for"
                    + (f"; what would be undone now is: {last}" if last else "")
                )
            before, now = self.versions.before, self.versions.state
            judging: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if before.version != now.version:
                if not before.version:
                    raise UsageError(
                        "the first detector has none before it: take more parts and fit again"
                    )
                judging = self._judging(self.versions.model(before.version))
            with judging:
                self.versions.undo()
            self._say("model", None, f"undone: {now.what}")

    def roll_back(self, version: str) -> None:
        """Let a kept version judge again; the parts of the next fit are those that it has.

        Args:
            version: its name.

        Raises:
            UsageError: there is none, or its file was removed for room.
        """
        with self._busy("rolling back"):
            number = _number(version)
            known, state = self.versions.versions.get(number), self.versions.state
            if known and (state.version, state.good) == (number, known.photos):
                return  # two asked for it at once
            with self._judging(self.versions.model(number)):
                self.versions.roll_back(number)
            self._say("model", None, f"version {number:04} was taken back up")

    def leave_out(self, part: str) -> None:
        """Take a part out of those of the next fit, by its number; raises UsageError."""
        with self._busy("leaving a part out"):
            self.versions.leave_out(_number(part))

    # --- what is --------------------------------------------------------------------------------

    def lesson(self) -> Lesson:
        """How far teaching is; returns at once, also while something is done."""
        step = self.versions.steps  # before what it stands for: `undo` refuses one that is too old
        state = self.versions.state
        taken = dict(self._taken)
        points = [taken[number].small for number in state.good if number in taken]
        key = (state.good, len(points))
        if getattr(self, "_counted", (None, 0))[0] != key:
            parts = len(np.unique(group_near(np.stack(points), STILL))) if points else 0
            self._counted = (key, parts)
        parts = self._counted[1]
        wanted = self.settings.false_alarm_rate
        needed = max(3, images_needed(wanted) if wanted else 3)
        wanted = DEFAULT_FALSE_ALARM_RATE if wanted is None else wanted
        promised = max(wanted, smallest_false_alarm_rate(parts)) if parts >= needed else None
        return Lesson(
            is_taking=self._is_taking,
            taken=parts,
            needed=needed,
            promised=promised,
            interval=None if promised is None else _interval(parts, promised),
            wanted=wanted,
            warnings=tuple(self._warnings)[-5:],
            odd=tuple(number for number in self._odd if number in state.good),
            doing=self._doing,
            failed=self._failed,
            undoable=self._undoable(),
            step=step,
            bad=len(state.bad),
            said={
                event: "good" if photo.is_good else "bad"
                for event, photo in self.versions.said.items()
            },
            versions=tuple(
                Listed(one.name, one.time, one.what, one.number == state.version)
                for one in reversed(list(self.versions.versions.values()))
                if one.number not in self.versions.dropped
            ),
        )

    def _undoable(self) -> str:
        """What `undo` would take back; it never takes away the only detector."""
        with contextlib.suppress(UsageError):
            if self.versions.before.version or not self.versions.state.version:
                return self.versions.undoable
        return ""

    @contextlib.contextmanager
    def _busy(self, doing: str) -> Iterator[None]:
        """Do one thing at a time, and say which."""
        with self._lock:
            self._check_open()
            self._doing, self._failed = doing, ""
            try:
                yield
            except PadimEdgeError as error:
                self._failed = first_line(error)
                raise
            finally:
                self._doing = ""
                good = self.versions.state.good
                self._hold(good)
                for number in set(self._taken) - set(good):
                    del self._taken[number]

    def _check_open(self) -> None:
        """Refuse what waited until the end: the folder may be another process's by now."""
        if self._closing:
            raise PadimEdgeError("the watch is ending: nothing is taught any more")

    def _hold(self, numbers: Sequence[int]) -> None:
        """Have photos at hand."""
        for number in numbers:
            if number not in self._taken:
                self._taken[number] = self._stored(number)

    def _aside(self, work: Callable[[], Answer]) -> Answer:
        """Do something in a thread that leaves the cores to judging, and wait for it."""
        done: Future[Answer] = Future()

        def run() -> None:
            _be_nice()
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="padim-edge-fit", daemon=True).start()
        return done.result()

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._doing = f"{stage} {done} of {total}"

    def _frame_of(self, event: str) -> _Shown:
        for held in self._held:
            if (shown := held.get(event)) is not None:
                return shown
        raise UsageError(
            f"the frame of {event} is not held any more (the newest {self._held[0].limit >> 20} MB "
            "of anomalous ones are, since the start): choose a newer one"
        )

    def close(self) -> None:
        """End the thread, and free the backbone and the folder. Twice is harmless."""
        self._is_taking, self._closing = False, True
        with contextlib.suppress(queue.Full):  # then it looks up soon
            self._offered.put_nowait(None)
        self._worker.join()
        with self._lock:
            self._files.close()

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _number(text: str) -> int:
    """Of a version or a part, as the page names it; 0, which is none's, for other texts."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _be_nice() -> None:
    """Leave the cores to judging, in a thread of one's own: only root could take it back.

    Threads that it starts inherit it.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


_interval = functools.lru_cache(16)(rate_interval)  # a millisecond, and asked for all the time


class _Held:
    """The newest frames by event, up to some bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._frames: dict[str, _Shown] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, event: str, shown: _Shown) -> None:
        with self._lock:
            self._frames[event] = shown
            self._bytes += shown.held
            # The newest one stays, however large it is.
            while self._bytes > self.limit and len(self._frames) > 1:
                self._bytes -= self._frames.pop(next(iter(self._frames))).held

    def get(self, event: str) -> _Shown | None:
        with self._lock:
            return self._frames.get(event)


def _whole(picture: Frame | bytes, bit_depth: int | None) -> Image.Image | None:
    """A frame in full, as bright as it is judged; None where it is in a GPU."""
    if isinstance(picture, Frame) and not isinstance(picture.pixels, np.ndarray):
        return None
    return to_image(picture, bit_depth)


def _write_png(stream: BinaryIO, image: Image.Image, ratio: float | None = None) -> None:
    """Write without loss; fast rather than small."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if ratio is not None:
        info.add_text("ratio", repr(ratio))
    image.save(stream, "PNG", compress_level=1, pnginfo=info)
