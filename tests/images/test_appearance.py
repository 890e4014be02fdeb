"""What an image looks like as a whole, and what moves which number."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from padim_edge.images.appearance import BINS, LOOK, MOST, PLAIN, STATISTICS, Appearance, look
from padim_edge.images.synthetic import make_dataset


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloth")
    make_dataset(folder, train=8, good=1, per_defect=1, size=160)
    files = sorted((folder / "train" / "good").iterdir())
    pictures = []
    for file in files:
        # A light part on a dark ground, so that there is something to be shifted.
        whole = np.full((224, 224, 3), 30, np.uint8)
        whole[30:190, 40:200] = np.asarray(Image.open(file).convert("RGB"))
        pictures.append(whole)
    return pictures


@pytest.fixture(scope="module")
def usual(images):
    return Appearance.of(np.array([look(image) for image in images]))


def test_plain_statistics_are_what_they_say():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (48, 80, 3)).astype(np.uint8)  # small: no pixel is left out
    brightness, contrast, sharpness, red, blue = look(image)[:PLAIN]
    grey = image.astype(float).mean(axis=2)
    green = image[..., 1].astype(float)
    assert brightness == pytest.approx(grey.mean(), abs=1e-3)
    assert contrast == pytest.approx(grey.std(), abs=1e-3)
    steps = np.abs(np.diff(green[::2], axis=1)).mean()
    steps += np.abs(np.diff(green[:, ::2], axis=0)).mean()
    assert sharpness == pytest.approx(steps / (grey.std() + 1), abs=1e-4)
    means = image.reshape(-1, 3).astype(float).mean(axis=0) + 1
    assert (red, blue) == pytest.approx(np.log(means[[0, 2]] / means[1]), abs=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (30, 500), (224, 224), (640, 480)])
def test_any_size_has_a_look(shape):
    made = look(np.full((*shape, 3), 7, np.uint8))
    assert made.shape == (LOOK,)
    assert made[PLAIN:] == pytest.approx(np.full(2 * BINS, 7.0))


CHANGES = {
    "brightness": lambda image: np.clip(image + 25.0, 0, 255).astype(np.uint8),
    "sharpness": lambda image: np.asarray(
        Image.fromarray(image).filter(ImageFilter.GaussianBlur(2))
    ),
    "red": lambda image: (image * [0.8, 1, 1]).astype(np.uint8),
    "blue": lambda image: (image * [1, 1, 0.8]).astype(np.uint8),
    "across": lambda image: np.roll(image, 9, axis=1),
    "down": lambda image: np.roll(image, -9, axis=0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_moves_its_number_furthest(name, images, usual):
    before, after = usual(images[0]), usual(CHANGES[name](images[0]))
    moved = {
        key: abs(after[key] - before[key]) / (np.ptp(usual.values[key]) + 0.05)
        for key in STATISTICS
    }
    assert max(moved, key=moved.get) == name, moved


@pytest.mark.parametrize("pixels", [-11, 4, 20])
def test_a_shift_is_found_in_per_cent(pixels, images, usual):
    before, after = usual(images[2]), usual(np.roll(images[2], pixels, axis=1))
    assert after["across"] - before["across"] == pytest.approx(100 * pixels / 224, abs=0.5)
    assert after["down"] == pytest.approx(before["down"], abs=0.1)


def test_the_shift_of_a_photo_is_that_against_all_others(images):
    looks = np.array([look(image) for image in images])
    usual = Appearance.of(looks)
    alone = [
        Appearance.of(np.delete(looks, place, axis=0))(image)["across"]
        for place, image in enumerate(images)
    ]
    assert usual.values["across"] == pytest.approx(sorted(alone), abs=1e-4)


def test_a_field_is_read_as_it_was_written(images, usual):
    again = Appearance.from_field(usual.field())
    assert again.values == usual.values
    # A profile of four digits would move the shift of a scene that is nearly plain by tenths.
    faint = (120 + images[0] / 50).astype(np.uint8)
    for image in (images[0], faint):
        assert again(image) == pytest.approx(usual(image), abs=1e-4)


def test_profiles_keep_what_a_mean_of_grey_values_has():
    """Four digits of 131.42 leave out a twentieth of a grey level."""
    rng = np.random.default_rng(7)
    looks = rng.uniform(100, 200, (5, LOOK))
    usual = Appearance.of(looks)
    again = Appearance.from_field(usual.field())
    for name, profile in usual.profiles.items():
        assert again.profiles[name] == pytest.approx(profile, rel=1e-6)


def test_a_field_of_fewer_digits_is_read_as_before(images, usual):
    short = [(name, tuple(float(f"{v:.4g}") for v in values)) for name, values in usual.field()]
    assert Appearance.from_field(short)(images[0]) == pytest.approx(usual(images[0]), abs=0.02)


@pytest.mark.parametrize(
    "field", [(), (("brightness", (1.0, 2.0)),), (("rows", (1.0,)), ("columns", (1.0,)))]
)
def test_a_field_of_another_form_is_none(field):
    assert Appearance.from_field(field) is None


def test_few_photos_have_none_and_many_are_thinned(images):
    looks = np.array([look(images[0])])
    assert Appearance.of(looks) is None
    many = Appearance.of(looks + np.arange(MOST + 100.0)[:, None])
    assert len(many.values["brightness"]) == MOST
