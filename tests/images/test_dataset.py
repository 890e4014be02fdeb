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
from padim_edge.images.dataset import Folders, Sample, train_images

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
    root = make("b.png", "a.jpg", "notes.txt", ".trash/d.png", "empty/")
    assert names(train_images(root), root) == ["a.jpg", "b.png"]


@pytest.mark.parametrize("good", ["good", "Good", "OK", "ok", "Normal", "i.O."])
@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
def test_common_words_in_any_case(make: Make, train: str, good: str) -> None:
    root = make(
        f"{train}/{good}/000.png",
        f"{train}/scratch/000.png",
        "Test/Broken/000.png",
        "Ground_Truth/Broken/000_mask.png",
    )
    assert names(train_images(root), root) == [f"{train}/{good}/000.png"]
    assert names(train_images(root / train / good), root) == [f"{train}/{good}/000.png"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["OK/0.png", "NG/0.png", "NG/1.png"], "folders with images: NG (2), OK (1); say which"),
        (["ok/0.png", "ko/0.png"], "--normal-dir ok and so on"),
        (["0.png", "broken/0.png"], "beside 1 images of its own: broken (1)"),
        (["a/0.png", "b/0.png"], "a (1), b (1); say which hold good ones, --normal-dir NAME"),
        (["monday/0.png"], "monday (1); say which hold good ones"),
        (["good/NG/0.png"], "NG/0.png lies in a folder NG and may be defective"),
        (["train/good/not-good/0.png"], "lies in a folder not-good and may be defective"),
        (["Train/Good/0.png", "train/good/0.png"], "has Train and train, which mean the same"),
        (["train/good/0.png", "train/ok/0.png"], "has good and ok, which mean the same"),
        (["0.png", "0_mask.png"], "0_mask.png seems to be the mask of 0,"),
        (["0.jpg", "0_GT.png"], "0_GT.png seems to be the mask of 0"),
        (["0.jpg", "0_label.bmp"], "0_label.bmp seems to be the mask of 0"),
    ],
)
def test_what_is_good_is_never_guessed(make: Make, files: list[str], told: str) -> None:
    assert told in refusal(train_images, make(*files))


@pytest.mark.parametrize("pattern", ["*/*.png", "**/*.png"])
def test_a_pattern_that_meets_defective_images(make: Make, pattern: str) -> None:
    root = make("OK/0.png", "NG/0.png")
    with pytest.raises(PadimEdgeError, match="lies in a folder NG and may be defective"):
        train_images(root / pattern)


def test_folders_named_by_the_user(make: Make) -> None:
    root = make("0.png", "a/0.png", "a/deep/1.png", "NG/0.png", "masks/0.png", "test/x/0.png")

    def taken(*normal: str, abnormal: tuple[str, ...] = (), masks: tuple[str, ...] = ()) -> Any:
        return names(train_images(root, Folders(normal, abnormal, masks)), root)

    assert taken("a") == ["a/0.png", "a/deep/1.png"]
    assert taken(str(root / "a"), "NG") == ["NG/0.png", "a/0.png", "a/deep/1.png"]
    assert len(taken(".")) == 6
    assert taken(abnormal=("NG", "test", "a"), masks=("masks",)) == ["0.png"]
    with pytest.raises(PadimEdgeError, match=r"no folder .*b; .* has NG, a, masks, test"):
        taken("b")
    with pytest.raises(PadimEdgeError, match="no image is left"):
        taken(abnormal=(".",))


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
        (["good/0.png", "scratch/0.png"], r"good \(1\), scratch \(1\); say which"),
        (["Train/scratch/0.png"], "has a folder Train but no train/good"),
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
        Sample(test / "good" / "000.png", "good", (truth / "good" / "000_mask.png",)),
        Sample(test / "hole" / "000.png", "hole"),
        Sample(test / "scratch" / "000.png", "scratch", (truth / "scratch" / "000_mask.png",)),
        Sample(test / "scratch" / "001.JPG", "scratch", (truth / "scratch" / "001.bmp",)),
        Sample(test / "scratch" / "002.png", "scratch"),
        Sample(
            test / "scratch" / "near" / "000.png",
            "scratch",
            (truth / "scratch" / "near" / "000_mask.png",),
        ),
    ]
    strays = dataset.stray_masks(root, dataset.test_samples(root))
    assert names(strays, truth) == ["scratch/000.png", "scratch/002_other.png"]


def masks_of(root: Path, *folders: tuple[str, ...]) -> dict[str, list[str]]:
    """Every image of a test set, with its masks."""
    samples = dataset.test_samples(root, Folders(*folders) if folders else None)
    return {names([sample.path], root)[0]: names(list(sample.masks), root) for sample in samples}


