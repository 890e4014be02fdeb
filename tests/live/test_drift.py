"""Drift: the test keeps its rate, and what has changed is said when it begins and when it ends."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from lessons import captured, opened
from PIL import Image, ImageFilter

from padim_edge.live.board import Seen
from padim_edge.live.drift import BETS, BEYOND, RECENT, Drift, DriftWatch, Test, _Scene
from padim_edge.live.event import Event
from padim_edge.live.swap import ModelSlot
from padim_edge.model.file import read


def test_wealth_is_that_of_all_who_begin():
    """Against the definition: every gambler by himself, each with his share."""
    rng = np.random.default_rng(1)
    usual, values = np.sort(rng.normal(size=7)), rng.normal(1, 1, 25)
    test = Test(usual)
    before, gains = [], []
    for n, value in enumerate(values, 1):
        above, below = (usual >= value).sum(), (usual <= value).sum()
        gaps = (above, below)  # photos further out, upwards and downwards
        gains.append([])
        for share, stake in BETS:
            size = max(1, round(share * 8))
            for side, gap in enumerate(gaps):
                chance = (size + sum(one[side] < size for one in before)) / (8 + len(before))
                won = stake / chance if gap < size else (1 - stake) / (1 - chance)
                gains[-1].append(won)
        before.append(gaps)
        shares = [1 / np.log2(i + 1) - 1 / np.log2(i + 2) for i in range(1, n + 1)]
        money = [share * np.prod(gains[i:], axis=0).mean() for i, share in enumerate(shares)]
        assert test.add(value) == pytest.approx(sum(money) + 1 - sum(shares))


def test_nobody_gets_richer_on_average():
    """Exactly: over all gaps, each as likely as a rank among all values makes it."""
    for beginning in ([], [9.0], [-9.0, 0.5], [2.5, 2.6, -3.0]):
        usual = np.arange(6.0)
        before = Test(usual)
        for value in beginning:
            before.add(value)
        bag = np.sort([*usual, *beginning])
        # The next value is as likely to fall between any two of all that were.
        edges = np.concatenate([[bag[0] - 1], (bag[1:] + bag[:-1]) / 2, [bag[-1] + 1]])
        after = []
        for value in edges:
            test = Test(usual)
            for earlier in beginning:
                test.add(earlier)
            after.append(test.add(value))
        assert np.mean(after) == pytest.approx(before.wealth, rel=1e-12)


def test_a_tie_wins_nothing_extra():
    tied = Test(np.zeros(20))
    for _ in range(200):
        assert tied.add(0.0) < 5


def ever(rng, alpha, count, steps, shift=0.0):
    """Steps until drift is said, of streams like their photos, but for a shift; 0 for never."""
    found = []
    for _ in range(count):
        test = Test(rng.gamma(4.0, size=30))
        values = rng.gamma(4.0, size=steps) + shift
        found.append(next((n for n, v in enumerate(values, 1) if test.add(v) >= 1 / alpha), 0))
    return np.array(found)


@pytest.mark.parametrize("alpha", [0.2, 0.05])
def test_the_rate_is_kept(alpha):
    found = ever(np.random.default_rng(5), alpha, 200, 200)
    assert (found > 0).mean() <= alpha


@pytest.mark.fuzz
@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01])
def test_the_rate_is_kept_over_long_streams(alpha):
    found = ever(np.random.default_rng(6), alpha, 2000, 2000)
    share = (found > 0).mean()
    print(f"alpha {alpha}: {share:.4f} of 2000 streams of 2000")
    assert share <= alpha


def test_a_shift_is_seen_soon():
    found = ever(np.random.default_rng(7), 0.01, 20, 200, shift=6.0)  # three deviations
    assert (found > 0).all()
    assert np.median(found) <= 12


# --- with images ------------------------------------------------------------------------------


@pytest.fixture
def info(model_file):
    return read(model_file, "padim").detector_info


@pytest.fixture
def pictures(good):
    """Frames like the photos of the fit, as many as are asked for."""
    rng = np.random.default_rng(2)
    images = [np.asarray(Image.open(path).convert("RGB")) for path in good]

    def frames(count, change=lambda image: image):
        for _ in range(count):
            image = images[rng.integers(len(images))].astype(float)
            # A little light, as the photos have: another for each, or ranks would be ties.
            image = np.clip(image + rng.normal(0, 0.5), 0, 255)
            yield change(image.astype(np.uint8))

    return frames


def brighter(image):
    return np.clip(image + 40.0, 0, 255).astype(np.uint8)


def blurred(image):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))


def changes_of(drift, info, frames, start=0.0):
    found = []
    for place, frame in enumerate(frames):
        found += drift(None, info.preprocess(frame), start + place)
    return found


@pytest.mark.parametrize(
    ("change", "statistic", "words"),
    [
        (brighter, "brightness", "the light has changed: brightness"),
        (blurred, "sharpness", "the focus has changed: sharpness"),
    ],
)
def test_a_change_is_said_once_when_it_begins_and_once_when_it_ends(
    info, pictures, change, statistic, words
):
    drift = Drift(info)
    assert drift.notes == ()
    assert changes_of(drift, info, pictures(60)) == []
    found = changes_of(drift, info, pictures(60, change), start=1000)
    (begun,) = [one for one in found if one.statistic == statistic]
    assert begun.begins
    assert 990 <= begun.since <= 1010
    low, median, high = begun.usual
    assert low <= median <= high
    assert not low <= begun.now <= high
    assert str(begun).startswith(words)
    assert statistic in drift.drifting
    ended = changes_of(drift, info, pictures(3 * RECENT), start=2000)
    (end,) = [one for one in ended if one.statistic == statistic]
    assert not end.begins
    assert end.since == begun.since
    assert "is as in the photos again" in str(end)
    assert statistic not in drift.drifting


def judged(score, is_anomalous=False):
    return SimpleNamespace(score=score, is_anomalous=is_anomalous)


def test_scores_of_accepted_frames_are_tested_and_alarms_are_not(info):
    only = dataclasses.replace(info, appearance=())
    image = np.zeros((64, 64, 3), np.uint8)
    drift = Drift(only)
    assert len(drift.notes) == 1
    assert "does not say how its photos look" in drift.notes[0]
    top = np.max([score for score in info.good_scores if score < info.threshold])
    for place in range(50):
        assert drift(judged(info.threshold * 2, True), image, place) == []
        assert drift(judged(float("nan")), image, place) == []
    found = [c for place in range(50) for c in drift(judged(top * 1.01), image, 100.0 + place)]
    (change,) = found
    assert change.statistic == "score"
    assert change.since >= 100
    assert str(change).startswith("the scores of accepted frames have changed: score")


def test_a_watch_is_told_of_it_and_looks_at_one_frame_a_part(model_file, pictures, info):
    slot, said = ModelSlot(opened, model_file), []
    watch = DriftWatch(slot, lambda *words, **fields: said.append((*words, fields)), every=2.0)

    def see(frame, when, camera="left"):
        one = dataclasses.replace(captured(frame), time=when)
        with slot.using() as detector:
            result = detector(frame)
        watch(Seen(camera, one, result, Event("1", {}), 0.0))

    try:
        bright = list(pictures(40, brighter))
        for place in range(40):
            see(bright[0], 2.0 * place)  # stands still
        for place in range(200):
            see(bright[place % 40], 100 + 0.01 * place)  # two seconds in all
        assert said == []
        for place, frame in enumerate(bright):
            see(frame, 200 + 2.0 * place)
        kinds = {(kind, camera) for kind, camera, *_ in said}
        assert kinds == {("drift", "left")}
        fields = [fields for *_, fields in said if fields["statistic"] == "brightness"]
        assert [one["begins"] for one in fields] == [True]
        slot.swap(model_file)
        see(bright[1], 1000.0)
        fields = [fields for *_, fields in said if fields["statistic"] == "brightness"]
        assert [one["begins"] for one in fields] == [True, False]
    finally:
        slot.close()


class Still:
    """A camera that sees one scene, and what is said of it."""

    def __init__(self, model_file, scene, seed=4):
        self.slot = ModelSlot(opened, model_file)
        self.said = []
        self.watch = DriftWatch(
            self.slot, lambda *words, **fields: self.said.append((words, fields))
        )
        self.scene, self.rng, self.looks = np.asarray(scene, float), np.random.default_rng(seed), 0
        with self.slot.using() as detector:
            self.result = detector(np.asarray(scene, np.uint8))

    def see(self, count, change=lambda image, _: image):
        """Frames two seconds apart, with a camera's noise."""
        for _ in range(count):
            image = change(self.scene, self.rng) + self.rng.normal(0, 0.3, self.scene.shape)
            frame = np.clip(image, 0, 255).astype(np.uint8)
            one = dataclasses.replace(captured(frame), time=1000 + 2.0 * self.looks)
            self.looks += 1
            self.watch(Seen("left", one, self.result, Event("1", {}), 0.0))

    def of(self, statistic):
        return [(words[2], f) for words, f in self.said if f["statistic"] == statistic]


