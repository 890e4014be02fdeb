"""A short campaign of `make fuzz`, and that it would notice."""

from __future__ import annotations

import subprocess
import sys

import hostile


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
