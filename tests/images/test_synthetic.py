"""The synthetic data set: layout, reproducible bytes, masks that tell the truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.images import synthetic as module
from padim_edge.images.synthetic import make_dataset

DEFECTS = ("scratch", "stain", "missing_thread")
SMALL = {"train": 2, "good": 1, "per_defect": 2, "size": 64}


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all pictures by their path in the data set."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}


def test_layout_is_that_of_mvtec_ad(tmp_path):
    make_dataset(tmp_path / "new" / "set", **SMALL)
    found = contents(tmp_path / "new" / "set")
    assert set(found) == {
        "train/good/000.png",
        "train/good/001.png",
        "test/good/000.png",
        *(f"test/{kind}/00{index}.png" for kind in DEFECTS for index in (0, 1)),
        *(f"ground_truth/{kind}/00{index}_mask.png" for kind in DEFECTS for index in (0, 1)),
    }
    for name in found:
        with Image.open(tmp_path / "new" / "set" / name) as image:
            assert image.size == (64, 64)
            if name.startswith("ground_truth"):
                assert image.mode == "L"
                assert_array_equal(np.unique(image), [0, 255])
            else:
                assert image.mode == "RGB"


def test_defaults_make_110_pictures_and_30_masks(tmp_path):
    make_dataset(tmp_path, size=64)
    counts = {
        folder: len(list((tmp_path / folder).glob("*.png")))
        for folder in ("train/good", "test/good", "test/stain", "ground_truth/stain")
    }
    assert counts == {
        "train/good": 60,
        "test/good": 20,
        "test/stain": 10,
        "ground_truth/stain": 10,
    }
    assert len(contents(tmp_path)) == 140


def test_bytes_follow_from_the_seed(tmp_path):
    make_dataset(tmp_path / "a", **SMALL)
    make_dataset(tmp_path / "b", **SMALL)
    make_dataset(tmp_path / "c", seed=1, **SMALL)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == set(c)
    assert not any(a[name] == c[name] for name in a)
    assert len(set(a.values())) == len(a)


def test_more_pictures_leave_the_first_as_they_were(tmp_path):
    make_dataset(tmp_path / "few", **SMALL)
    make_dataset(tmp_path / "many", train=3, good=2, per_defect=3, size=64)
    assert contents(tmp_path / "few").items() < contents(tmp_path / "many").items()


def test_replaces_its_own_folder_and_nothing_else_in_it(tmp_path):
    make_dataset(tmp_path, seed=3, train=5, good=3, per_defect=4, size=64)
    (tmp_path / "test" / "good" / "mine.png").write_bytes(b"mine")
    make_dataset(tmp_path, **SMALL)
    make_dataset(tmp_path / "fresh", **SMALL)
    fresh = contents(tmp_path / "fresh")
    found = {name: data for name, data in contents(tmp_path).items() if "fresh" not in name}
    assert found == {**fresh, "test/good/mine.png": b"mine"}


@pytest.mark.parametrize("name", ["photo.png", module._MARKER])
def test_refuses_a_folder_it_did_not_make(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        make_dataset(tmp_path, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("text", ["[]", "{}", '{"train": "many", "good": 1, "per_defect": 1}'])
def test_refuses_a_marker_it_cannot_have_written(tmp_path, text):
    (tmp_path / module._MARKER).write_text(text)
    with pytest.raises(UsageError, match="not empty"):
        make_dataset(tmp_path, **SMALL)


def test_marker_holds_the_counts(tmp_path):
    make_dataset(tmp_path, **SMALL)
    counts = json.loads((tmp_path / module._MARKER).read_text())
    assert counts == {"train": 2, "good": 1, "per_defect": 2}


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PadimEdgeError, match=r"cannot write .*file") as caught:
        make_dataset(tmp_path / "file" / "set", **SMALL)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"train": -1}, {"good": -2}, {"per_defect": -1}, {"size": 63}]
)
def test_refuses_numbers_out_of_range(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=f"{name} {value}"):
        make_dataset(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("kind", DEFECTS)
def test_masks_mark_what_differs_from_the_same_cloth_without_defect(kind):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        cloth = module._Cloth(rng, 256)
        clean = cloth.picture()
        pixels, mask = module._KINDS[kind](rng, cloth)
        change = np.abs(pixels - clean).max(2)
        rows, columns = np.nonzero(mask)
        # Realistic in size: 0.1 % to 5 % of the picture, and not cut off by its edge.
        assert 0.001 < mask.mean() < 0.05
        assert 0 < min(rows.min(), columns.min()) <= max(rows.max(), columns.max()) < 255
        # Well above the noise, sigma 0.012; a missing thread shows where it was in front.
        assert change[mask].mean() > 0.1
        assert np.mean(change[mask] > 0.05) > 0.4
        # Soft edges reach three pixels beyond the mask and no further.
        near = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).convert("L"))
        near = np.pad(near > 0, 3)
        near = np.lib.stride_tricks.sliding_window_view(near, (7, 7)).any((2, 3))
        assert change[~near].max() < 0.02


def test_good_cloth_has_no_defect():
    rng = np.random.default_rng(0)
    cloth = module._Cloth(rng, 64)
    pixels, mask = module._KINDS["good"](rng, cloth)
    assert not mask.any()
    assert_array_equal(pixels, cloth.picture())
    assert pixels.min() >= 0
    assert pixels.max() <= 1.2


def test_good_pictures_differ_in_place_and_light(tmp_path):
    make_dataset(tmp_path, train=12, good=0, per_defect=0, size=64)
    files = sorted((tmp_path / "train" / "good").iterdir())
    pictures = np.stack([np.asarray(Image.open(file), np.float64) for file in files])
    # At one pixel there is warp in one picture, weft in another; the mean shows the light.
    assert pictures.std(0).mean() > 20
    assert 2 < pictures.mean((1, 2, 3)).std() < 12


def test_size_changes_the_resolution_only():
    """Two by two pixels of a picture twice the size average to the same cloth."""
    small = module._Cloth(np.random.default_rng(5), 256).picture()
    large = module._Cloth(np.random.default_rng(5), 512).picture()
    averaged = large.reshape(256, 2, 256, 2, 3).mean((1, 3))
    assert np.abs(averaged - small).mean() < 0.01
    assert np.corrcoef(averaged.ravel(), small.ravel())[0, 1] > 0.99
