"""The service: models behind addresses, from the first load to the last answer."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from padim_edge.runtime.engines import check_name
from padim_edge.serve.app import OPEN_PATHS, App
from padim_edge.serve.metrics import Metrics
from padim_edge.serve.samples import Samples
from padim_edge.serve.settings import Settings
from padim_edge.serve.slots import CLOSE_SECONDS, load_all, slots_of
from padim_edge.web.limits import Limits
from padim_edge.web.server import Server

LOOK_SECONDS = 1.0
"""Between two looks at whether a file has changed."""

DRAIN_SECONDS = 30.0
"""For which what was begun may still be answered, at the end."""

_CONNECTIONS = 512
_BESIDE = 64 << 10  # bytes by which the server's limit is wider, so that ours says why


class Service:
    """Detectors that are served, from `start` to `stop`.

        with Service([Path("bottle.onnx")]) as service:
            urllib3.request("POST", service.url + "v1/models/bottle/judge", body=photo)

    Attributes:
        url: where this machine finds it, with a slash at the end.
        token: what a client must show; None if nothing.
        made_token: whether it was made here, because others can reach the server.

    Args:
        paths: files made by ``padim-edge fit``; a model's name is its file's, without the suffix.
        settings: engine, batches and limits.
        host: a name or an address of this machine.
        port: 0 for a free one.
        token: 16 characters or more; None for none on loopback, else one is made.
        samples: a folder of photos that the page shows, to be judged by a click.

    Raises:
        UsageError: two files have one name, there is no such engine, or no such token is taken.
        PadimEdgeError: the folder holds no image.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        settings: Settings | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        samples: Path | None = None,
    ) -> None:
        settings = settings or Settings()
        check_name(settings.engine)
        metrics = Metrics()
        self._slots = slots_of(paths, settings, metrics)
        self._samples = (
            Samples(samples, settings.max_bytes, settings.max_pixels) if samples else None
        )
        self._app = App(self._slots, settings, metrics, self._samples)
        limits = Limits(
            body_bytes=settings.max_bytes + _BESIDE, connections=_CONNECTIONS, idle_seconds=75
        )
        self._server = Server(self._app.asgi, host, port, token, limits, OPEN_PATHS)
        self._end = math.inf  # of the time to end in, once that has begun
        self.token, self.made_token = self._server.token, self._server.made_token

    @property
    def url(self) -> str:
        """Where this machine finds it."""
        return self._server.url

    def start(self) -> None:
        """Listen, then load every model; ready when this returns, and not before.

        Raises:
            PadimEdgeError: it cannot listen there, or a model cannot be loaded.
        """
        try:
            self._server.start()
            load_all(list(self._slots.values()))
        except BaseException:
            self.stop()
            raise

    def described(self) -> list[str]:
        """What runs each model, in lines, and why what comes before it does not run here."""
        lines = []
        for slot in self._slots.values():
            with slot.lease() as loaded:
                if loaded is not None:
                    detector = loaded.detector
                    lines += [
                        f"{slot.name}: not on this machine: {one}" for one in detector.skipped
                    ]
                    lines.append(f"{slot.name}: {detector.engine.describe()}")
        if self._samples:
            lines.append(f"samples: {self._samples}")
        return lines

    def look(self, force: bool = False) -> list[str]:
        """Load again what has changed, without a request that fails; what happened, in lines.

        Args:
            force: load everything again, also a file that changed just now.
        """
        said = (slot.reload(force) for slot in self._slots.values())
        return [line for line in said if line is not None]

    def drain(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Say that this is not ready, take nothing more, and wait for what was begun.

        Returns:
            Whether all of it was answered in time.
        """
        self._app.draining = True
        self._end = time.monotonic() + seconds
        while not self._server.is_idle:
            if time.monotonic() > self._end:
                return False
            time.sleep(0.02)
        return True

    def stop(self) -> None:
        """Answer no more, and free everything. Twice is harmless.

        Threads that decode for nobody any more are not waited for (`is_working`), nor is, after
        `drain`, an engine beyond its time.
        """
        self._app.draining = True
        self._server.stop()
        for slot in self._slots.values():
            slot.close(min(CLOSE_SECONDS, max(0.0, self._end - time.monotonic())))
        self._app.close()

    @property
    def is_working(self) -> bool:
        """Whether a thread is still at work, which the interpreter would wait for at its end."""
        return self._app.is_working

    def run(self, wanted: queue.SimpleQueue[str], tell: Callable[[str], None]) -> bool:
        """Serve until it is said that this is the end; then answer what was begun.

        Args:
            wanted: "reload" or "end", which a signal handler may put there.
            tell: takes lines for the operator.

        Returns:
            Whether all of it was answered in time.
        """
        reloads: queue.SimpleQueue[str] = queue.SimpleQueue()
        ended = threading.Event()

        def follow() -> None:
            while not ended.is_set():
                for line in self.look(force=bool(_taken(reloads))):
                    # Whoever read the lines may be gone; files are looked at all the same.
                    with contextlib.suppress(OSError):
                        tell(line)

        # Of its own, for a load takes minutes where a plan is built, and an end must not wait.
        threading.Thread(target=follow, name="padim-edge-reload", daemon=True).start()
        while (asked := wanted.get()) != "end":
            reloads.put(asked)
        ended.set()
        answered = self.drain()
        if not answered:
            tell(f"warning: some requests were not answered within {DRAIN_SECONDS:.0f} s")
        return answered

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _taken(wanted: queue.SimpleQueue[str]) -> set[str]:
    """All that is there, once there is something, or after `LOOK_SECONDS`."""
    asked = set()
    with contextlib.suppress(queue.Empty):
        asked.add(wanted.get(timeout=LOOK_SECONDS))
        while True:
            asked.add(wanted.get_nowait())
    return asked
