"""What a watch tells the world."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        id: unique, and in the order in which events of one watch happened: the time at which the
            watch began, and a number.
        record: what a sink writes, an object of JSON. Always ``id``, ``time`` (seconds since 1970),
            ``camera`` (a name) and ``kind``: "verdict" (with the fields of
            `padim_edge.detect.judging.Verdict.to_json`, ``sequence`` and ``latency_ms``), "error"
            (a frame that could not be judged), "source", "model", "drift", "watch" (with
            ``message``).
        picture: JPEG of the frame, of anomalous ones alone, if a sink wants pictures.
    """

    id: str
    record: dict[str, Any]
    picture: bytes | None = None

    def to_json(self) -> str:
        """The record as one line."""
        return json.dumps(self.record, allow_nan=False)
