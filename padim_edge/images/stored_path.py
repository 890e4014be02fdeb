"""Stored paths: files of object stores, by the addresses and with the verbs of paths.

An address is one of fsspec's, such as ``s3://bucket/photos``. What reads folders and files takes
such a path as it takes others, and its names, parents and parts are those of the address.
"""

from __future__ import annotations

import contextlib
import errno
import io
import re
from collections.abc import Generator, Iterator
from pathlib import Path, PosixPath
from typing import Any

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError, first_line

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")


def as_path(source: str | Path) -> Path:
    """A file or folder, or what an address names in an object store.

    Raises:
        UsageError: there is no such kind of store.
        PadimEdgeError: what reads it is not installed.
    """
    if isinstance(source, Path):
        return source
    if not ADDRESS.match(source):
        return Path(source)
    path = StoredPath(source)
    path.check()
    return path


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
            package = known_implementations[kind]["class"].partition(".")[0]
            if package == "s3fs":
                raise MissingDependencyError(str(self), package, "stores") from error
            raise PadimEdgeError(
                f"{self} needs {package}, which is not installed: run  pip install {package}"
            ) from error
        except ValueError as error:
            raise UsageError(
                f"{self}: no kind of store is called {kind}: give a folder, or an address of "
                "fsspec's such as s3://bucket/photos"
            ) from error

    @contextlib.contextmanager
    def _store(self) -> Iterator[tuple[Any, str]]:
        """The file system, which fsspec keeps open, and the path in it; faults as OSErrors."""
        import fsspec

        try:
            yield fsspec.core.url_to_fs(str(self))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "not in the store", str(self)) from error
        except OSError as error:
            raise OSError(error.errno or errno.EIO, first_line(error), str(self)) from error
        except Exception as error:  # of the store's client: no credentials, no connection, ...
            raise OSError(errno.EIO, first_line(error), str(self)) from error

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
        with self._store() as (store, path):
            return bool(store.isdir(path))

    def is_file(self, **_: Any) -> bool:
        """Whether it is an object."""
        with self._store() as (store, path):
            return bool(store.isfile(path))

    def is_symlink(self) -> bool:
        """No store has links."""
        return False

    def exists(self, **_: Any) -> bool:
        """Whether it is there."""
        with self._store() as (store, path):
            return bool(store.exists(path))

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
        with self._store() as (store, path):
            found = [(one["name"].rstrip("/"), one["type"]) for one in store.ls(path, detail=True)]
            own = path.rstrip("/")
        return [(name.rpartition("/")[2], kind) for name, kind in found if name != own]

    def below(self) -> Iterator[StoredPath]:
        """Every file in it and in the folders below it."""
        with self._store() as (store, path):
            names = store.find(path)
        for name in names:
            yield self / name.removeprefix(path).lstrip("/")

    def matches(self) -> Iterator[StoredPath]:
        """Files that it names as a pattern, with ``*``, ``?``, ``[...]`` and ``**``."""
        with self._store() as (store, path):
            names = store.glob(path)
        kind = str(self).partition("://")[0]
        yield from (StoredPath(f"{kind}://{name.lstrip('/')}") for name in names)
