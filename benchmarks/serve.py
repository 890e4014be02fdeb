"""What serving costs: requests a second, latency and memory, beside MLServer with the same file.

    python benchmarks/serve.py [--mlserver .../bin/mlserver] [--clients 1,8,64] [--seconds 4]
                               [--requests judge,v2-binary,v2-json] [--json FILE]

Exports ResNet-18 with random weights (time does not depend on them), fits 60 synthetic photos, and
starts one server after the other, each in a process of its own. Clients hold a connection each and
ask again as soon as they are answered; they share the machine with the server. Answers are counted
for --seconds, after a second that is not. A table of Markdown is printed. *CPU ms* is the processor
time that the server takes for a request, all its threads together: what can still be compared where
the machine has other work, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from padim_edge import Detector
from padim_edge.export.export import export_backbone
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.serve.repository import export_repository
from padim_edge.serve.v2 import LENGTH

WARM_SECONDS = 1.0
COLUMNS = ("server", "request", "clients", "requests / s", "p50 ms", "p99 ms", "CPU ms",
           "turned away", "peak MB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mlserver", type=Path, help="the program, in an environment of its own")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--requests", default="judge,v2-binary,v2-json")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.clients.split(",")]
    rows: list[dict[str, Any]] = []
    print("|", " | ".join(COLUMNS), "|\n|" + "---|" * len(COLUMNS))
    with tempfile.TemporaryDirectory() as name:
        model, photo = prepare(Path(name))
        requests = payloads(model, photo)
        for server, kinds in (("padim-edge", ("judge", "v2-binary", "v2-json")),
                              ("mlserver", ("v2-json",))):  # fmt: skip
            if server == "mlserver" and arguments.mlserver is None:
                continue
            for kind in filter(arguments.requests.split(",").__contains__, kinds):
                with running(server, model, arguments.mlserver) as (port, process):
                    for count in counts:
                        found = asyncio.run(
                            load(port, process.pid, requests[kind], count, arguments.seconds)
                        )
                        row = {"server": server, "request": kind, "clients": count, **found}
                        rows.append({**row, "peak MB": peak(process.pid)})
                        print("|", *(f"{shown(rows[-1][c])} |" for c in COLUMNS), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def shown(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def prepare(folder: Path) -> tuple[Path, Path]:
    """A detector, and a photo of 900 x 900 as JPEG."""
    make_dataset(folder / "photos", train=60, good=1, per_defect=1)
    export_backbone(folder / "embedding.onnx", "resnet18", weights="random")
    good = find_images(folder / "photos" / "train")
    model = folder / "bottle.onnx"
    fit_detector(folder / "embedding.onnx", good, model, Settings(Preprocess.whole((224, 224))))
    photo = folder / "photo.jpg"
    Image.open(good[0]).resize((900, 900)).save(photo, quality=90)
    return model, photo


def payloads(model: Path, photo: Path) -> dict[str, bytes]:
    """Requests as they go over the wire, each of one image and for its score."""
    with Detector(model, "ort") as detector:
        image = detector.detector_info.preprocess(photo)[None]
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(image.shape)}
    as_json = {
        "inputs": [{**tensor, "data": image.ravel().tolist()}],
        "outputs": [{"name": "score"}],
    }
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": image.size}}],
            "outputs": [{"name": "score", "parameters": {"binary_data": True}}],
        }
    ).encode()
    infer = "/v2/models/bottle/infer"
    return {
        "judge": wire("/v1/models/bottle/judge", photo.read_bytes(), "image/jpeg"),
        "v2-json": wire(infer, json.dumps(as_json).encode(), "application/json"),
        "v2-binary": wire(
            infer, head + image.tobytes(), "application/octet-stream", f"{LENGTH}: {len(head)}\r\n"
        ),
    }


def wire(path: str, body: bytes, kind: str, more: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        f"{more}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


@contextlib.contextmanager
def running(
    server: str, model: Path, mlserver: Path | None
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server's port and process, once it is ready."""
    port, others = free_port(), {}
    if server == "padim-edge":
        code = "import sys; sys.argv[0] = 'padim-edge'; from padim_edge.cli.app import main; main()"
        command = [sys.executable, "-c", code, "serve", str(model), "--engine", "ort"]
        command += ["--port", str(port)]
    else:
        folder = model.parent / "mlserver"
        if not folder.exists():
            export_repository(model, folder, "mlserver")
        command = [str(mlserver), "start", str(folder)]
        others = {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": str(port),
            "MLSERVER_GRPC_PORT": str(free_port()),
            "MLSERVER_METRICS_PORT": str(free_port()),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
    process = subprocess.Popen(
        command, env={**os.environ, **others}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as one:
                one.sendall(b"GET /v2/models/bottle/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                if b" 200 " in one.recv(1 << 12):
                    break
            if process.poll() is not None:
                sys.exit(f"{server} ended with {process.returncode}")
            time.sleep(0.1)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def load(
    port: int, server: int, request: bytes, clients: int, seconds: float
) -> dict[str, Any]:
    """Ask from many connections at once."""
    took: list[float] = []
    turned_away = answered = 0
    before = processor_seconds(server)
    begin = time.perf_counter() + WARM_SECONDS
    end = begin + seconds

    async def client() -> None:
        nonlocal turned_away, answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (asked := time.perf_counter()) < end:
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length, head
            body = await reader.readexactly(int(length[1]))
            status, done = int(head.split()[1]), time.perf_counter()
            if status == 429:
                turned_away += 1
                await asyncio.sleep(0.05)
            elif status != 200:
                sys.exit(f"{status}: {body[:200]!r}")
            else:
                answered += 1
                if begin <= done <= end:
                    took.append(done - asked)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    if not took:
        sys.exit(f"nobody of {clients} was answered within {seconds} s: take more --seconds")
    milliseconds = np.array(took) * 1000
    return {
        "requests / s": len(took) / seconds,
        "p50 ms": float(np.percentile(milliseconds, 50)),
        "p99 ms": float(np.percentile(milliseconds, 99)),
        "CPU ms": 1000 * (processor_seconds(server) - before) / answered,
        "turned away": turned_away,
    }


def processor_seconds(pid: int) -> float:
    """What a process took of the processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak(pid: int) -> int:
    """Memory of a process at its most so far, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 // 10**6 if found else 0


if __name__ == "__main__":
    main()
