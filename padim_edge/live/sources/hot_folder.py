"""A folder that files keep arriving in: each is judged once, when it is whole.

Folders are asked for changes every tenth of a second, so a file waits 50 ms on average. The date
of a folder says whether names came or went, and only then is it listed; files that are written
over in place change no folder's date, and are looked for once a second, or less often where that
takes long.

What is a new picture? A file's date does not say: `cp -p` sets it when the file is whole, and so
does who touches it; and a camera without a clock gives all the same one. So, while the watch runs,
a file is new if it is another file (its inode: a rename put it there) of another date or size, or
if it holds something else. Of one that is there at the first look nobody knows which file it was in
an earlier run: it is known by path, date and size, or else by path and what it holds.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from padim_edge.images.find import SUFFIXES
from padim_edge.live import addresses
from padim_edge.live.addresses import Address
from padim_edge.live.source import Captured, SourceError
from padim_edge.live.sources import Wanted, no_pixel_format

POLL = 0.1
"""Seconds between two looks."""

SETTLE = 1.0
"""Seconds without a change after which a file is taken whose end says nothing (TIFF, GIF, PPM)."""

PATIENCE = 5.0
"""Seconds without a change after which a file is taken although its end is missing: it is damaged,
and that is to be known."""

EVERYTHING = 1.0
"""Seconds between two looks at the date and size of every file, at least..."""

SHARE = 20
"""...and this many times what such a look takes."""

COARSE = 2_000_000_000
"""Nanoseconds: a folder may change again without a new date, on file systems that count seconds."""

Signature = tuple[int, int]  # mtime in ns, bytes


@dataclass(slots=True)
class _Done:
    """A file that was given, or need not be.

    Attributes:
        signature: of it then.
        inode: of it then.
        digest: of what it held; b"" if nobody has read it.
    """

    signature: Signature
    inode: int
    digest: bytes = b""

    def is_like(self, before: _Done) -> bool:
        """Whether nothing tells it from what it was, without reading it."""
        return (self.inode, self.signature) == (before.inode, before.signature)


@dataclass(slots=True)
class _Waiting:
    """A file that may not be whole.

    Attributes:
        signature: of it now.
        since: seconds of `time.monotonic`, from when on it was so.
        before: what was given of this file, if anything was.
        was_there: at the first look, so that it may have been judged in an earlier run.
    """

    signature: Signature
    since: float
    before: _Done | None
    was_there: bool


@dataclass
class _Folder:
    """What is known of one folder: files, by their names, that are done with or waited for."""

    changed: int = -1
    listed: int = -1
    folders: list[str] = field(default_factory=list)
    done: dict[str, _Done] = field(default_factory=dict)
    waiting: dict[str, _Waiting] = field(default_factory=dict)


@dataclass
class _Found:
    """A file that is whole, and may be a new picture."""

    path: str
    done: _Done
    known: _Waiting


class HotFolderSource:
    """The images in ``hot:FOLDER`` and all folders below it, and those that come.

    What is there at the beginning is given too, unless it was ``seen``. A file that is another one
    than it was, or holds something else, is a new one; one that has another date alone is not. It
    is given when its end says
    that it is whole (PNG, JPEG, WebP, BMP: one renamed into place at once), else when it has not
    changed for ``settle`` seconds. Hidden ones, which others write before they rename, are left
    alone, as are folders that links lead to.

    Raises:
        SourceError: there is no such folder now.
        UsageError: it is no folder, or an option is wrong.
    """

    is_live = False  # a file waits

    def __init__(self, address: Address, wanted: Wanted) -> None:
        address.check_options(("poll", "settle"))
        no_pixel_format(address, wanted)
        self.address = str(address)
        self._poll = address.option("poll", addresses.number(), POLL)
        self._settle = address.option("settle", addresses.number(), SETTLE)
        self._seen = wanted.seen
        self._root = os.path.realpath(address.path)
        self._known: dict[str, _Folder] = {}
        self._everything = 0.0  # when to look at every file again
        self._looks = 0
        self._closed = threading.Event()
        try:
            status = Path(self._root).stat()
        except OSError as error:
            raise self._lost(error) from error
        if not stat.S_ISDIR(status.st_mode):
            raise address.refused("it is no folder; name one that files arrive in")
        self._is = (status.st_dev, status.st_ino)

    def describe(self) -> str:
        """Which folder is watched, and how often."""
        return f"files that arrive in {self._root}, looked for every {self._poll:g} s"

    def __iter__(self) -> Iterator[Captured]:
        """Files as they are whole, those of one look by their dates.

        Raises:
            SourceError: the folder has gone, or is another one now (unmounted).
        """
        sequence = 0
        while not self._closed.is_set():
            for found in self._whole_ones():
                if self._closed.is_set():
                    return
                keys = self._keys_of(found)
                if keys:
                    yield Captured(Path(found.path), sequence, time.time(), found.path, keys)
                    sequence += 1
            self._looks += 1
            self._closed.wait(self._poll)

    def close(self) -> None:
        """Look no more, and wake whoever waits."""
        self._closed.set()

    def _keys_of(self, found: _Found) -> tuple[str, ...]:
        """What a new picture is to be remembered by; nothing for one that was given before."""
        begun = time.monotonic()
        digest = found.done.digest = _digest(found.path)
        by_date = _by_date(found.path, found.done.signature)
        if not digest:  # it has gone, and whoever decodes it tells of that
            return (by_date,)
        by_content = f"{found.path}:{digest.hex()}"
        if not self._is_known(found, by_date, by_content):
            return (by_date, by_content)
        self._everything += SHARE * (time.monotonic() - begun)  # it was read in vain
        return ()

    def _is_known(self, found: _Found, by_date: str, by_content: str) -> bool:
        """Whether a file that is whole holds a picture that was given."""
        before, now_is = found.known.before, found.done
        if before is None:
            is_from_before = found.known.was_there or self._seen(by_date)
            return is_from_before and self._seen(by_content)
        if before.inode != now_is.inode and before.signature != now_is.signature:
            return False
        return before.digest == now_is.digest if before.digest else self._seen(by_content)

    def _whole_ones(self) -> list[_Found]:
        """What is whole and has another date or size than what was given before."""
        begun = time.monotonic()
        everything = begun >= self._everything
        found: list[_Found] = []
        visited: set[str] = set()
        folders = [self._root]
        while folders:
            folder = folders.pop()
            try:
                status = Path(folder).stat()
                if folder == self._root and (status.st_dev, status.st_ino) != self._is:
                    raise SourceError(
                        f"{self.address}: another folder is in its place now; was it unmounted?"
                    )
                known = self._known.setdefault(folder, _Folder())
                # Listed too soon after a change, it may have changed again within the same date.
                fresh = known.listed < known.changed + COARSE
                if everything or known.waiting or fresh or status.st_mtime_ns != known.changed:
                    known.changed, known.listed = status.st_mtime_ns, time.time_ns()
                    found += self._look_into(folder, known)
            except (FileNotFoundError, NotADirectoryError) as error:
                if folder == self._root:
                    raise self._lost(error) from error
                continue  # one below it was removed meanwhile
            except OSError as error:
                raise self._lost(error) from error
            visited.add(folder)
            folders += known.folders
        self._known = {folder: self._known[folder] for folder in visited}
        if everything:
            took = time.monotonic() - begun
            self._everything = begun + max(EVERYTHING, SHARE * took)
        return sorted(found, key=lambda one: (one.done.signature[0], one.path))

    def _look_into(self, folder: str, known: _Folder) -> Iterator[_Found]:
        """What is whole in one folder."""
        done: dict[str, _Done] = {}
        waiting: dict[str, _Waiting] = {}
        known.folders = []
        now = time.monotonic()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    known.folders.append(entry.path)
                    continue
                if os.path.splitext(name)[1].lower() not in SUFFIXES:  # noqa: PTH122 - of each file
                    continue
                try:
                    status = entry.stat()
                except OSError:  # removed meanwhile, or a link that leads nowhere yet
                    continue
                if not stat.S_ISREG(status.st_mode):
                    continue
                now_is = _Done((status.st_mtime_ns, status.st_size), status.st_ino)
                before = known.done.get(name)
                if before is not None and now_is.is_like(before):
                    done[name] = before
                    continue
                waits = known.waiting.get(name)
                if waits is None:
                    waits = _Waiting((-1, -1), now, before, was_there=not self._looks)
                if waits.signature != now_is.signature:
                    waits.signature, waits.since = now_is.signature, now
                    if waits.was_there and self._seen(_by_date(entry.path, now_is.signature)):
                        done[name] = now_is
                        continue
                whole = _is_whole(entry.path, status.st_size)
                patience = {True: 0.0, None: self._settle, False: max(PATIENCE, self._settle)}
                if now - waits.since < patience[whole]:
                    waiting[name] = waits
                    continue
                done[name] = now_is
                yield _Found(entry.path, now_is, waits)
        known.done, known.waiting = done, waiting

    def _lost(self, error: OSError) -> SourceError:
        return SourceError(f"{self.address} cannot be looked into: {error.strerror}")


def _by_date(path: str, signature: Signature) -> str:
    return f"{path}:{signature[0]}:{signature[1]}"


def _digest(path: str) -> bytes:
    """Of what a file holds; b"" if it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with Path(path).open("rb", buffering=0) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return b""
    return digest.digest()


def _is_whole(path: str, size: int) -> bool | None:
    """Whether the end of an image file is there; None if nothing says so."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(16)
            stream.seek(max(0, size - 64))
            tail = stream.read(64)
    except OSError:
        return None
    if len(head) < 16:
        return False
    if head.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in tail
    if head.startswith(b"\xff\xd8\xff"):
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if head.startswith(b"RIFF"):
        riff: int = struct.unpack_from("<I", head, 4)[0]
        return size >= riff + 8
    if head.startswith(b"BM"):
        length: int = struct.unpack_from("<I", head, 2)[0]
        return None if length < 16 else size >= length
    return False if not any(head) else None  # room made for a file, and nothing written
