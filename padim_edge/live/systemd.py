"""What a service manager is told: the protocol of sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Tells systemd, if it started us with Type=notify; else does nothing.

    A message that cannot be sent is let go of: the service must not end because of its manager.

    Args:
        environment: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID stand.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        # "@" stands for the zero byte with which abstract addresses begin.
        if self._address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self.watchdog_seconds = _watchdog_seconds(environment)
        self._fed = -float("inf")

    def ready(self) -> None:
        """Frames can be judged; also the end of `reloading`."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """A model is opened anew, until `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog, if there is one; called often, it sends no more than needed."""
        if not self.watchdog_seconds:
            return
        now = time.monotonic()
        if now - self._fed >= self.watchdog_seconds / 4:
            self._fed = now
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Let go of the socket. Twice is harmless."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        sender = self._socket
        if sender is None:
            return
        with contextlib.suppress(OSError):
            sender.sendto(message.encode(), self._address.replace("@", "\0", 1))


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """After how long without a word we are killed; 0 for never."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0  # another process is meant
    text = environment.get("WATCHDOG_USEC", "0")
    return int(text) / 1e6 if text.isdigit() else 0.0