@pytest.fixture
def still(model_file):
    made = []

    def still(scene):
        made.append(Still(model_file, scene))
        return made[-1]

    yield still
    for one in made:
        one.slot.close()


@pytest.fixture
def scene():
    """A part that waits: much darker and lighter than noise, and finely drawn."""
    y, x = np.mgrid[:96, :96]
    part = 40 + 110 * ((x - 50) ** 2 + (y - 44) ** 2 < 900) + 30 * np.sin(x) * np.sin(y)
    return (part[..., None] * [1, 0.9, 0.8]).astype(np.uint8)


@pytest.mark.parametrize("factor", [0.6, 1.25])
def test_the_light_of_a_scene_that_stands_still_is_looked_at(factor, still, scene):
    one = still(scene)
    one.see(200)
    assert one.said == []
    one.see(40, lambda image, _: factor * image)
    ((words, fields),) = one.of("brightness")
    assert words.startswith("the light has changed: brightness")
    assert "in this scene before" in words
    assert fields["begins"]
    assert fields["now"] == pytest.approx(factor * fields["before"], rel=0.05)
    assert 1000 + 2 * 199 <= fields["since"] <= 1000 + 2 * 202
    # Half of the way back is not the end of it, and nothing is said twice.
    one.see(40, lambda image, _: (1 + 0.7 * (factor - 1)) * image)
    one.see(40, lambda image, _: factor * image)
    assert len(one.of("brightness")) == 1
    one.see(40)
    (_, (words, fields)) = one.of("brightness")
    assert not fields["begins"]
    assert words.startswith("brightness is as it was in this scene again")


