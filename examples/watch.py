#!/usr/bin/env python3
"""Judge every frame of a camera: one JSON line per frame, anomalous frames kept as PNG.

    watch.py padim.onnx /dev/video0 --out anomalies/

Needs padim-edge and OpenCV (pip install opencv-python-headless). SOURCE is anything that OpenCV
opens: a device, a number, a video file, a stream's address, images as frames/%03d.png.
Ends with 0 on SIGTERM, Ctrl-C or the end of a file, with 1 when the camera is lost, so that a
service manager starts it again. Under systemd (Type=notify) it says when it is ready and that
it is alive.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from padim_edge import Detector
from padim_edge.errors import PadimEdgeError


def main() -> int:
    """Open the camera and the model, and judge until told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Judge every frame of a camera.")
    parser.add_argument("model", type=Path, help="made by padim-edge fit")
    parser.add_argument("source", help="/dev/video0, 0, a video file, frames/%%03d.png")
    parser.add_argument(
        "--engine", default="auto", help="auto, or one that padim-edge doctor lists"
    )
    parser.add_argument("--out", type=Path, help="folder for anomalous frames")
    parser.add_argument("--keep", type=int, default=1000, help="frames to keep there at most")
    options = parser.parse_args()
    # systemd stops a service by SIGTERM: unwind as for Ctrl-C, so that the engine is closed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = int(options.source) if options.source.isdigit() else options.source
    is_live = isinstance(source, int) or source.startswith(("/dev/", "rtsp:", "http:", "https:"))
    camera = cv2.VideoCapture(source)
    # The newest frame, not one that waited in a queue while the last was judged.
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    try:
        if not camera.isOpened():
            raise PadimEdgeError(f"cannot open {options.source}")
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
        # OpenCV's frames are BGR; they are judged as they are.
        with Detector(options.model, engine=options.engine, pixel_format="bgr") as detector:
            for reason in detector.skipped:  # what auto could not have, and why
                print(f"not taken: {reason}", file=sys.stderr)
            print(f"{detector.engine.name}: {detector.engine.describe()}", file=sys.stderr)
            detector(np.zeros((64, 64, 3), dtype=np.uint8))  # the first call is a slow one
            notify("READY=1")
            judge(camera, detector, options.out, options.keep)
        if is_live:
            raise PadimEdgeError(f"{options.source} gives no more frames")
    except KeyboardInterrupt:
        pass
    except (PadimEdgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        camera.release()
    return 0


def judge(camera: cv2.VideoCapture, detector: Detector, out: Path | None, keep: int) -> None:
    """Judge frames until there are no more."""
    while True:
        good, frame = camera.read()
        if not good:
            return
        start = time.perf_counter()
        result = detector(frame)
        milliseconds = 1e3 * (time.perf_counter() - start)
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = {
            "time": now,
            "score": round(result.score, 3),
            "threshold": round(result.threshold, 3),
            "is_anomalous": result.is_anomalous,
            "milliseconds": round(milliseconds, 2),
        }
        print(json.dumps(record), flush=True)
        if out and result.is_anomalous:
            save(frame, out / f"{now.replace(':', '')}.png", keep)
        notify("WATCHDOG=1")


def save(bgr: np.ndarray, path: Path, keep: int) -> None:
    """Write a frame, and let go of the oldest ones: a disk that fills up stops more than this."""
    Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1])).save(path)
    for old in sorted(path.parent.glob("*.png"))[:-keep]:
        old.unlink(missing_ok=True)


def notify(state: str) -> None:
    """Tell systemd, if it started us; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), address.replace("@", "\0", 1))


if __name__ == "__main__":
    sys.exit(main())
