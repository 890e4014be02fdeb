"""The command line as a user has it: child processes, their output, and what became of files."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

MAIN = "import sys; sys.argv[0] = 'padim-edge'; from padim_edge.cli.app import main; main()"
TIMEOUT = 120
COMMANDS = (
    *("export", "quantize", "capture", "fit", "import", "calibrate", "run", "watch", "eval"),
    *("bench", "tune", "inspect", "serve", "export-repository", "doctor", "demo"),
)
OLD = b"what was there before"


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str

    def failed(self, code: int, *words: str, said: tuple[str, ...] = ()) -> str:
        """Check for an error in one line on stderr, beside warnings at most; returns the line.

        Args:
            code: the exit code.
            words: parts of the line, in any order.
            said: beginnings of other lines that may stand on stderr.
        """
        assert self.code == code, self
        assert "Traceback" not in self.stdout + self.stderr
        lines = self.stderr.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, self.stderr
        assert "this should not happen" not in errors[0], errors[0]
        usual = ("error: ", "warning: ", "images: ", *said)
        others = [line for line in lines if not line.startswith(usual)]
        assert not others, self.stderr
        for word in words:
            assert word in errors[0], f"{word!r} is not in {errors[0]!r}"
        return errors[0]

    def worked(self) -> Outcome:
        """Check for success without an error; returns itself."""
        assert self.code == 0, self.stderr
        assert "Traceback" not in self.stderr
        assert "error:" not in self.stderr
        return self

    def warnings(self) -> list[str]:
        """The warnings on stderr."""
        return [line for line in self.stderr.splitlines() if line.startswith("warning: ")]


def command(*arguments: object, prelude: str = "") -> list[str]:
    """What runs the command line in a process of its own, after the lines of ``prelude``."""
    return [sys.executable, "-c", f"{prelude}\n{MAIN}", *map(str, arguments)]


def padim_edge(*arguments: object, prelude: str = "", **options: Any) -> Outcome:
    """Run a command in a process of its own; ``options`` are those of subprocess.run."""
    options = {"timeout": TIMEOUT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run(command(*arguments, prelude=prelude), text=True, check=False, **options)
    return Outcome(done.returncode, done.stdout or "", done.stderr or "")


def in_process(*arguments: object) -> Outcome:
    """Run a command in this process, which is faster: for errors that need no process."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    from padim_edge.cli.app import main

    with (
        mock.patch.object(sys, "argv", ["padim-edge", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
    return Outcome(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder, with the hash of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "no file"
        for path in sorted(folder.rglob("*"))
    }


def names(folder: Path) -> list[str]:
    """Every file below a folder, by its path within it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def unchanged(*folders: Path) -> Iterator[None]:
    """Check that nothing below these folders appears, vanishes or changes, hidden files too."""
    before = [contents(folder) for folder in folders]
    yield
    assert [contents(folder) for folder in folders] == before


def refused(path: Path, *words: str) -> None:
    """Check that what runs and what shows a detector refuses this file in the same way."""
    photo = path.parent / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    for arguments in (("run", path, photo), ("inspect", path)):
        with unchanged(path.parent):
            in_process(*arguments).failed(1, str(path), *words)


class Evil:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def obeying_permissions() -> Callable[[], None]:
    """A preexec_fn that makes root obey permission bits, as every other user must."""
    libc = ctypes.CDLL(None, use_errno=True)

    def drop() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; exec makes it felt

    return drop


def blocking(*packages: str) -> str:
    """Lines of Python after which these packages are as if they had not been installed."""
    return f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.split(".")[0] in {packages!r}
        return None if absent else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def link(images: list[Path], folder: Path, count: int) -> Path:
    """A folder that seems to hold ``count`` images."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        source = images[index % len(images)]
        (folder / f"{index:05d}{source.suffix}").symlink_to(source)
    return folder


INTERRUPTING = """
import os, signal, sys, threading, time
from pathlib import Path

def interrupt(main=threading.get_ident()):
    while not Path({file!r}).is_symlink():  # it leads nowhere
        time.sleep(0.1)
    signal.pthread_kill(main, signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
threading.Thread(target=interrupt, daemon=True).start()
try:
    {code}
except KeyboardInterrupt:
    sys.exit(77)
"""


def interrupted(code: str, file: Path) -> None:
    """Run a line of Python that is interrupted as by Ctrl-C once ``file`` is a link.

    In a process of its own: native libraries that other tests have loaded into this one (OpenVINO)
    do not survive a signal that meets one of their threads.
    """
    command = [sys.executable, "-c", INTERRUPTING.format(file=str(file), code=code)]
    done = subprocess.run(command, timeout=TIMEOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 77, done.stderr
