"""Versions: photos and detectors that were taught on a device, in a folder that survives a kill.

    FOLDER/journal.jsonl       what was done, a line of JSON each, oldest first: the truth
    FOLDER/photos/000012.png   what the graph was given of photo 12, lossless
    FOLDER/frames/000012.png   its whole frame, lossless, for fits with other settings
    FOLDER/versions/0003.onnx  a detector, and 0003.npz, the moments that it was made of
    FOLDER/lock                held by the one process that writes

Files are written whole or not at all (`padim_edge.files`), and before the line that names them; a
line is written in one go and synced before anybody is told that it is done. So after a kill at any
moment the journal says what was done, but for a torn last line, which is cut off; files that no
line names belong to what was never finished, and are removed.

What is known follows from the lines alone. Each but "undo" and "dropped" leads from one `State` to
another; "undo" goes back by one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.files import atomic_write, cannot_write, sync_folder

FORMAT = 2
"""Of the journal: 2 knows the line "taken back". One of format 1 is read, and goes on as 2."""

MAX_BYTES = 4 * 2**30
"""Of a folder."""

UNDOABLE = 200
"""How many things can be undone, one after the other."""

KEPT = 3
"""Versions, the newest, whose files are never dropped for room; nor is that which judges."""


@dataclass(frozen=True)
class Photo:
    """A photo that was taught.

    Attributes:
        number: counted from 1; names its files.
        is_good: else it is one of a bad part, for calibration.
        time: seconds since 1970 at which it was taken.
        event: of the frame, where it was judged before.
        source: the frame in words: the name of its file, or "".
    """

    number: int
    is_good: bool
    time: float
    event: str = ""
    source: str = ""


@dataclass(frozen=True)
class Version:
    """A detector that was taught.

    Attributes:
        number: counted from 1; names its files.
        time: seconds since 1970 at which it was made.
        what: was done to make it, in words.
        photos: numbers of the good photos in it.
        threshold: of the file.
        false_alarm_rate: that the threshold is set for.
    """

    number: int
    time: float
    what: str
    photos: tuple[int, ...]
    threshold: float
    false_alarm_rate: float

    @property
    def name(self) -> str:
        """As it is called."""
        return f"{self.number:04}"


@dataclass(frozen=True)
class State:
    """What holds now.

    Attributes:
        good: numbers of the photos that the next fit is made of, in their order.
        bad: of the photos of bad parts.
        version: the number of the detector that judges; 0 for none.
        what: led here, in words.
    """

    good: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    version: int = 0
    what: str = ""


class Versions:
    """The folder, open for one process.

    Attributes:
        photos: all that the journal names, by number.
        versions: the same of detectors.
        state: what holds now.
        steps: what was done, counted; undoing is a step as well.
        dropped: numbers of versions whose files were removed for room.

    Args:
        folder: made if there is none.
        identity: what all photos and moments of the folder are made for: embedding, settings.
        max_bytes: of the folder.

    Raises:
        UsageError: the folder is of another embedding or other settings, or of a later version of
            padim-edge.
        PadimEdgeError: it cannot be written, another process writes it, or it is damaged.
    """

    def __init__(
        self, folder: str | Path, identity: Mapping[str, Any], max_bytes: int = MAX_BYTES
    ) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.photos: dict[int, Photo] = {}
        self.versions: dict[int, Version] = {}
        self.dropped: set[int] = set()
        self.state = State()
        self.steps = 0
        self._before: list[State] = []
        self._files = contextlib.ExitStack()
        try:
            for name in ("photos", "frames", "versions"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            lock = self._files.enter_context((self.folder / "lock").open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PadimEdgeError(
                    f"{self.folder} is in use by another process: give each watch a folder of its "
                    "own, or stop the other"
                ) from None
            self._open(identity)
            self._bytes = self._tidy()
        except BaseException as error:
            self._files.close()
            if isinstance(error, OSError):
                raise cannot_write(self.folder, error) from error
            raise

    def _open(self, identity: Mapping[str, Any]) -> None:
        """Read the journal, cut off a torn line, and go on writing behind it."""
        path = self.folder / "journal.jsonl"
        self._stream = self._files.enter_context(path.open("a+b", buffering=0))
        self._stream.seek(0)
        data = self._stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._stream.truncate(len(whole))
        self._length = len(whole)  # of what is whole
        # As JSON has it, so that tuples compare with lists.
        wanted = json.loads(json.dumps(dict(identity)))
        lines = whole.splitlines()
        if not lines:
            for name in ("photos", "versions"):
                if any((self.folder / name).iterdir()):
                    raise PadimEdgeError(
                        f"{path} says nothing, and there are files in {self.folder / name}, which "
                        "belong to nothing without it: bring it back, or give another folder"
                    )
            self._line({"do": "begin", "format": FORMAT, "of": wanted})
            sync_folder(self.folder)
            return
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if number == 1:
                    self._check(record, wanted)
                else:
                    self._apply(record)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                raise PadimEdgeError(
                    f"{path} is damaged in line {number} ({error}): bring back a copy of it, or "
                    "give another folder; whole frames of the parts are in "
                    f"{self.folder / 'frames'}, for padim-edge fit"
                ) from error
        self._renew(path, lines)

    def _renew(self, path: Path, lines: Sequence[bytes]) -> None:
        """Have older programs refuse a journal that they began: they do not know all lines."""
        begun = json.loads(lines[0])
        if begun["format"] == FORMAT:
            return
        data = b"".join(
            line + b"\n" for line in (json.dumps(begun | {"format": FORMAT}).encode(), *lines[1:])
        )
        with atomic_write(path) as stream:
            stream.write(data)
        self._stream = self._files.enter_context(path.open("a+b", buffering=0))
        self._length = len(data)

    def _check(self, record: dict[str, Any], wanted: Mapping[str, Any]) -> None:
        if record["do"] != "begin":
            raise ValueError("it does not begin")
        if not 1 <= record["format"] <= FORMAT:
            raise UsageError(
                f"{self.folder} was written by a later padim-edge (format {record['format']}, this "
                f"one knows {FORMAT}): install that, or give another folder"
            )
        different = [key for key in wanted if record["of"].get(key) != wanted[key]]
        if different:
            raise UsageError(
                f"{self.folder} was taught with another {' and '.join(different)}: give the same, "
                "or another folder"
            )

    def _apply(self, record: dict[str, Any]) -> None:
        """What a line of the journal did; the only way in which anything here changes."""
        do, state = record["do"], self.state
        if do == "dropped":
            self.dropped.add(record["version"])
            return
        # Steps are counted last: who reads the count first never takes an older step for this one.
        if do == "undo":
            *self._before, self.state = self._before
            self.steps += 1
            return
        photo = Photo(**record["photo"]) if record.get("photo") else None
        if photo:
            self.photos[photo.number] = photo
        if do == "photo" and photo:
            if photo.is_good:
                state = replace(state, good=(*state.good, photo.number))
            else:
                state = replace(state, bad=(*state.bad, photo.number))
        elif do == "left out":
            state = _without(state, record["number"])
        elif do == "taken back":
            state = _without(state, record["number"])
            if record.get("version"):
                state = replace(state, version=self._add(record["version"]).number)
        elif do == "version":
            version = self._add(record["version"])
            # A fit is of all that was taken; what one part was learnt by knows nothing of those
            # taken since the fit before, which wait for the next.
            new = [number for number in version.photos[-1:] if number not in state.good]
            state = replace(state, good=(*state.good, *new), version=version.number)
        elif do == "roll back":
            version = self.versions[record["version"]]
            state = replace(state, good=version.photos, version=version.number)
        else:
            raise ValueError(f"{do!r} is unknown")
        self._before = [*self._before[1 - UNDOABLE :], self.state]
        self.state = replace(state, what=record["what"])
        self.steps += 1

    def _add(self, fields: dict[str, Any]) -> Version:
        version = Version(**{**fields, "photos": tuple(fields["photos"])})
        self.versions[version.number] = version
        return version

    def _line(self, record: dict[str, Any]) -> None:
        """Write a line durably, or leave the journal as it was."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        length = self._length
        try:
            self._stream.truncate(length)  # where this failed before, half a line is there still
            if self._stream.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._stream.fileno())
            self._length += len(line)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._stream.truncate(length)
            raise cannot_write(self.folder / "journal.jsonl", error) from error

    def _do(self, record: dict[str, Any]) -> None:
        self._line(record)
        self._apply(record)

    # --- what is there -------------------------------------------------------------------------

    @property
    def bytes(self) -> int:
        """Of all photos, frames and versions."""
        return self._bytes

    @property
    def undoable(self) -> str:
        """What `undo` would take back, in words; "" if nothing."""
        return self.state.what if self._before else ""

    @property
    def before(self) -> State:
        """What `undo` would lead back to.

        Raises:
            UsageError: there is nothing to undo.
        """
        before = self._before  # another thread may put another list there
        if not before:
            raise UsageError("there is nothing to undo")
        return before[-1]

    @property
    def said(self) -> dict[str, Photo]:
        """The photo of each event of which something was said that holds now.

        That a part was good holds while a detector judges that rests on it; that one was bad, while
        it is kept.
        """
        state = self.state
        learnt = self.versions[state.version].photos if state.version else ()
        photos = (self.photos[number] for number in (*learnt, *state.bad))
        return {photo.event: photo for photo in photos if photo.event}

    def photo(self, number: int) -> Path:
        """The file of what the graph was given of a photo."""
        return self.folder / "photos" / f"{number:06}.png"

    def frame(self, number: int) -> Path:
        """The file of a photo's whole frame; one in the memory of a GPU has none."""
        return self.folder / "frames" / f"{number:06}.png"

    def model(self, number: int) -> Path:
        """The file of a version.

        Raises:
            UsageError: there is no such version, or its file was removed for room.
        """
        return self._version(number).with_suffix(".onnx")

    def moments(self, number: int) -> Path:
        """The moments that it was made of; raises as `model`."""
        return self._version(number).with_suffix(".npz")

    def _version(self, number: int) -> Path:
        if number not in self.versions:
            known = ", ".join(one.name for one in self.versions.values()) or "none yet"
            raise UsageError(f"there is no version {number:04}; there are: {known}")
        if number in self.dropped:
            raise UsageError(
                f"version {number:04} was removed for room, of which {self.folder} may take "
                f"{self.max_bytes / 1e9:.1f} GB: choose a newer one"
            )
        return self.folder / "versions" / f"{number:04}"

    # --- what can be done ------------------------------------------------------------------------

    def new_photo(self, is_good: bool, when: float, event: str, source: str, files: Files) -> Photo:
        """Write the files of a photo, which belongs to nothing before a line names it.

        Args:
            is_good: see `Photo`.
            when: its time.
            event: see `Photo`.
            source: see `Photo`.
            files: what writes the photo, and its frame.

        Raises:
            PadimEdgeError: no room.
        """
        photo = Photo(max(self.photos, default=0) + 1, is_good, when, event, source)
        paths = (self.photo(photo.number), self.frame(photo.number))
        self._write(dict(zip(paths, files, strict=False)))
        return photo

    def discard(self, made: Photo | Version) -> None:
        """Remove the files of what came to nothing; of what a line names, none."""
        if isinstance(made, Photo):
            if made.number in self.photos:
                return
            paths = [self.photo(made.number), self.frame(made.number)]
        else:
            if made.number in self.versions:
                return
            base = self.folder / "versions" / made.name
            paths = [base.with_suffix(".onnx"), base.with_suffix(".npz")]
        for path in paths:
            self._remove(path)

    def add_photo(self, photo: Photo) -> None:
        """Count a photo among the good or the bad ones."""
        what = f"part {photo.number} was {'taken' if photo.is_good else 'bad'}"
        self._do({"do": "photo", "what": what, "photo": vars(photo)})

    def leave_out(self, number: int) -> None:
        """Take a good photo out of those of the next fit.

        Raises:
            UsageError: it is none of them.
        """
        if number not in self.state.good:
            raise UsageError(f"part {number} is none of those of the next fit")
        self._do({"do": "left out", "what": f"part {number} was left out", "number": number})

    def take_back(self, photo: Photo, what: str, version: Version | None = None) -> None:
        """Let a photo be neither good nor bad; with the version that judges without it, in one go.

        Args:
            photo: one of `said`.
            what: was done, in words.
            version: see `new_version`; None where the detector never rested on it.
        """
        record: dict[str, Any] = {"do": "taken back", "what": what, "number": photo.number}
        if version:
            record["version"] = vars(version)
        self._do(record)

    def new_version(
        self,
        what: str,
        photos: Sequence[int],
        threshold: float,
        false_alarm_rate: float,
        files: Files,
    ) -> Version:
        """Write the files of a version, which belongs to nothing before a line names it.

        Args:
            what: was done, in words.
            photos: numbers of the good photos.
            threshold: see `Version`.
            false_alarm_rate: see `Version`.
            files: what writes the detector, and its moments.

        Raises:
            PadimEdgeError: no room.
        """
        number = max(self.versions, default=0) + 1
        version = Version(number, time.time(), what, tuple(photos), threshold, false_alarm_rate)
        base = self.folder / "versions" / version.name
        self._write(
            dict(zip((base.with_suffix(".onnx"), base.with_suffix(".npz")), files, strict=True))
        )
        return version

    def add_version(self, version: Version, photo: Photo | None = None) -> None:
        """Let a version be the one that judges; with a photo that it was taught, in one go."""
        record: dict[str, Any] = {"do": "version", "what": version.what, "version": vars(version)}
        if photo:
            record["photo"] = vars(photo)
        self._do(record)

    def roll_back(self, number: int) -> None:
        """Let another version be the one that judges, and its photos those of the next fit."""
        self.model(number)
        what = f"version {number:04} was taken back up"
        self._do({"do": "roll back", "what": what, "version": number})

    def undo(self) -> None:
        """Go back by one.

        Raises:
            UsageError: there is nothing to undo.
        """
        self.before  # noqa: B018  # raises
        gone = self.state
        self._do({"do": "undo"})
        for number in {*gone.good, *gone.bad} - self._named():
            for path in (self.photo(number), self.frame(number)):
                self._remove(path)

    def _named(self) -> set[int]:
        """Photos that anything goes back to."""
        states = [*self._before, self.state]
        named = {number for state in states for number in (*state.good, *state.bad)}
        return named.union(*(version.photos for version in self.versions.values()))

    # --- files -----------------------------------------------------------------------------------

    def _write(self, files: Mapping[Path, Callable[[BinaryIO], object]]) -> None:
        """Write files, and make room for them if there is too little."""
        written: list[Path] = []
        try:
            for path, write in files.items():
                with atomic_write(path) as stream:
                    write(stream)
                written.append(path)
                self._bytes += path.stat().st_size
            self._make_room()
        except BaseException:
            for path in written:
                self._remove(path)
            raise

    def _make_room(self) -> None:
        """Remove files of the oldest versions until the folder is small enough."""
        kept = {*sorted(self.versions)[-KEPT:], self.state.version}
        for number in sorted(self.versions):
            if self._bytes <= self.max_bytes:
                return
            if number not in kept and number not in self.dropped:
                paths = (self.model(number), self.moments(number))
                self._do({"do": "dropped", "version": number})
                for path in paths:
                    self._remove(path)
        if self._bytes > self.max_bytes:
            raise PadimEdgeError(
                f"{self.folder} may take {self.max_bytes / 1e9:.1f} GB, and these are used up: "
                "fit on what there is, or give more room"
            )

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._bytes -= size

    def _tidy(self) -> int:
        """Remove what no line names, and count what remains."""
        photos = {path for n in self._named() for path in (self.photo(n), self.frame(n))}
        there = {n for n in self.versions if n not in self.dropped}
        named = photos | {path for n in there for path in (self.model(n), self.moments(n))}
        total = 0
        for name in ("photos", "frames", "versions"):
            for path in (self.folder / name).iterdir():
                if path in named:
                    total += path.stat().st_size
                else:
                    path.unlink()
        missing = [path for path in named if not path.exists() and path.parent.name != "frames"]
        if missing:
            raise PadimEdgeError(
                f"{min(missing)} is missing, which the journal beside it names: bring it back, or "
                "give another folder"
            )
        return total

    def close(self) -> None:
        """Let another process have the folder. Twice is harmless."""
        self._files.close()


Files = Sequence[Callable[[BinaryIO], object]]
"""What writes each of the files that belong together."""


def _without(state: State, number: int) -> State:
    """Without a photo."""
    good, bad = (tuple(n for n in numbers if n != number) for numbers in (state.good, state.bad))
    return replace(state, good=good, bad=bad)
