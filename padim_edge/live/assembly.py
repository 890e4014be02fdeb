"""From addresses and options to a watch that runs: its parts, put together and let go of again."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from padim_edge.detect.detector import Detector, check_threshold
from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError, first_line
from padim_edge.live.addresses import parse
from padim_edge.live.delivery import Deliveries, spooled
from padim_edge.live.drift import DriftWatch
from padim_edge.live.event import Event
from padim_edge.live.queues import check_policy
from padim_edge.live.recorder import Recorder
from padim_edge.live.sinks import METRICS, make_sink
from padim_edge.live.source import Source, SourceError
from padim_edge.live.sources import SOURCES, never, open_source
from padim_edge.live.spool import Spool
from padim_edge.live.swap import ModelSlot
from padim_edge.live.systemd import Notifier
from padim_edge.live.watch import Camera, Watch
from padim_edge.model.file import read
from padim_edge.progress import Progress
from padim_edge.runtime.engines import check_name
from padim_edge.runtime.graphs import GRAPHS
from padim_edge.system import resident_memory

if TYPE_CHECKING:
    from padim_edge.live.teach import Teacher

STATE = "padim-edge-state"
"""Where everything is kept, if neither the user nor systemd says where."""


@dataclass(frozen=True)
class Wish:
    """A camera that is to be watched.

    Attributes:
        model: a detector; or an embedding, which is taught on the page.
        source: an address of `padim_edge.live.sources`.
        name: what events call it; "" for one that is made.
    """

    model: Path
    source: str
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be watched, and how: the options of `padim-edge watch`.

    Attributes:
        cameras: one at least.
        to: addresses of sinks; metrics among them.
        page: HOST:PORT of the page; None for none.
        token: what a browser must show; None for none on loopback, else one is made.
        policy: of all cameras; None leaves it to each source.
        state: the folder of the spool and of what is taught; None for systemd's, or `STATE`.
        engine: what runs detectors.
        threads: of it; 0 for all cores.
        threshold: in place of the detectors' own; None.
        batch: frames of a model that are judged at once, at most.
        pixel_format: of the frames, where the source does not say.
        count: frames after which it ends; None.
        stats: seconds between lines of counts; 0 for none.
        drain: seconds that sinks have at the end.
    """

    cameras: Sequence[Wish]
    to: Sequence[str] = ()
    page: str | None = None
    token: str | None = None
    policy: str | None = None
    state: Path | None = None
    engine: str = "auto"
    threads: int = 0
    threshold: float | None = None
    batch: int = 1
    pixel_format: str | None = None
    count: int | None = None
    stats: float = 0.0
    drain: float = 10.0


@dataclass(frozen=True)
class Voice:
    """Who is told.

    Attributes:
        say: lines for people.
        line: events as JSON, if there is no sink.
        opened: a detector that is open: its file, the detector, bytes of memory that it took.
        progress: shows what takes long while it is entered.
    """

    say: Callable[[str], None]
    line: Callable[[str], None]
    opened: Callable[[Path, Detector, int], None]
    progress: Callable[[], contextlib.AbstractContextManager[Progress]]


