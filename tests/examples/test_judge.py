"""The examples in C++ and C# judge as Python does: built here, run on photos, JPEG among them."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import zlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import cpp
import csharp
import numpy as np
import onnx
import pytest
from heat import check_heat
from helpers import names
from PIL import Image
from wide_grey import check_wide_grey

from padim_edge import Detector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cpp_program(once: Callable[..., Path]) -> list[object]:
    return [once("cpp", cpp.build) / "padim-judge"]


@pytest.fixture(scope="module")
def csharp_program(once: Callable[..., Path]) -> list[object]:
    return csharp.command(once("csharp", csharp.build))


@pytest.fixture(scope="module", params=["cpp", "csharp"])
def program(request: pytest.FixtureRequest) -> list[object]:
    """What runs it: a program and its first arguments."""
    return request.getfixturevalue(f"{request.param}_program")


def judged(program: Sequence[object], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = list(map(str, [*program, *arguments]))
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def check(program: Sequence[object], model: Path, photos: list[Path]) -> list[dict[str, object]]:
    """Judge photos in the program and in Python, and compare; returns the lines of the program."""
    done = judged(program, "--threads", 1, model, *photos)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    with Detector(model, engine="ort") as detector:
        for path, line in zip(photos, lines, strict=True):
            result = detector(path)
            assert line["path"] == str(path)
            assert "error" not in line, line
            assert math.isclose(line["score"], result.score, rel_tol=1e-5), line
            assert line["threshold"] == result.threshold
            assert line["decision"] == ("anomaly" if result.is_anomalous else "ok")
            assert math.isclose(line["percentile"], result.percentile)
    anomalies = sum(line["decision"] == "anomaly" for line in lines)
    assert done.returncode == (3 if anomalies else 0), done.stderr
    assert f"{len(photos)} judged by ONNX Runtime 1." in done.stderr
    assert done.stderr.count("\n") == 1
    return lines


def test_it_says_what_python_says(program, model, frames):
    lines = check(program, model, frames)
    decisions = {Path(line["path"]).name: line["decision"] for line in lines}
    assert decisions["stained.png"] == "anomaly"
    assert "ok" in decisions.values()


def test_a_map_with_nan_is_no_proof_of_a_good_part(program, numberless_model, frames):
    done = judged(program, numberless_model, frames[0])
    line = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    assert line["decision"] == "anomaly"
    assert line["score"] is None
    assert line["percentile"] == 0


def test_every_kind_of_file_is_decoded_as_python_does_it(
    program, model, twelve_bit_model, frames, tmp_path
):
    """JPEG files so large that they are decoded smaller, turned ones, PNG of every kind."""
    rng = np.random.default_rng(0)
    image = Image.open(frames[-1])
    image.putpixel((0, 0), (0, 0, 0))
    large = image.resize((640, 512), Image.Resampling.BICUBIC)  # decoded 8 times smaller
    large.save(tmp_path / "large.jpg", quality=92)
    image.resize((516, 388)).save(tmp_path / "progressive.jpg", progressive=True, subsampling=2)
    image.save(tmp_path / "odd.jpg", subsampling=0)
    large.convert("L").save(tmp_path / "grey.jpg")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"turned-{orientation}.jpg", exif=exif)
        image.save(tmp_path / f"turned-{orientation}.png", exif=exif)
    image.quantize(60).save(tmp_path / "palette.png")
    image.convert("L").point(lambda value: 255 * (value > 120), "1").save(tmp_path / "bits.png")
    image.convert("LA").save(tmp_path / "grey-alpha.png")
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (image.height, image.width), np.uint8)))
    alpha.save(tmp_path / "alpha.png")
    image.convert("L").quantize(4).save(tmp_path / "few.png")
    values = np.asarray(image.crop((0, 0, 61, 43)))
    for kind, pixels in {
        "colours": values,
        "alpha": np.dstack([values, values[..., :1]]),
        "grey": values[..., :1],
        "grey-alpha": values[..., :2],
    }.items():
        (tmp_path / f"{kind}-interlaced.png").write_bytes(png(pixels, interlaced=True))
        if kind != "grey":  # of which Python keeps all 16 bits
            (tmp_path / f"{kind}-16.png").write_bytes(png(pixels * np.uint16(256) + pixels))
    paths = sorted(tmp_path.iterdir())
    lines = check(program, model, paths)
    # A turn that was not made would change the score.
    turned = {line["score"] for line in lines if "turned" in str(line["path"])}
    assert len(turned) >= 8

    def said(file: Path, photo: Path) -> str:
        return judged(program, file, photo).stdout

    check_wide_grey(said, model, twelve_bit_model, image, tmp_path / "wide.png")


def png(pixels: np.ndarray, interlaced: bool = False) -> bytes:
    """A PNG as Pillow writes none: of 16 bits, or in Adam7's passes. pixels: [H, W, channels]."""
    height, width, channels = pixels.shape
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    wide = pixels.astype(pixels.dtype.newbyteorder(">"))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, interlaced)
    body = b"".join(filtered(wide[y::dy, x::dx]) for x, y, dx, dy in passes)
    chunks = [b"IHDR" + head, b"IDAT" + zlib.compress(body), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks
    )


