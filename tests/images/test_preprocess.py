"""Resizing and cropping, against torchvision."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import STORED, noise, upright
from PIL import Image

from padim_edge.errors import ImageError, ModelError, UsageError
from padim_edge.images.decode import load_frame, load_image
from padim_edge.images.find import find_images
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess, parse_size

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
    result = Preprocess.whole((224, 448), "lanczos", reduce=False)(array)
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


@pytest.mark.parametrize("name", ["bgr", "bgra", "grey8", "grey12", "bayer-rggb", "nv12", "yuyv"])
@pytest.mark.parametrize("pitch", [0, 64])
def test_nothing_of_the_size_of_a_frame_is_allocated(name: str, pitch: int) -> None:
    form = PIXEL_FORMATS[name]
    rows = 4500 if form.thirds else 3000
    wide = np.zeros((rows, 4000 + pitch, *form.pixel[0]), form.dtype)
    frame = Frame(wide[:, :4000], name)
    preprocess = Preprocess.whole((224, 224))
    preprocess(frame)
    tracemalloc.start()
    try:
        preprocess(frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000  # of 12 to 48 MB; strips of sums, whatever the frame


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_that_pillow_has_opened_are_brought_upright_too(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(STORED[6](upright()))).save(path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(Preprocess.whole((24, 40))(image), upright())


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
    with pytest.raises(UsageError, match=r"pixels in rgb are uint8 \[h, w, 3\]"):
        Preprocess.whole((4, 4))(array)


def jpeg(path: Path, height: int, width: int, mode: str = "RGB", orientation: int = 1) -> Path:
    """A picture without details, on whose account filters would differ."""
    coarse = Image.fromarray(noise(12, 16)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [
        (3000, 4000, 8),
        (1080, 1920, 4),
        (900, 900, 4),
        (512, 512, 2),
        (448, 448, 2),
        (447, 900, 1),
        (902, 902, 2),
        (901, 904, 1),
        (100, 3000, 1),
    ],
)
def test_jpeg_files_are_decoded_smaller_by_whole_pixels(
    height: int, width: int, factor: int, tmp_path: Path
) -> None:
    preprocess = Preprocess.whole((224, 224))
    assert preprocess.shrink(height, width) == factor
    path = jpeg(tmp_path / "a.jpg", height, width)
    assert load_frame(path, preprocess.shrink).size == (height // factor, width // factor)
    assert Preprocess.whole((224, 224), reduce=False).shrink(height, width) == 1
    # The same picture as if all of it had been decoded.
    whole = preprocess(np.asarray(Image.open(path))).astype(int)
    difference = np.abs(preprocess(path) - whole)
    assert difference.mean() < 0.6
    assert difference.max() <= 4


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_jpeg_files_of_any_mode_and_orientation(
    mode: str, orientation: int, tmp_path: Path
) -> None:
    path = jpeg(tmp_path / "a.jpg", 480, 960, mode, orientation)
    preprocess = Preprocess((112, 224), (112, 224), False, "bilinear", True)
    upright = preprocess(load_image(path)).astype(int)
    assert np.abs(preprocess(path) - upright).mean() < 0.6
    size = (480, 960) if orientation < 5 else (960, 480)
    factor = preprocess.shrink(*size)
    assert factor == (4 if orientation < 5 else 2)
    assert load_frame(path, preprocess.shrink).size == (size[0] // factor, size[1] // factor)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_files_of_16_bits_are_averaged_in_16(suffix: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (300, 400), np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    frame = load_frame(path)
    assert frame.pixel_format == "grey16"
    np.testing.assert_array_equal(frame.pixels, pixels)
    preprocess = Preprocess.whole((96, 128))
    np.testing.assert_array_equal(preprocess(path), preprocess(Frame(pixels, "grey16")))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_bit_depth_of_files(bits: int, suffix: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**bits, (96, 128), np.uint16)
    pixels[0, 0] = 2**bits - 1
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    whole = Preprocess.whole((96, 128))
    told = dataclasses.replace(whole, bit_depth=bits)
    expected = np.floor(pixels * (255 / (2**bits - 1)) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(told(path)[..., 0], expected)
    np.testing.assert_array_equal(told(Image.open(path))[..., 0], expected)
    assert told(path).max() == 255
    assert whole(path).max() == round(255 * (2**bits - 1) / 65535)
    if bits < 16:
        pixels[5, 5] = 2**bits
        Image.fromarray(pixels).save(path)
        with pytest.raises(ImageError, match=rf"a.{suffix}: has values of up to {2**bits}, and"):
            told(path)


def test_the_bit_depth_does_not_concern_8_bits() -> None:
    told = dataclasses.replace(Preprocess.whole((8, 8)), bit_depth=12)
    np.testing.assert_array_equal(told(noise(8, 8)), noise(8, 8))
    with pytest.raises(UsageError, match="bit depth is 11; allowed are 10, 12, 14, 16"):
        dataclasses.replace(told, bit_depth=11)


def test_errors_of_a_file_begin_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(100, 150)).save(path)
    with pytest.raises(ImageError) as caught:
        Preprocess((32, 64), 32, crop=True)(path)
    assert str(caught.value).startswith(f"{path}: 100x150")
    with pytest.raises(ImageError, match="cannot be read"):
        Preprocess.whole((32, 64))(str(tmp_path / "b.png"))


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
    assert preprocess.seen(640, 480) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(301, 450), (450, 301), (1000, 1000)])
def test_region_and_mask_are_what_the_graph_sees(size: tuple[int, int]) -> None:
    preprocess = Preprocess.reference((64, 64))
    left, top, right, bottom = preprocess.seen(size[1], size[0])
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
        ({}, Preprocess((224, 224), (224, 224), False, "bilinear", True)),
        ({"reduce": False}, Preprocess((224, 224), (224, 224), False, "bilinear")),
        ({"preset": "reference"}, Preprocess((224, 224), 256, True)),
        ({"interpolation": "box"}, Preprocess((224, 224), (224, 224), False, "box", True)),
        (
            {"preset": "reference", "interpolation": "bilinear", "reduce": True},
            Preprocess((224, 224), 256, True, "bilinear", True),
        ),
        ({"crop": "224x224", "preset": "reference"}, Preprocess((224, 224), 256, True)),
        ({"resize": "256"}, Preprocess((224, 224), 256, True, "bilinear", True)),
        ({"resize": "224"}, Preprocess((224, 224), 224, True, "bilinear", True)),
        (
            {"resize": "240", "preset": "reference"},
            Preprocess((224, 224), 240, True, "bilinear", True),
        ),
        (
            {"resize": "256X320", "crop": "224"},
            Preprocess((224, 224), (256, 320), True, "bilinear", True),
        ),
        ({"resize": "224x224"}, Preprocess((224, 224), (224, 224), False, "bilinear", True)),
        (
            {"size": (224, 448), "resize": "256"},
            Preprocess((224, 448), 256, True, "bilinear", True),
        ),
        (
            {"size": (224, 448), "resize": "256x480", "crop": "224x448", "preset": "reference"},
            Preprocess((224, 448), (256, 480), True, "bilinear", True),
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


GOOD = {
    "size": [224, 224],
    "resize": 256,
    "crop": True,
    "interpolation": "lanczos",
    "reduce": False,
    "bit_depth": None,
}


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
        {**GOOD, "reduce": 1},
        {**GOOD, "bit_depth": 11},
        {**GOOD, "bit_depth": "12"},
        {**GOOD, "bit_depth": 12.0},
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
