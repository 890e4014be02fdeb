"""Files that are either whole or not there: written beside the target, synced, renamed.

A writer holds a lock on its temporary file, which the system frees however the writer ends. So the
next one can tell what a killed one left from what another is writing now, and removes it. (Files
without a name, O_TMPFILE, would leave nothing at all, but cannot take the place of another file
without a name in between, and many file systems have none: FAT, NFS, 9p.)
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from padim_edge.errors import PadimEdgeError, UsageError


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block succeeds.

    Enter it before long work, and an unwritable target is reported before the work, not after.
    When the block raises (Ctrl-C too), ``path`` is left as it was and nothing stays behind.

    Raises:
        PadimEdgeError: the folder is missing, not writable or full, or ``path`` is a folder,
            a device or a pipe.
    """
    target, mode, descriptor, temporary = _begun(path)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            finish(temporary, target, mode)  # before the lock is given up with the stream
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # A broken pipe is stdout's, not this file's.
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise cannot_write(path, error) from error
        raise


def check_writable(path: str | Path) -> None:
    """Refuse what `atomic_write` would refuse, before long work that only ends with it.

    Raises:
        PadimEdgeError: as of `atomic_write`.
    """
    _, _, descriptor, temporary = _begun(path)
    temporary.unlink(missing_ok=True)
    os.close(descriptor)


def _begun(path: str | Path) -> tuple[Path, int | None, int, Path]:
    """What is to be written, its permissions, and a temporary file for it, open and locked."""
    target = writable(path)
    try:
        mode = _mode(target)
        return target, mode, *_temporary(target, is_new=mode is None)
    except OSError as error:
        raise cannot_write(path, error) from error


def lock(descriptor: int, path: Path) -> bool:
    """Take the lock of an open file, without waiting.

    Returns:
        Whether it was free, and ``path`` is still the name of this file.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _temporary(target: Path, is_new: bool) -> tuple[int, Path]:
    """A new file beside a target, locked; what killed writers of the same target left is removed.

    Where there is no target yet, the system gives it the permissions that any new file gets here.
    (To compute them one would have to read the umask, which can only be done by setting it, and for
    a moment every file of every other thread would be open to all.) In the place of a file that
    others may not read, nobody else reads what is being written either.

    Names are numbered, so that nobody has to search the folder, and there are never more of them
    than there were writers at once.
    """
    # Of a long name the beginning: a name has 255 bytes at most.
    mode = 0o666 if is_new else 0o600
    prefix = os.fsencode(f".{target.name}")[:200].decode(errors="ignore")
    for number in itertools.count():
        path = target.with_name(f"{prefix}.padim-edge-{number}")
        with contextlib.suppress(OSError):
            _remove_abandoned(path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:  # its writer is at work
            continue
        try:
            if lock(descriptor, path):
                return descriptor, path
        except OSError:  # without locks nobody takes it for abandoned
            return descriptor, path
        os.close(descriptor)  # somebody took it for abandoned before it was locked
    raise AssertionError("numbers do not end")


def _mode(path: Path) -> int | None:
    """The permissions of a file; None if there is none."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return None


def _remove_abandoned(path: Path) -> None:
    """Remove a temporary file whose writer is gone.

    Raises:
        OSError: there is none, it is no file, or nobody can tell.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # Whoever holds the lock may remove the name: it cannot be another file's by now.
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and lock(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)


def check_distinct(**files: Path | None) -> None:
    """Refuse to write one file over another.

    Args:
        files: by what they are called; None for what is not asked for.

    Raises:
        UsageError: two of them are the same file.
    """
    places = [path.resolve() for path in files.values() if path]
    if len(set(places)) < len(places):
        raise UsageError(
            f"{', '.join(files)} must be different files; {', '.join(map(str, places))} were given"
        )


def check_not_read(images: Iterable[Path], **files: Path | None) -> None:
    """Refuse to write over an image that is read: `check_distinct`, of very many.

    Args:
        images: which are read.
        files: to be written, by what they are called; None for what is not asked for.

    Raises:
        UsageError: one of them is an image.
    """
    there: dict[tuple[int, int], tuple[str, Path]] = {}
    for name, path in files.items():
        with contextlib.suppress(OSError):  # what is not there is no image
            if path:
                found = path.stat()
                there[found.st_dev, found.st_ino] = name, path
    for image in images if there else ():
        with contextlib.suppress(OSError):  # nor is anything of an object store
            found = image.stat()
            if taken := there.get((found.st_dev, found.st_ino)):
                name, path = taken
                raise UsageError(
                    f"{name} and the images that are read must be different files; {path} is one "
                    "of the images"
                )


def writable(path: str | Path) -> Path:
    """The file that is to be written for a path, links followed.

    Raises:
        PadimEdgeError: it is a folder, a device or a pipe, or the system does not take the name.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise PadimEdgeError(f"cannot write {target}: it is a folder; name a file")
        if target.exists() and not target.is_file():  # renaming would replace /dev/null itself
            raise PadimEdgeError(f"cannot write {target}: it is a device or a pipe; name a file")
        # Replacing a link would leave the file it points to as it was: follow it.
        return Path(os.path.realpath(target))
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str | Path, error: OSError) -> PadimEdgeError:
    """The error that says so, for ``raise``."""
    return PadimEdgeError(
        f"cannot write {path}: {error.strerror or error}; choose a folder that exists, "
        "is writable and has room"
    )


def finish(temporary: Path, target: Path, before: int | None = None) -> None:
    """Give a file that is written and synced the name of its target, durably.

    It gets the permissions of the file that it replaces, or those that there were ``before``.
    """
    mode = _mode(target)
    mode = before if mode is None else mode
    if mode is not None:
        temporary.chmod(mode)
    temporary.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_state(found: os.stat_result) -> tuple[int, ...]:
    """What is another for another file, and for one that was written to."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class FollowedFile:
    """A file that others replace, and when it is time to read it again.

    Attributes:
        path: of it; where it is a link, a new target is a new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._taken: tuple[int, ...] | None = None
        self._looked: tuple[int, ...] | None = None

    def take(self) -> None:
        """Call before it is read: what is there now is no news any more, be it good or not."""
        self._taken = self._state()

    def is_new(self) -> bool:
        """Whether it is another file than was taken, and whole: the same at two looks in a row.

        A file that is being copied changes between two looks. One that is gone is not new.
        """
        before, self._looked = self._looked, self._state()
        return self._looked is not None and self._looked == before != self._taken

    def _state(self) -> tuple[int, ...] | None:
        try:
            return file_state(self.path.stat())
        except OSError:
            return None
