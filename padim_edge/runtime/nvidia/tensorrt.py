"""TensorRT as it is found here: the module, its version, its log.

TensorRT 10.3 to 11, or TensorRT for RTX, which has the same interface under another name. The
plans that it builds and runs are the business of `builder` and `plan`.
"""

from __future__ import annotations

import functools
import logging
import platform
import re
from collections import deque
from collections.abc import Callable
from typing import Any

from padim_edge.errors import MissingDependencyError, PadimEdgeError

try:
    try:
        import tensorrt as trt
    except ModuleNotFoundError as missing:
        if missing.name != "tensorrt":
            raise
        import tensorrt_rtx as trt
except ModuleNotFoundError as missing:
    if platform.machine() == "x86_64":
        raise MissingDependencyError("running on TensorRT", "tensorrt", "trt") from missing
    # On Jetson it is a part of JetPack; what pip has is for other machines.
    error = MissingDependencyError("running on TensorRT", "tensorrt", "trt")
    error.args = (
        "running on TensorRT needs tensorrt, which is not installed for this Python: run  "
        "sudo apt install python3-libnvinfer  and use the system's Python, or a virtual "
        "environment made with --system-site-packages",
    )
    raise error from missing
except (ImportError, OSError) as broken:
    raise PadimEdgeError(
        f"TensorRT is installed but cannot be loaded ({broken}): its Python module and its "
        "libraries must be of one version, and the libraries where the loader finds them"
    ) from broken

__all__ = ["IS_RTX", "LIBRARY", "create", "last_errors", "log", "one_line", "trt"]

LIBRARY = f"{trt.__name__} {trt.__version__}"
"""Name and version, as the plan cache has them."""

IS_RTX = trt.__name__ == "tensorrt_rtx"
"""Whether this is TensorRT for RTX, whose versions count from 1."""

if not IS_RTX and tuple(map(int, re.findall(r"\d+", trt.__version__)[:2])) < (10, 3):
    raise PadimEdgeError(
        f"TensorRT {trt.__version__} is installed, and 10.3 or newer is needed: on Jetson it "
        "comes with JetPack 6.1, on x86 run  pip install -U 'padim-edge[trt]'"
    )

_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())  # a library stays silent unless it is asked


def create(kind: Callable[[Any], Any]) -> Any:
    """A Builder or a Runtime, the two that everything else comes from.

    Raises:
        PadimEdgeError: there is no GPU or no driver, or none that this TensorRT can use.
    """
    try:
        return kind(log())
    except TypeError as error:  # what pybind11 makes of a null pointer
        raise PadimEdgeError(f"TensorRT does not start: {last_errors()}") from error


def last_errors() -> str:
    """Why the library failed, in its own words and in one line. It is told once."""
    return "; ".join(log().take()) or "it gives no reason"


@functools.cache
def log() -> Any:
    """The logger of this process: TensorRT keeps the first it is given and ignores all others."""
    return _Log()


class _Log(trt.ILogger):  # type: ignore[misc]  # its base has no types
    """Keeps the library's latest errors for our own, and passes everything to `logging`."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)  # not super(): pybind11 wants its own constructor called
        severity = trt.ILogger.Severity
        self._errors: deque[str] = deque(maxlen=5)
        self._levels = {
            severity.INTERNAL_ERROR: logging.ERROR,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.WARNING,
            severity.INFO: logging.INFO,
        }

    def log(self, severity: Any, msg: str) -> None:
        """Called by the library, from any of its threads."""
        level = self._levels.get(severity)
        if level is None:  # VERBOSE: thousands of lines for a build
            return
        if level == logging.ERROR:
            self._errors.append(one_line(msg))
        _logger.log(level, "%s", msg)

    def take(self) -> list[str]:
        """The latest errors, oldest first, which are then forgotten."""
        errors = list(dict.fromkeys(self._errors))
        self._errors.clear()
        return errors


def one_line(text: str) -> str:
    """A message without its line breaks."""
    return " ".join(text.split())
