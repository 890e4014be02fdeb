"""What is taken from a dataset's folders, and what is refused."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from padim_edge.errors import PadimEdgeError
from padim_edge.images import dataset
from padim_edge.images.dataset import Sample, train_images

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Create files (or folders, with a final slash) and return their common root."""

    def build(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()
        return tmp_path

    return build


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def refusal(function: Callable[[Path], Any], folder: Path) -> str:
    with pytest.raises(PadimEdgeError) as caught:
        function(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert caught.value.exit_code == 1
    return message


# ----------------------------------------------------------------------------- to fit on


def test_train_good_and_nothing_else(make: Make) -> None:
    root = make(
        "train/good/001.png",
        "train/good/000.png",
        "train/good/night/002.JPG",
        "train/scratch/000.png",
        "test/good/000.png",
        "test/scratch/000.png",
        "ground_truth/scratch/000_mask.png",
        "cover.png",
    )
    expected = ["train/good/000.png", "train/good/001.png", "train/good/night/002.JPG"]
    assert names(train_images(root), root) == expected
    assert names(train_images(str(root)), root) == expected


def test_a_plain_folder_with_all_below_it(make: Make) -> None:
    root = make("b.png", "a.jpg", "monday/c.bmp", "notes.txt", ".trash/d.png")
    assert names(train_images(root), root) == ["a.jpg", "b.png", "monday/c.bmp"]


@pytest.mark.parametrize("inside", ["train", "train/good"])
def test_a_folder_inside_the_dataset(make: Make, inside: str) -> None:
    root = make("train/good/000.png", "test/good/000.png", "test/scratch/000.png")
    assert names(train_images(root / inside), root) == ["train/good/000.png"]


def test_a_file_and_a_pattern_stand_for_themselves(make: Make) -> None:
    root = make("a.png", "b.png", "c.jpg")
    assert names(train_images(root / "a.png"), root) == ["a.png"]
    assert names(train_images(str(root / "*.png")), root) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["test/scratch/000.png", "a.png"], "has a folder test but no train/good"),
        (["ground_truth/scratch/000.png", "a.png"], "has a folder ground_truth but no train/good"),
        (["train/scratch/000.png"], "has a folder train but no train/good"),
        (["train/000.png", "a.png"], "has a folder train but no train/good"),
        (["bottle/train/good/0.png", "screw/train/good/0.png"], "seems to hold whole datasets"),
        (["bottle/good/0.png", "bottle/test/crack/0.png"], "lies in a folder test"),
        (["good/0.png", "scratch/0.png", "hole/0.png"], r"beside others \(hole, scratch\)"),
        (["train/good/"], "no image found in .*good"),
        (["notes.txt"], "no image found"),
    ],
)
def test_defective_images_are_never_fitted_on(make: Make, files: list[str], message: str) -> None:
    with pytest.raises(PadimEdgeError, match=message) as caught:
        train_images(make(*files))
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(train_images, tmp_path / "missing")
    assert "is not a folder" in refusal(dataset.test_samples, tmp_path / "missing")


def test_a_folder_that_cannot_be_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make("test/good/0.png", "test/scratch/0.png")

    def denied(path: Any) -> Any:  # chmod would not stop root
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PadimEdgeError, match=r"cannot read .*test: Permission denied"):
        dataset.test_samples(root)


# ------------------------------------------------------------------------------- to test


def test_samples_with_both_namings_of_masks(make: Make) -> None:
    root = make(
        "train/good/000.png",
        "test/good/000.png",
        "test/scratch/000.png",
        "test/scratch/001.JPG",
        "test/scratch/002.png",
        "test/scratch/near/000.png",
        "test/hole/000.png",
        "test/empty/",
        "test/.ipynb_checkpoints/000.png",
        "ground_truth/good/000_mask.png",
        "ground_truth/scratch/000_mask.png",
        "ground_truth/scratch/000.png",
        "ground_truth/scratch/001.bmp",
        "ground_truth/scratch/near/000_mask.png",
        "ground_truth/scratch/002_other.png",
    )
    test, truth = root / "test", root / "ground_truth"
    assert dataset.test_samples(root) == [
        Sample(test / "good" / "000.png", "good", None),
        Sample(test / "hole" / "000.png", "hole", None),
        Sample(test / "scratch" / "000.png", "scratch", truth / "scratch" / "000_mask.png"),
        Sample(test / "scratch" / "001.JPG", "scratch", truth / "scratch" / "001.bmp"),
        Sample(test / "scratch" / "002.png", "scratch", None),
        Sample(
            test / "scratch" / "near" / "000.png",
            "scratch",
            truth / "scratch" / "near" / "000_mask.png",
        ),
    ]


def test_a_dataset_without_masks(make: Make) -> None:
    root = make("test/good/0.png", "test/scratch/0.png")
    samples = dataset.test_samples(str(root))
    assert [sample.mask for sample in samples] == [None, None]
    assert [sample.is_anomalous for sample in samples] == [False, True]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/good/0.png"], "has no folder test"),
        (["good/0.png", "scratch/0.png"], "has no folder test"),
        (["test/"], r"no good image \(classes with images: none\)"),
        (["test/scratch/0.png", "test/good/"], r"no good image \(classes with images: scratch\)"),
        (["test/good/0.png", "test/scratch/"], r"no defective image .*: good\)"),
        (["test/good/0.png", "test/scratch/0.txt"], "no defective image"),
        (["test/good/0.png", "test/scratch/0.png", "test/1.png"], "1.png has no class"),
    ],
)
def test_incomplete_datasets(make: Make, files: list[str], message: str) -> None:
    root = make(*files)
    with pytest.raises(PadimEdgeError, match=message):
        dataset.test_samples(root)
    assert "test/" in refusal(dataset.test_samples, root)


# ------------------------------------------------------------------------- published sets


def test_bottle(data: Path) -> None:
    root = data / "data" / "mvtec-256" / "bottle"
    assert len(train_images(root)) == 209
    samples = dataset.test_samples(root)
    assert len(samples) == 83
    assert Counter(sample.defect for sample in samples) == {
        "good": 20,
        "broken_large": 20,
        "broken_small": 22,
        "contamination": 21,
    }
    for sample in samples:
        assert (sample.mask is not None) == sample.is_anomalous
        if sample.mask:
            assert sample.mask.name == f"{sample.path.stem}_mask.png"
            assert sample.mask.parent.name == sample.defect


def test_hazelnut(data: Path) -> None:
    root = data / "data" / "hazelnut_toy"
    assert len(train_images(root)) == 28
    samples = dataset.test_samples(root)
    assert Counter(sample.defect for sample in samples) == {"good": 6, "colour": 17}
    for sample in samples:
        if sample.is_anomalous:
            assert sample.path.suffix == ".jpg"
            assert sample.mask is not None
            assert sample.mask.name == f"{sample.path.stem}.png"
