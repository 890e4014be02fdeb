"""Anomalous frames as JPEG files in a folder that never outgrows its limit."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from padim_edge.errors import PadimEdgeError, first_line
from padim_edge.files import atomic_write
from padim_edge.live.addresses import Address, byte_count
from padim_edge.live.event import Event
from padim_edge.live.sink import RefusedError, SinkError

_OURS = re.compile(r"\d{8}T\d{6}\.\d{3}Z_.+\.jpg")
"""Names of our files, in the order of time; others in the folder are left alone."""


class FolderSink:
    """``folder:DIR``: a file for each event with a picture, whole or not there, the oldest removed.

    The name is the time of the frame, its camera and the id of its event.
    """

    is_state = False
    wants_pictures = True

    def __init__(self, address: Address) -> None:
        address.check_options(("limit",))
        if not address.rest:
            raise address.refused("name a folder, like folder:anomalies/")
        self.address = str(address)
        self._folder = Path(address.rest)
        self._limit = address.option("limit", byte_count, 1_000_000_000)
        if not self._limit:
            raise address.refused("limit=0: there is no room for a picture")
        self._sizes: dict[str, int] = {}

    def open(self) -> None:
        """Make the folder, and see what is in it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._look()
        except OSError as error:
            raise SinkError(f"cannot use {self._folder}: {first_line(error)}") from error

    def send(self, events: Sequence[Event]) -> None:
        """Write the pictures that there are."""
        for number, event in enumerate(events):
            if event.picture is None:
                continue
            if len(event.picture) > self._limit:
                raise RefusedError(
                    f"a picture of {len(event.picture)} bytes is larger than the limit of "
                    f"{self._folder}, {self._limit}",
                    delivered=number,
                )
            try:
                self._write(_name(event), event.picture)
            except (OSError, PadimEdgeError) as error:
                raise SinkError(first_line(error), delivered=number) from error

    def _look(self) -> None:
        """See what is in the folder: somebody may look it through, and remove what is dealt with.

        Raises:
            OSError: it cannot be read.
        """
        sizes = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # removed at this moment
                        sizes[entry.name] = entry.stat().st_size
        self._sizes = sizes

    def _write(self, name: str, picture: bytes) -> None:
        if name in self._sizes:  # sent again
            return
        room = self._limit - len(picture)
        if sum(self._sizes.values()) > room:
            self._look()  # somebody may have made some
            used = sum(self._sizes.values())
            for oldest in sorted(self._sizes):
                if used <= room:
                    break
                (self._folder / oldest).unlink(missing_ok=True)
                used -= self._sizes.pop(oldest)
        with atomic_write(self._folder / name) as stream:
            stream.write(picture)
        self._sizes[name] = len(picture)

    def close(self) -> None:
        """Nothing is open."""


def _name(event: Event) -> str:
    time = datetime.fromtimestamp(event.record["time"], timezone.utc)
    camera = re.sub(r"[^\w.-]", "_", event.record["camera"])[:60]
    name = re.sub(r"[^\w.-]", "_", event.id)[:120]
    return f"{time:%Y%m%dT%H%M%S}.{time.microsecond // 1000:03d}Z_{camera}_{name}.jpg"
