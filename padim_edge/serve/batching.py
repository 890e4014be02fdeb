"""Dynamic batching: what several clients want at once goes through the engine together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from padim_edge.errors import UsageError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Work(Generic[T, R]):
    """What one client wants: some items, run together."""

    items: Sequence[T]
    future: Future[list[R]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher(Generic[T, R]):
    """One thread that runs batches of what is submitted by many.

    A batch is run when it is full, or when its oldest has waited for `max_delay`; and what comes
    while one is running waits for the next. Who cancels before his batch is run leaves it.

    Args:
        run: from the items of a batch to as many results, called in the thread alone.
        max_batch: items in a batch, at most.
        max_delay: seconds that the oldest waits for others while nothing is running, at most.
        ran: told of the size of each batch, in the thread.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        max_batch: int,
        max_delay: float,
        ran: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._run, self._most, self._delay, self._ran = run, max_batch, max_delay, ran
        self._waiting: deque[_Work[T, R]] = deque()
        self._count = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="padim-edge-batches", daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[T]) -> Future[list[R]]:
        """Have items run, in one batch; the results are in their order.

        Raises:
            UsageError: there are none, or more than a batch holds, or this is closed.
        """
        if not 0 < len(items) <= self._most:
            raise UsageError(f"a batch of {len(items)} was given: 1 to {self._most} are taken")
        work: _Work[T, R] = _Work(items)
        with self._changed:
            if self._closing:
                raise UsageError("this is closed: nothing more is run")
            self._waiting.append(work)
            self._count += len(items)
            self._changed.notify()
        work.future.add_done_callback(self._drop_if_left)
        return work.future

    def _drop_if_left(self, future: Future[list[R]]) -> None:
        """Let go of what nobody waits for, now: items are large, and a batch may run for long."""
        if not future.cancelled():
            return
        with self._changed:
            for work in self._waiting:  # not there where it was taken in this moment
                if work.future is future:
                    self._waiting.remove(work)
                    self._count -= len(work.items)
                    break

    def close(self, seconds: float | None = None) -> bool:
        """Run what waits, then end the thread. Closing twice is harmless.

        Args:
            seconds: for which the thread is waited for; None for as long as it takes.

        Returns:
            Whether it has ended.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (taken := self._take()) is not None:
            items = [item for work in taken for item in work.items]
            if not items:
                continue
            try:
                results = iter(self._run(items))
                answers = [[next(results) for _ in work.items] for work in taken]
            except BaseException as error:  # whatever it is, it is for those who wait
                for work in taken:
                    work.future.set_exception(error)
            else:
                self._ran(len(items))
                for work, answer in zip(taken, answers, strict=True):
                    work.future.set_result(answer)

    def _take(self) -> list[_Work[T, R]] | None:
        """The next batch, without those who left, and so perhaps empty; None at the end."""
        with self._changed:
            while not self._waiting or not self._due():
                if self._closing and not self._waiting:
                    return None
                oldest = self._waiting[0].arrived if self._waiting else None
                left = None if oldest is None else oldest + self._delay - time.monotonic()
                self._changed.wait(left)
            taken: list[_Work[T, R]] = []
            count = 0
            while self._waiting and count + len(self._waiting[0].items) <= self._most:
                work = self._waiting.popleft()
                self._count -= len(work.items)
                if work.future.set_running_or_notify_cancel():
                    taken.append(work)
                    count += len(work.items)
            return taken

    def _due(self) -> bool:
        waited = time.monotonic() - self._waiting[0].arrived
        return self._closing or self._count >= self._most or waited >= self._delay