def filtered(pixels: np.ndarray) -> bytes:
    """Rows as PNG has them, each of the five filters in turn."""
    if not pixels.size:
        return b""
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(len(pixels), -1).astype(int)
    step = pixels[0, 0].nbytes
    padded = np.pad(rows, ((1, 0), (step, 0)))
    left, above, corner = padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    distances = [abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)]
    nearest = np.choose(np.argmin(distances, axis=0), [left, above, corner])
    guesses = [np.zeros_like(rows), left, above, (left + above) // 2, nearest]
    return b"".join(
        bytes([y % 5]) + (row - guesses[y % 5][y]).astype(np.uint8).tobytes()
        for y, row in enumerate(rows)
    )


# Where each pass begins, and its steps: x, y, across, down.
ADAM7 = [
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
]


def test_a_turned_photo_is_decoded_as_small_as_its_upright_size_allows(
    program, cropping_model, frames, tmp_path
):
    # Lying it would be decoded 2 times smaller, upright it is 4 times.
    lying = Image.open(frames[-1]).resize((640, 320))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "turned.jpg", exif=exif)
    lying.save(tmp_path / "plain.jpg")
    check(program, cropping_model, [tmp_path / "turned.jpg", tmp_path / "plain.jpg"])


def test_real_photos(program, bottle_model, bottles, data, tmp_path):
    """As PNG, and in the camera's size as JPEG, decoded by a factor where that suffices."""
    jpegs = []
    for path in sorted((data / "data" / "full-size" / "bottle" / "test").rglob("*.png")):
        photo = Image.open(path).convert("RGB")
        for side in (photo.width, 896):
            jpegs.append(tmp_path / f"{path.parent.name}-{side}.jpg")
            photo.resize((side, side)).save(jpegs[-1], quality=95)
    lines = check(program, bottle_model, [*bottles, *jpegs])
    assert {line["decision"] for line in lines} == {"anomaly", "ok"}


@pytest.mark.parametrize("fitted", ["model", "cropping_model"])
def test_the_heat_is_where_the_defect_is(program, fitted, request, frames, tmp_path):
    file = request.getfixturevalue(fitted)
    stained = frames[-1]
    plain = next(path for path in frames if path.name == "plain.png")
    done = judged(program, "--maps", tmp_path / "maps" / "deep", file, stained, plain)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for path, line in zip((stained, plain), lines, strict=True):
        before = np.asarray(Image.open(path).convert("RGB")).astype(int)
        after = np.asarray(Image.open(line["map"])).astype(int)
        assert line["map"] == str(tmp_path / "maps" / "deep" / path.name)
        assert after.shape == before.shape
        with Detector(file, engine="ort") as detector:
            outside = check_heat(before, after, detector(path))
        assert outside == (fitted == "cropping_model")


def test_a_map_that_cannot_be_written_leaves_the_verdict(program, model, frames, tmp_path):
    stained = frames[-1]
    (tmp_path / stained.name).mkdir()  # where its map would go
    done = judged(program, "--maps", tmp_path, model, stained)
    line = json.loads(done.stdout)
    assert done.returncode == 3
    assert line["decision"] == "anomaly"
    assert line["score"] > line["threshold"]
    assert str(tmp_path / stained.name) in line["error"]
    assert "map" not in line


def test_what_cannot_be_judged_is_said_in_its_line(program, model, frames, tmp_path):
    whole = {path: path.read_bytes() for path in frames}
    photo = Image.open(frames[-1])
    photo.save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-900])
    (tmp_path / "half.png").write_bytes(whole[frames[-1]][:-200])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    photo.convert("CMYK").save(tmp_path / "print.jpg")
    header = whole[frames[0]]
    huge = header[:16] + (60000).to_bytes(4, "big") * 2 + header[24:29]
    huge += zlib.crc32(huge[12:29]).to_bytes(4, "big") + header[33:]
    (tmp_path / "huge.png").write_bytes(huge)
    said = {
        "absent.png": "No such file",
        "half.jpg": "damaged or truncated",
        "half.png": "damaged or truncated",
        "text.png": "no JPEG or PNG",
        "empty.jpg": "is empty",
        "print.jpg": "CMYK",
        "huge.png": "too many pixels",
        "": "cannot be",  # a folder
    }
    plain = next(path for path in frames if path.name == "plain.png")
    done = judged(program, model, *(tmp_path / name for name in said), plain)
    *lines, good = [json.loads(line) for line in done.stdout.splitlines()]
    for (name, words), line in zip(said.items(), lines, strict=True):
        assert line["path"] == str(tmp_path / name)
        assert words in line["error"], line
        assert set(line) == {"path", "error"}
    assert good["decision"] == "ok"
    assert done.returncode == 1


