"""Pictures of score maps, checked pixel by pixel."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import ImageFont

from padim_edge.detect import overlay as module
from padim_edge.detect.overlay import overlay
from padim_edge.errors import UsageError

GREY = 100
WHITE = (255, 255, 255)


def draw(score_map, size=(64, 48), seen=None, threshold=10.0, score=None, low=5.0):
    """Overlay on a grey frame of (width, height): the frame's part and the bar below it."""
    width, height = size
    frame = np.full((height, width, 3), GREY, np.uint8)
    score_map = np.asarray(score_map, np.float32)
    score = float(score_map.max()) if score is None else score
    picture = overlay(frame, score_map, seen or (0, 0, width, height), threshold, score, low)
    assert picture.mode == "RGB"
    assert (frame == GREY).all()
    pixels = np.asarray(picture)
    height = round(height * min(1, 1600 / max(size)))
    return pixels[:height], pixels[height:]


def block(shape, rows, columns, value=12.0):
    score_map = np.zeros(shape, np.float32)
    score_map[rows, columns] = value
    return score_map


def frame_of(mask):
    """The pixels of a mask that touch another one or the edge, by its definition."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def is_white(pixels):
    return (pixels == WHITE).all(2)


def test_good_parts_stay_as_they_are():
    pixels, bar = draw(np.linspace(0, 5, 64 * 48).reshape(48, 64))
    assert (pixels == GREY).all()
    assert_array_equal(bar[0, 0], module._GOOD)


def test_usual_scores_of_a_good_image_draw_no_line():
    pixels, bar = draw(np.full((48, 64), 10.0))  # the threshold itself is not exceeded
    assert not is_white(pixels).any()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1
    assert_array_equal(bar[0, 0], module._GOOD)


def test_line_runs_just_inside_of_the_anomaly():
    score_map = block((48, 64), np.s_[10:20], np.s_[30:45])
    pixels, bar = draw(score_map)
    assert_array_equal(is_white(pixels), frame_of(score_map > 10))
    assert_array_equal(bar[0, 0], module.ALARM)
    # A dark line around it, on parts that are otherwise untouched.
    assert_array_equal(pixels[9, 30:45], np.full((15, 3), round(GREY * 0.3)))
    assert_array_equal(pixels[20, 30:45], np.full((15, 3), round(GREY * 0.3)))
    assert_array_equal(pixels[8, 30:45], np.full((15, 3), GREY))


def test_line_is_closed_at_the_edge_of_the_frame():
    pixels, _ = draw(np.full((48, 64), 11.0))
    assert_array_equal(is_white(pixels), frame_of(np.ones((48, 64), bool)))


def test_region_places_the_map_and_the_rest_is_dimmed():
    pixels, _ = draw(
        block((20, 30), np.s_[5:10], np.s_[8:20]), size=(100, 80), seen=(40, 50, 70, 70)
    )
    hot = np.zeros((80, 100), bool)
    hot[55:60, 48:60] = True
    assert_array_equal(is_white(pixels), frame_of(hot))
    covered = np.zeros((80, 100), bool)
    covered[50:70, 40:70] = True
    assert (pixels[~covered] == round(GREY * 0.35)).all()
    assert (pixels[52:54, 42:68] == GREY).all()


def test_region_may_be_fractional_and_reach_over_the_edge():
    pixels, _ = draw(np.zeros((4, 4)), size=(20, 10), seen=(2.4, -3, 17.6, 7.5))
    dimmed = pixels[..., 0] != GREY
    # A pixel is covered when its centre is.
    expected = np.ones((10, 20), bool)
    expected[:7, 2:18] = False
    assert_array_equal(dimmed, expected)


def test_map_is_interpolated_between_the_centres_of_its_cells():
    """Cells of 16 pixels: the middle between the centres of 5 and 15 is 10."""
    pixels, _ = draw([[5, 5, 15, 15]], size=(64, 16), threshold=14.999)
    exact = 5 + 10 * (np.arange(64) + 0.5 - 24) / 16
    position = np.clip((exact - 5) / (1.5 * 14.999 - 5), 0, 1)
    colours = module.colour_table()[np.rint(position * 255).astype(int)]
    blended = GREY + 0.75 * position[:, None] * (colours - GREY)
    assert np.abs(pixels[8, :39] - blended[:39]).max() <= 1  # the anomaly begins at 40


def test_colour_does_not_depend_on_the_rest_of_the_map():
    quiet, loud = np.full((48, 64), 8.0), np.full((48, 64), 8.0)
    loud[:8, :8] = 1e6
    first, second = draw(quiet)[0], draw(loud)[0]
    assert_array_equal(first[10:], second[10:])
    assert (first[10:] != GREY).any()


def test_scale_ends_at_one_and_a_half_thresholds():
    ends = [draw(np.full((48, 64), value))[0][24, 32] for value in (14.0, 15.0, 99.0)]
    assert_array_equal(ends[1], ends[2])
    assert (ends[0] != ends[1]).any()
    top = np.array(module.colour_table()[-1])
    assert_array_equal(ends[1], np.rint(GREY + 0.75 * (top - GREY)))


def test_colours_are_those_of_inferno():
    table = module.colour_table()
    published = {0: (0, 0, 4), 64: (87, 16, 110), 128: (188, 55, 84), 255: (252, 255, 164)}
    for index, colour in published.items():
        assert np.abs(table[index] - colour).max() < 7
    assert (np.diff(table @ [0.2126, 0.7152, 0.0722]) > -0.1).all()  # ever lighter


def test_large_frames_are_scaled_down_with_region_and_line():
    pixels, _ = draw(
        block((50, 50), np.s_[10:40], np.s_[10:40]), (3200, 2400), seen=(400, 800, 1400, 1800)
    )
    assert pixels.shape == (1200, 1600, 3)
    # Seen is (200, 400, 700, 900) in the picture, ten pixels to a cell. From 0 to 12,
    # the threshold of 10 is crossed at 10 / 12 of the way between two cells' centres.
    line = np.array([9.5 + 10 / 12, 40.5 - 10 / 12]) * 10
    for place, offset in zip(np.nonzero(is_white(pixels)), (400, 200), strict=True):
        assert np.abs([place.min(), place.max() + 1] - (offset + line)).max() <= 1
    assert is_white(pixels)[650, :450].sum() == 2  # a thicker line in a larger picture
    assert (pixels[:390] == round(GREY * 0.35)).all()


@pytest.mark.parametrize("size", [(64, 48), (300, 20), (20, 300), (1, 1)])
def test_bar_has_the_verdict_and_a_caption_that_fits(size):
    pixels, bar = draw(np.zeros((2, 2)), size=size, score=11.0)
    assert (pixels == GREY).all()  # the bar hides nothing
    assert bar.shape[0] >= 20
    assert_array_equal(bar[0, 0], module.ALARM)
    if size[0] > 60:
        caption = (bar > 120).all(2)
        assert caption.any()
        assert not caption[:, -1].any()
        assert not caption[0].any()
        assert not caption[-1].any()


def test_works_without_a_scalable_font(monkeypatch):
    """Pillow before 10.1 takes no size, and one without FreeType refuses it."""
    one_size = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()
    monkeypatch.setattr(ImageFont, "load_default", lambda: one_size)
    _, bar = draw(np.zeros((2, 2)), size=(400, 300))
    assert (bar > 200).all(2).any()


def arguments():
    return {
        "frame": np.zeros((8, 8, 3), np.uint8),
        "score_map": np.zeros((4, 4), np.float32),
        "seen": (0, 0, 8, 8),
        "threshold": 10.0,
        "score": 3.0,
        "low": 5.0,
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frame", np.zeros((8, 8), np.uint8), r"uint8 \[h, w, 3\]"),
        ("frame", np.zeros((8, 8, 3), np.float32), "got float32"),
        ("score_map", np.zeros((1, 4, 4), np.float32), r"\(1, 4, 4\)"),
        ("score_map", np.full((4, 4), np.nan, np.float32), "NaN"),
        ("score", float("inf"), "infinite"),
        ("seen", (4, 0, 4, 8), "not empty"),
        ("seen", (0, float("nan"), 4, 8), "not empty"),
        ("low", 10.0, "less than the threshold 10; got 10"),
        ("low", -1.0, "got -1"),
    ],
)
def test_refuses(name, value, message):
    overlay(**arguments())
    with pytest.raises(UsageError, match=message):
        overlay(**{**arguments(), name: value})
