"""Decoding, resizing and cropping, against real files and torchvision."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import ImageError, ModelError, PadimEdgeError, UsageError
from padim_edge.images import preprocess as images
from padim_edge.images.batches import read_batches
from padim_edge.images.decode import load_image, to_rgb
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess, parse_size

silent = pytest.mark.filterwarnings("error")
FORMATS = ["png", "jpg", "bmp", "tif", "webp", "gif", "ppm"]


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pixels(image: Image.Image) -> list[list[list[int]]]:
    assert image.mode == "RGB"
    rows: list[list[list[int]]] = np.asarray(image).tolist()
    return rows


def failure(path: str | Path) -> str:
    """The message that a file is refused with: one line that begins with the path."""
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows, 1)),
            chunk(b"IEND", b""),
        ]
    )


def grey_tiff(width: int, height: int, bits: int, body: bytes) -> bytes:
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1)]
    tags += [(273, 8), (277, 1), (278, height), (279, len(body))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    body += b"\0" * (len(body) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    return head + struct.pack("<H", len(tags)) + directory + b"\0\0\0\0"


# ---------------------------------------------------------------------------- decoding


@silent
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    array = noise(13, 17)
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(array).save(path, **options)
    image = load_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), array)


@silent
def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (9, 7), (200, 30, 60)).save(path, "JPEG", quality=100)
    assert load_image(str(path)).size == (9, 7)


@silent
@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 77, [77, 77, 77]),
        ("LA", (77, 10), [77, 77, 77]),
        ("RGBA", (10, 20, 30, 0), [10, 20, 30]),
    ],
)
def test_alpha_is_dropped_and_grey_repeated(
    tmp_path: Path, mode: str, value: Any, expected: list[int]
) -> None:
    path = tmp_path / "a.png"
    Image.new(mode, (2, 3), value).save(path)
    assert pixels(load_image(path)) == [[expected] * 2] * 3


@silent
@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palettes_become_their_colours_whatever_is_transparent(
    tmp_path: Path, transparency: int | bytes | None
) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([1, 2, 3, 40, 50, 60, 200, 210, 220])
    image.putdata([0, 1, 2])
    path = tmp_path / "a.png"
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    image.save(path, **options)
    assert pixels(load_image(path)) == [[[1, 2, 3], [40, 50, 60], [200, 210, 220]]]


@silent
@pytest.mark.parametrize(("mode", "value"), [("RGBa", (50, 25, 10, 128)), ("La", (50, 128))])
def test_premultiplied_alpha_is_divided_out(mode: str, value: tuple[int, ...]) -> None:
    image = to_rgb(Image.new(mode, (1, 1), value))
    np.testing.assert_allclose(np.asarray(image)[0, 0, 0], 50 * 255 / 128, atol=1)


@silent
def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    np.testing.assert_allclose(
        np.asarray(load_image(path)), np.full((16, 16, 3), [255, 0, 0]), atol=3
    )


SIXTEEN = [0, 128, 129, 257, 32768, 65535]
EIGHT = [0, 0, 1, 1, 128, 255]  # round(v * 255 / 65535)


def _save_16_bit(path: Path, values: NDArray[np.uint16]) -> None:
    big = values.astype(">u2").tobytes()
    height, width = values.shape
    if path.suffix == ".pgm":
        path.write_bytes(b"P5\n%d %d\n65535\n" % (width, height) + big)
    elif path.suffix == ".png":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        path.write_bytes(png(width, height, 16, 0, rows))
    else:
        order = ">u2" if path.stem == "big" else "<u2"
        Image.fromarray(values.astype(order)).save(path)


@silent
@pytest.mark.parametrize("name", ["a.png", "a.pgm", "little.tif", "big.tif"])
def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    _save_16_bit(tmp_path / name, np.array([SIXTEEN], np.uint16))
    assert pixels(load_image(tmp_path / name)) == [[[v] * 3 for v in EIGHT]]


@silent
def test_16_bit_scaling_does_not_depend_on_the_content(tmp_path: Path) -> None:
    path = tmp_path / "dark.png"
    _save_16_bit(path, np.full((4, 4), 2570, np.uint16))
    assert pixels(load_image(path)) == [[[10, 10, 10]] * 4] * 4


@silent
def test_12_bit_tiff_has_its_own_white(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(grey_tiff(2, 1, 12, bytes([0xFF, 0xF8, 0x00])))  # 4095, 2048
    assert pixels(load_image(path)) == [[[255] * 3, [128] * 3]]


@silent
def test_16_bit_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 32768, 65535, 257, 0, 0)))
    assert pixels(load_image(path)) == [[[0, 128, 255], [1, 0, 0]]]


@silent
@pytest.mark.parametrize(("dtype", "what"), [("float32", "floating-point"), ("int32", "32-bit")])
def test_pixels_without_a_defined_white_are_refused(tmp_path: Path, dtype: str, what: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((3, 3), 7, dtype)).save(path)
    assert what in failure(path)


def _upright() -> NDArray[np.uint8]:
    """24 x 40 in eight even blocks, which JPEG keeps nearly as they are."""
    return np.kron(noise(3, 5, seed=1), np.ones((8, 8, 1), np.uint8))


# The EXIF standard's words: where the stored row 0 and column 0 lie in the upright image.
STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda u: u,  # top, left
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u.swapaxes(0, 1)[::-1],  # right, top
    7: lambda u: u.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda u: u.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


@silent
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](_upright())))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {
        "jpg": {"quality": 100, "subsampling": 0},
        "webp": {"lossless": True},
    }
    stored.save(path, exif=exif, **options.get(suffix, {}))
    image = load_image(path)
    difference = np.abs(np.asarray(image, int) - _upright())
    assert difference.max() <= (3 if suffix == "jpg" else 0)
    again = to_rgb(image)  # the tag must not be applied a second time
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


@silent
def test_exif_orientation_of_16_bit(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 65535]], np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert pixels(load_image(tmp_path / "a.png")) == [[[0] * 3], [[255] * 3]]


def test_damaged_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(_upright()).save(path, exif=b"Exif\0\0nonsense, and not even TIFF")
    assert load_image(path).size == (40, 24)


@silent
@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png", "mpo"])
def test_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(np.asarray(load_image(path))[8, 8], [255, 0, 0], atol=4)


def test_to_rgb_leaves_its_argument_alone() -> None:
    image = Image.new("L", (2, 2), 9)
    image.info["transparency"] = 9
    to_rgb(image)
    assert image.mode == "L"
    assert image.info == {"transparency": 9}
    rgb = Image.new("RGB", (2, 2))
    assert to_rgb(rgb) is rgb


# ---------------------------------------------------------------------------- refusing


@silent
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, {"tif": "TIFF", "jpg": "JPEG"}.get(suffix, suffix))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
    assert "damaged or truncated" in failure(path)


@pytest.mark.filterwarnings("ignore")  # Pillow on damaged EXIF
@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_end_in_an_image_or_an_image_error(tmp_path: Path, suffix: str) -> None:
    whole = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_upright()).save(
        whole, {"tif": "TIFF", "jpg": "JPEG"}.get(suffix, suffix), exif=exif
    )
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(150):
        body = bytearray(whole.getvalue())
        for position in rng.integers(0, min(len(body), 400), 3):
            body[position] = rng.integers(256)
        path.write_bytes(body)
        try:
            assert load_image(path).mode == "RGB"
        except ImageError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize(
    "body", [b"just text\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0" * 100]
)
def test_other_files_named_png(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "notes.png"
    path.write_bytes(body)
    assert "not an image; PNG, JPEG" in failure(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    assert "empty" in failure(path)


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in failure(tmp_path / "missing.png")
    assert "directory" in failure(tmp_path)
    assert "cannot be read" in failure("a\0.png")

    def denied(*_: object) -> None:  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in failure(tmp_path / "a.png")


def test_400_megapixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png(20000, 20000, 1, 0, (b"\0" * 2501) * 20000))
    script = """if True:
        import resource, sys, time
        from padim_edge.errors import ImageError
        from padim_edge.images.decode import load_image
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            load_image(sys.argv[1])
        except ImageError as error:
            print(error)
        print(time.perf_counter() - start)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    message, seconds, kilobytes = done.stdout.splitlines()
    assert "20000 x 20000" in message
    assert "178,956,970" in message
    assert float(seconds) < 0.5  # milliseconds on an idle machine; decoding takes seconds
    assert int(kilobytes) < 20_000  # decoding takes 400 MB


