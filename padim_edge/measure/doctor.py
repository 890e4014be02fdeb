"""What this machine can run, found by trying it; and for what is missing, the command that fixes.

Files of the system are read, tools are called, libraries are loaded and run; a name in a list
proves nothing. Whatever loads native code does so in a child process (`padim_edge.runtime.probe`),
because a library that does not suit the machine may crash or hang: that is a finding here, not
the end. For the same reason this file, `finding` and the files of findings (``doctor_*``) import
the standard library alone: they have to work where little else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from padim_edge import __version__
from padim_edge.measure.doctor_device import device, is_jetson
from padim_edge.measure.doctor_nvidia import driver, pycuda, tensorrt, toolkit
from padim_edge.measure.doctor_software import engines, onnxruntime, packages
from padim_edge.measure.finding import Finding
from padim_edge.progress import Progress, silent

SCHEMA = 2


@dataclass(frozen=True)
class Diagnosis:
    """All findings of one examination; `to_json` is the stable form."""

    date: str
    findings: tuple[Finding, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines through which frames really went, in the order in which "auto" tries them."""
        return tuple(f.name for f in self.findings if f.area == "engine" and f.status == "ok")

    @property
    def automatic(self) -> str | None:
        """The engine that "auto" takes: the first that runs of those that it tries, if any."""
        if not self.engines:
            return None
        # Late: the table of engines needs numpy, which is there where one of them ran.
        from padim_edge.runtime.engines import BY_NAME_ONLY

        return next((name for name in self.engines if name not in BY_NAME_ONLY), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the version of the schema."""
        return {
            "schema": SCHEMA,
            "date": self.date,
            "padim_edge": __version__,
            "engines": list(self.engines),
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(root: Path = Path("/"), progress: Progress = silent) -> Diagnosis:
    """Look at everything, which takes seconds to minutes.

    Args:
        root: where /proc, /sys and /etc are; another folder stands for another machine.
        progress: called as work goes on.
    """
    jetson = is_jetson(root)
    checks: list[Callable[[], list[Finding]]] = [
        lambda: device(root),
        lambda: [driver(root), toolkit(root, jetson)],
        lambda: [tensorrt(jetson), pycuda()],
        onnxruntime,
        packages,
        engines,
    ]
    findings: list[Finding] = []
    for done, check in enumerate(checks):
        progress("trying", done, len(checks))
        findings += check()
    progress("trying", len(checks), len(checks))
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Diagnosis(date, tuple(findings))
