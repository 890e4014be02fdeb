"""Outliers: which photos among the good ones are named, and a fit without them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process
from PIL import Image

from padim_edge.fit.fit import Fitted, fit_detector
from padim_edge.fit.outliers import LEAST, LIMIT, ROUNDS, Outlier, find_outliers
from padim_edge.fit.settings import Settings
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset

PATHS = [Path(f"{number}.png") for number in range(200)]


def named(scores: np.ndarray, reference: np.ndarray | None = None) -> list[str]:
    found = find_outliers(PATHS, scores, scores if reference is None else reference)
    assert all(one.deviations > LIMIT for one in found)
    return [one.path.name for one in found]


def test_the_rule_by_hand() -> None:
    logs = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0])
    assert np.median(np.abs(logs - 3)) == 1
    edge = 3 + 1.4826 * LIMIT
    tried = np.exp([edge - 1e-6, edge + 1e-6, edge + 1, 3.0, -50.0])
    found = find_outliers(PATHS, tried, np.exp(logs))
    assert [one.path.name for one in found] == ["2.png", "1.png"]  # the worst first, none too low
    assert found[1].deviations == pytest.approx(LIMIT, abs=1e-5)
    assert found[0].score == tried[2]
    assert str(found[1]) == f"1.png ({tried[1]:.1f}, {LIMIT:.1f} deviations)"


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2, 0.35])
def test_many_outliers_do_not_hide_each_other(share: float) -> None:
    scores = np.exp(np.random.default_rng(0).normal(3, 0.2, 100))
    bad = int(100 * share)
    scores[:bad] *= 20
    assert sorted(named(scores)) == sorted(path.name for path in PATHS[:bad])
    assert named(1000 * scores) == named(scores)  # whatever the unit


def test_too_few_equal_and_zero_scores_name_nobody() -> None:
    scores = np.full(LEAST, 5.0)
    scores[0] = 500
    assert named(scores) == []  # no deviation to speak of
    scores[1:] += np.linspace(0, 1, LEAST - 1)
    assert named(scores) == ["0.png"]
    assert named(scores[:-1]) == []
    assert named(np.zeros(20)) == []


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 good photos and 3 of other things, named bad*."""
    folder = tmp_path_factory.mktemp("mixed")
    make_dataset(folder / "data", train=30, good=1, per_defect=1, size=96)
    shutil.copytree(folder / "data" / "train" / "good", folder / "photos")
    dice = np.random.default_rng(0)
    for number, side in enumerate((96, 60, 40)):
        photo = np.array(Image.open(folder / "photos" / f"{number:03}.png"))
        photo[:side, :side] = dice.integers(0, 256, (side, side, 3))
        Image.fromarray(photo).save(folder / "photos" / f"bad{number}.png")
    return folder / "photos"


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def goods(folder: Path) -> list[Path]:
    return [path for path in files(folder) if not path.name.startswith("bad")]


def same(one: Fitted, other: Fitted) -> bool:
    """Whether two detectors are equal, but for the words that say how."""
    mine, theirs = one.model, other.model
    assert mine.detector_info
    assert theirs.detector_info
    assert mine.detector_info.threshold == theirs.detector_info.threshold
    assert mine.detector_info.good_scores == theirs.detector_info.good_scores
    pairs = zip(mine.proto.graph.initializer, theirs.proto.graph.initializer, strict=True)
    return all(a.SerializeToString() == b.SerializeToString() for a, b in pairs)


@pytest.fixture(params=["reference", "whitened", "ledoit-wolf"])
def kind(
    request: pytest.FixtureRequest, embedding_file: Path, whole_embedding: Path
) -> Iterator[tuple[Path, Settings]]:
    """An embedding and settings of every way to fit."""
    whole = Preprocess.whole((64, 64))
    if request.param == "whitened":
        yield whole_embedding, Settings(whole, preset="whitened", shrinkage=0.3)
    elif request.param == "ledoit-wolf":
        pytest.importorskip("sklearn")
        yield embedding_file, Settings(whole, covariance="ledoit-wolf")
    else:
        yield embedding_file, Settings(whole)