@silent
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_limit_is_exact_in_every_format(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(10, 12)).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 120)
    load_image(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 119)
    assert "12 x 10" in failure(path)


@silent
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif", "ppm"])
def test_large_allowed_images_raise_no_warning(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(10, 12)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Image.open warns up to 200, then raises
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    load_image(path)


# -------------------------------------------------------------------------- preprocessing


SIZES = [(224, 224), (225, 301), (301, 225), (900, 900), (257, 256), (100, 333), (511, 1023)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    ("resize", "size"), [(256, (224, 224)), (231, (224, 198)), ((300, 277), (224, 224))]
)
@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic", "bilinear", "box"])
def test_pixels_are_torchvisions(
    height: int,
    width: int,
    resize: int | tuple[int, int],
    size: tuple[int, int],
    interpolation: str,
) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(noise(height, width, seed=height * width))
    mode = transforms.InterpolationMode(interpolation)
    target = resize if isinstance(resize, int) else list(resize)
    expected = transforms.Compose(
        [transforms.Resize(target, interpolation=mode), transforms.CenterCrop(size)]
    )(image)
    result = Preprocess(size, resize, crop=True, interpolation=interpolation)(image)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert result.flags.writeable
    np.testing.assert_array_equal(result, np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_whole_is_one_resize(height: int, width: int) -> None:
    array = noise(height, width)
    result = Preprocess.whole((224, 448))(array)
    expected = Image.fromarray(array).resize((448, 224), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(result, np.asarray(expected))


def test_reference_is_256_to_224() -> None:
    assert Preprocess.reference((224, 224)) == Preprocess((224, 224), 256, True, "lanczos")
    assert Preprocess.reference((256, 256)).resize == 293  # 292.57
    with pytest.raises(UsageError, match=r"square.*--resize and --crop"):
        Preprocess.reference((224, 448))


def test_preset_reference_on_published_images(data: Path) -> None:
    full = data / "data" / "full-size" / "bottle"
    small = data / "data" / "mvtec-256" / "bottle"
    paths = find_images(full)
    assert len(paths) == 5
    preprocess = Preprocess.reference((224, 224))
    for path in paths:
        assert load_image(path).size == (900, 900)
        np.testing.assert_array_equal(
            preprocess(load_image(path)), preprocess(load_image(small / path.relative_to(full)))
        )


@pytest.mark.parametrize("preprocess", [Preprocess.whole((32, 48)), Preprocess((32, 48), 32, True)])
def test_nothing_is_resampled_at_the_right_size(
    preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resize(*_: object, **__: object) -> None:
        raise AssertionError("resampled")

    array = noise(32, 48)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        result = preprocess(array)
        with pytest.raises(AssertionError, match="resampled"):
            preprocess(noise(32, 49) if preprocess.resize == (32, 48) else noise(64, 96))
    np.testing.assert_array_equal(result, array)
    result[:] = 0  # the result is the caller's: the frame does not change with it
    np.testing.assert_array_equal(array, noise(32, 48))


def test_frames_of_any_strides() -> None:
    bgr = noise(50, 60)
    preprocess = Preprocess.whole((32, 32))
    expected = preprocess(np.ascontiguousarray(bgr[::2, :, ::-1]))
    np.testing.assert_array_equal(preprocess(bgr[::2, :, ::-1]), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_that_pillow_has_opened_are_brought_upright_too(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(STORED[6](_upright()))).save(path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(Preprocess.whole((24, 40))(image), _upright())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images(array: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match=r"must be uint8 \[height, width, 3\]"):
        Preprocess.whole((4, 4))(array)


def test_a_frame_that_does_not_cover_the_crop() -> None:
    preprocess = Preprocess((32, 64), 32, crop=True)
    assert preprocess(noise(100, 200)).shape == (32, 64, 3)
    with pytest.raises(ImageError, match=r"100x150 .* becomes 32x48 .* less than 32x64.*--resize"):
        preprocess(noise(100, 150))


def test_a_thin_frame_does_not_explode() -> None:
    with pytest.raises(ImageError, match=r"1x100000 .* 256x25600000"):
        Preprocess.reference((224, 224))(np.zeros((1, 100_000, 3), np.uint8))


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (Preprocess.whole((224, 224)), (0, 0, 640, 480)),
        # 256 x 341, from (58, 16): round(58.5) is 58
        (Preprocess.reference((224, 224)), (58 * 640 / 341, 30, 282 * 640 / 341, 450)),
        (Preprocess((240, 160), (240, 320), crop=True), (160, 0, 480, 480)),
    ],
)
def test_region(preprocess: Preprocess, expected: tuple[float, ...]) -> None:
    assert preprocess.region(640, 480) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(301, 450), (450, 301), (1000, 1000)])
def test_region_and_mask_are_what_the_graph_sees(size: tuple[int, int]) -> None:
    preprocess = Preprocess.reference((64, 64))
    left, top, right, bottom = preprocess.region(size[1], size[0])
    inside = np.zeros(size, np.uint8)
    inside[round(top) : round(bottom), round(left) : round(right)] = 1
    seen = preprocess.mask(Image.fromarray(inside))
    assert seen.dtype == np.bool_
    assert seen.shape == (64, 64)
    assert seen[1:-1, 1:-1].all()
    # One pixel of the result less on each side must leave a border, or the region is too large.
    scale = (bottom - top) / 64
    inside[: round(top + 2 * scale)] = 0
    inside[:, round(right - 2 * scale) :] = 0
    seen = preprocess.mask(Image.fromarray(inside))
    assert not seen[0].any()
    assert not seen[:, -1].any()
    assert seen[3:, :-3].mean() > 0.95


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_masks_of_any_mode(mode: str) -> None:
    marks = np.zeros((40, 40), np.uint8)
    marks[10:20, 20:30] = 255
    image = Image.fromarray(marks).convert(mode)
    expected = np.zeros((20, 20), bool)
    expected[5:10, 10:15] = True
    np.testing.assert_array_equal(Preprocess.whole((20, 20)).mask(image), expected)


def test_masks_are_picked_and_not_blended() -> None:
    labels = np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8)  # 1 of 255, not only 255
    mask = Preprocess.whole((32, 32)).mask(Image.fromarray(labels))
    np.testing.assert_array_equal(mask, labels[1::2, 1::2] > 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Preprocess((224, 224), (224, 224), False)),
        ({"preset": "reference"}, Preprocess((224, 224), 256, True)),
        ({"interpolation": "box"}, Preprocess((224, 224), (224, 224), False, "box")),
        ({"crop": "224x224", "preset": "reference"}, Preprocess((224, 224), 256, True)),
        ({"resize": "256"}, Preprocess((224, 224), 256, True)),
        ({"resize": "224"}, Preprocess((224, 224), 224, True)),
        ({"resize": "240", "preset": "reference"}, Preprocess((224, 224), 240, True)),
        ({"resize": "256X320", "crop": "224"}, Preprocess((224, 224), (256, 320), True)),
        ({"resize": "224x224"}, Preprocess((224, 224), (224, 224), False)),
        ({"size": (224, 448), "resize": "256"}, Preprocess((224, 448), 256, True)),
        (
            {"size": (224, 448), "resize": "256x480", "crop": "224x448", "preset": "reference"},
            Preprocess((224, 448), (256, 480), True),
        ),
    ],
)
def test_choose(options: dict[str, Any], expected: Preprocess) -> None:
    assert Preprocess.choose(**{"size": (224, 224), **options}) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "half"}, "'half'; allowed are whole, reference"),
        ({"interpolation": "nearest"}, "allowed are lanczos, bicubic, bilinear, box"),
        ({"crop": "200"}, "crop to 200 does not fit .* 224x224"),
        ({"crop": "224x256"}, "crop to 224x256"),
        ({"crop": "224"}, "nothing to cut off"),
        ({"resize": "200"}, "does not cover"),
        ({"resize": "256x200"}, "does not cover"),
        ({"resize": "0"}, "not a size"),
        ({"resize": "256,256"}, "not a size"),
        ({"size": (224, 448), "preset": "reference"}, "square"),
        ({"size": (224, 448), "crop": "224"}, "crop to 224 does not fit"),
    ],
)
def test_choose_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocess.choose(**{"size": (224, 224), **options})


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess.whole((224, 448), "bicubic"),
        Preprocess.reference((224, 224)),
        Preprocess((64, 32), (70, 33), crop=True, interpolation="box"),
    ],
)
def test_json_round_trip(preprocess: Preprocess) -> None:
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


