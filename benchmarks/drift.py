"""How often drift is said where there is none, and how soon where there is: on real photos.

Photos of one data set are drawn into those of a fit and those that come after it, again and again.
What comes after is of the same kind, so nothing may be said, but for a share alpha of the draws.
Then each change is made to what comes after, behind ten clean photos, and the photos are counted
from there until it is said; what is said of the clean ones is not of the change. Beside it stand
the false alarms of the changed photos.

    python benchmarks/drift.py embedding.onnx DATASET --fit 60 --after 60 --draws 20 --alpha 0.05
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from padim_edge.detect.detector import Detector
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.preprocess import Preprocess
from padim_edge.live.drift import SCORE, Drift
from padim_edge.model.file import read

CLEAN = 10
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "brightness +5 %": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
    "brightness +15 %": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "blur, sigma 1 px of 256": lambda image: image.filter(
        ImageFilter.GaussianBlur(image.width / 256)
    ),
    "shift 2 % across": lambda image: image.transform(
        image.size, Image.Transform.AFFINE, (1, 0, -0.02 * image.width, 0, 1, 0)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embedding", type=Path)
    parser.add_argument("data", type=Path, help="with train/good")
    parser.add_argument("--fit", type=int, default=60, help="photos of a fit")
    parser.add_argument("--after", type=int, help="photos that come after it; all the rest if not")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    photos = sorted((options.data / "train" / "good").iterdir())
    others = options.data / "test" / "good"
    photos += sorted(others.iterdir()) if others.is_dir() else []
    used = len(photos) if options.after is None else options.fit + options.after
    if not options.fit + CLEAN < used <= len(photos):
        raise SystemExit(
            f"--fit {options.fit} leaves {used - options.fit} photos after it, of "
            f"{len(photos)} good ones in {options.data}: more than {CLEAN}, and no more than there "
            "are, must come after it"
        )
    embedding = read(options.embedding, "embedding")
    whole = Preprocess.whole(embedding.backbone_info.image_size)
    images = {path: Image.open(path).convert("RGB") for path in photos}
    prepared = {
        name: {path: whole(change(image)) for path, image in images.items()}
        for name, change in CHANGES.items()
    }
    first: dict[tuple[str, str], list[int | None]] = {}
    alarms: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.draws):
            order = [photos[place] for place in rng.permutation(len(photos))[:used]]
            file = Path(folder) / "padim.onnx"
            fit_detector(
                embedding, order[: options.fit], file, Settings(whole), threads=options.threads
            )
            with Detector(file, "ort", options.threads) as detector:
                for name in CHANGES:
                    drift = Drift(detector.detector_info, options.alpha)
                    found: dict[str, int] = {}
                    anomalous = []
                    for place, path in enumerate(order[options.fit :]):
                        image = prepared["none" if place < CLEAN else name][path]
                        (result,) = detector.judge(image[None])
                        anomalous.append(result.is_anomalous)
                        for change in drift(result, image, float(place)):
                            kind = SCORE if change.statistic == SCORE else "image"
                            number = photos_until(place, name)
                            if number is not None:
                                found.setdefault(kind, number)
                    for kind in (SCORE, "image"):
                        first.setdefault((name, kind), []).append(found.get(kind))
                    alarms.setdefault(name, []).append(float(np.mean(anomalous[CLEAN:])))
    print(
        f"{options.data.name}: {options.draws} draws, {options.fit} photos of a fit, "
        f"{used - options.fit} after it, alpha {options.alpha:g} of all numbers together"
    )
    print(f"{'change':<26}{'alarms':>8}  {'said by scores':<28}said by the images")
    for name in CHANGES:
        cells = []
        for kind in (SCORE, "image"):
            said = [number for number in first[name, kind] if number is not None]
            middle = f", after {np.median(said):.0f} (median)" if said else ""
            cells.append(f"{len(said)} of {options.draws}{middle}")
        print(f"{name:<26}{np.mean(alarms[name]):>8.1%}  {cells[0]:<28}{cells[1]}")
    both = zip(first["none", SCORE], first["none", "image"], strict=True)
    either = sum(pair != (None, None) for pair in both)
    print(f"false alarm of drift: {either} of {options.draws} draws")


def photos_until(place: int, name: str) -> int | None:
    """Changed photos until one at a place, itself included; None where nothing was changed yet.

    Without a change, photos that came after the fit.
    """
    if name == "none":
        return place + 1
    return place + 1 - CLEAN if place >= CLEAN else None


if __name__ == "__main__":
    main()
