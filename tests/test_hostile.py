"""Short campaigns of `make fuzz`, and that they would notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hostile
import pytest

KILLED = Path(hostile.__file__).with_name("killed.py")


def test_a_short_campaign(tmp_path):
    """In a process of its own, whose memory says something."""
    campaign = [sys.executable, hostile.__file__, "--inputs", "120", "--seed", "1"]
    done = subprocess.run(campaign, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "120 inputs, seed 1: 0 wrong" in done.stdout


def test_the_campaign_notices(tmp_path, monkeypatch):
    def careless(path):
        raise KeyError(path.name)

    monkeypatch.setattr(hostile, "images", lambda: iter([(b"P6", ".ppm", (careless,))]))
    monkeypatch.setattr(hostile, "models", lambda: iter(()))
    monkeypatch.setattr(hostile, "others", lambda: iter(()))
    (wrong,) = hostile.campaign(1, 0, tmp_path / "kept")
    assert "KeyError" in wrong
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["0.ppm"]


@pytest.mark.slow
def test_a_short_campaign_of_kills():
    pytest.importorskip("sklearn")
    campaign = [sys.executable, KILLED, "--kills", "8", "--seed", "1"]
    done = subprocess.run(campaign, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 kills, seed 1: 0 wrong" in done.stdout


# Files are opened under their own names, and what is in them is written in two parts.
CARELESS = """
import contextlib, io, sys, time
from padim_edge import files
@contextlib.contextmanager
def careless(path):
    with open(path, "wb", buffering=0) as file:
        stream = io.BytesIO()
        yield stream
        data = stream.getvalue()
        file.write(data[: len(data) // 2])
        time.sleep(0.3)
        file.write(data[len(data) // 2 :])
files.atomic_write = careless
import killed
killed.commands = lambda photos, of=killed.commands: [next(of(photos))]
sys.exit(killed.campaign(6, 0))
"""


@pytest.mark.slow
def test_the_campaign_of_kills_notices():
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, "-c", CARELESS],
        cwd=KILLED.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode > 0
    assert "is half-written" in done.stdout, done.stdout + done.stderr
