"""Pixel formats, against FFmpeg and OpenCV where those know them."""

from __future__ import annotations

from typing import Any

import av
import cv2
import numpy as np
import pytest
import resampling
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import UsageError
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess

SIZE = (48, 64)
LAYOUTS = ("nv12", "i420", "yuyv", "uyvy")


def prepared(pixels: NDArray[Any], name: str, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return Preprocess.whole(size)(Frame(pixels, name))


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours, of which chroma at half the resolution loses little: [h, w, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (97, 131), (480, 640), (30, 20)])
def test_channels_in_any_order_are_the_same_picture(height: int, width: int) -> None:
    rgb = picture(height, width)
    alpha = np.random.default_rng(1).integers(0, 256, (height, width, 1), np.uint8)
    expected = prepared(rgb, "rgb")
    for name, pixels in {
        "bgr": rgb[..., ::-1],
        "rgba": np.concatenate([rgb, alpha], axis=2),
        "bgra": np.concatenate([rgb[..., ::-1], alpha], axis=2),
    }.items():
        np.testing.assert_array_equal(prepared(pixels, name), expected, err_msg=name)
        contiguous = np.ascontiguousarray(pixels)
        np.testing.assert_array_equal(prepared(contiguous, name), expected, err_msg=name)
        assert expected.flags.c_contiguous


@pytest.mark.parametrize(("height", "width"), [(48, 64), (97, 131), (480, 640)])
def test_grey_is_a_picture_of_equal_channels(height: int, width: int) -> None:
    grey = picture(height, width)[..., 0]
    expected = prepared(np.stack([grey] * 3, axis=2), "rgb")
    np.testing.assert_array_equal(prepared(grey, "grey8"), expected)
    np.testing.assert_array_equal(prepared(grey[..., None], "grey8"), expected)


@pytest.mark.parametrize(("name", "white"), [("grey10", 1023), ("grey12", 4095), ("grey16", 65535)])
def test_grey_of_more_bits(name: str, white: int) -> None:
    grey = np.random.default_rng(0).integers(0, white, (97, 131), np.uint16, endpoint=True)
    found = prepared(grey, name)
    expected = resampling.resized(grey[..., None], SIZE, white=white)
    np.testing.assert_array_equal(found, np.repeat(expected, 3, axis=2))
    assert (prepared(np.full((40, 50), white, np.uint16), name) == 255).all()


def test_what_is_whiter_than_white_is_white() -> None:
    assert (prepared(np.full((100, 130), 4096, np.uint16), "grey10") == 255).all()


def colours() -> list[tuple[int, int, int]]:
    steps = (0, 1, 16, 64, 128, 200, 235, 240, 255)
    return [(y, u, v) for y in steps for u in steps for v in steps]


