"""Decoding, against real files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import STORED, failure, grey_tiff, noise, pixels, png, silent, upright
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from padim_edge.errors import ImageError
from padim_edge.images.decode import (
    NotAnImageError,
    TooManyPixelsError,
    check_head,
    load_image,
    read_head,
    to_rgb,
)
from padim_edge.images.preprocess import Preprocess


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


@silent
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright())))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {
        "jpg": {"quality": 100, "subsampling": 0},
        "webp": {"lossless": True},
    }
    stored.save(path, exif=exif, **options.get(suffix, {}))
    image = load_image(path)
    difference = np.abs(np.asarray(image, int) - upright())
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
    Image.fromarray(upright()).save(path, exif=b"Exif\0\0nonsense, and not even TIFF")
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


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@silent
@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("kind", [b"eXIf", b"iTXt", b"tEXt"])
def test_the_head_of_a_png_knows_which_way_is_up(tmp_path: Path, kind: bytes, place: str) -> None:
    """Its size is that of the decoded picture, wherever the orientation stands."""
    exif = Image.Exif()
    exif[0x0112] = 6
    payload = exif.tobytes()
    data = {
        b"eXIf": payload.removeprefix(b"Exif\0\0"),
        b"iTXt": b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description "
        b'tiff:Orientation="6"/></x:xmpmeta>',
        b"tEXt": b"Raw profile type exif\0\nexif\n" + f"{len(payload):8}\n".encode()
        + payload.hex().encode(),
    }[kind]  # fmt: skip
    Image.fromarray(noise(13, 17)).save(tmp_path / "plain.png")
    plain = (tmp_path / "plain.png").read_bytes()
    at = plain.index(b"IDAT" if place == "before the pixels" else b"IEND") - 4
    (tmp_path / "a.png").write_bytes(plain[:at] + _chunk(kind, data) + plain[at:])
    assert load_image(tmp_path / "a.png").size == (13, 17)
    assert read_head(tmp_path / "a.png") == (13, 17, 1)


def test_the_head_of_a_plain_png_costs_no_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = PngInfo()
    info.add_text("Software", "a camera's")
    Image.fromarray(noise(13, 17)).save(tmp_path / "a.png", pnginfo=info)

    def refuse(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(PngImageFile, "load", refuse)
    assert read_head(tmp_path / "a.png") == (17, 13, 1)


def test_the_bytes_of_a_file_are_decoded_as_the_file_is(tmp_path: Path, good: list[Path]) -> None:
    path = tmp_path / "photo.jpg"
    Image.open(good[0]).save(path, quality=90)
    encoded = path.read_bytes()
    assert np.array_equal(np.asarray(load_image(encoded)), np.asarray(load_image(path)))
    whole = Preprocess.whole((24, 24))
    of_bytes, size = whole.prepare(encoded)
    assert size == (96, 96)
    assert np.array_equal(of_bytes, whole(path))
    with pytest.raises(ImageError, match=r"^cannot be decoded \("):
        whole.prepare(encoded[:200])


def test_a_head_says_what_is_too_large_before_anything_is_decoded() -> None:
    def of(width: int, height: int) -> bytes:
        """The head of a PNG and no pixels."""
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I4s", 9, b"IDAT")

    check_head(of(100, 50), 5000)
    with pytest.raises(TooManyPixelsError, match=r"100 x 50\); at most 4,999 are"):
        check_head(of(100, 50), 4999)
    with pytest.raises(TooManyPixelsError):
        check_head(of(2**31 - 1, 2**31 - 1), 10**9)
    with pytest.raises(NotAnImageError, match="not an image; PNG, JPEG"):
        check_head(b"<svg/>", 10)
