"""The recorder: every event gets its id, is written durably, and is told to who listens."""

from __future__ import annotations


class Recorder:
    """The thread behind the judge."""
