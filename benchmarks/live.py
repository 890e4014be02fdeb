#!/usr/bin/env python3
"""The watch at its work: latency of a real stream, memory over very many frames, what batches pay.

    python benchmarks/live.py stream padim.onnx --seconds 60 --policy all [--viewers 100]
    python benchmarks/live.py memory small.onnx --frames 100000
    python benchmarks/live.py cameras padim.onnx

`stream` serves a video of 1920 x 1080 at 30 frames a second by RTSP (GStreamer's server, on the
same machine) and watches it with `padim-edge watch`; beside it stands the bare frame, a call of the
detector on such a frame with nothing else going on. `--viewers` look at the live page meanwhile,
from a process of their own on this machine, as fast as pictures come. No frame is anomalous, or
all are with `--anomalous`, by the threshold of the file. `memory` gives bare frames as
fast as they are judged, with a spool, a file and the page's board behind them. `cameras` judges
frames of one model, prepared already, by 1, 2, 4 and 8 at once in turns, and prepares one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from padim_edge import Detector
from padim_edge.images.frames import Frame

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

SERVER = Path(__file__).parents[1] / "tests" / "support" / "rtsp_server.py"
WIDTH, HEIGHT, RATE = 1920, 1080, 30
PROGRAM = [sys.executable, "-c", "from padim_edge.cli.app import main; main()"]


def main() -> None:
    """Measure one thing, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("stream", "memory", "cameras"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--policy", default="all")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--viewers", type=int, default=0)
    parser.add_argument("--anomalous", action="store_true", help="by the file's threshold: all are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = {"stream": stream, "memory": memory, "cameras": cameras}[options.what](
            options, Path(folder)
        )
    print(json.dumps(measured, indent=2))


def watching(options: argparse.Namespace, source: str, *others: str) -> list[str]:
    """The command in a process of its own."""
    command = [*PROGRAM, "watch", str(options.model), source, "--engine", "ort"]
    return [*command, "--threads", str(options.threads), *others]


