"""The proof's lines on endurance: opened and closed, in company, terminated, under load."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError
from padim_edge.measure.power import measure as measure_power
from padim_edge.measure.proof_detectors import random_images, write_detector
from padim_edge.measure.proof_device import open_gpu
from padim_edge.measure.proof_line import Line, Sizes, line, rounded, usual
from padim_edge.model.file import Model
from padim_edge.processes import run_child
from padim_edge.runtime.engines import open_engine
from padim_edge.system import ROOT, read_text, resident_memory

MIB = 2**20
GROWTH = {False: 8 * MIB, True: 64 * MIB}
"""Of device memory, by whether it is the host's too, where others take and give meanwhile. A model
that stays behind once a cycle is hundreds of megabytes in the end."""
HOST_GROWTH = 256 * MIB
"""Of the process: what the allocator keeps differs by tens of megabytes from run to run."""

SAME = 1e-3
"""Of the largest score, between processes: they may have chosen other convolutions."""

START_SECONDS, STOP_SECONDS, COMPANION_SECONDS = 900.0, 60.0, 1800.0
INTERRUPTED = 130

THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
"""Of NVML's clocksEventReasons: hardware slowdown, software and hardware thermal, power brake. Not
the software's power cap, which is how the card is set."""


def _detector(sizes: Sizes, folder: Path) -> tuple[Path, Model]:
    path = folder / "padim.onnx"
    return path, write_detector(usual(sizes.networks[0]), sizes.image, path)


# --- opened and closed --------------------------------------------------------------------------


def opened_and_closed(sizes: Sizes, folder: Path, engine: str) -> Iterator[Line]:
    """Memory is back where it was, on the device and in the process."""
    _, model = _detector(sizes, folder)
    images = random_images(model, 8)  # a live frame and a batch may have plans of their own
    device, host = [], []
    with open_gpu() as watch:
        for _ in range(sizes.cycles + 1):
            one = open_engine(engine, model)
            try:
                for _ in range(3):  # what is recorded, is with the second
                    one.infer(images[:1])
                    one.infer(images)
            finally:
                one.close()
            device.append(watch.free_memory())
            host.append(resident_memory())
        limit = GROWTH[watch.integrated]
    grown, own = _grown(device, host, watch.integrated)
    yield line(
        f"{engine} opened and closed",
        grown <= limit and own <= HOST_GROWTH,
        f"{sizes.cycles} times: device memory grows by {grown / MIB:.1f} MiB, the process by "
        f"{own / MIB:.1f}; at most {limit / MIB:.0f} and {HOST_GROWTH / MIB:.0f} are allowed",
        cycles=sizes.cycles,
        device_growth_bytes=grown,
        host_growth_bytes=own,
    )


