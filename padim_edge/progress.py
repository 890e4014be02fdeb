"""How long work tells its caller what is done."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, what is done and what there is to do."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """Show no progress."""
