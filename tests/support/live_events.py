"""Events as a watch makes them, for what takes them on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from padim_edge.live.event import Event


def verdict(
    number: int,
    camera: str = "left",
    anomalous: bool | None = None,
    picture: bytes | None = None,
    **fields: Any,
) -> Event:
    """A verdict; every third is anomalous, if it is not said."""
    score = 3.25 + number % 3
    record = {
        "id": f"1764291600-{camera}-{number:08d}",
        "time": 1764291600.0 + number / 32,
        "camera": camera,
        "kind": "verdict",
        "path": "",
        "score": score,
        "threshold": 5.0,
        "percentile": 97.5,
        "is_anomalous": score > 5 if anomalous is None else anomalous,
        "sequence": number,
        "latency_ms": 12.5,
    }
    return Event(record["id"], record | fields, picture)


def verdicts(count: int, start: int = 0, **options: Any) -> list[Event]:
    """So many in a row."""
    return [verdict(number, **options) for number in range(start, start + count)]


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for what happens in another thread or process; returns what the condition gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)
    return result
