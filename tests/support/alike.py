"""Networks made of the same blocks as a smaller one: what this shows, `make fuzz` shows of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

LARGER = ("resnet34", "wide_resnet50_2", "efficientnet-lite1", "efficientnet-lite2")
"""Of the blocks of resnet18, resnet50 and efficientnet-lite0."""


def networks(names: Iterable[str]) -> list[Any]:
    """Parameters for a test of each network."""
    return [pytest.param(name, marks=[pytest.mark.fuzz] * (name in LARGER)) for name in names]
