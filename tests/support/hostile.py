"""Hostile inputs: files that were damaged on purpose, read by everything that reads files.

    python tests/support/hostile.py [--inputs 10000] [--seed 0]

Sound photos, masks, models, their metadata, moments, results of benchmarks, lines and plans are
mutated at random, with a fixed seed, and read. Whatever is not read must be refused by an error of
ours, in one line, within `PATIENCE` seconds. Anything else is printed, and kept in `hostile/`.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from padim_edge.detect.line_file import LineFile
from padim_edge.errors import PadimEdgeError
from padim_edge.fit.saved import SavedMoments
from padim_edge.fit.settings import Settings
from padim_edge.images.decode import load_frame, load_image, read_head
from padim_edge.images.find import read_list
from padim_edge.images.masks import load_mask
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure import against
from padim_edge.model.file import read
from padim_edge.runtime.nvidia.plan_cache import SealedFile

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "model" / "format_1"
PATIENCE = 20
MEMORY = 2 * 2**30
"""Bytes that the whole campaign may take: one image may have 0.7 GB of pixels."""

Reader = Callable[[Path], object]
Kind = tuple[bytes, str, tuple[Reader, ...]]
"""A sound file, the suffix of its name, and what reads it."""


def images() -> Iterator[Kind]:
    """Photos and masks of every format."""
    random_pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    picture = Image.fromarray(random_pixels)
    deep = Image.fromarray(random_pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    preprocess = Preprocess.whole((32, 32))
    readers: tuple[Reader, ...] = (load_image, load_frame, load_mask, read_head, preprocess)
    for image, suffix, options in (
        (picture, "png", {}),
        (picture, "jpg", {"exif": exif, "quality": 80}),
        (picture, "jpg", {"progressive": True}),
        (picture.convert("CMYK"), "jpg", {}),
        (picture, "bmp", {}),
        (picture, "webp", {}),
        (picture, "gif", {"save_all": True, "append_images": [picture.rotate(90)]}),
        (picture, "tif", {"compression": "tiff_lzw"}),
        (picture, "tif", {"save_all": True, "append_images": [picture]}),
        (picture, "ppm", {}),
        (deep, "png", {}),
        (deep, "tif", {}),
        (picture.convert("P"), "png", {"transparency": 0}),
    ):
        stream = io.BytesIO()
        format_name = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        image.save(stream, format_name, **options)
        yield stream.getvalue(), f".{suffix}", readers


def models() -> Iterator[Kind]:
    """Detectors and embeddings as bytes, and with their metadata as text between markers."""

    def any_kind(path: Path) -> object:
        return read(path, None)

    for path in sorted(OLD.glob("*.onnx")):
        yield path.read_bytes(), ".onnx", (any_kind,)
    proto = onnx.load(OLD / "float16.onnx")
    text = json.dumps({entry.key: entry.value for entry in proto.metadata_props})

    def with_metadata(path: Path) -> object:
        try:
            props = json.loads(path.read_bytes())
            del proto.metadata_props[:]
            for key, value in props.items():
                proto.metadata_props.add(key=key, value=value)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None  # not what is looked for: ONNX itself holds pairs of texts
        path.write_bytes(proto.SerializeToString())
        return read(path, "padim")

    yield text.encode(), ".json", (with_metadata,)


def others() -> Iterator[Kind]:
    """Moments, results of a benchmark, lines of a run, lists and plans."""
    embedding = read(OLD / "embedding.onnx", "embedding")
    info = read(OLD / "float16.onnx", "padim").detector_info
    assert info is not None
    settings = Settings(info.preprocess)

    def moments(path: Path) -> object:
        return SavedMoments.load(path, embedding, settings)

    yield (OLD / "moments.npz").read_bytes(), ".npz", (moments,)
    yield (ROOT / "benchmarks/results/bench.json").read_bytes(), ".json", (against.load,)
    line = json.dumps({"path": "a.png", "score": 1.5, "threshold": 2.0, "is_anomalous": False})

    def lines(path: Path) -> object:
        target = path.with_suffix("")
        with LineFile(target, resume=True) as file:
            file.write({"path": "b.png"})
        return target.unlink()

    yield f"{line}\n{line}\n".encode(), ".part", (lines,)
    yield b"a.png\nb.png\n\xff.png\0c.png", ".txt", (lambda path: read_list(path.read_bytes()),)
    with tempfile.TemporaryDirectory() as folder:
        sealed = SealedFile(Path(folder) / "plan", b"k" * 32)
        sealed.write(b"plan" * 100)
        plan = (Path(folder) / "plan").read_bytes()
    yield plan, ".plan", (lambda path: SealedFile(path, b"k" * 32).read(),)


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Some random damage."""
    result = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 5, 20))):
        start = dice.randrange(len(result) + 1)
        length = min(dice.choice((1, 2, 4, 8, 64, 1024)), len(result) - start)
        chosen = slice(start, start + length)
        match dice.randrange(7):
            case 0:
                result[chosen] = dice.randbytes(length)
            case 1:
                result[chosen] = bytes([dice.choice((0, 255, 127, 128))]) * length
            case 2:
                del result[chosen]
            case 3:
                result[start:start] = dice.randbytes(dice.choice((1, 4, 100)))
            case 4:
                del result[start:]
            case 5:
                result[start:start] = result[chosen] * dice.choice((1, 3, 50))
            case _:
                if start < len(result):
                    result[start] ^= 1 << dice.randrange(8)
    return bytes(result)


def misbehaviour(path: Path, reader: Reader) -> str | None:
    """What a reader does that it must not; None if all is well."""
    signal.alarm(PATIENCE)
    try:
        reader(path)
    except PadimEdgeError as error:
        message = str(error)
        return None if message and "\n" not in message else f"no one line: {message!r}"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return None


def _peak() -> int:
    """Memory that this process has taken at most, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def campaign(inputs: int, seed: int, kept: Path) -> list[str]:
    """Read so many mutated files; returns what went wrong, and keeps the files."""
    kinds = [*images(), *models(), *others()]
    dice = random.Random(seed)
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    before = _peak()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(inputs):
            sound, suffix, readers = kinds[number % len(kinds)]
            data = mutated(sound, dice)
            path = Path(folder) / f"{number}{suffix}"
            for reader in readers:
                path.write_bytes(data)
                seen[suffix] += 1
                said = misbehaviour(path, reader)
                if said:
                    kept.mkdir(exist_ok=True)
                    (kept / path.name).write_bytes(data)
                    wrong.append(f"{path.name}: {said}")
            path.unlink(missing_ok=True)
    peak = _peak()
    # A process that has taken more before cannot tell.
    if peak > max(MEMORY, before):
        wrong.append(f"{peak / 2**30:.1f} GiB of memory were taken")
    print(", ".join(f"{count} {suffix}" for suffix, count in sorted(seen.items())))
    print(f"{inputs} inputs, seed {seed}: {len(wrong)} wrong, peak {peak / 2**20:.0f} MiB")
    return wrong


def main() -> int:
    """Run a campaign; 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {PATIENCE} s")

    signal.signal(signal.SIGALRM, late)
    wrong = campaign(options.inputs, options.seed, Path("hostile"))
    for one in wrong[:20]:
        print(one, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