def test_a_library_that_is_older_than_the_headers_is_said(cpp_program, model, frames, tmp_path):
    """One that gives no functions of ours, as an older one would."""
    source = tmp_path / "old.c"
    source.write_text(OLD_LIBRARY)
    library = tmp_path / "libonnxruntime.so.1"
    # With the name of a version that the program was linked with, or no loader would take it.
    exported = tmp_path / "exported"
    exported.write_text(f"VERS_{metadata.version('onnxruntime')} {{ OrtGetApiBase; }};")
    script = f"-Wl,--version-script={exported}"
    subprocess.run(["cc", "-shared", "-fPIC", script, source, "-o", library], check=True)
    done = subprocess.run(
        [*cpp_program, model, frames[0]],
        env={"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {model}: ONNX Runtime 1.9.0 is older than the headers")
    assert done.stderr.count("\n") == 1


OLD_LIBRARY = """
static const void *functions(unsigned version) { (void)version; return 0; }
static const char *name(void) { return "1.9.0"; }
struct base { const void *(*get)(unsigned); const char *(*name)(void); };
static const struct base base = {functions, name};
const void *OrtGetApiBase(void) { return &base; }
"""


def test_csharp_says_what_reads_jpeg(csharp_program, model, frames, tmp_path, monkeypatch):
    Image.open(frames[-1]).save(tmp_path / "photo.jpg")
    for name in ("libturbojpeg.so.0", "libturbojpeg.so"):
        (tmp_path / name).write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    done = judged(csharp_program, model, tmp_path / "photo.jpg", frames[-1])
    jpeg, png = [json.loads(line) for line in done.stdout.splitlines()]
    assert jpeg["error"].endswith("(libturbojpeg is not here): apt-get install libturbojpeg0")
    assert png["decision"] == "anomaly"


def test_other_files_and_wrong_arguments_are_refused_in_a_line(
    program, model, model_file, embedding_file, frames, tmp_path
):
    photo = frames[0]
    (tmp_path / "half.onnx").write_bytes(model_file.read_bytes()[:5000])
    later = onnx.load(model)
    for entry in later.metadata_props:
        if entry.key == "padim_edge.format":
            entry.value = "3"
    onnx.save(later, tmp_path / "later.onnx")
    for path, said in (
        (model_file, "--frame-input"),
        (embedding_file, "is no detector"),
        (photo, "no whole ONNX file"),
        (tmp_path / "half.onnx", "no whole ONNX file"),
        (tmp_path / "absent.onnx", "no such file"),
        (tmp_path / "later.onnx", "version 3"),
    ):
        done = judged(program, path, photo)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {path}: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert not done.stdout
    for key, value, said in (
        ("preprocess", {"resize": [0, 0]}, "resize is not above 0"),
        ("preprocess", {"resize": 0}, "resize is not above 0"),
        ("preprocess", {"size": [64, 0]}, "size is not above 0"),
        ("preprocess", {"bit_depth": 0}, "bit_depth"),
        ("preprocess", {"bit_depth": 32}, "bit_depth"),
        ("good_scores", [], "good_scores"),
    ):
        damaged = onnx.load(model)
        (entry,) = (one for one in damaged.metadata_props if one.key == f"padim_edge.{key}")
        entry.value = json.dumps({**json.loads(entry.value), **value} if value else value)
        onnx.save(damaged, tmp_path / "damaged.onnx")
        done = judged(program, tmp_path / "damaged.onnx", photo)
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.endswith("): fit it again\n")
        assert done.stderr.count("\n") == 1
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / photo.name
    other.write_bytes(photo.read_bytes())
    for name in ("links", "hard"):
        (tmp_path / name).mkdir()
    (tmp_path / "links" / photo.name).symlink_to(Path("..") / "other" / photo.name)
    (tmp_path / "hard" / photo.name).hardlink_to(other)
    (tmp_path / "folder").symlink_to("other")
    for arguments, said in (
        ([model], "one photo at least"),
        (["--maps"], "--maps needs a value"),
        (["--threads", "many", model, photo], "--threads many"),
        (["--heat", model, photo], "no option --heat"),
        (["--maps", tmp_path, model, photo, other], "would both be"),
        *(
            (["--maps", tmp_path / "other", model, tmp_path / name / photo.name], "write over")
            for name in ("other", "links", "hard", "folder")
        ),
        (["--maps", tmp_path / "links", model, other], "write over"),
        (["--maps", "", model, photo], "folder of --maps is empty"),
        ([model, photo, ""], "name of a file is empty"),
        ([model, "--", photo, ""], "name of a file is empty"),
    ):
        done = judged(program, *arguments)
        assert done.returncode == 2
        first, usage, *_ = done.stderr.splitlines()
        assert first.startswith("error: ")
        assert said in first
        assert usage.startswith("usage: padim-judge ")
    assert other.read_bytes() == photo.read_bytes()
    assert names(tmp_path / "other") == [photo.name]
    assert judged(program, "--help").stdout.startswith("usage: padim-judge ")
