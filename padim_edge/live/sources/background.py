"""Waiting that can be ended: what blocks runs in a thread, which hands over one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Iterates over something in a thread, so that whoever waits for the next can be woken.

    One item is held at most; the thread waits until it is taken. What the iteration raises is
    raised where the items are taken. The iterator is only ever touched by that thread, which lets
    go of it (its ``finally``) at the end, or once it comes back from where it blocks.

    Args:
        items: a generator.
        name: of the thread.
    """

    def __init__(self, items: Iterator[T], name: str) -> None:
        self._items = items
        self._news = threading.Condition()
        self._held: list[T] = []
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        # A daemon: a driver or server that never answers must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __iter__(self) -> Iterator[T]:
        """The items, once. Raises what the iteration raises."""
        with self._news:
            if not self._closed:
                self._thread.start()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._held or self._ended or self._closed)
                if self._closed:
                    return
                if not self._held:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._held.pop()
                self._news.notify_all()
            yield item

    def close(self) -> None:
        """Wake whoever waits; the thread ends when it can. Twice is harmless."""
        with self._news:
            self._closed = True
            self._held.clear()
            self._news.notify_all()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                with self._news:
                    self._news.wait_for(lambda: not self._held or self._closed)
                    if self._closed:
                        break
                    self._held.append(item)
                    self._news.notify_all()
        except BaseException as caught:
            error = caught
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            with self._news:
                self._error, self._ended = error, True
                self._news.notify_all()
