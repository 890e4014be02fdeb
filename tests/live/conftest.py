"""What several tests of the page use."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from padim_edge.live import album
from padim_edge.live.pictures import to_jpeg


@pytest.fixture
def held(monkeypatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Pictures of anomalies: whether one was begun, and what lets them be made."""
    begun, go_on = threading.Event(), threading.Event()

    def waiting(*arguments):
        begun.set()
        assert go_on.wait(60)
        return to_jpeg(*arguments)

    monkeypatch.setattr(album, "to_jpeg", waiting)
    monkeypatch.setattr(album, "SHARE", 1.0)
    yield begun, go_on
    go_on.set()
