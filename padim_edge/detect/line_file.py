"""JSON lines that are kept as they come, whatever stops the run."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.files import atomic_write, cannot_write, finish, lock, writable

PART = ".part"
"""What the name of a file ends in that is not complete."""


class LineFile:
    """A file of JSON lines, under its name once it is complete and as ``<name>.part`` until then.

    Each line is written at once and whole: what a full disk cut off is cut back, and what a crash
    cut off when the run goes on. Leaving the block with an error leaves the part behind. Lines of
    images that could not be read are dropped when the run goes on, for they are tried again.

    Attributes:
        part: the incomplete file.
        records: lines of the run that goes on, by their path; none in a new run.
        unread: how many lines were dropped.

    Args:
        path: the file to write; what is there already stays until the new one is complete.
        resume: go on with the part that an earlier run left, if there is one.

    Raises:
        UsageError: an earlier run left a part, and ``resume`` is not wanted; or another run writes
            it now.
        PadimEdgeError: the file cannot be written, or the part is no such file.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self._path = path
        self._target = writable(path)
        self.part = writable(self._target.with_name(self._target.name + PART))
        self.records: dict[str, dict[str, Any]] = {}
        self.unread = 0
        try:
            self._file = self._opened()
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            self._size = self._take_up(resume)
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, OSError):
                raise cannot_write(path, error) from error
            raise

    def _opened(self) -> int:
        """The part, which is this run's alone."""
        file = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):  # without locks two runs are the user's to keep apart
            if not lock(file, self.part):
                os.close(file)
                raise UsageError(f"another run writes {self.part} now: name another file")
        return file

    def _take_up(self, resume: bool) -> int:
        """Read what is there, and cut off what is no whole line; returns where the next begins."""
        known = self.part.read_bytes()
        if known and not resume:
            count = known.count(b"\n")
            raise UsageError(
                f"{self.part} holds {count} lines of a run that was stopped: go on "
                "with --resume, or remove it"
            )
        size = self._read(known)
        if self.unread:
            with atomic_write(self.part) as stream:
                for record in self.records.values():
                    stream.write(_line(record))
                size = stream.tell()
            earlier, self._file = self._file, self._opened()
            os.close(earlier)
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)
        return size

    def _read(self, known: bytes) -> int:
        """Take the whole lines of a part; returns where they end."""
        whole = known[: known.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                if not _is_record(record):
                    raise ValueError("fields of other types")
                if "error" in record:
                    self.unread += 1
                else:
                    self.records[record["path"]] = record
            except (ValueError, RecursionError) as error:
                raise PadimEdgeError(
                    f"line {number} of {self.part} is none of padim-edge run: remove the file, and "
                    "run without --resume"
                ) from error
        return len(whole)

    def write(self, record: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            PadimEdgeError: it cannot be written; no half of it is left.
        """
        line = _line(record)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise cannot_write(self._path, error) from error
        self._size += len(line)

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._file)
                finish(self.part, self._target)
            elif not self._size:
                self.part.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        finally:
            os.close(self._file)

    def lines(self) -> int:
        """How many lines there are in the part; 0 once it is complete or was removed."""
        return self.part.read_bytes().count(b"\n") if self.part.exists() else 0


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _is_record(record: Any) -> bool:
    """Whether it is what `padim_edge.detect.judging.Verdict.to_json` makes of a file."""
    if not isinstance(record, dict) or not isinstance(record.get("path"), str):
        return False
    if "error" in record:
        return isinstance(record["error"], str)
    number = (int, float)
    return (
        isinstance(record.get("score"), (*number, type(None)))
        and isinstance(record.get("threshold"), number)
        and isinstance(record.get("percentile"), number)
        and isinstance(record.get("is_anomalous"), bool)
    )
