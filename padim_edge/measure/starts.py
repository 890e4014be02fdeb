"""Fresh processes: how long one takes from its start to its first score, and its peak memory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError
from padim_edge.processes import run_child

STARTS = 3
"""Fresh processes for a median."""

START_SECONDS = 600.0


def measure_start(path: Path, name: str, threads: int) -> tuple[float, int]:
    """Score one frame in a fresh process.

    Args:
        path: a padim.onnx.
        name: of `padim_edge.runtime.engines.ENGINES`.
        threads: of the engine; 0 for all cores.

    Returns:
        Seconds from the start of the process to its first score, and its peak memory in bytes.

    Raises:
        PadimEdgeError: it gave no score; in its own words, if it had any.
    """
    code = (
        "import sys; from padim_edge.measure.starts import first_score; first_score(*sys.argv[1:])"
    )
    start = time.perf_counter()
    done = run_child([sys.executable, "-c", code, str(path), name, str(threads)], START_SECONDS)
    if done.code is None:
        raise PadimEdgeError(f"a fresh process gave no score within {START_SECONDS:g} s")
    if done.code < 0:
        raise PadimEdgeError(f"a fresh process died of signal {-done.code}")
    # What else stands on stdout is some library's.
    found = [line for line in done.stdout.splitlines() if line.startswith('{"first_score"')]
    if done.code or not found:
        # The child's last line says what its own command would have said.
        said = done.stderr.strip().splitlines()
        raise PadimEdgeError((said or [f"a fresh process failed (exit code {done.code})"])[-1])
    figures = json.loads(found[-1])
    return figures["first_score"] - start, int(figures["peak_memory_bytes"])


def first_score(path: str, name: str, threads: str) -> None:
    """Open a model, judge one frame, print when and the peak memory: what `measure_start` runs.

    The time is that of ``time.perf_counter``, a clock that all processes share.
    """
    try:
        with Detector(path, name, int(threads)) as detector:
            height, width = detector.backbone_info.image_size
            detector(np.zeros((height, width, 3), dtype=np.uint8))
            now = time.perf_counter()
            print(json.dumps({"first_score": now, "peak_memory_bytes": peak_memory()}))
    except PadimEdgeError as error:
        sys.exit(str(error))


def peak_memory() -> int:
    """Peak resident bytes of this process.

    From VmHWM where there is one: ru_maxrss of a child counts its parent's pages before exec.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
