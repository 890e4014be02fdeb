"""The kernels under ThreadSanitizer: a thread each for CUDA's threads, real barriers between them.

Run as a script, in a process that the sanitizer was loaded into before everything else, it goes
through `CASES` in children, with a fault planted or without, and prints what the sanitizer said.
What the kernels compute is checked as well: a run in which nothing happens has no races.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_kernels import (
    KERNELS,
    SHAPES,
    SHIM,
    assert_close,
    distances,
    expected,
    frame_of,
    make,
    make_maps,
    prepared,
    score_maps,
    smooth,
)

from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.smoothing import smoothing_matrix
from padim_edge.runtime.nvidia.launch import FORMATS, FRAMES

ATOMIC = -1
"""The fault that atomic operations are not; from 1 on, barriers that are left out."""
SOURCES = ("kernels.cu", "prepare.cu")
RACE = 66
"""Exit code of a process in which the sanitizer found something."""


def barriers_written(source: str) -> int:
    """`__syncthreads()` in a source, in code and not in comments."""
    text = re.sub(r"//.*", "", (KERNELS / source).read_text())
    return len(re.findall(r"__syncthreads\(\)", text))


# --- cases ----------------------------------------------------------------------------------------


class Threads:
    """Launches with a thread each, in the manner of `cpu_kernels.Cpu`."""

    def __init__(self, library: Path, planted: int = 0) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.run.restype = ctypes.c_char_p
        self.planted = planted

    def run(self, launch, **_):
        # Any whole number of warps does: two show what eight do, in less time.
        block = (min(launch.block[0], 64), 1, 1)
        error = self.library.run(
            launch.function.encode(),
            (ctypes.c_uint * 3)(*launch.grid),
            (ctypes.c_uint * 3)(*block),
            ctypes.c_size_t(launch.shared_bytes),
            launch.argument,
            ctypes.c_size_t(len(launch.argument)),
            self.planted,
        )
        assert error is None, error.decode()


def whitening(format_: str, frames: int, half: bool) -> Callable[[Threads], None]:
    """Levels of one and of several blocks, families in parts, a last pass that is not full."""

    def case(threads: Threads) -> None:
        model = make([(9, 4, 4), (21, 2, 2), (37, 1, 1)], format_, strips_per_block=8, warps=2)
        assert (model.packed.parameters["level"]["parts"][:3] > 1).any()
        count = frames if frames < FRAMES[-1] else frames + 1
        maps = make_maps(model, count, dtype=np.float16 if half else np.float32)
        assert_close(distances(threads, model, maps)[1], expected(model, maps))

    return case


def smoothing(count: int) -> Callable[[Threads], None]:
    """Several tiles, in both directions, that raise one score."""

    def case(threads: Threads) -> None:
        model = make(SHAPES["one level"], "float32")
        rng = np.random.default_rng(0)
        h, w = model.pyramid.height, model.pyramid.width
        squared = rng.uniform(0, 9, (count, h * w)).astype(np.float32)
        rows, columns = smoothing_matrix(12, h, 1), smoothing_matrix(80, w, 2)
        maps, scores = smooth(threads, model, squared, rows, columns)
        wanted = score_maps(model, [squared.reshape(count, h, w)], rows, columns)
        np.testing.assert_allclose(maps, wanted, rtol=1e-5)
        np.testing.assert_array_equal(scores, maps.max(axis=(1, 2)))

    return case


def preparation(pixel_format: str) -> Callable[[Threads], None]:
    """Two tiles, of which one is not full; two strips a plane."""

    def case(threads: Threads) -> None:
        preprocess = Preprocess.whole((9, 27))
        frame = frame_of(pixel_format, 52, 900)
        np.testing.assert_array_equal(prepared(threads, preprocess, frame), preprocess(frame))

    return case


# Pixel formats that are not alike but for what colours and white are made of.
LAYOUTS = {
    (form.dtype, form.pixel, form.picks, form.thirds, form.even): name
    for name, form in reversed(PIXEL_FORMATS.items())
}.values()

CASES: dict[str, Callable[[Threads], None]] = {
    **{
        f"mahalanobis {format_} {frames} {'half' if half else 'single'}": whitening(
            format_, frames, half
        )
        for format_ in FORMATS
        for frames in FRAMES
        for half in ((False, True) if frames == 1 else (frames == 4,))
    },
    **{f"smooth {count}": smoothing(count) for count in (1, 2)},
    **{f"prepare {name}": preparation(name) for name in LAYOUTS},
}

SHORT = {
    "kernels.cu": ("smooth 1", "mahalanobis float16 1 single"),
    "prepare.cu": ("prepare rgb", "prepare nv12"),
}
"""Cases among which every fault in a source shows."""


# --- the process with the sanitizer ---------------------------------------------------------------


def build(folder: Path) -> Path:
    """Compile the kernels; skips, with the reason, where the sanitizer cannot be had."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no g++ on PATH")
    for name in SOURCES:
        source = (KERNELS / name).read_text()
        declaration = "extern __shared__ float4 shared[];"
        assert source.count(declaration) == 1
        (folder / name).write_text(source.replace(declaration, ""))
    library = folder / "races.so"
    command = [compiler, "-std=c++17", "-O1", "-g1", "-shared", "-fPIC", "-fsanitize=thread"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{folder}"]
    command += ["-o", str(library), str(SHIM / "races.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "libtsan" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip(f"no ThreadSanitizer: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return library


def barriers_compiled(library: Path) -> int:
    """How many barriers the library has numbered."""
    return int(_call(library, "barriers"))


def first_races(library: Path, runs: Sequence[tuple[Sequence[str], int]]) -> list[str]:
    """What the sanitizer finds; "" where it finds nothing.

    Args:
        library: see `build`.
        runs: names of cases, which are tried in turn until there is a race, and a fault.

    Raises:
        AssertionError: a case fails otherwise; kernels without a fault have the right results.
    """
    found: list[str] = json.loads(_call(library, json.dumps(runs)))
    return found


def _call(library: Path, what: str) -> str:
    """Run this file with the sanitizer; skips where it does not start."""
    sanitizer = subprocess.run(
        ["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # Its shadow memory wants addresses as they are without randomisation.
    setarch = shutil.which("setarch")
    command = [*([setarch, "-R"] if setarch else []), sys.executable]
    environment = {
        **os.environ,
        "LD_PRELOAD": sanitizer,
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode={RACE}:log_path={library}.log",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    options: dict[str, Any] = {
        "env": environment,
        "capture_output": True,
        "text": True,
        "check": False,
    }
    probe = subprocess.run([*command, "-c", "print('started')"], **options)
    if probe.stdout != "started\n":
        logs = [path.read_text() for path in library.parent.glob(f"{library.name}.log.*")]
        said = "; ".join([*probe.stderr.splitlines(), *logs][:2])
        pytest.skip(f"ThreadSanitizer does not start here: {said or 'it gives no reason'}")
    done = subprocess.run([*command, __file__, str(library)], input=what, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def _first_race(library: Path, names: Sequence[str], fault: int) -> str:
    """Run cases in children until the sanitizer ends one."""
    for name in names:
        child = os.fork()
        if not child:
            try:
                CASES[name](Threads(library, fault))
            except BaseException as error:
                # With a fault wrong results are no wonder; the race is what is asked for.
                print(f"{name}: {error}", file=sys.stderr)
                os._exit(0 if fault else 1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == RACE:
            log = Path(f"{library}.log.{child}").read_text()
            return next(line for line in log.splitlines() if line.startswith("SUMMARY: "))
        assert code == 0, f"{name} ends with {code}"
    return ""


def _main(library: Path, what: str) -> str:
    if what == "barriers":
        return str(ctypes.CDLL(str(library)).barriers())
    return json.dumps([_first_race(library, *run) for run in json.loads(what)])


if __name__ == "__main__":
    print(_main(Path(sys.argv[1]), sys.stdin.read()))