GOOD = {"size": [224, 224], "resize": 256, "crop": True, "interpolation": "lanczos"}


def test_json_format() -> None:
    assert Preprocess.reference((224, 224)).to_json() == GOOD
    assert Preprocess.whole((32, 64)).to_json()["resize"] == [32, 64]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "whole",
        {},
        {k: v for k, v in GOOD.items() if k != "crop"},
        {**GOOD, "gamma": 2},
        {**GOOD, "size": 224},
        {**GOOD, "size": [224]},
        {**GOOD, "size": [224, 224.0]},
        {**GOOD, "size": [224, -224]},
        {**GOOD, "size": [[224], 224]},
        {**GOOD, "size": [10**9, 10**9]},
        {**GOOD, "resize": True},
        {**GOOD, "resize": "256"},
        {**GOOD, "resize": 200},
        {**GOOD, "resize": [256, 0]},
        {**GOOD, "resize": None},
        {**GOOD, "crop": 1},
        {**GOOD, "crop": False},
        {**GOOD, "interpolation": "nearest"},
        {**GOOD, "interpolation": ["lanczos"]},
    ],
)
def test_json_of_anything_else(value: object) -> None:
    with pytest.raises(ModelError, match="preprocessing") as caught:
        Preprocess.from_json(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"), [("224", (224, 224)), ("224x448", (224, 448)), (" 32X64 ", (32, 64))]
)
def test_parse_size(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "x", "224x", "x224", "0", "224x0", "-1", "2.5", "1x2x3", "٢", "9" * 5000, "99999x99999"],
)
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="224x448"):
        parse_size(text)


