"""Folders of images as MVTec AD lays them out, and plain folders of good ones.

<folder>/train/good/000.png
<folder>/test/good/000.png
<folder>/test/<defect>/000.png
<folder>/ground_truth/<defect>/000_mask.png     (or 000.png)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from padim_edge.errors import PadimEdgeError
from padim_edge.images.find import find_images, images_under, reading_folders

GOOD = "good"
_RESERVED = ("train", "test", "ground_truth")


@dataclass(frozen=True)
class Sample:
    """One image of a test set.

    Attributes:
        path: the image.
        defect: name of its class: "good", or what is wrong with it.
        mask: the image that marks the defect; None for good images, and where there is none.
    """

    path: Path
    defect: str
    mask: Path | None

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD


@reading_folders()
def train_images(folder: str | Path) -> list[Path]:
    """The good images to fit on, and never a defective one.

    Args:
        folder: a dataset, of which ``train/good`` is taken; or a folder with nothing but good
            images, in any folders below it. A file or a pattern stands for itself, as in
            :func:`padim_edge.images.find.find_images`.

    Returns:
        The paths, sorted, at least one.

    Raises:
        PadimEdgeError: there is no image, or defective ones might be among them: a folder
            ``train``, ``test`` or ``ground_truth`` at any depth but no ``train/good`` here, or a
            folder ``good`` beside others.
    """
    root = Path(folder)
    if not root.is_dir():
        return find_images(folder)
    good = root / "train" / GOOD
    if good.is_dir():
        return find_images(good)
    for name in _RESERVED:
        if (root / name).is_dir():
            raise PadimEdgeError(
                f"{root} has a folder {name} but no train/{GOOD}, so its images may be "
                "defective; give the folder of the good ones"
            )
    found = find_images(root)
    classes: set[str] = set()
    for path in found:
        below = path.relative_to(root).parts[:-1]
        if reserved := next((name for name in below if name in _RESERVED), None):
            raise PadimEdgeError(
                f"{path} lies in a folder {reserved}, so {root} seems to hold whole datasets; "
                "give one of them, or the folder of its good images"
            )
        classes.update(below[:1])
    if GOOD in classes and len(classes) > 1:
        others = ", ".join(sorted(classes - {GOOD}))
        raise PadimEdgeError(
            f"{root} has a folder {GOOD} beside others ({others}), which may be defective; "
            f"give {root / GOOD}"
        )
    return found


@reading_folders()
def test_samples(folder: str | Path) -> list[Sample]:
    """The good and the defective images of a dataset, with the masks that exist.

    Args:
        folder: the dataset, with ``test/good``, ``test/<defect>`` and, for masks,
            ``ground_truth/<defect>``.

    Returns:
        The samples, sorted by path: at least one good and one defective.

    Raises:
        PadimEdgeError: there is no such folder, good or defective images are missing, or an
            image lies in ``test`` itself, so that its class is unknown.
    """
    root = Path(folder)
    test = root / "test"
    wanted = f"it needs test/{GOOD} and test/<defect> with images"
    if not test.is_dir():
        reason = "has no folder test" if root.is_dir() else "is not a folder"
        raise PadimEdgeError(f"{root} {reason}; give a dataset: {wanted}")
    samples: list[Sample] = []
    masks: dict[str, dict[Path, Path]] = {}
    for path in images_under(test):
        within = path.relative_to(test)
        if len(within.parts) == 1:
            raise PadimEdgeError(
                f"{path} has no class; move it to test/{GOOD} or test/<name of the defect>"
            )
        defect = within.parts[0]
        if defect not in masks:
            masks[defect] = {} if defect == GOOD else _masks(root / "ground_truth" / defect)
        mask = masks[defect].get(within.relative_to(defect).with_suffix(""))
        samples.append(Sample(path, defect, mask))
    for missing, present in (
        ("good", any(not sample.is_anomalous for sample in samples)),
        ("defective", any(sample.is_anomalous for sample in samples)),
    ):
        if not present:
            have = ", ".join(sorted(masks)) or "none"
            raise PadimEdgeError(
                f"{test} has no {missing} image (classes with images: {have}); {wanted}"
            )
    return samples


def _masks(folder: Path) -> dict[Path, Path]:
    """Masks by the path of their image, relative to its class and without suffix."""
    found: dict[Path, Path] = {}
    paths = images_under(folder) if folder.is_dir() else []
    # 000_mask.png is unmistakable, 000.png might be a copy of the image: the former come first.
    for path in sorted(paths, key=lambda path: not path.stem.endswith("_mask")):
        name = path.relative_to(folder).with_name(path.stem.removesuffix("_mask"))
        found.setdefault(name, path)
    return found
