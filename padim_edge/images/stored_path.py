"""Stored paths: files of object stores, by the addresses and with the verbs of paths.

An address is one of fsspec's, such as ``s3://bucket/photos``. What reads folders and files takes
such a path as it takes others, and its names, parents and parts are those of the address.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import re
from collections.abc import Generator, Iterator
from pathlib import Path, PosixPath
from typing import Any

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError, first_line

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")


class StoreError(PadimEdgeError):
    """A store, or the way there, is at fault, and not what lies in it."""


def as_path(source: str | Path) -> Path:
    """A file or folder, or what an address names in an object store.

    Raises:
        UsageError: it is empty, there is no such kind of store, or the address may name another
            place.
        PadimEdgeError: what reads it is not installed.
    """
    if isinstance(source, Path):
        return source
    if not source:  # to pathlib the folder one is in, which nobody has named
        raise UsageError(
            "an empty name was given for a file or folder (a variable that is not set?): name "
            "one; . is the folder you are in"
        )
    if "://" in source and "::" in source:
        raise UsageError(
            f"{source}: addresses with :: are not taken: give one that leads to the store itself, "
            "such as s3://bucket/photos"
        )
    if not ADDRESS.match(source):
        return Path(source)
    kind, _, place = source.partition("://")
    if kind in ("file", "local"):
        raise UsageError(f"{source}: give the path itself, as of any file of this machine")
    if not place or place.startswith("/"):
        raise UsageError(
            f"{source} does not say where: a bucket or a host comes first, as in s3://bucket/photos"
        )
    if re.search(r"[*?[]", place.partition("/")[0]):
        raise UsageError(f"{source}: name the bucket or the host; a pattern comes below it")
    if not _is_plain(place.removesuffix("/")):
        raise UsageError(f"{source}: names with an empty or a . part are not taken: leave it out")
    path = StoredPath(source)
    path.check()
    return path


def _is_plain(name: str) -> bool:
    """Whether it names the same thing as a path, and is no chain of fsspec's."""
    return not re.search(r"//|/\./|::", f"{name}/")


class StoredPath(PosixPath):
    """A file, or what stands for a folder, in an object store; see `as_path`."""

    def __str__(self) -> str:
        # As a path it has one stroke where the address has two.
        return re.sub(r"^([a-z][a-z0-9+.-]+:)/+", r"\1//", super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredPath, (str(self),)

    def check(self) -> None:
        """Whether there is something that reads such an address; raises as `as_path`."""
        kind = str(self).partition("://")[0]
        try:
            import fsspec
            from fsspec.registry import known_implementations
        except ImportError as error:
            raise MissingDependencyError(str(self), "fsspec", "stores") from error
        try:
            fsspec.get_filesystem_class(kind)
        except ImportError as error:
            if kind in ("s3", "s3a"):
                raise MissingDependencyError(str(self), "s3fs", "stores") from error
            missing = known_implementations.get(kind, {}).get("err") or first_line(error)
            raise PadimEdgeError(f"{self}: {missing}") from error
        except ValueError as error:
            raise UsageError(
                f"{self}: no kind of store is called {kind}: give a folder, or an address of "
                "fsspec's such as s3://bucket/photos"
            ) from error

    @contextlib.contextmanager
    def _store(self) -> Iterator[tuple[Any, str]]:
        """The file system, which fsspec keeps open, and the path in it.

        Raises:
            FileNotFoundError: there is nothing of that name.
            StoreError: all else, such as no credentials, no right, no connection.
        """
        try:
            import fsspec

            yield fsspec.core.url_to_fs(str(self))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "not in the store", str(self)) from error
        except (PadimEdgeError, MemoryError):
            raise
        except Exception as error:
            said = error.strerror if isinstance(error, OSError) else None
            raise StoreError(
                f"cannot fetch {self}: {said or first_line(error)}; the store does not answer"
            ) from error

    @contextlib.contextmanager
    def _now(self) -> Iterator[tuple[Any, str]]:
        """The same, to ask what lies there now: fsspec keeps what it was told before."""
        with self._store() as (store, path):
            store.invalidate_cache()
            yield store, path

    def _kind(self) -> str | None:
        """Of what lies there: "file", "directory", None for nothing.

        Not isfile and its like, for which a store that does not answer is an empty one.
        """
        try:
            with self._now() as (store, path):
                kind: str = store.info(path)["type"]
                return kind
        except FileNotFoundError:
            return None

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """All of its bytes, fetched at once; "rb" is the only mode."""
        if mode != "rb":
            raise UsageError(f"{self}: files of a store are read, not written")
        with self._store() as (store, path):
            return io.BytesIO(store.cat_file(path))

    def read_bytes(self) -> bytes:
        """Its bytes."""
        with self.open("rb") as stream:
            data: bytes = stream.read()
            return data

    def is_dir(self, **_: Any) -> bool:
        """Whether something lies below it."""
        return self._kind() == "directory"

    def is_file(self, **_: Any) -> bool:
        """Whether it is an object."""
        return self._kind() == "file"

    def is_symlink(self) -> bool:
        """No store has links."""
        return False

    def exists(self, **_: Any) -> bool:
        """Whether it is there."""
        return self._kind() is not None

    def is_absolute(self) -> bool:
        """It is, wherever it is read."""
        return True

    def resolve(self, strict: bool = False) -> StoredPath:  # noqa: ARG002 - as paths have it
        """Itself."""
        return self

    def iterdir(self) -> Generator[StoredPath, None, None]:
        """What lies in it."""
        yield from (self / name for name, _ in self._listed())

    def files(self) -> Iterator[StoredPath]:
        """Those of it that are no folders."""
        yield from (self / name for name, kind in self._listed() if kind == "file")

    def _listed(self) -> list[tuple[str, str]]:
        """Names and kinds of what lies in it; some stores list a folder within itself."""
        with self._now() as (store, path):
            found = [(one["name"].rstrip("/"), one["type"]) for one in store.ls(path, detail=True)]
            own = path.rstrip("/")
        return [(self._below(own, name).name, kind) for name, kind in found if name != own]

    def below(self) -> Iterator[StoredPath]:
        """Every file in it and in the folders below it."""
        with self._now() as (store, path):
            names = store.find(path)
        for name in names:
            if not name.endswith("/"):  # an empty object that stands for a folder
                yield self._below(path, name)

    def _below(self, own: str, name: str) -> StoredPath:
        """What the store calls ``name`` below this, which it calls ``own``: it leaves out hosts.

        Raises:
            PadimEdgeError: no path has such a name.
        """
        tail = name.removeprefix(own).removeprefix("/")
        if not _is_plain(f"/{tail}"):
            raise PadimEdgeError(
                f"{self}/{tail}: a name with an empty or a . part, or with ::, which paths do not "
                "have: rename or remove it"
            )
        return self / tail

    def matches(self) -> Iterator[StoredPath]:
        """Files that it names as a pattern, with ``*``, ``?``, ``[...]`` and ``**``.

        Hidden ones and those in hidden folders only where the pattern names them, as on a disk.
        """
        magic = next(place for place, part in enumerate(self.parts) if re.search(r"[*?[]", part))
        base = StoredPath(*self.parts[:magic])
        dotted = [part for part in self.parts[magic:] if part.startswith(".")]
        with self._now() as (store, path):
            found = store.glob(path, detail=True)
        with base._store() as (_, own):
            pass
        for name, about in found.items():
            match = base._below(own, name)
            hidden = (part for part in match.parts[magic:] if part.startswith("."))
            if about["type"] == "file" and all(
                any(fnmatch.fnmatchcase(part, one) for one in dotted) for part in hidden
            ):
                yield match
