"""`padim-edge eval`: a detector is measured on images with known defects."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import (
    AbnormalDirs,
    EngineName,
    MaskDirs,
    NormalDirs,
    OnRay,
    RayAddress,
    ReportFile,
    Strict,
    Threads,
    Threshold,
    folders_of,
)
from padim_edge.cli.output import (
    Skipped,
    open_cluster,
    open_detector,
    progress_bars,
    say,
    say_images,
    table,
    visible,
    write_json,
)
from padim_edge.errors import PadimEdgeError, UsageError, listed

if TYPE_CHECKING:
    from padim_edge.detect.categories import AtOnce, Results
    from padim_edge.detect.judging import Verdict
    from padim_edge.detect.metrics import Metrics
    from padim_edge.images.dataset import Folders
    from padim_edge.images.decode import Head
    from padim_edge.scale.cluster import Cluster
    from padim_edge.scale.judging import Judged


@command("eval", "padim-edge eval padim.onnx mvtec/bottle --json bottle.json")
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            help="Detector made by 'padim-edge fit'; or, for several categories, a folder with "
            "NAME.onnx for each."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Data set with test/ and ground_truth/; or a folder with one for each category.",
        ),
    ],
    normal_dir: NormalDirs = None,
    abnormal_dir: AbnormalDirs = None,
    mask_dir: MaskDirs = None,
    engine: EngineName = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results as JSON.")
    ] = None,
    report: ReportFile = None,
    fit_from: Annotated[
        Path | None,
        typer.Option(
            "--fit-from",
            help="Of several categories: an embedding.onnx, from which detectors that are not "
            "there are fitted on train/good, as fit does by default.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Of several categories: take from the file of --json what it has of the same "
            "detector.",
        ),
    ] = False,
    threshold: Threshold = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run of the engine.")] = 8,
    strict: Strict = False,
    threads: Threads = 0,
    ray: OnRay = False,
    ray_address: RayAddress = None,
) -> None:
    """Measure a detector on images with known defects: AUROC, PRO, F1, false alarms."""
    from padim_edge.detect.report.page import check_place
    from padim_edge.files import check_distinct, check_not_read
    from padim_edge.images.stored_path import as_path

    dataset = as_path(data)
    folders = folders_of(normal_dir, abnormal_dir, mask_dir)

    if fit_from and model.exists() and not model.is_dir():
        raise UsageError(f"--fit-from is of several categories: {model} is a file, give a folder")
    if model.is_dir() and (dataset / "test").is_dir():
        raise PadimEdgeError(
            f"{model} is a folder, and {dataset} is one data set: give a detector's file, or, for "
            "several categories, a folder that has a folder for each"
        )
    if fit_from or model.is_dir():
        check_distinct(embedding=fit_from, json=json_file)
        for file in model.glob("*.onnx"):
            check_distinct(model=file, json=json_file)
        if report or threshold is not None:
            raise UsageError("--report and --threshold are of one category: give its own file")
        from padim_edge.detect.categories import evaluate_categories
        from padim_edge.images.find import find_images
        from padim_edge.runtime.engines import check_name

        check_name(engine)  # now, not for each
        if json_file and json_file.exists():
            check_not_read(find_images(dataset), json=json_file)
        with open_cluster(ray, ray_address) as cluster:
            # In a cluster a category has a worker to itself.
            own = threads or 1 if cluster else threads
            measured = functools.partial(
                _measured, folders=folders, engine=engine, report=None, json_file=None,
                threshold=None, batch=batch, strict=strict, threads=own, cluster=None,
            )  # fmt: skip
            fit = functools.partial(_fit, fit_from, folders, strict, own) if fit_from else None
            results = evaluate_categories(
                model, dataset, measured, fit, json_file, resume, say,
                _at_once(cluster, engine, threads, model, dataset, fit_from),
            )  # fmt: skip
        _print_categories(results)
        return
    if resume:
        raise UsageError("--resume is of several categories: give a folder with NAME.onnx for each")
    check_place(report)
    check_distinct(model=model, json=json_file, report=report)
    with open_cluster(ray, ray_address) as cluster:
        metrics = _measured(
            model, dataset, folders, engine, report, json_file, threshold, batch, strict, threads,
            cluster,
        )  # fmt: skip
    _print(metrics)
    if json_file:
        write_json(json_file, metrics.to_json())


def _measured(
    model: Path,
    dataset: Path,
    folders: Folders,
    engine: str,
    report: Path | None,
    json_file: Path | None,
    threshold: float | None,
    batch: int,
    strict: bool,
    threads: int,
    cluster: Cluster | None,
) -> Metrics:
    """The metrics of a detector; says what the user should know of the images, writes the page."""
    from padim_edge.detect.evaluation import judge_samples
    from padim_edge.detect.heads import Heads
    from padim_edge.detect.report.evaluated import evaluated
    from padim_edge.detect.report.page import page
    from padim_edge.files import atomic_write, check_not_read
    from padim_edge.images.dataset import stray_masks, test_samples
    from padim_edge.images.decode import read_head

    samples = test_samples(dataset, folders)
    paths = [sample.path for sample in samples]
    say_images(paths)
    masks = [mask for sample in samples for mask in sample.masks]
    check_not_read([*paths, *masks], json=json_file, report=report)
    if strays := stray_masks(dataset, samples, folders):
        say(f"warning: {len(strays)} mask(s) belong to no image: {listed(strays)}")
    skipped = Skipped(strict)
    with contextlib.ExitStack() as stack:
        page_file = stack.enter_context(atomic_write(report)) if report else None
        detector = stack.enter_context(open_detector(model, engine, threads, threshold))
        progress = stack.enter_context(progress_bars())
        verdicts = None
        heads: list[Head | None] = []
        if cluster:
            from padim_edge.scale.judging import judge_on

            told = judge_on(cluster, model, paths, batch, engine, threads, threshold)
            verdicts = _verdicts(told, heads)
        judged = judge_samples(
            detector, samples, batch, skipped, progress, lambda text: say(f"warning: {text}"),
            verdicts,
        )  # fmt: skip
        metrics = judged.metrics()
        if page_file:
            name, unread = dataset.resolve().name, skipped.lines()
            shown = evaluated(name, model, detector, judged, metrics, unread, progress)
            page_file.write(page(shown))
        info = detector.detector_info
    if info.judged < 1:
        say(f"{info.judged:.0%} of what the graph sees is judged: for the pixels, all else is good")
    shapes = Heads(info, say)
    for sample, head in zip(
        samples, heads or (read_head(one.path) for one in samples), strict=True
    ):
        shapes.take(sample.path, head)
    skipped.summary()
    shapes.summary()
    return metrics


def _verdicts(told: Iterable[Judged], heads: list[Head | None]) -> Iterator[Verdict]:
    """Verdicts as they come; the heads of their files are kept."""
    for verdict, head in told:
        heads.append(head)
        yield verdict


def _at_once(cluster: Cluster | None, engine: str, threads: int, *paths: Path | None) -> AtOnce:
    """What does the work of several categories, with these paths: this process, or a cluster."""
    if cluster is None:
        from padim_edge.detect.categories import one_by_one

        return one_by_one
    from padim_edge.scale.categories import spread_out
    from padim_edge.scale.cluster import start_of

    folder = start_of(path for path in paths if path)
    return functools.partial(spread_out, cluster, engine, threads, folder, say)


def _print(metrics: Metrics) -> None:
    def number(value: float | None) -> str:
        return "no masks" if value is None else f"{value:.4f}"

    table(
        [
            ("image AUROC", number(metrics.image_auroc)),
            ("pixel AUROC", number(metrics.pixel_auroc)),
            ("PRO (to 0.3)", number(metrics.pro)),
            ("best F1", number(metrics.best_f1)),
            (f"F1 at {metrics.threshold:.3f}", number(metrics.f1)),
            ("precision", number(metrics.precision)),
            ("recall", number(metrics.recall)),
            ("false-alarm rate", number(metrics.false_alarm_rate)),
        ],
        (f"{metrics.good} good, {metrics.defective} defective", ""),
    )
    if metrics.images_without_mask:
        say(
            f"{metrics.images_without_mask} defective image(s) have no mask, or none where the map "
            "is judged: left out of pixels"
        )


def _fit(
    embedding: Path, folders: Folders, strict: bool, threads: int, dataset: Path, target: Path
) -> None:
    """A detector as `fit` makes it by default."""
    from padim_edge.cli.fit import say_fitted
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.model.file import read

    model = read(embedding, "embedding")
    settings = Settings(Preprocess.choose(model.backbone_info.image_size))
    skipped = Skipped(strict)
    with progress_bars() as progress:
        done = fit_detector(
            model,
            train_images(dataset, folders),
            target,
            settings,
            threads=threads,
            on_error=skipped,
            progress=progress,
        )
    skipped.summary()
    say_fitted(done, default_rate=True)


def _print_categories(results: Results) -> None:
    """The papers' table; fails if a category did."""
    from padim_edge.detect.categories import FIGURES

    def cells(name: str, values: list[float | None]) -> tuple[str, ...]:
        return (visible(name), *("-" if value is None else f"{value:.4f}" for value in values))

    rows = [
        cells(name, [one.get(figure) for figure in FIGURES])
        for name, one in sorted(results.categories.items())
    ]
    rows.append(cells("mean", [results.mean(figure) for figure in FIGURES]))
    typer.echo("")
    table(rows, ("category", *FIGURES.values()))
    if results.failed:
        raise PadimEdgeError(
            f"{results.failed} of {len(results.categories)} categories failed, see above"
        )
