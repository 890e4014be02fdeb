"""From an empty folder and a camera to a detector that judges: how long, and what it then finds.

A video is made of photos of parts, each of which is seen for a while, with a camera's noise and
H.264's losses. It is watched at its own rate, as a camera would be: parts are taken until there are
enough, a detector is fitted while frames go on to come, and judges the rest of the parts, good and
defective ones. Everything is what `padim-edge watch` uses; nothing is prepared before but the
embedding.

    python benchmarks/teach.py embedding.onnx DATASET --parts 40
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

from padim_edge.detect.detector import Detector, Result
from padim_edge.errors import PadimEdgeError
from padim_edge.live.board import Seen
from padim_edge.live.drift import DriftWatch
from padim_edge.live.recorder import Recorder
from padim_edge.live.source import Captured, Source
from padim_edge.live.sources import open_source
from padim_edge.live.swap import ModelSlot
from padim_edge.live.teach import Teacher
from padim_edge.live.watch import Camera, Watch

RATE = 10
SIZE = 512


class AtItsRate:
    """A video as a camera: frames come in time, whoever waits for them."""

    is_live = True

    def __init__(self, source: Source) -> None:
        self._source, self.address = source, source.address

    def describe(self) -> str:
        """What was opened."""
        return self._source.describe()

    def __iter__(self) -> Iterator[Captured]:
        begun = time.monotonic()
        for number, captured in enumerate(self._source):
            time.sleep(max(0.0, begun + number / RATE - time.monotonic()))
            yield Captured(captured.picture, number, time.time(), captured.name)

    def close(self) -> None:
        """Let go of it."""
        self._source.close()


def make_video(path: Path, photos: list[Path], frames: int) -> None:
    """Each photo for some frames, with noise of two grey levels."""
    rng = np.random.default_rng(0)
    with av.open(path, "w") as container:
        stream = container.add_stream(
            "libx264", rate=RATE, options={"crf": "18", "preset": "ultrafast"}
        )
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for photo in photos:
            image = np.asarray(Image.open(photo).convert("RGB").resize((SIZE, SIZE)), np.float32)
            for _ in range(frames):
                noisy = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(noisy)):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embedding", type=Path)
    parser.add_argument("data", type=Path, help="with train/good and test/*")
    parser.add_argument("--parts", type=int, default=40, help="taken before the fit")
    parser.add_argument("--meanwhile", type=int, default=15, help="good parts during the fit")
    parser.add_argument("--frames", type=int, default=5, help="of each part")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    good = sorted((options.data / "train" / "good").iterdir())
    good = good[: options.parts + options.meanwhile]
    test = sorted((options.data / "test" / "good").iterdir())[:10]
    kinds = sorted(k for k in (options.data / "test").iterdir() if k.name != "good")
    bad = [photo for kind in kinds for photo in sorted(kind.iterdir())[:5]]
    photos = [*good, *test, *bad]
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "line.mp4"
        make_video(video, photos, options.frames)
        begun = time.monotonic()
        moments: dict[str, float] = {}
        verdicts: dict[int, list[bool]] = {}

        def reached(name: str) -> None:
            moments.setdefault(name, time.monotonic() - begun)

        def watched(seen: Seen) -> None:
            reached("first frame")
            if isinstance(seen.outcome, Result):
                reached("first verdict")
                part = seen.captured.sequence // options.frames
                verdicts.setdefault(part, []).append(seen.outcome.is_anomalous)

        slot = ModelSlot(lambda path: Detector(path, "ort", options.threads))
        camera = Camera("line", lambda: AtItsRate(open_source(str(video))), str(video), slot, "all")
        recorder = Recorder()
        watch = Watch([camera], recorder, count=len(photos) * options.frames)
        said = Counter[str]()

        def say(kind: str, _camera: str | None, message: str, **_: object) -> None:
            said[kind] += 1
            print(f"  {time.monotonic() - begun:5.1f} s  {kind}: {message}")

        ended, failed = threading.Event(), list[PadimEdgeError]()
        with Teacher(
            Path(folder) / "state", options.embedding, slot, say=say, threads=options.threads
        ) as teacher:
            watch.observers.extend([watched, teacher, DriftWatch(slot, say)])
            teacher.take(count=options.parts)

            def fit() -> None:
                while len(teacher.versions.state.good) < options.parts:
                    if ended.wait(0.02):
                        return
                reached("parts taken")
                lesson = teacher.lesson()
                print(
                    f"  {time.monotonic() - begun:5.1f} s  {lesson.taken} parts promise a rate of "
                    f"{lesson.promised}, in {lesson.interval} at 95 %"
                )
                try:
                    teacher.fit()
                except PadimEdgeError as error:
                    failed.append(error)
                else:
                    reached("detector judges")

            thread = threading.Thread(target=fit, daemon=True)
            thread.start()
            watch.run()
            ended.set()
            thread.join()
            lesson = teacher.lesson()
        slot.close()
    if failed:
        raise SystemExit(str(failed[0]))
    if "parts taken" not in moments:
        raise SystemExit(
            f"the video ended with {lesson.taken} of --parts {options.parts} taken, "
            f"{teacher.skipped} skipped as the same part: take fewer, or more --frames of each"
        )
    for name, seconds in moments.items():
        print(f"{name:<18}{seconds:6.1f} s")
    print(f"skipped as the same part: {teacher.skipped}; warnings: {list(lesson.warnings)}")
    for name, first, last in (
        ("good, not taught", options.parts, len(good) + len(test)),
        ("defective", len(good) + len(test), len(photos)),
    ):
        judged = {p: v for p, v in verdicts.items() if first <= p < last}
        alarms = sum(2 * sum(v) > len(v) for v in judged.values())
        print(f"{name:<18}{alarms} of {len(judged)} parts are anomalous")


if __name__ == "__main__":
    main()