def _grown(free: Sequence[int], resident: Sequence[int], shared: bool) -> tuple[int, int]:
    """Bytes that the device and the process lose from the first to the last tenth of the cycles.

    Args:
        free: of the device, after each cycle; the first of them counts for nothing, because
            libraries take some once.
        resident: of the process, likewise.
        shared: the device's memory is the host's: what the process takes is not lost twice. What
            others take for a moment is no loss either: of each tenth its best cycle counts.
    """
    tenth = max((len(free) - 1) // 10, 1)
    own = min(resident[-tenth:]) - min(resident[1 : 1 + tenth])
    grown = max(free[1 : 1 + tenth]) - max(free[-tenth:])
    return grown - (max(own, 0) if shared else 0), own


# --- in company ---------------------------------------------------------------------------------


def two_processes(sizes: Sizes, folder: Path, engine: str) -> Iterator[Line]:
    """Another process judges a frame at the same time; both are right all the time.

    Here it is one of two in turn: the last one's score would not pass.
    """
    path, model = _detector(sizes, folder)
    images = random_images(model, 2)[:, None]
    one = open_engine(engine, model)
    try:
        wanted = [one.infer(image)[0] for image in images]
        with ThreadPoolExecutor(1) as beside:
            other = beside.submit(_score_in_a_process, path, engine, sizes.frames // 5)
            worst, frames = 0.0, 0
            while not other.done():
                turn = frames % 2
                worst = max(worst, _off(one.infer(images[turn])[0], wanted[turn]))
                frames += 1
            scores = other.result()
    finally:
        one.close()
    theirs = _off(scores, wanted[1][0])
    yield line(
        f"{engine} in two processes",
        max(worst, theirs) <= SAME,
        f"{frames} frames here, {len(scores)} there; scores differ by {max(worst, theirs):.1e}",
        frames=[frames, len(scores)],
        difference=rounded(max(worst, theirs)),
    )


def _off(scores: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    off = float(np.abs(scores - wanted).max() / np.abs(wanted).max())
    return off if off >= 0 else np.inf


def _score_in_a_process(path: Path, engine: str, frames: int) -> NDArray[np.float32]:
    """Scores of the same frame again and again, by a fresh process.

    Raises:
        PadimEdgeError: it failed, in its own words.
    """
    result = path.with_name("scores.npy")
    result.unlink(missing_ok=True)
    done = run_child(
        _calling("scored", str(path), engine, str(frames), str(result)), COMPANION_SECONDS
    )
    if done.code != 0:
        raise PadimEdgeError(f"the other process {done.trouble}")
    scores: NDArray[np.float32] = np.load(result)
    return scores


def _calling(function: str, *arguments: str) -> list[str]:
    """A command line that calls a function of this file."""
    code = f"import sys; from padim_edge.measure.proof_endurance import {function} as run; "
    return [sys.executable, "-c", f"{code}run(*sys.argv[1:])", *arguments]


def scored(path: str, engine: str, frames: str, result: str) -> None:
    """Score one frame again and again, and keep all scores: what the other process runs."""
    try:
        with Detector(path, engine) as detector:
            image = _image(detector)
            found = [detector.engine.infer(image)[0][0] for _ in range(int(frames))]
    except PadimEdgeError as error:
        sys.exit(str(error))
    np.save(result, np.array(found, np.float32))


def _image(detector: Detector) -> NDArray[np.uint8]:
    """The frame that all processes judge."""
    return random_images(Model(None, detector.backbone_info), 2)[1:]  # type: ignore[arg-type]


# --- terminated ---------------------------------------------------------------------------------


def terminated(sizes: Sizes, folder: Path, engine: str) -> Iterator[Line]:
    """SIGTERM amid frames: the process ends, its memory comes back, the next one is right."""
    path, _ = _detector(sizes, folder)
    (wanted,) = _score_in_a_process(path, engine, 1)
    with open_gpu() as watch:
        limit, before = GROWTH[watch.integrated], watch.free_memory()
        code, seconds = _terminate(path, engine)
        kept = before - watch.free_memory()
    (after,) = _score_in_a_process(path, engine, 1)
    off = _off(np.array([after]), np.array([wanted]))
    ended = "was still there" if code is None else f"ended with {code}"
    if code not in (INTERRUPTED, None):
        ended += f" ({INTERRUPTED} is right)"
    yield line(
        f"{engine} at SIGTERM",
        code == INTERRUPTED and kept <= limit and off <= SAME,
        f"the process {ended} after {seconds:.2f} s, keeps {max(kept, 0) / MIB:.1f} MiB of device "
        f"memory; the next one's score differs by {off:.1e}",
        exit_code=code,
        seconds=rounded(seconds),
        device_growth_bytes=kept,
        difference=rounded(off),
    )


def _terminate(path: Path, engine: str) -> tuple[int | None, float]:
    """Exit code of a process that is terminated amid frames, None if it stays; and its seconds."""
    mark = path.with_name("under way")
    with (path.with_name("said")).open("w+b") as said:
        process = subprocess.Popen(
            _calling("endless", str(path), engine, str(mark)),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            limit = time.monotonic() + START_SECONDS
            while not mark.exists():
                if process.poll() is not None or time.monotonic() > limit:
                    said.seek(0)
                    last = (said.read().decode(errors="replace").strip().splitlines() or [""])[-1]
                    raise PadimEdgeError(f"the process that was to be terminated fails: {last}")
                time.sleep(0.01)
            start = time.perf_counter()
            process.terminate()
            code = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(STOP_SECONDS)
            return code, time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def endless(path: str, engine: str, mark: str) -> None:
    """Judge frames until SIGTERM, which unwinds as in our command line; then exit with 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Detector(path, engine) as detector:
            image = _image(detector)
            while True:
                detector.engine.infer(image)
                Path(mark).touch()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except PadimEdgeError as error:
        sys.exit(str(error))


# --- under load ---------------------------------------------------------------------------------


def under_load(sizes: Sizes, folder: Path, engine: str) -> Iterator[Line]:
    """Frame after frame without a pause: does it slow down, do clocks fall, what does it cost?"""
    _, model = _detector(sizes, folder)
    images = random_images(model, 1)
    one = open_engine(engine, model)
    try:
        for _ in range(max(sizes.frames // 20, 3)):
            one.infer(images)
        clocks = _clocks()
        seconds = [_seconds(lambda: one.infer(images)) for _ in range(sizes.frames)]
        later = _clocks()
        power = measure_power(lambda: one.infer(images), 1)
    finally:
        one.close()
    part = max(sizes.frames // 10, 1)
    first, last = (float(np.median(of)) for of in (seconds[:part], seconds[-part:]))
    p50, p99 = (1e3 * float(x) for x in np.percentile(seconds, [50, 99]))
    drift = last / first
    throttled = _throttled(clocks, later, drift, sizes.drift)
    yield line(
        f"{engine} under load",
        drift <= sizes.drift and not throttled,
        f"{sizes.frames} frames: p50 {p50:.2f} ms, p99 {p99:.2f} ms, the last tenth "
        f"{drift:.3f} x the first; {_described(clocks, later)}"
        f"{throttled}",
        frames=sizes.frames,
        p50_ms=rounded(p50),
        p99_ms=rounded(p99),
        drift=rounded(drift),
        before=clocks,
        after=later,
    )
    yield (
        Line(
            f"{engine} energy",
            "pass",
            f"{power.watts:.2f} W, {power.millijoules_per_frame:.1f} mJ per frame",
            {
                "watts": rounded(power.watts),
                "millijoules": rounded(power.millijoules_per_frame),
            },
        )
        if power
        else Line(f"{engine} energy", "absent", "no power sensor of a Jetson is readable here")
    )


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _clocks(root: Path = ROOT) -> dict[str, Any]:
    """What is readable: the GPU's MHz, the hottest sensor's degrees, the driver's throttle bits."""
    found: dict[str, Any] = {}
    for folder in (root / "sys/class/devfreq").glob("*"):
        if re.search(r"gpu|gv11b|gp10b", folder.name):
            text = read_text(folder / "cur_freq").strip()
            if text.isdigit():
                found["mhz"] = int(text) // 10**6
    zones = [read_text(f).strip() for f in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(text) / 1e3 for text in zones if re.fullmatch(r"\d+", text)]
    if degrees:
        found["celsius"] = max(degrees)
    if shutil.which("nvidia-smi"):
        # Named so by every driver; newer ones call it clocks_event_reasons as well.
        fields = "clocks.sm,temperature.gpu,clocks_throttle_reasons.active"
        command = [
            "nvidia-smi",
            f"--query-gpu={fields}",
            "--format=csv,noheader,nounits",
            "-i",
            "0",
        ]
        values = [text.strip() for text in run_child(command, 30.0).stdout.split(",")]
        if len(values) == 3 and values[0].isdigit() and values[1].isdigit():
            found |= {"mhz": int(values[0]), "celsius": int(values[1])}
            if re.fullmatch(r"0x[0-9a-fA-F]+", values[2]):
                found["reasons"] = values[2]
    return found


def _throttled(before: dict[str, Any], after: dict[str, Any], drift: float, allowed: float) -> str:
    """In words, that the device slows itself down; empty if it does not, as far as is readable.

    A lower clock alone is none: it follows the load, and was read once before and once after.
    """
    bits = int(after.get("reasons", "0"), 16)
    fell = drift > allowed and before.get("mhz", 0) > allowed * after.get("mhz", 0) > 0
    return ": it THROTTLES" if bits & THROTTLED or fell else ""


def _described(before: dict[str, Any], after: dict[str, Any]) -> str:
    units = {"mhz": "MHz", "celsius": "degrees", "reasons": "throttle reasons"}
    told = [f"{before.get(key, '?')} to {value} {units[key]}" for key, value in after.items()]
    return ", ".join(told) or "neither clock nor temperature is readable"
