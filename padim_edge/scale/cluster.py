"""Cluster: pieces of work for the workers of Ray, and their answers in the order of the pieces.

Ray Data hands the pieces out, starts and restarts the workers, and gives the pieces of one that
died to others; what is done with a piece is ours, and depends on nothing but the piece.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import platform
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from padim_edge import __version__
from padim_edge.errors import (
    ImageError,
    MissingDependencyError,
    PadimEdgeError,
    UsageError,
    first_line,
)
from padim_edge.images.decode import NoSuchImageError
from padim_edge.runtime.engines import NVIDIA
from padim_edge.system import available_cores

try:
    import ray
    import ray.data
    from ray._private import services
    from ray.data import ActorPoolStrategy, DataContext
except ImportError as error:
    raise MissingDependencyError("--ray", "ray", "ray") from error

STORE_BYTES = 256 * 2**20
"""Of shared memory for answers that wait, in a Ray of our own; what does not fit goes to its
folder."""

ATTEMPTS = 3
"""To start one. Ray gives its helpers 15 seconds to begin, whatever else the machine is doing."""

SECONDS_TO_ANSWER = 5
"""For a machine to take a connection. Ray itself asks for minutes, in silence."""

WAITING = 1000
"""Blocks of pieces that Ray Data is given, at most: it keeps books of each."""

RETRIES = 3
"""Of a piece whose worker died. One that is too large for the memory kills every worker."""

Answer = TypeVar("Answer")
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Cluster:
    """A Ray that answers.

    Attributes:
        where: it is, in words.
        cpus: of each machine, those that Ray may use.
        gpus: the same, in the same order.
    """

    where: str
    cpus: tuple[int, ...]
    gpus: tuple[int, ...]

    def workers(self, engine: str = "auto", threads: int = 0) -> int:
        """How many workers fit in, if each takes ``threads`` CPUs (0 for one), or a GPU, too.

        Raises:
            PadimEdgeError: none does.
        """
        most = max(self.cpus, default=0)
        if not most:
            raise PadimEdgeError(
                f"{self}: it has no CPU that Ray may use; add machines that were started with some"
            )
        if engine in NVIDIA and not any(self.gpus):
            raise PadimEdgeError(
                f"--engine {engine}: no machine of {self} has a GPU that Ray knows of; leave "
                "--engine out, or add such machines"
            )
        each = [cpus // max(threads, 1) for cpus in self.cpus]
        if engine in NVIDIA:
            each = list(map(min, each, self.gpus))
        if not sum(each):
            of = " with a GPU" if engine in NVIDIA else ""
            raise PadimEdgeError(
                f"--threads {max(threads, 1)}: no machine{of} of {self} has so many, and {most} is "
                "the most of one; choose fewer threads"
            )
        return sum(each)

    def __str__(self) -> str:
        count = len(self.cpus)
        return f"Ray {self.where}, {sum(self.cpus)} CPUs on {count} machine{'s' * (count != 1)}"

    def spread(
        self,
        open_worker: Callable[[], Callable[[Piece], Answer]],
        pieces: Sequence[Piece],
        engine: str = "auto",
        threads: int = 0,
        folder: Path | None = None,
    ) -> Iterator[Answer]:
        """Have pieces of work done.

        Args:
            open_worker: makes a worker, in its own process; also a local function.
            pieces: of the work, each pickled and small.
            engine: of the workers; one on a GPU takes one of them for each.
            threads: CPUs of a worker; 0 for one.
            folder: that workers change to, see `start_of`; None to stay where Ray puts them.

        Yields:
            The answers, in the order of the pieces, as they come.

        Raises:
            PadimEdgeError: what a worker raised, or the cluster is of no use.
        """
        if not pieces:
            return
        count = min(self.workers(engine, threads), len(pieces))
        rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
        # Ray keeps what the workers are made of for those that take the place of the dead.
        recipe = ray.put(ray.cloudpickle.dumps(open_worker))  # type: ignore[no-untyped-call]
        with _quiet():
            data = ray.data.from_items(rows, override_num_blocks=min(len(rows), WAITING))
            with warnings.catch_warnings():
                # Of max_task_retries, which goes with Ray 2.64: see the extra ray.
                warnings.simplefilter("ignore")
                done = data.map_batches(
                    _Asked,
                    fn_constructor_args=(recipe, __version__, folder),
                    batch_size=1,
                    compute=ActorPoolStrategy(size=count),
                    num_cpus=max(threads, 1),
                    num_gpus=1 if engine in NVIDIA else None,
                    max_task_retries=RETRIES,
                )
            try:
                for row in done.iter_rows():
                    answer = pickle.loads(row["answer"])
                    if isinstance(answer, _Refused):
                        raise PadimEdgeError(answer.reason)
                    yield answer
            except ray.exceptions.RayError as error:
                raise PadimEdgeError(
                    f"{self} did not do the work ({_told(error)}); padim_edge {__version__} with "
                    "the same extras is needed on all of its machines, and memory for each worker"
                ) from error


@dataclass(frozen=True)
class _Refused:
    """Why a worker cannot go on: an error that is no fault of the cluster."""

    reason: str


class _Asked:
    """A worker within Ray: unpickles, asks, pickles."""

    def __init__(self, recipe: Any, version: str, folder: Path | None) -> None:
        self._recipe = recipe
        self._version = version
        self._folder = folder
        self._worker: Callable[[Any], Any] | None = None

    def _opened(self) -> Callable[[Any], Any]:
        """Not in the constructor: Ray tells nobody well of what is raised there."""
        if self._version != __version__:
            raise PadimEdgeError(
                f"padim_edge {__version__} is installed, and the command is of {self._version}: "
                "install one version on all machines"
            )
        if self._folder:
            try:
                os.chdir(self._folder)
            except OSError as error:
                raise PadimEdgeError(
                    f"paths were given that begin in {self._folder}, which cannot be entered here "
                    f"({error.strerror}): mount it, or give whole paths that all machines see"
                ) from error
        worker: Callable[[Any], Any] = pickle.loads(ray.get(self._recipe))()
        return worker

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        answers = []
        for piece in batch["piece"]:
            try:
                self._worker = self._worker or self._opened()
                answer = self._worker(pickle.loads(piece))
            except (PadimEdgeError, OSError, MemoryError) as error:
                answer = _Refused(f"{str(error) or type(error).__name__} (on {platform.node()})")
            except Exception as error:  # of which Ray would tell in a page
                answer = _Refused(
                    f"this should not happen ({type(error).__name__}: {first_line(error)}, on "
                    f"{platform.node()}): please report it"
                )
            answers.append(pickle.dumps(answer, protocol=5))
        return {"answer": answers}


def start_of(paths: Iterable[Path]) -> Path | None:
    """Where paths begin that are not whole: in the folder of this process. None if all are."""
    return None if all(path.is_absolute() for path in paths) else Path.cwd()


def check_missing(cluster: Cluster, path: Path, error: ImageError) -> None:
    """Refuse the work where a worker misses a file that is there.

    Raises:
        PadimEdgeError: it does.
    """
    if isinstance(error, NoSuchImageError) and path.exists():
        raise PadimEdgeError(
            f"{path} is not there for a worker of {cluster}, and it is for this process: all "
            "machines must see photos by the same paths, in an object store or a folder that all "
            "have mounted"
        )


class SameEngine:
    """Refuses answers of workers that chose different engines, whose results differ."""

    def __init__(self) -> None:
        self._first: str | None = None

    def __call__(self, engine: str) -> None:
        """Take the engine of an answer.

        Raises:
            PadimEdgeError: it is another one than that of those before.
        """
        self._first = self._first or engine
        if engine != self._first:
            raise PadimEdgeError(
                f"workers run {self._first} and {engine}, whose results are not equal bit by bit: "
                "install the same on all machines, or name one with --engine"
            )


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[Cluster]:
    """A cluster to work with; one of our own ends with the context.

    Args:
        address: of a running one, as Ray has it: HOST:PORT, ray://HOST:PORT, or auto for the
            latest that runs here. None for that of the environment's RAY_ADDRESS; where there is
            none either, or it is "local", one is started, for this machine alone.

    Raises:
        PadimEdgeError: it does not answer, or Ray does not start.
    """
    if address is not None and not address.strip():
        raise UsageError(
            "--ray-address is empty (a variable that is not set?): give HOST:PORT of a running "
            "cluster, or leave it out to have one started here"
        )
    own = ray.is_initialized()  # by a program of the user's
    asked, address = address, address or os.environ.get("RAY_ADDRESS") or "local"
    if asked or not own:
        _check_answers(address)
    if own:
        yield _cluster("of this program")
        return
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == "local":
            # Sessions of Ray leave their logs, and answers that found no room, in its folder.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="pe-ray-", ignore_cleanup_errors=True)
            )
            stack.callback(ray.shutdown)  # before the folder goes
            options |= {
                "num_cpus": available_cores(),
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        try:
            _start(address, options, ATTEMPTS if address == "local" else 1)
        except PadimEdgeError:
            raise
        except Exception as error:  # ConnectionError, ValueError, RuntimeError, OSError, ...
            if address == "local":
                raise PadimEdgeError(
                    f"Ray does not start here: {_told(error)}; without --ray nothing of it is "
                    "needed"
                ) from error
            raise PadimEdgeError(
                f"no Ray cluster answers at {address} ({_told(error)}): give the address of one, "
                "HOST:PORT, or neither --ray-address nor RAY_ADDRESS to have one started here"
            ) from error
        yield _cluster("started here" if address == "local" else f"at {address}")


def _check_answers(address: str) -> None:
    """Refuse an address where nobody takes a connection; auto and local are Ray's to look for.

    Raises:
        PadimEdgeError: it is no address, or nobody does.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UsageError(
            f"{address!r} is no address of a Ray cluster: give HOST:PORT, ray://HOST:PORT, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, UnicodeError) as error:
        raise PadimEdgeError(
            f"no Ray cluster answers at {address} ({first_line(error)}): give the address of one, "
            "HOST:PORT, or neither --ray-address nor RAY_ADDRESS to have one started here"
        ) from error


def _start(address: str, options: dict[str, Any], attempts: int) -> None:
    """Start Ray or join it, in silence."""
    # What Ray's C++ side says of itself on stderr; faults come as exceptions.
    quiet = _environment(RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal")
    here = _loopback() if address == "local" else contextlib.nullcontext()
    with quiet, _mute(), _own_signals(), here:
        for left in reversed(range(attempts)):
            try:
                ray.init(address=address, **options)
                return
            except Exception:
                ray.shutdown()
                if not left:
                    raise


def _cluster(where: str) -> Cluster:
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    cpus, gpus = (tuple(int(one.get(kind, 0)) for one in machines) for kind in ("CPU", "GPU"))
    return Cluster(where, cpus, gpus)


def _told(error: BaseException) -> str:
    """What an error of Ray's says in the end: it shows whole tracebacks of workers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables for child processes, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself where it may; who had it gets it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """127.0.0.1 stays what it is.

    Ray would put this machine's address in a network in its place, and listen there.
    """
    resolve = getattr(services, "resolve_ip_for_localhost", None)
    if resolve is None:
        raise PadimEdgeError(
            f"this version of Ray, {ray.__version__}, cannot be kept to 127.0.0.1: install the one "
            "of the extra ray, or start a cluster yourself and give --ray-address"
        )
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = resolve


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """Nothing on stderr: Ray's C++ side tells there that it has been told to be quiet."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data in order, and without bars and logs of its own; as it was afterwards."""
    context = DataContext.get_current()
    options = context.execution_options
    before = (context.enable_progress_bars, options.preserve_order)
    context.enable_progress_bars, options.preserve_order = False, True
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, options.preserve_order = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