def packed(layout: str, y: Any, u: Any, v: Any) -> NDArray[np.uint8]:
    """Y [h, w] and U and V [h / 2 or h, w / 2] as the format has them in memory."""
    height, width = y.shape
    if layout == "nv12":
        chroma = np.stack([u, v], axis=2).reshape(height // 2, width)
        return np.concatenate([y, chroma])
    if layout == "i420":
        return np.concatenate([y, np.concatenate([u.ravel(), v.ravel()]).reshape(-1, width)])
    array = np.empty((height, width, 2), np.uint8)
    luma, chroma = (0, 1) if layout == "yuyv" else (1, 0)
    array[..., luma] = y
    array[:, ::2, chroma] = u
    array[:, 1::2, chroma] = v
    return array


def even(layout: str, colour: tuple[int, int, int], height: int, width: int) -> NDArray[np.uint8]:
    y = np.full((height, width), colour[0], np.uint8)
    rows = height // 2 if layout in ("nv12", "i420") else height
    u, v = (np.full((rows, width // 2), value, np.uint8) for value in colour[1:])
    return packed(layout, y, u, v)


def by_the_standard(colour: tuple[int, int, int], variant: str) -> NDArray[np.float64]:
    """RGB in float64: BT.601's and BT.709's luma solved for red, green and blue."""
    y, u, v = colour
    red, green, blue = (0.2126, 0.7152, 0.0722) if "709" in variant else (0.299, 0.587, 0.114)
    low, luma, chroma = (0, 255, 255) if "full" in variant else (16, 219, 224)
    brightness = (y - low) / luma
    b = brightness + (u - 128) / chroma * 2 * (1 - blue)
    r = brightness + (v - 128) / chroma * 2 * (1 - red)
    g = (brightness - red * r - blue * b) / green
    return np.clip(np.array([r, g, b]) * 255, 0, 255)


VARIANTS = ["", "-full", "-709", "-709-full"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_colours_are_the_standards(layout: str, variant: str) -> None:
    for colour in colours():
        found = prepared(even(layout, colour, 4, 4), layout + variant, (4, 4))
        assert (found == found[0, 0]).all()
        assert np.abs(found[0, 0] - by_the_standard(colour, variant)).max() <= 0.51, colour


@pytest.mark.parametrize("variant", VARIANTS)
def test_colours_are_ffmpegs(variant: str) -> None:
    spaces, ranges = av.video.reformatter.Colorspace, av.video.reformatter.ColorRange
    space = spaces.ITU709 if "709" in variant else spaces.ITU601
    for layout, theirs in {"nv12": "nv12", "i420": "yuv420p", "yuyv": "yuyv422"}.items():
        for colour in colours():
            pixels = even(layout, colour, 4, 4)
            expected = av.VideoFrame.from_ndarray(pixels, format=theirs).reformat(
                format="rgb24",
                src_colorspace=space,
                dst_colorspace=space,
                src_color_range=ranges.JPEG if "full" in variant else ranges.MPEG,
                dst_color_range=ranges.JPEG,
            )
            found = prepared(pixels, layout + variant, (4, 4)).astype(int)
            # swscale's tables have steps of two or three.
            assert np.abs(found - expected.to_ndarray()).max() <= 3, (layout, colour)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_colours_are_opencvs(layout: str) -> None:
    codes = {
        "nv12": cv2.COLOR_YUV2RGB_NV12,
        "i420": cv2.COLOR_YUV2RGB_I420,
        "yuyv": cv2.COLOR_YUV2RGB_YUYV,
        "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    }
    for colour in colours():
        if colour[0] >= 16:  # OpenCV has nothing blacker than black
            pixels = even(layout, colour, 4, 4)
            found = prepared(pixels, layout, (4, 4)).astype(int)
            assert np.abs(found - cv2.cvtColor(pixels, codes[layout])).max() <= 1, colour


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), [(480, 640), (1080, 1920), (482, 650)])
def test_a_picture_in_yuv_is_nearly_that_in_rgb(layout: str, height: int, width: int) -> None:
    rgb = picture(height, width)
    yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    y = yuv[:height]
    u, v = yuv[height:].reshape(2, height // 2, width // 2)
    if layout in ("yuyv", "uyvy"):
        u, v = (np.repeat(chroma, 2, axis=0) for chroma in (u, v))
    found = prepared(packed(layout, y, u, v), layout).astype(int)
    difference = np.abs(found - prepared(rgb, "rgb"))
    assert difference.mean() < 1
    assert difference.max() <= 5  # OpenCV takes the chroma of one pixel of four, in 8 bits


@pytest.mark.parametrize("layout", ["nv12", "yuyv", "uyvy"])
def test_a_row_pitch_changes_nothing(layout: str) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (144, 140, 2), np.uint8)
    wide = rows if layout != "nv12" else rows[..., 0].copy()
    view = wide[:, :128]
    expected = prepared(np.ascontiguousarray(view), layout)
    np.testing.assert_array_equal(prepared(view, layout), expected)


def test_i420_with_gaps_is_refused() -> None:
    wide = np.zeros((144, 140), np.uint8)
    with pytest.raises(UsageError, match=r"pixels in i420 are .* without gaps"):
        Frame(wide[:, :128], "i420")


CELLS = {"rggb": cv2.COLOR_BayerRGGB2RGB, "bggr": cv2.COLOR_BayerBGGR2RGB}
CELLS |= {"grbg": cv2.COLOR_BayerGRBG2RGB, "gbrg": cv2.COLOR_BayerGBRG2RGB}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("height", "width"), [(480, 640), (1080, 1920)])
def test_bayer_is_nearly_opencvs_demosaicing(cell: str, height: int, width: int) -> None:
    rgb = picture(height, width)
    mosaic = np.empty((height, width), np.uint8)
    for index, colour in enumerate(cell):
        row, column = divmod(index, 2)
        channel = rgb[..., "rgb".index(colour)]
        mosaic[row::2, column::2] = channel[row::2, column::2]
    expected = cv2.cvtColor(mosaic, CELLS[cell])
    found = prepared(mosaic, f"bayer-{cell}").astype(int)
    assert np.abs(found - prepared(rgb, "rgb")).max() <= 3
    # The border is OpenCV's own: it repeats the last whole pixels there.
    assert np.abs(found - prepared(expected, "rgb"))[1:-1, 1:-1].max() <= 3


@pytest.mark.parametrize(
    ("pixels", "name", "message"),
    [
        (None, "rgb", "a frame is a NoneType; pixels in rgb are uint8 [h, w, 3], in a NumPy array"),
        (b"\xff\xd8", "rgb", "a frame is a bytes"),
        (np.zeros((4, 6), np.uint8), "rgb", "if these are grey8 or bayer-rggb"),
        (np.zeros((4, 6, 4), np.uint8), "rgb", "if these are rgba or bgra, say so by pixel_format"),
        (np.zeros((4, 6, 3), np.uint8), "bgra", "if these are rgb or bgr"),
        (np.zeros((4, 6), np.uint16), "grey8", "if these are grey10 or grey12 or grey14 or grey16"),
        (np.zeros((4, 6, 3), np.float32), "rgb", "(frame * 255).round().astype(numpy.uint8)"),
        (np.zeros((4, 6, 3), ">u2"), "rgb", "an array of >u2 [4, 6, 3]"),
        (np.zeros((4, 6, 3), np.int8), "rgb", "an array of int8"),
        (np.zeros((2, 4, 6, 3), np.uint8), "rgb", "one by one, or a list of them to batch()"),
        (np.zeros((0, 6, 3), np.uint8), "rgb", "[0, 6, 3]; pixels in rgb are uint8 [h, w, 3]"),
        (np.zeros((3, 5), np.uint8), "bayer-rggb", "h and w even"),
        (np.zeros((4, 6), np.uint8), "nv12", "[h * 3 / 2, w], h and w even"),
        (np.zeros((9, 6), np.uint8), "nv12", None),
        (np.zeros((3, 7), np.uint8), "nv12", "[h * 3 / 2, w], h and w even"),
        (np.zeros((4, 5, 2), np.uint8), "yuyv", "[h, w, 2], w even"),
        (np.zeros((0, 0), np.uint8), "grey8", "[0, 0]"),
    ],
)
def test_arrays_that_are_not_of_a_format(pixels: Any, name: str, message: str | None) -> None:
    if message is None:
        assert prepared(pixels, name).shape == (*SIZE, 3)
        return
    with pytest.raises(UsageError) as caught:
        Frame(pixels, name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no pixel format 'rgbx'; allowed are rgb, bgr, .* -709"):
        Frame(np.zeros((2, 2, 3), np.uint8), "rgbx")


@pytest.mark.parametrize("name", sorted(PIXEL_FORMATS))
@pytest.mark.parametrize("preprocess", [Preprocess.whole((32, 32)), Preprocess.reference((32, 32))])
def test_every_format_in_every_way(name: str, preprocess: Preprocess) -> None:
    form = PIXEL_FORMATS[name]
    shape = (150 if form.thirds else 100, 120, *form.pixel[0])
    top = min(form.white, np.iinfo(form.dtype).max)
    pixels = np.random.default_rng(0).integers(0, top, shape, form.dtype)
    pixels.flags.writeable = False
    frame = Frame(pixels, name)
    assert frame.size == (100, 120)
    result = preprocess(frame)
    assert result.shape == (32, 32, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert not np.shares_memory(result, pixels)