def write_video(path: Path, frames: int) -> None:
    """Cloth that moves: some 4 Mbit/s, as cameras send."""
    import av

    generator = np.random.default_rng(0)
    cloth = generator.integers(60, 200, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    cloth = cloth.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as output:
        sent = output.add_stream("libx264", rate=RATE)
        sent.width, sent.height, sent.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sent.bit_rate = 4_000_000
        sent.options = {"preset": "ultrafast", "tune": "zerolatency"}
        sent.codec_context.gop_size = RATE
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(np.roll(cloth, 4 * number, axis=1), "rgb24")
            picture.pts = number
            output.mux(sent.encode(picture))
        output.mux(sent.encode(None))


def bare(model: Path, threads: int, calls: int = 60) -> float:
    """Median milliseconds of the detector on a frame as the stream's decoder gives it."""
    generator = np.random.default_rng(0)
    frame = Frame(generator.integers(0, 256, (HEIGHT * 3 // 2, WIDTH), np.uint8), "i420")
    with Detector(model, "ort", threads) as detector:
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            detector(frame)
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[calls // 6 :])


def view(port: int, count: int, got: Synchronized[int]) -> None:
    """Look at the live page `count` times at once, until this process is ended."""
    chosen = selectors.DefaultSelector()
    while len(chosen.get_map()) < count:
        try:
            one = socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:  # the watch is still starting
            time.sleep(0.1)
            continue
        one.sendall(b"GET /api/live HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
        chosen.register(one, selectors.EVENT_READ)
    while chosen.get_map():
        for key, _ in chosen.select():
            part = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
            with got.get_lock():
                got.value += len(part)
            if not part:
                chosen.unregister(key.fileobj)


def stream(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Watch a real RTSP stream to its end."""
    frames = options.seconds * RATE
    write_video(folder / "part.mp4", frames + 5 * RATE)
    alone = bare(options.model, options.threads)
    server = subprocess.Popen(
        ["/usr/bin/python3", str(SERVER), str(folder / "part.mp4")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    more = ["--policy", options.policy, "--count", str(frames)]
    if not options.anomalous:
        more += ["--threshold", "1e9"]
    seen = multiprocessing.get_context("spawn").Value("q", 0)
    crowd = None
    if options.viewers:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        more += ["--page", f"127.0.0.1:{port}"]
        crowd = multiprocessing.get_context("spawn").Process(
            target=view, args=(port, options.viewers, seen), daemon=True
        )
        crowd.start()
    try:
        address = f"rtsp://127.0.0.1:{server.stdout.readline().strip()}/part"
        done = subprocess.run(
            watching(options, address, *more), capture_output=True, text=True, check=True
        )
    finally:
        server.kill()
        server.wait()
        if crowd:
            crowd.kill()
    records = [json.loads(line) for line in done.stdout.splitlines()]
    ends = records[-1]
    judged = [record for record in records if record["kind"] == "verdict"]
    late = sorted(record["latency_ms"] for record in judged[RATE:])  # the first second is a start
    return {
        "bare_ms": round(alone, 1),
        "p50_ms": late[len(late) // 2],
        "p99_ms": late[int(0.99 * len(late))],
        "longest_ms": late[-1],
        "viewers": options.viewers,
        "viewers_got_mb": round(seen.value / 1e6, 1),
        "frames": len(judged),
        "rate": round((len(judged) - 1) / (judged[-1]["time"] - judged[0]["time"]), 2),
        "lost": ends["lost"],
        "not_judged": sum(b["sequence"] - a["sequence"] - 1 for a, b in itertools.pairwise(judged)),
    }


def memory(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """RAM of a watch over very many frames of 320 x 240, none of which is anomalous."""
    child = subprocess.Popen(
        watching(
            options,
            *("raw:/dev/zero?size=320x240&format=nv12", "--count", str(options.frames)),
            *("--state", str(folder), "--to", f"jsonl:{folder}/events.jsonl"),
            *("--page", "127.0.0.1:0", "--stats", "1", "--threshold", "1e9"),
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    began = time.monotonic()
    seen: list[tuple[int, int]] = []
    last = ""
    for line in child.stderr:
        last = line.strip()
        found = re.search(r"frames/s, (\d+) judged", line)
        if found:
            status = Path(f"/proc/{child.pid}/status").read_text()
            rss = re.search(r"VmRSS:\s+(\d+) kB", status)
            if rss:
                seen.append((int(found[1]), int(rss[1]) * 1024))
        if time.monotonic() - began > options.seconds * 10:
            child.send_signal(signal.SIGTERM)
    code = child.wait()
    tenth = max(len(seen) // 10, 1)
    first, final = seen[tenth : 2 * tenth], seen[-tenth:]
    return {
        "exit": code,
        "ends": last,
        "seconds": round(time.monotonic() - began, 1),
        "at_frames": [first[0][0], seen[-1][0]],
        "rss_mb_after_a_tenth": round(statistics.median(rss for _, rss in first) / 1e6, 1),
        "rss_mb_at_the_end": round(statistics.median(rss for _, rss in final) / 1e6, 1),
    }


def cameras(options: argparse.Namespace, folder: Path) -> dict[str, object]:  # noqa: ARG001
    """Milliseconds a frame: in runs of 1, 2, 4 and 8, in turns; and what preparing one takes."""
    generator = np.random.default_rng(0)
    frame = Frame(generator.integers(0, 256, (HEIGHT * 3 // 2, WIDTH), np.uint8), "i420")
    results: dict[str, object] = {}
    with Detector(options.model, "ort", options.threads) as detector:
        prepared = detector.prepare(frame)
        start = time.perf_counter()
        for _ in range(100):
            detector.prepare(frame)
        results["prepare_ms"] = round(10 * (time.perf_counter() - start), 2)
        times: dict[int, list[float]] = {batch: [] for batch in (1, 2, 4, 8)}
        for _ in range(41):
            for batch, own in times.items():
                start = time.perf_counter()
                detector.judge_prepared([prepared] * batch)
                own.append(1e3 * (time.perf_counter() - start) / batch)
        for batch, own in times.items():  # the first of each warms up
            results[f"ms_a_frame_by_{batch}"] = round(statistics.median(own[1:]), 2)
    return results


if __name__ == "__main__":
    main()