def test_words_in_any_case_and_masks_of_btad(make: Make) -> None:
    root = make("Test/ok/0.bmp", "Test/ko/0.bmp", "Test/ko/1.bmp", "ground_truth/ko/0.png")
    assert masks_of(root) == {
        "Test/ko/0.bmp": ["ground_truth/ko/0.png"],
        "Test/ko/1.bmp": [],
        "Test/ok/0.bmp": [],
    }
    samples = dataset.test_samples(root)
    assert [sample.defect for sample in samples] == ["ko", "ko", "good"]


def test_several_masks_of_an_image_as_in_mvtec_loco(make: Make) -> None:
    folder = "ground_truth/logical_anomalies/000"
    root = make(
        *("test/good/000.png", "test/logical_anomalies/000.png", "test/logical_anomalies/001.png"),
        *(f"{folder}/000.png", f"{folder}/001.png"),
        "ground_truth/logical_anomalies/001/000.png",
    )
    assert masks_of(root) == {
        "test/good/000.png": [],
        "test/logical_anomalies/000.png": [f"{folder}/000.png", f"{folder}/001.png"],
        "test/logical_anomalies/001.png": ["ground_truth/logical_anomalies/001/000.png"],
    }


@pytest.mark.parametrize(
    "mask", ["0_mask.png", "0_GT.bmp", "0-label.png", "0.seg.png", "mask_0.png", "0_mask_1.png"]
)
def test_masks_of_other_names(make: Make, mask: str) -> None:
    root = make("test/good/0.png", "test/hole/0.png", f"ground_truth/hole/{mask}")
    assert masks_of(root)["test/hole/0.png"] == [f"ground_truth/hole/{mask}"]


def test_named_folders_as_visa_has_them(make: Make) -> None:
    root = make("Images/Normal/0.jpg", "Images/Anomaly/0.jpg", "Masks/Anomaly/0.png")
    folders = ("Images/Normal",), ("Images/Anomaly",), ("Masks",)
    assert masks_of(root, *folders) == {
        "Images/Anomaly/0.jpg": ["Masks/Anomaly/0.png"],
        "Images/Normal/0.jpg": [],
    }
    assert masks_of(root, *folders[:2], ("Masks/Anomaly",))["Images/Anomaly/0.jpg"]
    assert not masks_of(root, *folders[:2])["Images/Anomaly/0.jpg"]
    with pytest.raises(PadimEdgeError, match="belong together"):
        dataset.test_samples(root, Folders(("Images/Normal",)))


def test_masks_beside_their_images_as_kolektor_has_them(make: Make) -> None:
    root = make("ok/0.png", "ng/1.png", "ng/1_GT.png", "ng/2.png")
    assert masks_of(root, ("ok",), ("ng",), ("ng",)) == {
        "ng/1.png": ["ng/1_GT.png"],
        "ng/2.png": [],
        "ok/0.png": [],
    }


def test_a_mask_that_two_images_claim(make: Make) -> None:
    root = make("test/good/0.png", "test/a/0.png", "test/b/0.png", "ground_truth/0.png")
    assert "fits" in refusal(dataset.test_samples, root)


def test_a_dataset_without_masks(make: Make) -> None:
    root = make("test/good/0.png", "test/scratch/0.png")
    samples = dataset.test_samples(str(root))
    assert [sample.masks for sample in samples] == [(), ()]
    assert [sample.is_anomalous for sample in samples] == [False, True]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/good/0.png"], "has no folder test"),
        (["good/0.png", "scratch/0.png"], "has no folder test"),
        (["test/"], r"no good image to test with \(classes with images: none\)"),
        (["test/scratch/0.png", "test/good/"], r"no good image .*with images: scratch\)"),
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
        assert len(sample.masks) == sample.is_anomalous
        for mask in sample.masks:
            assert mask.name == f"{sample.path.stem}_mask.png"
            assert mask.parent.name == sample.defect
    assert dataset.stray_masks(root, samples) == []


def test_hazelnut(data: Path) -> None:
    root = data / "data" / "hazelnut_toy"
    assert len(train_images(root)) == 28
    samples = dataset.test_samples(root)
    assert Counter(sample.defect for sample in samples) == {"good": 6, "colour": 17}
    for sample in samples:
        if sample.is_anomalous:
            assert sample.path.suffix == ".jpg"
            assert [mask.name for mask in sample.masks] == [f"{sample.path.stem}.png"]
