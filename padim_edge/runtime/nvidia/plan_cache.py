"""The plan cache: what TensorRT built once for this device, kept between runs.

A plan takes minutes to build on a small device and holds native code that is run as it stands.
So it lives in a folder that nobody else can write, and is handed out only when its header names
exactly what was asked for and its digest is right; anything else counts as absent and is built
again. Nothing here needs TensorRT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.files import atomic_write

MAGIC = b"padim-edge plan\x01"
_DIGEST = hashlib.sha256().digest_size
_HEADER = len(MAGIC) + 2 * _DIGEST

_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())  # a library stays silent unless it is asked


class PlanError(PadimEdgeError):
    """TensorRT does not take this plan: it is of another version or device, or damaged."""


@dataclass(frozen=True)
class BuildSettings:
    """How a plan is built.

    Attributes:
        batch: smallest, usual and largest batch that it takes; tactics are timed for the usual.
        workspace: bytes of device memory that one layer may use.
        tf32: whether float32 convolutions may round their factors to 10 bits on tensor cores
            (about float16's error). Off: who wants that speed has float16, and float32 is
            what the threshold was made with.
    """

    batch: tuple[int, int, int] = (1, 1, 32)
    workspace: int = 2**30
    tf32: bool = False

    def __post_init__(self) -> None:
        """Refuse what no plan can be built for.

        Raises:
            UsageError: batches out of order, or no workspace.
        """
        least, usual, most = self.batch
        if not 1 <= least <= usual <= most:
            raise UsageError(
                f"a plan for batches {least}, {usual}, {most}: give the smallest, the usual and "
                "the largest batch, in this order and at least 1"
            )
        if self.workspace < 1:
            raise UsageError(f"a workspace of {self.workspace} bytes: give a positive number")


@dataclass(frozen=True)
class PlanKey:
    """What a plan is valid for; it is useless, or dangerous, for anything else.

    Attributes:
        graph_sha256: of the ONNX graph, whose types decide the plan's precision.
        settings: how it is built.
        gpu: name, compute capability and number of multiprocessors of the device.
        library: name and version of the library that builds and runs it.
    """

    graph_sha256: str
    settings: BuildSettings
    gpu: str
    library: str

    @classmethod
    def of(cls, graph: bytes, settings: BuildSettings, gpu: str, library: str) -> PlanKey:
        """The key of a plan for an ONNX graph."""
        return cls(hashlib.sha256(graph).hexdigest(), settings, gpu, library)

    @property
    def digest(self) -> bytes:
        """SHA-256 over all of it."""
        return _digest(dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """The file's name: without the library, so that an upgrade replaces the old plan."""
        return _digest(dataclasses.asdict(self) | {"library": ""}).hex()[:32] + ".plan"


def _digest(values: object) -> bytes:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()


@dataclass(frozen=True)
class SealedFile:
    """Bytes on disk that are read back whole, of the right kind and ours, or not at all."""

    path: Path
    key: bytes

    def read(self) -> bytes | None:
        """The bytes; None if there is no such file, or it is stale, damaged or foreign."""
        try:
            with open(self.path, "rb", opener=_not_a_link) as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
                    return None
                header = stream.read(_HEADER)
                if header[: len(MAGIC) + _DIGEST] != MAGIC + self.key:
                    return None
                data = stream.read()
        except OSError:
            return None
        return data if header[-_DIGEST:] == hashlib.sha256(data).digest() else None

    def write(self, data: bytes) -> None:
        """Replace the file at once or not at all.

        Raises:
            PadimEdgeError: the folder is full or not writable.
        """
        with atomic_write(self.path) as stream:
            stream.write(MAGIC + self.key + hashlib.sha256(data).digest())
            stream.write(data)


def _not_a_link(path: str, flags: int) -> int:
    """Open what is really there: a link could lead to a file that somebody else can change."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # nor wait at a pipe


class PlanCache:
    """Plans and timings of the current user.

    Args:
        folder: where they are kept; None for ``padim-edge/plans`` in the user's cache folder.

    Raises:
        PadimEdgeError: the folder cannot be made, belongs to somebody else, or others can write
            to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = _private(folder or _user_cache() / "padim-edge" / "plans")

    def load(self, key: PlanKey) -> bytes | None:
        """The plan for this key, if there is a sound one."""
        return self._file(key).read()

    def build(
        self, key: PlanKey, builder: Callable[[], bytes], refused: bytes | None = None
    ) -> bytes:
        """Build a plan and keep it.

        One process builds at a time, since two at once would spoil the timings by which tactics
        are chosen; one that waited takes the other's plan if it is for the same key. A plan that
        cannot be kept is used all the same.

        Args:
            key: what it will be valid for.
            builder: makes it.
            refused: a plan with this key that the library did not take. It is replaced, but not
                before there is another: the fault may lie elsewhere.
        """
        file = self._file(key)
        with self._alone():
            data = file.read()
            if data is None or data == refused:
                data = builder()
                try:
                    file.write(data)
                except PadimEdgeError as error:
                    _logger.warning("the plan will be built again next time: %s", error)
        return data

    def timings(self, gpu: str, library: str) -> SealedFile:
        """Where the timings of tactics are kept: they make the next build on this GPU shorter."""
        name = _digest(gpu).hex()[:32] + ".timings"
        return SealedFile(self.folder / name, _digest([gpu, library]))

    def _file(self, key: PlanKey) -> SealedFile:
        return SealedFile(self.folder / key.name, key.digest)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock, which the system frees even if this process is killed."""
        with contextlib.ExitStack() as stack:
            # Some network file systems have no locks. Then two may build the same plan, and the
            # last one wins: a waste, but no harm.
            with contextlib.suppress(OSError):
                stream = stack.enter_context((self.folder / "lock").open("wb"))
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _user_cache() -> Path:
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored.
    return configured if configured.is_absolute() else Path.home() / ".cache"


def _private(folder: Path) -> Path:
    """Make a folder that is ours alone, or insist that it is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise PadimEdgeError(
                f"the plan cache {folder} belongs to another user (id {status.st_uid}), whose "
                "plans would run with your rights: set XDG_CACHE_HOME to a folder of your own"
            )
        if status.st_mode & 0o022:
            raise PadimEdgeError(
                f"others can write to the plan cache {folder}, and plans are run as they stand: "
                f"remove it and run again  (rm -r '{folder}')"
            )
        if status.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise PadimEdgeError(
            f"cannot use the plan cache {folder}: {error.strerror or error}; set XDG_CACHE_HOME "
            "to a folder that you can write to"
        ) from error
    return folder
