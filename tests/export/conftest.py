"""Fixtures: weights, and where to export to when it must fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch_side import State, random_state


@pytest.fixture(scope="session")
def resnet18() -> State:
    return random_state("resnet18")


@pytest.fixture
def unwritten(tmp_path: Path) -> Iterator[Path]:
    """Where to export to when it must fail: the old file must stay, and nothing beside it."""
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "embedding.onnx"
    path.write_bytes(b"old")
    yield path
    assert path.read_bytes() == b"old"
    assert list(folder.iterdir()) == [path]
