"""What the doctor finds, and how it asks: in a child process, which may crash or hang."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from typing import Any

from padim_edge.processes import run_child

STATUSES = ("ok", "missing", "broken", "absent")
"""Of a finding; "absent" does not apply to this machine, and nothing is wrong with that."""

PROBE_SECONDS = 120.0
TOOL_SECONDS = 60.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: "device", "nvidia", "python" or "engine".
        name: what it is.
        status: one of `STATUSES`.
        detail: versions and figures, or what is wrong, in one line.
        fix: the command that fixes it; empty if there is none.
    """

    area: str
    name: str
    status: str
    detail: str
    fix: str = ""


def ask(probe: str, *arguments: str, seconds: float | None = None) -> dict[str, Any]:
    """Run a probe in a child process that has this process's import path.

    Returns:
        status, detail, fix and items of `padim_edge.runtime.probe.Answer`; a crash or a timeout
        is "broken".
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from padim_edge.runtime.probe import main; main()"
    )
    done = run_child([sys.executable, "-c", code, probe, *arguments], seconds or PROBE_SECONDS)
    if done.code == 0:
        with contextlib.suppress(ValueError):
            answer = json.loads(done.stdout)
            if isinstance(answer, dict):
                return answer
    return {"status": "broken", "detail": done.trouble, "fix": "", "items": []}
