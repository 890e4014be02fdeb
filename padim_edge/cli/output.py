"""What commands print: results on stdout; progress, warnings and choices on stderr."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from padim_edge.errors import ImageError

if TYPE_CHECKING:
    from padim_edge.detect.detector import Detector
    from padim_edge.images.dataset import Folders
    from padim_edge.model.metadata import DetectorInfo
    from padim_edge.scale.cluster import Cluster


def say(text: str) -> None:
    """One line on stderr, so that stdout holds results alone."""
    typer.echo(visible(text), err=True)


def visible(text: str) -> str:
    """A text in one line, whatever names of files are in it: what moves the cursor is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def good_images(sources: Sequence[str], folders: Folders) -> list[Path]:
    """The good images of several sources, each path once; says which they are."""
    from padim_edge.images.dataset import train_images

    found = dict.fromkeys(path for one in sources for path in train_images(one, folders))
    paths = list(found)
    say_images(paths)
    return paths


def say_images(paths: Sequence[Path]) -> None:
    """Which images are taken, and what lies beside them and is none."""
    from padim_edge.images.find import beside, places

    others = beside(paths)
    say(f"images: {places(paths)}" + (f"; no images: {others}" if others.others else ""))


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, one per stage; silent when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, Any] = {}
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done, total=total)

        yield show


@contextlib.contextmanager
def open_detector(
    model: Path, engine: str, threads: int, threshold: float | None = None
) -> Iterator[Detector]:
    """A detector; what takes long shows its progress, and with engine auto the choice is said."""
    from padim_edge.detect.detector import Detector

    with progress_bars() as progress:
        detector = Detector(model, engine, threads, progress, threshold=threshold)
    with detector:
        say_skipped(detector.skipped, detector.engine.name)
        say_if_float32(detector.engine.name, detector.backbone_info.precision)
        say_if_made_for_another(detector.engine.name, detector.backbone_info.quantised_for)
        yield detector


@contextlib.contextmanager
def open_cluster(wanted: bool, address: str | None) -> Iterator[Cluster | None]:
    """A Ray cluster, if --ray or --ray-address asks for one; which it is, is said."""
    if not wanted and address is None:
        yield None
        return
    from padim_edge.scale.cluster import connected

    with connected(address) as cluster:
        say(str(cluster))
        yield cluster


def say_skipped(reasons: Sequence[str], chosen: str) -> None:
    """Why engines before the chosen one do not run here, if there were any."""
    for reason in reasons:
        say(f"not on this machine: {reason}")
    if reasons:
        say(f"engine {chosen} is used")


def say_if_few(info: DetectorInfo) -> None:
    """Warn of a false-alarm rate that was left to the fit, and that few images made a high one."""
    from padim_edge.fit.settings import DEFAULT_FALSE_ALARM_RATE
    from padim_edge.model.threshold import images_needed

    if info.false_alarm_rate > DEFAULT_FALSE_ALARM_RATE:
        say(
            f"warning: {len(info.good_scores)} images are too few for a false-alarm rate "
            f"of {DEFAULT_FALSE_ALARM_RATE} "
            f"({images_needed(DEFAULT_FALSE_ALARM_RATE)} are needed): "
            f"the threshold is set for {info.false_alarm_rate:.3g}"
        )


def print_threshold(info: DetectorInfo) -> None:
    """Lines of what a fit or an import made: the threshold, and how far it can be trusted."""
    from padim_edge.model.threshold import rate_interval

    typer.echo(
        f"  threshold   {info.threshold:.3f} for a false-alarm rate of "
        f"{info.false_alarm_rate:.3g} ({info.calibration})"
    )
    rate = rate_interval(len(info.good_scores), info.false_alarm_rate)
    typer.echo(f"  true rate   {interval(rate)}, at 95 %: so much so many images can say")


def say_if_float32(engine: str, precision: str) -> None:
    """That a GPU would be faster in another precision, if it would."""
    from padim_edge.runtime.engines import NVIDIA

    if engine in NVIDIA and precision == "float32":
        say(
            "note: this backbone is float32, and a GPU does float16 in about half the time, with "
            "the same AUROC: padim-edge export --precision float16, then fit again"
        )


def say_if_made_for_another(engine: str, made_for: str) -> None:
    """Warn of an int8 backbone that was made for another runtime, where that costs the gain.

    Args:
        engine: that runs it.
        made_for: what ``--for`` named; empty for no int8 backbone.
    """
    # Not openvino with one made for tensorrt: it is as fast. ResNet-18 in engine ort: 19.1 ms, and
    # 13.1 in float32.
    if engine == "ort" and made_for == "tensorrt":
        say(
            "warning: this int8 backbone was made for tensorrt, and is slower than float32 in "
            "engine ort: make it with --for cpu, then fit again, or take engine openvino"
        )
    if engine in ("trt", "trt/graph") and made_for in ("cpu", "openvino"):
        say(
            f"warning: this int8 backbone was made for {made_for}: TensorRT wants one made with "
            "--for tensorrt; make it so, then fit again"
        )


class Skipped:
    """Counts images that could not be read, and says each; stops at the first if strict."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.errors: list[tuple[Path, ImageError]] = []

    def __call__(self, path: Path, error: ImageError) -> None:
        """Count one, or stop."""
        if self.strict:
            raise error
        self.errors.append((path, error))
        say(f"warning: left out: {error}")

    def lines(self) -> list[tuple[str, str]]:
        """Each with the reason, in words."""
        return [(str(path), str(error)) for path, error in self.errors]

    def summary(self) -> None:
        """Say how many there were, if any."""
        if self.errors:
            say(f"warning: {len(self.errors)} unreadable image(s) were left out")


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Print aligned columns; text is left of a column, numbers right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        parts = [
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(parts).rstrip())


def interval(bounds: tuple[float, float]) -> str:
    """Where a share lies."""
    return f"{bounds[0]:.2g} to {bounds[1]:.2g}"


def write_json(path: Path, value: Any) -> None:
    """Write plain values as a JSON file, whole or not at all."""
    from padim_edge.files import atomic_write

    with atomic_write(path) as stream:
        stream.write(json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Plain values as the text of a JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def say_if_dark(brightest: int) -> None:
    """Warn of images that are nearly black, as a camera's 12 bits are where 16 are meant."""
    if brightest < 16:
        say(
            f"warning: nothing in these images is brighter than {brightest} of 255; if their 16 "
            "bits hold fewer, as a camera's 12, say so with --bit-depth"
        )
