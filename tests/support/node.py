"""Packages of npm for the examples in JavaScript, fetched once into the cache of `wheels`."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from wheels import cache

EXAMPLE = Path(__file__).parents[2] / "examples" / "javascript"


def example() -> Path:
    """The example beside its packages, as package-lock.json has them; skips if they are not had."""
    folder, reason = _installed()
    if reason:
        pytest.skip(reason)
    for path in EXAMPLE.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


@functools.cache
def _installed() -> tuple[Path, str]:
    """The folder and "", or why there is none."""
    if missing := [program for program in ("node", "npm") if not shutil.which(program)]:
        return Path(), f"no {' and no '.join(missing)} here: apt-get install nodejs npm"
    lock = EXAMPLE / "package-lock.json"
    folder = cache() / f"javascript-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder, ""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        for path in (lock, EXAMPLE / "package.json"):
            shutil.copy(path, name)
        # No scripts: what they would fetch (CUDA, other platforms) is not needed here.
        command = ["npm", "ci", "--no-fund", "--no-audit", "--ignore-scripts"]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, check=False)
        if done.returncode:
            return Path(), f"npm ci failed: {(done.stderr.strip() or 'no word').splitlines()[-1]}"
        try:
            Path(name).rename(folder)
        except OSError:  # another process was first
            assert folder.is_dir()
        Path(name).mkdir(exist_ok=True)  # TemporaryDirectory removes it
    return folder, ""
