"""Fresh processes: which time counts, and what is said of one that fails or is interrupted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import interrupted

from padim_edge.errors import PadimEdgeError
from padim_edge.measure import starts

CHILD = (
    "import json, os, sys, time; "
    "good = json.dumps({'first_score': time.perf_counter(), 'peak_memory_bytes': 7});"
)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[float, int]]:
    """Run other code than a start in the fresh process."""

    def start(code: str) -> tuple[float, int]:
        script = tmp_path / "python"
        script.write_text(f"#!{python}\n{CHILD}{code}\n")
        script.chmod(0o755)
        return starts.measure_start(tmp_path, "ort", 1)

    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return start


def test_the_time_is_that_of_the_score(child: Callable[[str], tuple[float, int]]) -> None:
    """Much on stderr, other lines on stdout, and a slow end: nothing of it counts or hinders."""
    seconds, peak = child(
        "print('x' * 10**6, file=sys.stderr); print('hello'); print(good, flush=True);"
        "time.sleep(2); print('good-bye')"
    )
    assert 0 < seconds < 1.5
    assert peak == 7


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print(good); sys.exit('no room')", "^no room$"),
        ("print('hello')", r"failed \(exit code 0\)"),
        ("print(good); sys.stdout.flush(); os.kill(os.getpid(), 11)", "died of signal 11"),
        ("time.sleep(60)", "no score within 1 s"),
    ],
)
def test_a_fresh_process_that_fails(
    child: Callable[[str], tuple[float, int]],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    words: str,
) -> None:
    monkeypatch.setattr(starts, "START_SECONDS", 1.0 if "sleep" in code else 60.0)
    with pytest.raises(PadimEdgeError, match=words):
        child(code)


def test_a_fresh_process_ends_with_its_parent(tmp_path: Path) -> None:
    """SIGTERM comes as KeyboardInterrupt, like Ctrl-C."""
    file, script = tmp_path / "pid", tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\n{CHILD}os.symlink(str(os.getpid()), {str(file)!r}); time.sleep(60)\n"
    )
    script.chmod(0o755)
    interrupted(
        f"from padim_edge.measure import starts; sys.executable = {str(script)!r}; "
        "starts.measure_start(Path('.'), 'ort', 1)",
        file,
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.readlink().name), 0)
