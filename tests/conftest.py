"""Fixtures: real images and weights where they are at hand, and small models built once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with `data/` (real images) and `weights/`; tests that need it skip without."""
    folder = os.environ.get("PADIM_EDGE_TEST_DATA")
    root = Path(folder) if folder else Path(__file__).parents[2] / "shared"
    if not (root / "data").is_dir():
        pytest.skip(f"no real images at {root}: set PADIM_EDGE_TEST_DATA to the folder of them")
    return root
