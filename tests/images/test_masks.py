"""What masks mark, in every way in which they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from padim_edge.errors import ImageError
from padim_edge.images.masks import image_of, load_mask, load_masks

MARKED = np.zeros((48, 64), bool)
MARKED[9:23, 13:42] = True  # no multiples of a JPEG's blocks


def stored(folder: Path, name: str, values: Any, **options: Any) -> Path:
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("white", [1, 2, 128, 255, 256, 65535])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_any_value_but_zero_marks(tmp_path: Path, white: int, suffix: str) -> None:
    dtype = np.uint8 if white < 256 else np.uint16
    path = stored(tmp_path, f"a.{suffix}", MARKED.astype(dtype) * dtype(white))
    np.testing.assert_array_equal(load_mask(path), MARKED)
    if white < 256:  # as 16 bits, too: these were all below one step of 8
        path = stored(tmp_path, f"b.{suffix}", MARKED.astype(np.uint16) * np.uint16(white))
        np.testing.assert_array_equal(load_mask(path), MARKED)


def test_other_kinds_of_pixels(tmp_path: Path) -> None:
    colours = np.zeros((*MARKED.shape, 3), np.uint8)
    colours[MARKED] = (0, 0, 1)
    palette = Image.fromarray(MARKED.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    for number, values in enumerate((MARKED, colours, palette)):
        path = stored(tmp_path, f"{number}.png", values)
        np.testing.assert_array_equal(load_mask(path), MARKED)


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_compressed_with_loss(tmp_path: Path, quality: int, suffix: str) -> None:
    values = MARKED.astype(np.uint8) * np.uint8(255)
    path = stored(tmp_path, f"a.{suffix}", Image.fromarray(values).convert("RGB"), quality=quality)
    any_value = np.asarray(Image.open(path)).any(axis=2)
    assert np.count_nonzero(any_value != MARKED) > 20  # what no mask means
    assert np.count_nonzero(load_mask(path) != MARKED) <= 2


def test_webp_without_loss_is_exact(tmp_path: Path) -> None:
    image = Image.fromarray(MARKED.astype(np.uint8)).convert("RGB")
    path = stored(tmp_path, "a.webp", image, lossless=True)
    np.testing.assert_array_equal(load_mask(path), MARKED)


def test_lossy_masks_of_every_kind(tmp_path: Path) -> None:
    """Compression leaves values beside 0 and white, wherever the file says that it compresses."""
    photo = np.zeros((96, 96, 3), np.uint8)
    photo[30:60, 30:60] = 255
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    for name, options in {
        "a.jpg": {"quality": 20},
        "b.webp": {"quality": 20},
        "c.webp": {"quality": 20, "exif": exif.tobytes()},  # the pixels are not the first chunk
        "d.tif": {"compression": "jpeg", "quality": 30},
        "e.webp": {"lossless": True, "exif": exif.tobytes()},
        "f.tif": {"compression": "tiff_lzw"},
    }.items():
        path = tmp_path / name
        Image.fromarray(photo).save(path, **options)
        near_black = photo.copy()
        near_black[0, 0] = 9
        lossless = tmp_path / f"near-black-{name}"
        Image.fromarray(near_black).save(lossless, **options)
        wrong = load_mask(path) != (photo[..., 0] > 0)
        assert wrong.mean() < 0.01, name
        if name > "e":
            assert not wrong.any()
            assert load_mask(lossless)[0, 0]


def test_several_masks_of_an_image(tmp_path: Path) -> None:
    image = stored(tmp_path, "image.png", np.zeros((48, 64, 3), np.uint8))
    other = ~MARKED & (np.arange(64) < 8)
    paths = [stored(tmp_path, f"{n}.png", one) for n, one in enumerate((MARKED, other))]
    np.testing.assert_array_equal(load_masks(paths, image), MARKED | other)
    np.testing.assert_array_equal(load_masks(paths[:1], image), MARKED)
    paths.append(stored(tmp_path, "2.png", np.zeros((96, 128), np.uint8)))
    with pytest.raises(ImageError, match=r"2.png: 128 x 96 pixels, where 0.png has 64 x 48"):
        load_masks(paths, image)


@pytest.mark.parametrize(
    ("size", "fits"),
    [((64, 48), True), ((128, 96), True), ((32, 24), True), ((65, 48), True), ((21, 16), True),
     ((48, 64), False), ((64, 64), False), ((224, 224), False), ((70, 48), False)],
)  # fmt: skip
def test_a_mask_needs_the_aspect_ratio_of_its_image(
    tmp_path: Path, size: tuple[int, int], fits: bool
) -> None:
    image = stored(tmp_path, "image.png", np.zeros((48, 64, 3), np.uint8))
    path = stored(tmp_path, "mask.png", np.ones(size[::-1], np.uint8))
    if fits:
        assert load_masks([path], image).shape == size[::-1]
        return
    with pytest.raises(ImageError, match=rf"mask.png: {size[0]} x {size[1]} pixels, and its image"):
        load_masks([path], image)


def test_a_turned_photo_and_its_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
    image = stored(tmp_path, "image.jpg", lying, exif=exif)  # upright 48 x 64
    upright = stored(tmp_path, "upright.png", np.ones((64, 48), np.uint8))
    assert load_masks([upright], image).shape == (64, 48)
    with pytest.raises(ImageError, match="aspect ratio"):
        load_masks([stored(tmp_path, "lying.png", np.ones((48, 64), np.uint8))], image)


@pytest.mark.parametrize(
    ("name", "image"),
    [("000_mask", "000"), ("000_Mask", "000"), ("000-gt", "000"), ("a b.label", "a b"),
     ("000_mask_3", "000"), ("000_mask3", "000"), ("mask_000", "000"), ("GT-000", "000"),
     ("000", None), ("mask", None), ("unmasked", None), ("000_part", None),
     ("a_ground_truth", "a")],
)  # fmt: skip
def test_names_of_masks(name: str, image: str | None) -> None:
    assert image_of(name) == image
