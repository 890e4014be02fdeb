"""A child process run to its end, whatever it does. The standard library alone: the doctor."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Done:
    """How a child process ended.

    Attributes:
        code: its exit status, negative for the signal that ended it; None if its time was up and
            it was killed; 127, as in a shell, if it could not be started: stderr says why.
        stdout: what it printed; bytes that are no UTF-8 are replaced.
        stderr: what it printed there, likewise.
        limit: seconds that it was given.
    """

    code: int | None
    stdout: str
    stderr: str
    limit: float

    @property
    def trouble(self) -> str:
        """What went wrong, as what follows its name: how it ended, and the last that it said."""
        if self.code is None:
            end = f"gave no answer within {self.limit:g} s and was stopped"
        elif self.code < 0:
            end = f"crashed ({_signal_name(-self.code)})"
        else:
            end = f"failed (exit code {self.code})"
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return f"{end}: {lines[-1].strip()}" if lines else end


def run_child(
    command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None
) -> Done:
    """Run a command to its end, or kill it and all that it started when its time is up.

    It has nothing on stdin. What it prints goes to files: a pipe would stop it when it is full,
    and keep us waiting while a grandchild holds it open. It has a process group of its own, which
    is killed when the command ends and when we are interrupted (Ctrl-C reaches us alone).

    Args:
        command: a program, by path or by name, and its arguments.
        limit: seconds.
        environment: its environment variables; those of this process if None.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return Done(127, "", str(error), limit)
        code = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(limit)
        finally:  # Ctrl-C too
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            # A process that hangs within a driver cannot be killed: do not wait for it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
        return Done(code, _text(stdout), _text(stderr), limit)


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