# ------------------------------------------------------------------------------ finding


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.PNG",
        "a.jpg",
        "sub/deep/c.Tiff",
        "sub/d.webp",
        "notes.txt",
        "model.onnx",
        ".hidden.png",
        "._a.jpg",
        ".cache/e.png",
        "sub/Thumbs.db",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(found: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_find_in_a_folder(tree: Path) -> None:
    everything = ["a.jpg", "b.PNG", "sub/d.webp", "sub/deep/c.Tiff"]
    assert names(find_images(tree), tree) == everything
    assert names(find_images(str(tree) + "/"), tree) == everything
    assert names(find_images(tree / ".cache"), tree) == [".cache/e.png"]  # named, so wanted


def test_find_a_file_of_any_name(tree: Path) -> None:
    assert find_images(tree / "notes.txt") == [tree / "notes.txt"]
    odd = tree / "a[1].png"
    odd.touch()
    assert find_images(odd) == [odd]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg"]),
        ("*", ["a.jpg", "b.PNG"]),
        ("**/*", ["a.jpg", "b.PNG", "sub/d.webp", "sub/deep/c.Tiff"]),
        ("sub/**/*.[tT]iff", ["sub/deep/c.Tiff"]),
        ("s?b/*", ["sub/d.webp"]),
    ],
)
def test_find_by_pattern(tree: Path, pattern: str, found: list[str]) -> None:
    assert names(find_images(str(tree / pattern)), tree) == found
    assert names(find_images(tree / pattern), tree) == found


