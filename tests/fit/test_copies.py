"""Photos that are there twice: found, said, counted once, and left out together."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
from PIL import Image, ImageEnhance

from padim_edge.errors import PadimEdgeError
from padim_edge.fit.copies import Copies, _join, group_near
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.runtime.cpu.ort import Graph

WHOLE = Preprocess.whole((64, 64))
SETTINGS = Settings(WHOLE, false_alarm_rate=0.1)


@pytest.fixture(scope="module")
def cloth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloth")
    make_dataset(folder, train=20, good=1, per_defect=1, size=96)
    return train_images(folder)


def again(image: Image.Image, how: str) -> Image.Image:
    """The same photo, stored again or taken again of the same part."""
    stream = io.BytesIO()
    if how == "jpeg":
        image.save(stream, "JPEG", quality=90)
        return Image.open(stream).convert("RGB")
    if how == "noise":
        noise = np.random.default_rng(0).normal(0, 4, (image.height, image.width, 3))
        return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if how == "exposure":
        return ImageEnhance.Brightness(image).enhance(1.05)
    return image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS)


HOWS = ("jpeg", "noise", "exposure", "resized")


def grouped(images: list[Image.Image]) -> list[int]:
    copies = Copies()
    prepared = np.stack([WHOLE(image) for image in images])
    assert copies.new([Path(str(n)) for n in range(len(images))], prepared) == list(
        range(len(images))
    )
    return copies.groups().tolist()


# --- exactly equal ----------------------------------------------------------------------------


def test_equal_pixels_are_one_photo_whatever_their_file(tmp_path, embedding_file, cloth):
    for number, path in enumerate(cloth):
        shutil.copy(path, tmp_path / f"{number:02}.png")
        Image.open(path).save(tmp_path / f"{number:02}-copy.bmp")
    twice = fit_detector(embedding_file, train_images(tmp_path), tmp_path / "twice.onnx", SETTINGS)
    once = fit_detector(embedding_file, cloth, tmp_path / "once.onnx", SETTINGS)
    assert (tmp_path / "twice.onnx").read_bytes() == (tmp_path / "once.onnx").read_bytes()
    assert (twice.new_images, len(twice.equal), twice.near) == (20, 20, [])
    assert (once.equal, once.near) == ((), [])
    assert twice.equal[0] == (tmp_path / "00.png", tmp_path / "00-copy.bmp")


def test_an_update_counts_no_photo_twice(tmp_path, embedding_file, cloth):
    moments = tmp_path / "moments.npz"
    fit_detector(embedding_file, cloth[:12], tmp_path / "a.onnx", SETTINGS, save_moments=moments)
    done = fit_detector(
        embedding_file, cloth, tmp_path / "b.onnx", SETTINGS, update=moments, save_moments=moments
    )
    assert (done.new_images, done.model.detector_info.images) == (8, 20)
    assert done.equal == tuple((path, None) for path in cloth[:12])
    with pytest.raises(PadimEdgeError, match="0 usable images given, 20 equal to others"):
        fit_detector(embedding_file, cloth, tmp_path / "c.onnx", SETTINGS, update=moments)


@pytest.mark.parametrize("covariance", ["sample", "ledoit-wolf"])
def test_a_fit_that_cannot_work_is_refused(tmp_path, embedding_file, cloth, covariance):
    for number in range(5):
        shutil.copy(cloth[0], tmp_path / f"{number}.png")
    settings = Settings(WHOLE, covariance=covariance)
    output = tmp_path / "p.onnx"
    with pytest.raises(
        PadimEdgeError, match=r"1 usable image given, 4 equal to others: .*different"
    ):
        fit_detector(embedding_file, train_images(tmp_path), output, settings)
    for number in range(3):  # six photos of three parts are three, of two parts two
        again(Image.open(cloth[number]), "jpeg").save(tmp_path / f"{number}.png")
        shutil.copy(cloth[number], tmp_path / f"{number + 3}.png")
    fit_detector(embedding_file, train_images(tmp_path), output, settings)
    output.unlink()
    with pytest.raises(PadimEdgeError, match="2 usable images given, 2 nearly so"):
        fit_detector(
            embedding_file,
            [tmp_path / f"{number}.png" for number in (0, 1, 3, 4)],
            output,
            settings,
        )
    assert not output.exists()


def test_features_that_do_not_differ_are_refused(tmp_path, embedding_file, cloth, monkeypatch):
    from padim_edge.fit import features

    monkeypatch.setattr(features.Copies, "take", lambda _, paths, __: list(range(len(paths))))
    monkeypatch.setattr(features.Copies, "groups", lambda _: np.arange(5))
    with pytest.raises(PadimEdgeError, match="threshold would be 0 and every frame an anomaly"):
        fit_detector(embedding_file, cloth[:1] * 5, tmp_path / "p.onnx", Settings(WHOLE))


def test_aspect_ratios_are_kept_and_go_on(tmp_path, embedding_file, cloth):
    wide = tmp_path / "wide.png"
    Image.open(cloth[12]).resize((192, 96)).save(wide)
    moments, output = tmp_path / "moments.npz", tmp_path / "p.onnx"

    def ratios(images, **options):
        done = fit_detector(embedding_file, images, output, SETTINGS, **options)
        return done.model.detector_info.aspect_ratios

    assert ratios(cloth[:12], save_moments=moments) == (1.0, 1.0)
    assert ratios([*cloth[:12], wide]) == (1.0, 2.0)
    assert ratios([wide], update=moments) == (1.0, 2.0)
    with np.load(moments) as arrays:
        old = {name: arrays[name] for name in arrays if name != "aspect_ratios"}
    np.savez(moments, **old)
    assert ratios([wide], update=moments) == ()  # nobody knows those of the others


# --- nearly equal -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOWS)
def test_photos_stored_or_taken_again_are_found(cloth, how):
    images = [Image.open(path).convert("RGB") for path in cloth]
    assert grouped(images) == list(range(20))
    twice = [*images, *(again(image, how) for image in images[3:8])]
    assert grouped(twice) == [*range(20), *range(3, 8)]
    assert grouped([*images, *(again(image, how) for image in images)]) == [*range(20)] * 2


def test_frames_of_a_video_are_a_chain():
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.normal(0, 0.02, (30, 30)), axis=0)  # the last is far from the first
    points = np.concatenate([rng.normal(0, 1, (40, 30)), 1 + steps, rng.normal(0, 1, (5, 30))])
    assert group_near(points).tolist() == [*range(40), *[40] * 30, *range(41, 46)]


@pytest.mark.parametrize("count", [1, 2, 3, 600])
def test_what_is_all_alike_or_all_unlike_is_no_group(count):
    rng = np.random.default_rng(1)
    assert group_near(rng.normal(0, 1, (count, 40))).tolist() == list(range(count))


def test_one_outlier_makes_no_groups_of_the_others():
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal(0, 1, (30, 40)), np.full((1, 40), 1000.0)])
    assert len(set(group_near(points))) == 31


@pytest.mark.parametrize("poses", [2, 3])
def test_parts_in_several_poses_are_not_alike(poses):
    rng = np.random.default_rng(1)
    places = 20 * rng.normal(0, 1, (poses, 40))  # far from each other, beside what parts differ by
    points = np.concatenate([place + rng.normal(0, 1, (27, 40)) for place in places])
    assert len(set(group_near(points))) == len(points)
    twice = np.concatenate([points, points + rng.normal(0, 0.02, points.shape)])
    assert group_near(twice).tolist() == [*range(len(points))] * 2


def test_even_pictures_are_told_apart_by_more_than_noise():
    rng = np.random.default_rng(2)
    grey = [Image.fromarray(np.full((64, 64, 3), 90 + n, np.uint8)) for n in range(5)]
    texture = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(5)]
    assert len(set(grouped(texture))) == 5
    assert len(set(grouped(grey))) == 5  # exposures of one even surface: no two can be told apart


@pytest.mark.parametrize("covariance", ["sample", "ledoit-wolf"])
def test_a_group_is_left_out_of_the_fit_together(tmp_path, embedding_file, cloth, covariance):
    """Against fits without each group, one by one, and scored by the first of it."""
    folder = tmp_path / "near"
    folder.mkdir()
    for number, path in enumerate(cloth[:14]):
        shutil.copy(path, folder / f"{number:02}.png")
    for number, how in ((2, "jpeg"), (2, "noise"), (5, "jpeg"), (9, "noise")):
        again(Image.open(cloth[number]).convert("RGB"), how).save(folder / f"{number:02}-{how}.png")
    paths = train_images(folder)
    settings = Settings(WHOLE, covariance=covariance, false_alarm_rate=0.1)
    done = fit_detector(embedding_file, paths, tmp_path / "p.onnx", settings)
    names = [[path.name for path in group] for group in done.near]
    assert names == [
        ["02-jpeg.png", "02-noise.png", "02.png"],
        ["05-jpeg.png", "05.png"],
        ["09-noise.png", "09.png"],
    ]
    info = done.model.detector_info
    assert (info.images, len(info.good_scores)) == (18, 14)
    assert "18 images in 14 groups of nearly equal ones" in info.calibration
    if covariance == "sample":
        np.testing.assert_allclose(
            info.good_scores, expected_scores(embedding_file, paths), rtol=1e-9
        )


def expected_scores(embedding_file: Path, paths: list[Path]) -> list[float]:
    """Sorted, of the first of each group, by the float64 judge."""
    with Graph(embedding_file.read_bytes()) as graph:
        images = np.stack([WHOLE(path) for path in paths])
        every = graph.run({"image": images}, ["embedding"])[0].astype(np.float64)
    groups = [path.stem.split("-")[0] for path in paths]
    scores = []
    for group in dict.fromkeys(groups):
        own = [number for number, one in enumerate(groups) if one == group]
        rest = np.delete(every, own, axis=0)
        maps = reference.distances(every[own[:1]], *reference.fit(rest))
        scores.append(float(reference.score_maps(maps, (64, 64)).max()))
    return sorted(scores)


def test_groups_of_random_pairs_are_those_of_a_plain_search():
    dice = np.random.default_rng(0)
    for _ in range(300):
        count = int(dice.integers(1, 40))
        pairs = dice.integers(0, count, (int(dice.integers(0, count + 5)), 2))
        first = np.arange(count)
        for some in np.array_split(pairs, 3):
            _join(first, some[:, 0], some[:, 1])
        near = np.eye(count, dtype=bool)
        near[pairs[:, 0], pairs[:, 1]] = near[pairs[:, 1], pairs[:, 0]] = True
        for _ in range(count):
            near = near @ near
        assert first.tolist() == near.argmax(axis=1).tolist()