def test_in_a_still_scene_a_lens_that_is_touched_is_told_from_the_light(still, scene):
    one = still(scene)
    one.see(30)
    one.see(30, lambda image, _: blurred(image.astype(np.uint8)).astype(float))
    assert one.of("sharpness")[0][0].startswith("the focus has changed: sharpness")
    assert one.of("brightness") == []


def flickering(image, rng):
    """A short exposure beside a lamp of 50 Hz."""
    return image * (1 + 0.08 * np.sin(rng.uniform(0, 2 * np.pi)))


@pytest.mark.parametrize("change", [lambda image, _: image, flickering])
def test_noise_flicker_and_a_place_without_a_part_are_no_change(change, info, still, scene):
    one = still(scene)
    brightness = dict(info.appearance)["brightness"]
    assert scene.mean() < 0.7 * min(brightness)  # it looks like no photo, from the beginning
    one.see(400, change)
    assert one.said == []


def test_parts_that_go_by_are_no_change_of_a_scene():
    """Though they are so alike that they are taken for one scene."""
    rng = np.random.default_rng(11)
    usual = np.sort(rng.normal(size=30))
    scene = _Scene(usual)
    assert all(scene.add(value, 0.0) != BEYOND for value in rng.normal(size=100_000))


def test_another_scene_is_held_against_itself_and_drift_ends_with_the_parts(still, scene, pictures):
    one = still(scene)
    one.see(20)
    one.scene = 255.0 - scene  # brighter, and another one
    one.see(40)
    assert one.of("brightness") == []
    one.see(20, lambda image, _: 0.6 * image)
    assert len(one.of("brightness")) == 1
    one.scene = scene[::-1, ::-1] * [0.6, 0.5, 0.6]  # a third one, in the same wrong light
    one.see(40)
    assert len(one.of("brightness")) == 1
    for frame in pictures(4 * RECENT):
        one.scene = frame.astype(float)
        one.see(1)
    (_, (words, fields)) = one.of("brightness")
    assert not fields["begins"]
    assert words.startswith("brightness is as in the photos again")


def test_another_detector_ends_what_was_said(still, scene, model_file):
    one = still(scene)
    one.see(20)
    one.see(20, lambda image, _: 0.6 * image)
    begun = {fields["statistic"] for _, fields in one.said}
    assert "brightness" in begun
    one.slot.swap(model_file)
    one.see(1)
    ended = [fields for words, fields in one.said if "another detector judges" in words[2]]
    assert {fields["statistic"] for fields in ended} == begun
    assert not any(fields["begins"] for fields in ended)


def test_a_file_that_knows_nothing_is_named_once(model_file, info, pictures):
    slot, said = ModelSlot(opened, model_file), []
    old = dataclasses.replace(info, appearance=())
    fake = SimpleNamespace(detector_info=old)
    watch = DriftWatch(fake, lambda *words, **_: said.append(words), every=0.0)
    try:
        for place, frame in enumerate(pictures(5)):
            with slot.using() as detector:
                result = detector(frame)
            one = dataclasses.replace(captured(frame), time=float(place))
            watch(Seen("left", one, result, Event("1", {}), 0.0))
        assert [words[:2] for words in said] == [("drift", "left")]
    finally:
        slot.close()
