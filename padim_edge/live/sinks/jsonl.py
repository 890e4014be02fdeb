"""JSON lines in a file that is changed for a new one when it is large or old."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from padim_edge.errors import UsageError
from padim_edge.files import cannot_write, lock, sync_folder, writable
from padim_edge.live.addresses import Address, byte_count, number, whole
from padim_edge.live.event import Event
from padim_edge.live.sink import SinkError

_END = 1 << 20
"""Bytes at the end of a file in which events that were sent before are looked for."""


class LineLog:
    """Appends lines, synced; never half a line, whatever stops it.

    Args:
        path: of the newest lines; earlier ones are in ``<name>.1``, ``<name>.2``...
        size: bytes beyond which a new file begins; 0 for never.
        hours: age of its first line beyond which one does; 0 for never.
        keep: how many earlier files stay.

    Attributes:
        removed: lines of files that were removed to make room; counted where ``counts``.
    """

    def __init__(
        self,
        path: Path,
        size: int = 0,
        hours: float = 0.0,
        keep: int = 10,
        counts: bool = False,
    ) -> None:
        self.path = path
        self.removed = self._said = 0
        self._counts = counts
        self._limit, self._hours, self._keep = size, hours, keep
        self._file: int | None = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """Open it, and mend what a kill or a power cut left of its last line.

        Raises:
            OSError: it cannot be written.
            UsageError: another process writes it.
        """
        if self._file is not None:
            return
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if not _lock(file, self.path):
                raise UsageError(f"another process writes {self.path} now: name another file")
            self._size, self.known = _mend(file)
            self._began = _began(file) if self._size else time.time()
            sync_folder(self.path.parent)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Append lines, and sync them.

        Raises:
            OSError: they are not all on disk; none is half there.
        """
        self._follow()
        self.rotate()
        assert self._file is not None
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
        try:
            written = 0
            while written < len(lines):
                written += os.write(self._file, lines[written:])
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        if not self._size:
            self._began = time.time()
        self._size += len(lines)

    def _follow(self) -> None:
        """Go on in a new file where ours was renamed, removed or emptied by somebody (logrotate).

        Raises:
            OSError: it cannot be opened.
            UsageError: another process writes it.
        """
        assert self._file is not None
        mine = os.fstat(self._file)
        try:
            is_there = os.path.samestat(mine, self.path.stat())
        except FileNotFoundError:
            is_there = False
        if is_there:
            self._size = mine.st_size
            return
        self.close()
        self.open()

    def write_shared(self, record: dict[str, Any]) -> int:
        """Append one, from any thread, and let go of the file.

        Returns:
            How many lines were removed to make room, since it last said so.

        Raises:
            OSError: it is not on disk.
        """
        with self._lock:
            self.open()
            try:
                self.write([record])
            finally:
                self.close()
            said, self._said = self._said, self.removed
            return self.removed - said

    def rotate(self) -> None:
        """Begin a new file, if this one is large or old enough.

        Raises:
            OSError: it cannot be done.
        """
        is_large = 0 < self._limit <= self._size
        is_old = self._hours > 0 and time.time() - self._began > self._hours * 3600
        if not self._size or not (is_large or is_old):
            return
        oldest = self._aged(self._keep) if self._keep else self.path
        if oldest.exists():
            count = _line_count(oldest) if self._counts else 0
            oldest.unlink()
            self.removed += count
        for age in range(self._keep - 1, 0, -1):
            earlier = self._aged(age)
            if earlier.exists():
                earlier.replace(self._aged(age + 1))
        if self._keep:
            self.path.replace(self._aged(1))
        self.close()
        self.open()

    def _aged(self, age: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{age}")

    def close(self) -> None:
        """Let go of it. Twice is harmless."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class JsonLinesSink:
    """``jsonl:FILE``: one line an event, synced before it counts as delivered.

    What a kill made it send twice is left out: it is in the file already.
    """

    is_state = False
    wants_pictures = False

    def __init__(self, address: Address) -> None:
        address.check_options(("size", "hours", "keep"))
        if not address.rest:
            raise address.refused("name a file, like jsonl:events.jsonl")
        self.address = str(address)
        self._log = LineLog(
            writable(address.rest),
            address.option("size", byte_count, 100_000_000),
            address.option("hours", number(), 0.0),
            address.option("keep", whole(0, 1000), 10),
        )
        self._known: set[str] = set()

    def open(self) -> None:
        """Open the file."""
        try:
            self._log.open()
        except OSError as error:
            raise SinkError(str(cannot_write(self._log.path, error))) from error
        self._known = self._log.known

    def send(self, events: Sequence[Event]) -> None:
        """Append them."""
        try:
            if not events:
                self._log.rotate()
                return
            new = [event.record for event in events if event.id not in self._known]
            if new:
                self._log.write(new)
        except OSError as error:
            raise SinkError(str(cannot_write(self._log.path, error))) from error

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def _lock(file: int, path: Path) -> bool:
    try:
        return lock(file, path)
    except OSError:  # without locks two writers are the user's to keep apart
        return True


def _line_count(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(_END), b""))


def _mend(file: int) -> tuple[int, set[str]]:
    """Cut off half a last line; returns the size, and ids in the last lines."""
    size = os.fstat(file).st_size
    start = max(0, size - _END)
    end = os.pread(file, size - start, start)
    whole_lines, _, torn = end.rpartition(b"\n")
    if torn:
        # Whole without its end it is somebody else's, or lacks no more than that.
        if _record(torn) is not None:
            os.write(file, b"\n")
            size, whole_lines = size + 1, end
        else:
            size -= len(torn)
            os.ftruncate(file, size)
            os.fsync(file)
    records = map(_record, whole_lines.split(b"\n"))
    return size, {str(record["id"]) for record in records if record and "id" in record}


def _began(file: int) -> float:
    """When the first line was written."""
    record = _record(os.pread(file, _END, 0).partition(b"\n")[0])
    known = record.get("time") if record else None
    return float(known) if isinstance(known, (int, float)) else os.fstat(file).st_mtime


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