def test_rejected_ones_are_as_if_never_given(
    tmp_path: Path, mixed: Path, kind: tuple[Path, Settings]
) -> None:
    embedding, settings = kind
    told = fit_detector(embedding, files(mixed), tmp_path / "told.onnx", settings)
    assert told.outliers
    assert not told.rejected
    assert told.new_images == len(files(mixed))
    scores = [one.score for one in told.outliers]
    assert scores == sorted(scores, reverse=True)
    assert told.outliers[0].score == told.scores.max()

    done = fit_detector(
        embedding, files(mixed), tmp_path / "without.onnx", settings, reject_outliers=True
    )
    assert done.rejected[: len(told.outliers)] == told.outliers
    assert not done.outliers
    rejected = {one.path for one in done.rejected}
    rest = [path for path in files(mixed) if path not in rejected]
    assert done.paths == tuple(rest)
    other = fit_detector(embedding, rest, tmp_path / "rest.onnx", settings)
    assert not other.outliers
    assert same(done, other)
    info = done.model.detector_info
    assert info
    assert info.calibration.endswith(f"; {len(rejected)} outliers were left out")
    assert info.images == len(rest)


def test_moments_hold_what_was_kept(tmp_path: Path, mixed: Path, embedding_file: Path) -> None:
    settings = Settings(Preprocess.whole((64, 64)))

    def fit(name: str, images: list[Path], **options: object) -> Fitted:
        return fit_detector(embedding_file, images, tmp_path / name, settings, **options)  # type: ignore[arg-type]

    done = fit("a", files(mixed), reject_outliers=True, save_moments=tmp_path / "a.npz")
    fit("b", list(done.paths), save_moments=tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as mine, np.load(tmp_path / "b.npz") as theirs:
        assert mine.files == theirs.files
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], theirs[name])
    # Among later images, too, and beside the scores of all earlier ones.
    bad = [one.path for one in done.rejected]
    first = list(done.paths)[:20]
    fit("c", first, save_moments=tmp_path / "c.npz")
    later = [*list(done.paths)[20:], *bad]
    more = fit("d", later, update=tmp_path / "c.npz", reject_outliers=True)
    assert {one.path for one in more.rejected} == set(bad)
    assert more.model.detector_info
    assert more.model.detector_info.images == len(done.paths)


def test_rounds_end(
    tmp_path: Path, mixed: Path, embedding_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the scores are: then some are named that are still in the fit."""

    def worst(paths: tuple[Path, ...], scores: np.ndarray, _: object) -> tuple[Outlier, ...]:
        place = int(scores.argmax())
        return (Outlier(paths[place], float(scores[place]), 9.0),)

    monkeypatch.setattr("padim_edge.fit.fit.find_outliers", worst)
    done = fit_detector(
        *(embedding_file, goods(mixed), tmp_path / "m.onnx", Settings(Preprocess.whole((64, 64)))),
        reject_outliers=True,
    )
    assert len(done.rejected) == ROUNDS
    assert len(done.outliers) == 1
    assert done.outliers[0].path in done.paths


def test_as_it_is_typed(tmp_path: Path, mixed: Path, embedding_file: Path) -> None:
    model = tmp_path / "padim.onnx"
    fit = ("fit", embedding_file, mixed, "-o", model)
    said = in_process(*fit).worked().stderr.splitlines()
    start = next(index for index, line in enumerate(said) if "are very unlike the others" in line)
    assert "give --reject-outliers, if they are no good parts; the worst first:" in said[start]
    assert said[start + 1].startswith(f"warning:   {mixed}/bad")
    said = in_process(*fit, "--reject-outliers").worked().stderr.splitlines()
    assert any("image(s) left out, because they are very unlike" in line for line in said)
    assert not any("give --reject-outliers" in line for line in said)
    assert "outliers were left out" in in_process("inspect", model).worked().stdout
    # Enough with them, too few without.
    enough = ("--false-alarm-rate", 1 / 34)
    in_process(*fit, *enough).worked()
    in_process(*fit, "--reject-outliers", *enough).failed(1, "are too few for a false-alarm rate")


BAD = ("broken_large/000", "broken_large/010", "broken_small/000", "broken_small/010",
       "broken_small/020", "contamination/002", "contamination/010")  # fmt: skip


@pytest.mark.slow
def test_defective_bottles_among_good_ones(
    tmp_path: Path, data: Path, real_embedding: Path
) -> None:
    bottle = data / "data" / "mvtec-256" / "bottle"
    good = sorted((bottle / "train" / "good").iterdir())
    bad = [bottle / "test" / f"{name}.png" for name in BAD]
    settings = Settings(Preprocess.whole((224, 224)))
    done = fit_detector(real_embedding, [*good, *bad], tmp_path / "m.onnx", settings)
    found = {one.path for one in done.outliers}
    assert set(bad) <= found
    # Two good ones are unlike the rest, too.
    assert {path.stem for path in found - set(bad)} <= {"042", "132"}
