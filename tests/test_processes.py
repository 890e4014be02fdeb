"""The one runner of child processes: whatever a child does, it ends and is told of."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import interrupted

from padim_edge.processes import Done, run_child


def run(code: str, limit: float = 60.0) -> Done:
    return run_child([sys.executable, "-c", f"import os, subprocess, sys, time\n{code}"], limit)


def ends(pid: int) -> bool:
    """Whether a process is gone soon; one that nobody has waited for is."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_what_it_prints_and_its_code() -> None:
    done = run("print('out'); print('err', file=sys.stderr); sys.exit(3)", limit=50)
    assert done == Done(3, "out\n", "err\n", 50)
    assert done.trouble == "failed (exit code 3): err"


def test_nothing_on_stdin() -> None:
    assert run("print(repr(sys.stdin.read()))").stdout == "''\n"


def test_more_than_a_pipe_holds_on_both_sides() -> None:
    done = run("print('o' * 10**6); print('e' * 10**6, file=sys.stderr)")
    assert done.code == 0
    assert (len(done.stdout), len(done.stderr)) == (10**6 + 1, 10**6 + 1)


def test_bytes_that_are_no_text() -> None:
    assert run(r"os.write(1, b'\xff!')").stdout == "\ufffd!"


def test_its_environment() -> None:
    child = [sys.executable, "-c", "import os; print(os.environ['WORD'])"]
    assert run_child(child, 60, {**os.environ, "WORD": "hello"}).stdout == "hello\n"


@pytest.mark.parametrize("program", ["/no/such/program", "no-such-program", "/tmp"])
def test_one_that_cannot_be_started(program: str) -> None:
    done = run_child([program], 60)
    assert done.code == 127
    assert program in done.stderr
    assert done.trouble.startswith("failed (exit code 127): [Errno ")


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 1, "signal ")]
)
def test_a_signal_is_told_as_one(number: int, name: str) -> None:
    done = run(f"print('last', flush=True); os.kill(os.getpid(), {int(number)})")
    assert done.code == -number
    assert done.trouble.startswith(f"crashed ({name}")
    assert done.trouble.endswith("): last")


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [
        ("a\nb\n\n", "", ": b"),
        ("a", " \n", ": a"),
        ("a", "first\n  last  \n", ": last"),
        ("", "", ""),
    ],
)
def test_the_last_that_it_said(stdout: str, stderr: str, words: str) -> None:
    assert Done(1, stdout, stderr, 1.0).trouble == f"failed (exit code 1){words}"


GRANDCHILD = "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True)\n"


def test_time_that_is_up_ends_all_that_it_started() -> None:
    start = time.monotonic()
    done = run(f"{GRANDCHILD}time.sleep(600)", limit=2)
    assert time.monotonic() - start < 30
    assert done.code is None
    assert done.trouble.startswith("gave no answer within 2 s and was stopped: ")
    assert ends(int(done.stdout))


def test_a_grandchild_that_holds_the_output_open_does_not_hold_us() -> None:
    start = time.monotonic()
    done = run(GRANDCHILD)
    assert time.monotonic() - start < 30
    assert done.code == 0
    assert ends(int(done.stdout))


def test_an_interrupt_ends_all_that_it_started(tmp_path: Path) -> None:
    """Ctrl-C reaches us alone: the child has a group of its own."""
    file = tmp_path / "pids"
    child = (
        f"import os, subprocess, sys, time\n{GRANDCHILD}"
        f"os.symlink(f'{{os.getpid()}} {{child.pid}}', {str(file)!r})\ntime.sleep(600)"
    )
    interrupted(
        "from padim_edge.processes import run_child; "
        f"run_child([sys.executable, '-c', {child!r}], 60)",
        file,
    )
    assert all(ends(int(pid)) for pid in file.readlink().name.split())
