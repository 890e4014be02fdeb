"""Folders of images: good ones to fit on, and data sets to evaluate with, as MVTec AD has them.

<folder>/train/good/000.png
<folder>/test/good/000.png
<folder>/test/<defect>/000.png
<folder>/ground_truth/<defect>/000_mask.png     (or others: `padim_edge.images.masks`)

Names of folders count in any case, and so do the words below: Train/OK is train/good. Where the
names leave open which images are good, that is refused and not guessed; folders can be named.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.images.find import find_images, images_under, reading_folders
from padim_edge.images.masks import image_of, masks_by_image
from padim_edge.images.stored_path import as_path

GOOD = "good"
_GOOD = {GOOD, "normal", "ok", "okay", "io"}
_TRAIN = {"train", "training"}
_TEST = {"test", "testing", "val", "validation"}
_TRUTH = {"groundtruth", "gt", "mask", "masks", "label", "labels"}
_BAD = {
    *("abnormal", "anomalous", "anomalies", "anomaly", "bad", "broken", "damaged", "defect"),
    *("defective", "defects", "fail", "failed", "faulty", "ko", "ng", "nio", "nok", "notgood"),
    *("notok", "reject", "rejected", "rejects", "scrap"),
}


@dataclass(frozen=True)
class Sample:
    """One image of a test set.

    Attributes:
        path: the image.
        defect: name of its class: "good", or what is wrong with it.
        masks: images that mark the defect, all of them together; none where there are none.
    """

    path: Path
    defect: str
    masks: tuple[Path, ...] = ()

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD


@dataclass(frozen=True)
class Folders:
    """Folders named by whoever knows them, each relative to the data set or absolute.

    Attributes:
        normal: with good images.
        abnormal: with defective images, of one kind each or of several, in folders.
        masks: with masks of the defective ones.
    """

    normal: tuple[str, ...] = ()
    abnormal: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------ to fit on


@reading_folders()
def train_images(source: str | Path, folders: Folders | None = None) -> list[Path]:
    """The good images to fit on, and never a defective one.

    Args:
        source: a data set, of which ``train/good`` is taken; or a folder with nothing but good
            images. A file or a pattern stands for itself, as in
            :func:`padim_edge.images.find.find_images`.
        folders: of a data set. The normal ones are taken, with all below them, and nothing else;
            where none is named, images in the others are not taken.

    Returns:
        The paths, sorted, at least one.

    Raises:
        PadimEdgeError: there is no image, or which ones are good is left open: folders beside or
            below the images, or masks among them.
    """
    folders = folders or Folders()
    root = as_path(source)
    if folders.normal:
        chosen = {path for name in folders.normal for path in find_images(_named(root, name))}
        return sorted(chosen)
    if not root.is_dir():
        found = find_images(source)
        _refuse_doubtful(found, _common(found), "give a narrower pattern")
        return found
    train = _child(root, _TRAIN)
    good = train and _child(train, _GOOD)
    if good:
        found = find_images(good)
        _refuse_doubtful(found, good, "move it, or name the folders with --normal-dir")
        return found
    found = _without(find_images(root), root, folders.abnormal + folders.masks)
    _refuse_reserved(found, root)
    _refuse_folders(found, root)
    _refuse_doubtful(found, root, "name the folders of the good ones with --normal-dir")
    return found


def _refuse_reserved(found: list[Path], root: Path) -> None:
    """Refuse what seems to be a data set, but one without train/good."""
    for path in found:
        for depth, name in enumerate(path.relative_to(root).parts[:-1]):
            if _word(name) not in _TRAIN | _TEST | _TRUTH:
                continue
            if depth:
                raise PadimEdgeError(
                    f"{path} lies in a folder {name}, so {root} seems to hold whole datasets; "
                    "give one of them, or the folder of its good images"
                )
            raise PadimEdgeError(
                f"{root} has a folder {name} but no train/{GOOD}, so its images may be "
                "defective; give the folder of the good ones"
            )


def _refuse_folders(found: list[Path], root: Path) -> None:
    """Refuse folders of which nobody said that they are good; one of a good name alone says so."""
    inside = Counter(path.relative_to(root).parts[0] for path in found if path.parent != root)
    alone = len(inside) == 1 and inside.total() == len(found)
    if not inside or (alone and _word(next(iter(inside))) in _GOOD):
        return
    folders = ", ".join(f"{name} ({count})" for name, count in sorted(inside.items()))
    own = len(found) - inside.total()
    beside = f", beside {own} images of its own" if own else ""
    good = [name for name in sorted(inside) if _word(name) in _GOOD] or ["NAME"]
    raise PadimEdgeError(
        f"{root} has folders with images{beside}: {folders}; say which hold good ones, "
        f"--normal-dir {good[0]} and so on, or --normal-dir . if all do"
    )


def _refuse_doubtful(found: list[Path], root: Path, what: str) -> None:
    """Refuse images below folders whose names say that they are not good, and masks."""
    stems = {path.with_suffix("") for path in found}
    for path in found:
        bad = [name for name in path.relative_to(root).parts[:-1] if _word(name) in _BAD]
        if bad:
            raise PadimEdgeError(f"{path} lies in a folder {bad[0]} and may be defective; {what}")
        stem = image_of(path.stem)
        if stem and path.with_name(stem) in stems:
            raise PadimEdgeError(
                f"{path} seems to be the mask of {path.with_name(stem).name}, not a photo; remove "
                "it, or name the folders with --normal-dir"
            )


def _without(found: list[Path], root: Path, names: Sequence[str]) -> list[Path]:
    """Images that do not lie in one of the folders."""
    left = found
    for name in names:
        folder = _named(root, name).resolve()
        left = [path for path in left if not path.resolve().is_relative_to(folder)]
    if not left:
        raise PadimEdgeError(f"no image is left in {root} without {', '.join(names)}")
    return left


# ------------------------------------------------------------------------------------ to test


@reading_folders()
def has_test(source: str | Path, folders: Folders | None = None) -> bool:
    """Whether a source is meant to be tested with: a folder test, or folders named for it."""
    if folders and folders.abnormal:
        return True
    return _child(as_path(source), {"test", "testing"}) is not None


@reading_folders()
def test_samples(
    source: str | Path,
    folders: Folders | None = None,  # noqa: PT028 - no test of pytest's
) -> list[Sample]:
    """The good and the defective images of a data set, with the masks that exist.

    Args:
        source: the data set, with ``test/good``, ``test/<defect>`` and, for masks,
            ``ground_truth/<defect>``.
        folders: other ones. Masks lie in folders of the same structure, or in one by the name of
            the defect.

    Returns:
        The samples, sorted by path: at least one good and one defective.

    Raises:
        PadimEdgeError: there is no such folder, good or defective images are missing, one lies in
            ``test`` itself, so that its class is unknown, or two claim the same mask.
    """
    root = as_path(source)
    classes = list(_classes(root, folders or Folders()))
    samples = sorted(
        (sample for one in classes for sample in _samples(*one)), key=lambda sample: sample.path
    )
    _refuse_incomplete(root, samples)
    owners: dict[Path, Path] = {}
    for sample in samples:
        for mask in sample.masks:
            if owners.setdefault(mask, sample.path) != sample.path:
                raise PadimEdgeError(
                    f"the mask {mask} fits {owners[mask]} and {sample.path}: put the masks of each "
                    "kind of defect into a folder of its name"
                )
    return samples


@reading_folders()
def stray_masks(
    source: str | Path, samples: Sequence[Sample], folders: Folders | None = None
) -> list[Path]:
    """Masks of a data set that belong to none of its samples, sorted.

    Args:
        source: as in :func:`test_samples`.
        samples: what it gave.
        folders: as there.
    """
    used = {path for sample in samples for path in (sample.path, *sample.masks)}
    found = {
        path
        for folder in _truths(as_path(source), folders or Folders())
        for path in images_under(folder)
    }
    return sorted(found - used)


_Class = tuple[str, Path, list[Path]]
"""Name of a defect, the folder of its images and those of its masks."""


def _classes(root: Path, folders: Folders) -> Iterator[_Class]:
    truths = _truths(root, folders)
    if bool(folders.normal) != bool(folders.abnormal):
        raise UsageError("--normal-dir and --abnormal-dir belong together: give both or neither")
    if folders.normal:
        for name in folders.normal:
            yield GOOD, _named(root, name), []  # theirs may bear the names of the others' masks
        for name in folders.abnormal:
            folder = _named(root, name)
            yield folder.resolve().name, folder, truths
        return
    test = _child(root, {"test", "testing"})
    if test is None:
        reason = "has no folder test" if root.is_dir() else "is not a folder"
        raise PadimEdgeError(
            f"{root} {reason}; give a dataset: it needs test/{GOOD} and test/<defect> with images, "
            "or name its folders with --normal-dir and --abnormal-dir"
        )
    for path in images_under(test):
        if path.parent == test:
            raise PadimEdgeError(
                f"{path} has no class; move it to test/{GOOD} or test/<name of the defect>"
            )
    for folder in sorted(test.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            yield (GOOD if _word(folder.name) in _GOOD else folder.name), folder, truths


def _truths(root: Path, folders: Folders) -> list[Path]:
    """Folders of masks."""
    if folders.masks:
        return [_named(root, name) for name in folders.masks]
    if folders.normal:
        return []
    found = _child(root, _TRUTH)
    return [found] if found else []


def _samples(defect: str, folder: Path, truths: Sequence[Path]) -> list[Sample]:
    """The images of a class with their masks, which may lie beside them."""
    images = images_under(folder)
    masks: dict[Path, tuple[Path, ...]] = {}
    for truth in truths:
        # In a folder by the name of the class, or in one for all defects.
        own = _child(truth, {_word(folder.name)})
        if own is None and defect == GOOD:
            continue
        own = own or truth
        found = _masks_among(images_under(own), images)
        within = [path.relative_to(folder) for path in images]
        for image, some in masks_by_image(own, found, within).items():
            masks[folder / image] = masks.get(folder / image, ()) + some
    taken = {mask for some in masks.values() for mask in some}
    return [Sample(path, defect, masks.get(path, ())) for path in images if path not in taken]


def _masks_among(paths: Sequence[Path], images: Sequence[Path]) -> list[Path]:
    """What is no image itself, or is called the mask of one that lies beside it."""
    stems = {path.with_suffix("") for path in images}

    def is_mask(path: Path) -> bool:
        stem = image_of(path.stem)
        return stem is not None and path.with_name(stem) in stems

    known = set(images)
    return [path for path in paths if path not in known or is_mask(path)]


def _refuse_incomplete(root: Path, samples: Sequence[Sample]) -> None:
    for missing, present in (
        ("good", any(not sample.is_anomalous for sample in samples)),
        ("defective", any(sample.is_anomalous for sample in samples)),
    ):
        if not present:
            have = ", ".join(sorted({sample.defect for sample in samples})) or "none"
            raise PadimEdgeError(
                f"{root} has no {missing} image to test with (classes with images: {have}); it "
                f"needs test/{GOOD} and test/<defect> with images"
            )


# ------------------------------------------------------------------------------------ folders


def _word(name: str) -> str:
    """A folder's name as the words above: "Ground-Truth" is "groundtruth", "i.O." is "io"."""
    return re.sub(r"[\W_]", "", name).casefold()


def _child(folder: Path, words: set[str]) -> Path | None:
    """The folder inside whose name is one of the words.

    Raises:
        PadimEdgeError: there are several.
    """
    if not folder.is_dir():
        return None
    found = [
        path for path in sorted(folder.iterdir()) if _word(path.name) in words and path.is_dir()
    ]
    if len(found) > 1:
        raise PadimEdgeError(
            f"{folder} has {' and '.join(path.name for path in found)}, which mean the same: name "
            "the folders with --normal-dir, --abnormal-dir and --mask-dir"
        )
    return found[0] if found else None


def _named(root: Path, name: str) -> Path:
    """A folder named by the user, inside a data set or absolute."""
    own = as_path(name)
    folder = own if own.is_absolute() else root / name
    if not folder.is_dir():
        inside = (
            sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        )
        raise PadimEdgeError(
            f"there is no folder {folder}; {root} has {', '.join(inside) or 'none'}"
        )
    return folder


def _common(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all."""
    return type(paths[0])(os.path.commonpath([path.parent for path in paths]))
