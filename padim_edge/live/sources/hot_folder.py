"""A folder that files keep arriving in: each is judged once, when it is whole.

Folders are asked for changes every tenth of a second, so a file waits 50 ms on average. The date
of a folder says whether names came or went, and only then is it listed; files that are written
over in place change no folder's date, and are looked for once a second, or less often where that
takes long.
"""

from __future__ import annotations

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


@dataclass
class _Folder:
    """What is known of one folder: names of files with what they were when they were done with."""

    changed: int = -1
    listed: int = -1
    folders: list[str] = field(default_factory=list)
    done: dict[str, Signature] = field(default_factory=dict)
    waiting: dict[str, tuple[Signature, float]] = field(default_factory=dict)


class HotFolderSource:
    """The images in ``hot:FOLDER`` and all folders below it, and those that come.

    What is there at the beginning is given too, unless it was ``seen``. A file is told from what it
    was by its path, date and size: written over, it is a new one. It is given when its end says
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
            for date, path, size in self._whole_ones():
                if self._closed.is_set():
                    return
                key = f"{path}:{date}:{size}"
                yield Captured(Path(path), sequence, time.time(), path, key)
                sequence += 1
            self._looks += 1
            self._closed.wait(self._poll)

    def close(self) -> None:
        """Look no more, and wake whoever waits."""
        self._closed.set()

    def _whole_ones(self) -> list[tuple[int, str, int]]:
        """Date, path and size of what is whole and was not given before."""
        begun = time.monotonic()
        everything = begun >= self._everything
        found: list[tuple[int, str, int]] = []
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
        return sorted(found)

    def _look_into(self, folder: str, known: _Folder) -> Iterator[tuple[int, str, int]]:
        """What is whole in one folder."""
        done: dict[str, Signature] = {}
        waiting: dict[str, tuple[Signature, float]] = {}
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
                signature = (status.st_mtime_ns, status.st_size)
                if known.done.get(name) == signature:
                    done[name] = signature
                    continue
                before, since = known.waiting.get(name, (None, now))
                if before != signature:
                    since = now
                    if self._seen(f"{entry.path}:{signature[0]}:{signature[1]}"):
                        done[name] = signature
                        continue
                whole = _is_whole(entry.path, status.st_size)
                patience = {True: 0.0, None: self._settle, False: max(PATIENCE, self._settle)}
                if now - since < patience[whole]:
                    waiting[name] = (signature, since)
                    continue
                done[name] = signature
                yield signature[0], entry.path, signature[1]
        known.done, known.waiting = done, waiting

    def _lost(self, error: OSError) -> SourceError:
        return SourceError(f"{self.address} cannot be looked into: {error.strerror}")


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
