"""Signals at every stage: the code of an interruption, and no half-written file."""

from __future__ import annotations

import functools
import signal
import subprocess

import pytest
from helpers import OLD, Outcome, command, link, unchanged

# Each line stops a child where the test wants it, and says so. The signal is real.
SAY = "print('READY', flush=True)"
STAGES = {
    # Goes on running, so that the signal comes at any moment of the extraction.
    "features": f"""
import padim_edge.runtime.cpu.ort as ort
run = ort.Graph.run
def said(*arguments):
    result = run(*arguments)
    {SAY}
    return result
ort.Graph.run = said
""",
    "statistics": f"""
import time
import padim_edge.fit.features as features
from padim_edge.fit import gaussian
features.CHUNK_BYTES = 1
whitening = gaussian.whitening
def slow(*arguments):
    {SAY}
    time.sleep(0.3)
    return whitening(*arguments)
gaussian.whitening = slow
""",
    "writing": f"""
import os, time
os.fsync = lambda _: ({SAY}, time.sleep(60))
""",
}


def interrupt(arguments: tuple[object, ...], prelude: str, number: signal.Signals) -> Outcome:
    """Run a command, and send it a signal as soon as it says that it is ready."""
    with subprocess.Popen(
        command(*arguments, prelude=prelude),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stdout
        for line in child.stdout:
            if line == "READY\n":
                break
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    return Outcome(child.returncode, out, err)


@pytest.mark.parametrize(
    ("stage", "number", "old"),
    [
        ("features", signal.SIGINT, True),
        ("features", signal.SIGINT, False),
        ("features", signal.SIGTERM, True),
        ("features", signal.SIGHUP, True),
        ("statistics", signal.SIGINT, True),
        ("writing", signal.SIGINT, True),
        ("writing", signal.SIGTERM, False),
    ],
)
def test_fit_interrupted(tmp_path, embedding_file, good, stage, number, old):
    source = link(good, tmp_path / "many", 1500 if stage == "features" else 12)
    target = tmp_path / "padim.onnx"
    if old:
        target.write_bytes(OLD)
    with unchanged(tmp_path):
        done = interrupt(("fit", embedding_file, source, "-o", target), STAGES[stage], number)
    assert done.code == 130
    assert done.stderr.endswith("\ninterrupted: no half-written file was left\n")


def test_fit_killed_leaves_the_old_file(tmp_path, embedding_file, photos):
    target = tmp_path / "padim.onnx"
    target.write_bytes(OLD)
    done = interrupt(
        ("fit", embedding_file, photos, "-o", target), STAGES["writing"], signal.SIGKILL
    )
    assert done.code == -signal.SIGKILL
    assert target.read_bytes() == OLD


def test_run_interrupted(tmp_path, model_file, good):
    source = link(good, tmp_path / "many", 1500)
    lines = tmp_path / "scores.jsonl"
    lines.write_bytes(OLD)
    done = interrupt(
        ("run", model_file, source, "--jsonl", lines), STAGES["features"], signal.SIGINT
    )
    assert done.code == 130
    part = tmp_path / "scores.jsonl.part"
    count = len(part.read_text().splitlines()) if part.exists() else 0
    told = f"not complete: {count} lines are in {part}; go on with --resume\n" if count else ""
    assert done.stderr == f"{told}interrupted: no half-written file was left\n"
    assert lines.read_bytes() == OLD
