"""Several categories: a detector each, measured on its own data set, and their means."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padim_edge.detect.metrics import Metrics, require_eval_extra
from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.files import atomic_write

FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pro": "PRO (to 0.3)"}

Measure = Callable[[Path, Path], Metrics]
"""From a detector's file and a data set to its metrics."""

Fit = Callable[[Path, Path], None]
"""From a data set to the file of a detector, which is written."""

Work = Callable[[str, dict[str, Any]], dict[str, Any]]
"""From a category's name, and what is known of it from an earlier run, to what `Results` holds."""

AtOnce = Callable[[Work, Sequence[tuple[str, dict[str, Any]]]], Iterable[dict[str, Any]]]
"""Does the work for each category, and gives what comes of it in order."""


def one_by_one(
    work: Work, pieces: Sequence[tuple[str, dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """In this process, one after another: an `AtOnce`."""
    for piece in pieces:
        yield work(*piece)


@dataclass(frozen=True)
class Results:
    """What is known of each category, kept in a file as it comes.

    Attributes:
        file: JSON, written anew after each category; None to keep nothing.
        categories: name -> metrics and the detector that they are of, or the reason why not.
    """

    file: Path | None
    categories: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, file: Path | None, resume: bool) -> Results:
        """New ones, or those in the file.

        Raises:
            UsageError: there is no file to go on with.
            PadimEdgeError: it is none of these.
        """
        if resume and file is None:
            raise UsageError("--resume goes on with a file: name it with --json")
        if not resume or file is None or not file.exists():
            return cls(file, {})
        wrong = PadimEdgeError(
            f"{file} is no file of 'eval' over categories: name another, or leave --resume out"
        )
        try:
            known = json.loads(file.read_bytes())["categories"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise wrong from error
        if not isinstance(known, dict) or not all(map(_is_result, known.values())):
            raise wrong
        return cls(file, known)

    def mean(self, figure: str) -> float | None:
        """Of all categories that have this figure."""
        known = [one[figure] for one in self.categories.values() if one.get(figure) is not None]
        return math.fsum(known) / len(known) if known else None

    @property
    def failed(self) -> int:
        """How many have none."""
        return sum("error" in one for one in self.categories.values())

    def keep(self, complete: bool) -> None:
        """Write them."""
        if self.file:
            means = {figure: self.mean(figure) for figure in FIGURES}
            categories = dict(sorted(self.categories.items()))
            value = {"complete": complete, "mean": means, "categories": categories}
            with atomic_write(self.file) as stream:
                stream.write((json.dumps(value, indent=2) + "\n").encode())


def _is_result(value: object) -> bool:
    """Whether it is what `Results` holds of a category."""
    return isinstance(value, dict) and all(
        isinstance(value.get(figure), int | float | None) for figure in FIGURES
    )


def evaluate_categories(
    detectors: Path,
    datasets: Path,
    measure: Measure,
    fit: Fit | None,
    json_file: Path | None,
    resume: bool,
    tell: Callable[[str], None] = lambda _: None,
    at_once: AtOnce = one_by_one,
) -> Results:
    """Measure a detector on each folder of a folder; none stops the rest.

    Args:
        detectors: a folder with ``NAME.onnx`` or ``NAME/padim.onnx`` for each category.
        datasets: a folder with a data set for each.
        measure: does it.
        fit: makes detectors that are not there; None to make none.
        json_file: where results are kept as they come.
        resume: whether categories in that file, of the same detector, are taken from it.
        tell: takes a line as work goes on.
        at_once: does the work; others do it on other machines (`padim_edge.scale`).

    Raises:
        PadimEdgeError: there is no category, or the file cannot be written.
    """
    require_eval_extra()  # now, not for each
    folders = datasets.iterdir() if datasets.is_dir() else ()
    names = sorted(one.name for one in folders if one.is_dir() and not one.name.startswith("."))
    if not names:
        raise PadimEdgeError(
            f"{datasets} holds no category: give a folder that has a folder with a data set for "
            "each"
        )
    results = Results.of(json_file, resume)
    for other in results.categories.keys() - set(names):
        del results.categories[other]
    results.keep(complete=False)  # and a file that cannot be written is told of before the work
    work = functools.partial(_one, detectors, datasets, measure, fit, tell)
    pieces = [(name, results.categories.get(name, {})) for name in names]
    for name, found in zip(names, at_once(work, pieces), strict=True):
        results.categories[name] = found
        results.keep(complete=False)
    results.keep(complete=True)
    return results


def _one(
    detectors: Path,
    datasets: Path,
    measure: Measure,
    fit: Fit | None,
    tell: Callable[[str], None],
    name: str,
    known: dict[str, Any],
) -> dict[str, Any]:
    """What becomes of a category."""
    tell(f"{name}:")
    try:
        model = _detector(detectors, name, datasets / name, fit, tell)
        of = {"detector": str(model), "sha256": _sha256(model)}
        if known.get("sha256") == of["sha256"] and "error" not in known:
            tell("  as in the earlier run")
            return known
        return of | measure(model, datasets / name).to_json()
    except (PadimEdgeError, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        tell(f"warning: {name} is left out: {reason}")
        return {"error": reason}


def _detector(
    detectors: Path,
    name: str,
    dataset: Path,
    fit: Fit | None,
    tell: Callable[[str], None],
) -> Path:
    """The file of a category's detector, fitted if there is none and it is wanted."""
    places = (detectors / f"{name}.onnx", detectors / name / "padim.onnx")
    found = next((place for place in places if place.exists()), None)
    if found:
        return found
    if fit is None:
        raise PadimEdgeError(
            f"there is no {places[0]} and no {places[1]}: fit one, or give --fit-from"
        )
    detectors.mkdir(parents=True, exist_ok=True)
    fit(dataset, places[0])
    tell(f"  fitted: {places[0]}")
    return places[0]


def _sha256(model: Path) -> str:
    try:
        return hashlib.sha256(model.read_bytes()).hexdigest()
    except OSError as error:
        raise PadimEdgeError(f"cannot read {model}: {error.strerror}") from error