def test_links_are_followed_once(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "f.png").touch()
    (tree / "link").symlink_to(elsewhere)
    (tree / "twin").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tree)
    (tree / "dangling.png").symlink_to(tree / "gone.png")
    found = names(find_images(tree), tree)
    assert found == ["a.jpg", "b.PNG", "link/f.png", "sub/d.webp", "sub/deep/c.Tiff"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "no such file or folder: .*missing"),
        ("missing.png", "no such file or folder"),
        ("*.bmp", "no image found in"),
        ("missing/**/*.png", "no image found in"),
        ("folder.png", "no image found in .*folder.png"),
    ],
)
def test_nothing_found(tree: Path, source: str, message: str) -> None:
    with pytest.raises(PadimEdgeError, match=message) as caught:
        find_images(tree / source)
    assert caught.value.exit_code == 1


def test_a_folder_that_cannot_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def denied(path: Any) -> Any:  # chmod would not stop root
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PadimEdgeError, match=r"cannot read .*deep: Permission denied"):
        find_images(tree)


# ------------------------------------------------------------------------------ batches


def no_error(path: Path, error: ImageError) -> None:
    raise error


def decoders() -> int:
    return sum(thread.name.startswith("padim-edge-images") for thread in threading.enumerate())


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Eleven images, of mixed sizes, whose number is their colour."""
    paths = [tmp_path / f"{number:02}.png" for number in range(11)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + 3 * number, 50 - 2 * number), (number,) * 3).save(path)
    return paths


@pytest.mark.parametrize("batch", [1, 4, 11, 32])
def test_batches_in_order(photos: list[Path], batch: int) -> None:
    seen: list[Path] = []
    for paths, array in read_batches(photos, Preprocess.whole((16, 24)), batch, no_error):
        assert array.shape == (len(paths), 16, 24, 3)
        assert array.dtype == np.uint8
        assert array[:, 0, 0, 0].tolist() == [int(path.stem) for path in paths]
        assert len(paths) == min(batch, len(photos) - len(seen))
        seen += paths
    assert seen == photos
    assert decoders() == 0


def test_order_holds_when_decoding_times_differ(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path) -> Image.Image:
        time.sleep(0.02 * (int(path.stem) % 3 == 0))
        return load_image(path)

    monkeypatch.setattr(images, "load_image", slow)
    batches = list(read_batches(photos, Preprocess.whole((8, 8)), 3, no_error))
    assert [path for paths, _ in batches for path in paths] == photos
    assert np.concatenate([array for _, array in batches])[:, 0, 0, 0].tolist() == list(range(11))


def test_bad_images_are_reported_and_left_out(photos: list[Path]) -> None:
    photos[0].write_bytes(b"text")
    photos[4].unlink()
    photos[10].write_bytes(photos[10].read_bytes()[:40])
    bad: list[tuple[Path, str]] = []
    consumer = threading.get_ident()

    def note(path: Path, error: ImageError) -> None:
        assert threading.get_ident() == consumer
        bad.append((path, str(error)))

    batches = list(read_batches(photos, Preprocess.whole((8, 8)), 4, note))
    assert [len(paths) for paths, _ in batches] == [4, 4]
    assert [path for path, _ in bad] == [photos[0], photos[4], photos[10]]
    assert all(message.startswith(f"{path}: ") for path, message in bad)


def test_an_image_that_does_not_cover_the_crop_is_named(photos: list[Path]) -> None:
    bad: list[str] = []
    preprocess = Preprocess((8, 16), 8, crop=True)
    list(read_batches(photos[:1], preprocess, 4, lambda _, error: bad.append(str(error))))
    assert len(bad) == 1
    assert bad[0].startswith(f"{photos[0]}: 50x20 ")


def test_only_bad_images_give_no_batch(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    bad: list[Path] = []
    found = read_batches(paths, Preprocess.whole((8, 8)), 4, lambda path, _: bad.append(path))
    assert list(found) == []
    assert bad == paths
    assert list(read_batches([], Preprocess.whole((8, 8)), 4, no_error)) == []


def test_on_error_may_stop(photos: list[Path]) -> None:
    photos[5].write_bytes(b"text")
    found = read_batches(photos, Preprocess.whole((8, 8)), 2, no_error)
    assert len(next(found)[0]) == 2
    with pytest.raises(ImageError, match="not an image"):
        list(found)
    assert decoders() == 0


def test_other_errors_are_not_swallowed(photos: list[Path]) -> None:
    def broken(_: object) -> NDArray[np.uint8]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(read_batches(photos, broken, 2, no_error))  # type: ignore[arg-type]
    assert decoders() == 0


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_stopping_early_leaves_no_thread_and_no_backlog(
    photos: list[Path], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []

    def slow(path: Path) -> Image.Image:
        started.append(path)
        time.sleep(0.01)
        return load_image(path)

    monkeypatch.setattr(images, "load_image", slow)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    taken: list[Path] = []

    def supply() -> Any:
        for path in photos * 20:
            taken.append(path)
            yield path

    found = read_batches(supply(), Preprocess.whole((8, 8)), 3, no_error)
    next(found)
    time.sleep(0.1)  # time to run ahead, if nothing bounded it
    assert len(taken) == 3 + 3 + 2  # the batch handed out, the next, one per thread
    assert len(started) <= len(taken)
    assert decoders() == 2
    if how == "close":
        found.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            found.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert decoders() == 0
    assert len(taken) == 8


def test_a_batch_of_nothing(photos: list[Path]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        next(read_batches(photos, Preprocess.whole((8, 8)), 0, no_error))