class Assembly:
    """A watch with all that belongs to it: open within ``with``, and run once.

        with Assembly(plan, voice) as assembly:
            assembly.run()

    Attributes:
        watch: within ``with``; its `stop` and `reload` are for signals.

    Raises:
        UsageError: the plan makes no sense: an address, a name, a combination.
        PadimEdgeError: on entering: a file does not open, a place cannot be written or listened at.
    """

    watch: Watch

    def __init__(self, plan: Plan, voice: Voice) -> None:
        check_policy(plan.policy)
        check_name(plan.engine)
        check_threshold(plan.threshold)
        self._plan, self._voice = plan, voice
        self._stack = contextlib.ExitStack()
        metrics = f"{METRICS}:"
        self._asked = [one for one in plan.to if one.lower().startswith(metrics)]
        self._sinks = [make_sink(one) for one in plan.to if one not in self._asked]
        self._sources = [parse(wish.source, "source", SOURCES) for wish in plan.cameras]

    def __enter__(self) -> Assembly:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._open()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Watch until `Watch.stop`, or the last source has ended; then sinks take what waits.

        Args:
            is_hurried: asked again and again at the end; then sinks are not waited for.

        Raises:
            PadimEdgeError: as `Watch.run`.
        """
        if self._deliveries:
            self._deliveries.start()
        try:
            self.watch.run()
        finally:
            if self._deliveries:
                self._drain(self._deliveries, is_hurried)

    def _drain(self, deliveries: Deliveries, is_hurried: Callable[[], bool]) -> None:
        left: list[str] = []
        closing = threading.Thread(
            target=lambda: left.extend(deliveries.close(self._plan.drain)), daemon=True
        )
        closing.start()
        while closing.is_alive() and not is_hurried():
            closing.join(0.1)
        for line in left:
            self._voice.say(f"at the end: {line}")

    # --- opening, in the order in which one needs the other -----------------------------------

    def _open(self) -> None:
        plan = self._plan
        taught = self._embeddings()
        # Of a hot folder it is remembered what was judged, whoever is told of it.
        is_hot = any(address.scheme == "hot" for address in self._sources)
        keeps = bool(self._sinks or plan.state or is_hot)
        folder = self._state_folder() if keeps or taught else None
        spool = self._spool(folder) if folder and keeps else None
        slots = self._slots(taught)
        cameras = self._cameras(slots, spool)
        wants_pictures = any(sink.wants_pictures for sink in self._sinks)
        recorder = Recorder(spool, None if self._sinks else self._voice.line, wants_pictures)
        recorder.told.append(self._tell)
        notifier = Notifier()
        self._stack.callback(notifier.close)
        self.watch = Watch(
            cameras,
            recorder,
            batch=plan.batch,
            count=plan.count,
            notifier=notifier,
            stats=plan.stats,
            tell=self._voice.say,
        )
        self._deliveries = None
        if spool is not None and self._sinks:
            names = list(self.watch.statuses)
            said = lambda message: self.watch.say("watch", "", message)  # noqa: E731
            self._deliveries = Deliveries(spool, self._sinks, names, said)
        teachers = self._teachers(taught, cameras, folder) if folder else {}
        for slot in dict.fromkeys(slots):
            mine = [camera.name for camera in cameras if camera.model is slot]
            self.watch.observers.append(DriftWatch(slot, self.watch.say, mine))
        if plan.page:
            self._show(plan.page, recorder, teachers)
        for address in self._asked:
            self._answer(address, recorder)

    def _embeddings(self) -> set[Path]:
        """Those of the files that are no detectors yet, and are taught on the page."""
        plan = self._plan
        paths = dict.fromkeys(wish.model for wish in plan.cameras)
        taught = {path for path in paths if read(path, None, lazily=True).detector_info is None}
        if taught and not plan.page:
            raise UsageError(
                f"{min(taught)} is an embedding, which judges nothing yet: make a detector of it "
                "with  padim-edge fit , or teach one on the page, with --page 127.0.0.1:8080"
            )
        if taught and plan.threshold is not None:
            raise UsageError(
                f"--threshold would hold for every detector that is taught of {min(taught)}, whose "
                "scores nobody knows yet: leave it out, each fit sets its own"
            )
        places: dict[Path, Path] = {}
        for path in paths:
            if path in taught:
                places.setdefault(path.resolve(), path)
        folders: dict[str, Path] = {}
        for path in places.values():
            if (other := folders.setdefault(_taught_in(path), path)) is not path:
                raise UsageError(
                    f"what is taught of {other} and of {path} would be kept in the same folder, "
                    f"{_taught_in(path)}: give one of the files another name"
                )
        return taught

    def _state_folder(self) -> Path:
        """Where everything is kept; made if it is not there."""
        given = self._plan.state
        folder = given or Path(os.environ.get("STATE_DIRECTORY", "").split(":")[0] or STATE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PadimEdgeError(
                f"cannot make the folder {folder}: {error.strerror or error}; name one that can be "
                "written with --state"
            ) from error
        if given is None:
            self._voice.say(f"state: {folder}")
        return folder

    def _spool(self, folder: Path) -> Spool:
        """What sinks deliver from, and where it is remembered what was judged."""
        wants_pictures = any(sink.wants_pictures for sink in self._sinks)
        spool = Spool(folder / "spool.db", sinks=spooled(self._sinks), pictures=wants_pictures)
        self._stack.callback(spool.close)
        return spool

    def _slots(self, taught: set[Path]) -> list[ModelSlot]:
        """A slot for each camera; the same one for the same file."""
        plan = self._plan

        def opener(path: Path) -> Detector:
            return Detector(path, plan.engine, plan.threads, threshold=plan.threshold)

        slots: dict[Path, ModelSlot] = {}
        for path in dict.fromkeys(wish.model for wish in plan.cameras):
            place = path.resolve()
            if place in slots:
                continue
            if path in taught:
                slots[place] = ModelSlot(opener)
                self._stack.callback(slots[place].close)
                continue
            before = resident_memory()
            with self._voice.progress() as progress:
                slot = ModelSlot(
                    lambda one: Detector(
                        one,
                        plan.engine,
                        plan.threads,
                        progress,
                        threshold=plan.threshold,
                    ),
                    path,
                )
            slot.opener = opener
            self._stack.callback(slot.close)
            slots[place] = slot
            with slot.using() as detector:
                if detector:
                    self._voice.opened(path, detector, resident_memory() - before)
        return [slots[wish.model.resolve()] for wish in plan.cameras]

    def _cameras(self, slots: Sequence[ModelSlot], spool: Spool | None) -> list[Camera]:
        plan = self._plan
        alone = len(plan.cameras) == 1
        return [
            Camera(
                wish.name or ("camera" if alone else f"camera{number}"),
                opening(wish.source, spool, plan.pixel_format),
                str(address),
                slot,
                plan.policy,
            )
            for number, (wish, address, slot) in enumerate(
                zip(plan.cameras, self._sources, slots, strict=True), start=1
            )
        ]

    def _teachers(
        self, taught: set[Path], cameras: Sequence[Camera], folder: Path
    ) -> dict[str, Teacher]:
        """Who teaches each camera whose model is an embedding, by its name; one for each slot."""
        if not taught:
            return {}
        from padim_edge.live.teach import Teacher

        plan = self._plan
        teachers: dict[ModelSlot, Teacher] = {}
        by_camera: dict[str, Teacher] = {}
        for wish, camera in zip(plan.cameras, cameras, strict=True):
            path, slot = wish.model, camera.model
            if path not in taught:
                continue
            if slot not in teachers:
                teacher = Teacher(
                    folder / _taught_in(path),
                    path,
                    slot,
                    cameras=[one.name for one in cameras if one.model is slot],
                    say=self.watch.say,
                    # Not every engine that runs detectors runs a bare backbone.
                    engine=plan.engine if plan.engine in GRAPHS else "auto",
                    threads=plan.threads,
                )
                self._stack.callback(teacher.close)
                teachers[slot] = teacher
                self.watch.observers.append(teacher)
                now = f"{slot.path} judges" if slot.path else "nothing judges yet"
                self._voice.say(
                    f"{path}: {now}; taught on the page, kept in {teacher.versions.folder}"
                )
            by_camera[camera.name] = teachers[slot]
        return by_camera

    def _show(self, address: str, recorder: Recorder, teachers: dict[str, Teacher]) -> None:
        """Serve the page; says where."""
        from padim_edge.live.board import Board

        try:
            from padim_edge.live.page.app import page
            from padim_edge.web.server import Server, parse_listen
        except MissingDependencyError as error:  # of serve's extra, which lacks what cameras need
            raise MissingDependencyError("--page", "starlette and uvicorn", "live") from error

        deliveries = self._deliveries
        board = Board(
            list(self.watch.statuses.values()), deliveries.statuses if deliveries else tuple
        )
        recorder.observers.append(board)
        recorder.told.append(board.said)
        server = self._stack.enter_context(
            Server(page(board, teachers), *parse_listen(address), self._plan.token)
        )
        self._voice.say(f"page: {server.url}")
        if server.made_token:
            self._voice.say(f"token: {server.token}")

    def _answer(self, address: str, recorder: Recorder) -> None:
        """Metrics for who asks."""
        from padim_edge.live.metrics import Metrics

        deliveries = self._deliveries
        metrics = Metrics(
            list(self.watch.statuses.values()), deliveries.statuses if deliveries else tuple
        )
        recorder.observers.append(metrics)
        recorder.told.append(metrics.said)
        self._stack.enter_context(metrics.server(address))

    def _tell(self, event: Event) -> None:
        """An event that is no verdict, for people."""
        camera, message = event.record["camera"], event.record["message"]
        self._voice.say(f"{camera}: {message}" if camera else message)


def _taught_in(path: Path) -> str:
    """The name of the folder in which is kept what is taught of an embedding."""
    return f"taught-{path.stem}"


def opening(address: str, spool: Spool | None, pixel_format: str | None) -> Callable[[], Source]:
    """What opens a source, as often as need be, and leaves out what the spool says was judged."""

    def judged(key: str) -> bool:
        assert spool is not None
        try:
            return spool.judged(key)
        except PadimEdgeError as error:  # as if the folder could not be read: it is opened again
            raise SourceError(first_line(error)) from error

    seen = judged if spool else never
    return lambda: open_source(address, seen=seen, pixel_format=pixel_format)
