"""The command line: parse, import what is needed, one call, print."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from padim_edge import __version__
from padim_edge.errors import ImageError, PadimEdgeError, UsageError, first_line

if TYPE_CHECKING:
    from padim_edge.detect.detector import Detector
    from padim_edge.measure.against import Earlier
    from padim_edge.measure.bench import BatchResult, Report

INTERRUPTED = 130
# The class of all complaints of typer about arguments; it has no public name.
_WrongArguments = cast("type[Exception]", typer.BadParameter.__base__)

app = typer.Typer(
    name="padim-edge",
    help="PaDiM anomaly detection: from a folder of good photos to a detector at the edge.",
    epilog="Start here:  padim-edge demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelFile = Annotated[Path, typer.Argument(help="Detector made by 'padim-edge fit'.")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="auto (the first of the next four that runs here), trt (TensorRT), ort-cuda (ONNX "
        "Runtime on an NVIDIA GPU), ort (on the CPU), openvino (on the CPU), or openvino-bf16 "
        "(rounds to bfloat16; never chosen by auto).",
    ),
]
Scoring = Annotated[
    str,
    typer.Option(
        "--scoring",
        help="With --engine trt: kernels (our own), or graph (TensorRT's, to compare with).",
    ),
]
Threads = Annotated[
    int, typer.Option("--threads", min=0, max=1024, help="Threads; 0 takes all cores.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unreadable image.")]


def main() -> None:
    """Run the command line: 0 ok, 1 the work failed, 2 wrong use, 130 interrupted."""
    # A service manager's SIGTERM and a lost connection's SIGHUP unwind like Ctrl-C, so that no
    # temporary file stays behind.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    # Pillow's doubts about large files and odd EXIF; what cannot be read is reported anyway.
    warnings.filterwarnings("ignore", module="PIL")
    # File names may hold bytes that are no text in the encoding of stdout.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # --debug is looked up in sys.argv, so it may stand anywhere.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        sys.exit(app(arguments or ["--help"], prog_name="padim-edge", standalone_mode=False))
    except _WrongArguments as error:  # which typer would report in four lines
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "padim-edge"
        _say(f"error: {error.format_message().rstrip('.')}; see  {command} --help")  # type: ignore[attr-defined]
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"padim-edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    pass


F = TypeVar("F", bound=Callable[..., None])


def _command(name: str, example: str) -> Callable[[F], F]:
    """Register a command whose errors become one line on stderr and an exit code."""

    def register(function: F) -> F:
        @functools.wraps(function)
        def reported(*arguments: Any, **options: Any) -> None:
            try:
                function(*arguments, **options)
            except KeyboardInterrupt:
                _say("interrupted: no half-written file was left")
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:
                raise  # the reader went away, as in `padim-edge run ... | head`
            except (PadimEdgeError, OSError, MemoryError) as error:
                if "--debug" in sys.argv:
                    raise
                _say(f"error: {str(error) or type(error).__name__}")
                raise typer.Exit(getattr(error, "exit_code", 1)) from None
            except (typer.Exit, typer.Abort):
                raise
            except Exception as error:
                if "--debug" in sys.argv:
                    raise
                _say(
                    f"error: this should not happen ({type(error).__name__}: {first_line(error)}): "
                    "please report it with what --debug prints"
                )
                raise typer.Exit(1) from None

        app.command(name, epilog=f"Example:  {example}")(reported)
        return function

    return register


def _say(text: str) -> None:
    """One line on stderr, so that stdout holds results alone."""
    typer.echo(text, err=True)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
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
def _open(model: Path, engine: str, threads: int, scoring: str = "kernels") -> Iterator[Detector]:
    """A detector; what takes long shows its progress, and with engine auto the choice is said."""
    from padim_edge.detect.detector import Detector

    with _progress() as progress:
        detector = Detector(model, engine, threads, scoring, progress)
    with detector:
        _say_skipped(detector.skipped, detector.engine.name)
        yield detector


def _say_skipped(reasons: Sequence[str], chosen: str) -> None:
    for reason in reasons:
        _say(f"not on this machine: {reason}")
    if reasons:
        _say(f"engine {chosen} is used")


class _Skipped:
    """Counts images that could not be read, and says each; stops at the first if strict."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.errors: list[tuple[Path, ImageError]] = []

    def __call__(self, path: Path, error: ImageError) -> None:
        if self.strict:
            raise error
        self.errors.append((path, error))
        _say(f"warning: left out: {error}")

    def summary(self) -> None:
        """Say how many there were, if any."""
        if self.errors:
            _say(f"warning: {len(self.errors)} unreadable image(s) were left out")


def _table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Print aligned columns; text is left of a column, numbers right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        parts = [
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(parts).rstrip())


def _write_json(path: Path, value: Any) -> None:
    from padim_edge.files import atomic_write

    with atomic_write(path) as stream:
        stream.write(_json_bytes(value))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _names(text: str | None) -> tuple[str, ...] | None:
    """'layer1,layer2' as names."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _integers(option: str, text: str | None) -> tuple[int, ...] | None:
    """'6,28,66' as integers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: integers with commas between are needed") from None


@_command(
    "export", "padim-edge export --backbone resnet18 --dims 100 --weights default -o embedding.onnx"
)
def export(
    backbone: Annotated[
        str, typer.Option("--backbone", help="A classification network of torchvision.")
    ] = "resnet18",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Its layers, fine to coarse: layer1,layer2,...")
    ] = None,
    dims: Annotated[
        str | None,
        typer.Option(
            "--dims", help="Channels to choose: 100 of all at random, or 6,28,66 per layer."
        ),
    ] = None,
    channels: Annotated[
        Path | None,
        typer.Option("--channels", help="File with the channels to take instead (JSON or text)."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="default (ImageNet, from torchvision's cache or the network), a file, or random.",
        ),
    ] = "default",
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            min=0,
            max=2**63 - 1,
            help="Of the choice of channels and of random weights.",
        ),
    ] = 1024,
    image_size: Annotated[
        str, typer.Option("--image-size", help="N or HxW, in multiples of 32.")
    ] = "224",
    precision: Annotated[
        str, typer.Option("--precision", help="Of the backbone: float32, or float16 (for GPUs).")
    ] = "float32",
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "embedding.onnx"
    ),
) -> None:
    """Export a backbone with its channel selection to one ONNX graph (needs torch).

    Once per backbone, on any machine; fit and run need no torch.
    """
    from padim_edge.images.preprocess import parse_size

    size = parse_size(image_size)
    names, numbers = _names(layers), _integers("--dims", dims)
    with _export_extra():
        from padim_edge.export.export import export_backbone

        if weights == "random":
            _say(f"warning: RANDOM weights (seed {seed}): for trials; real parts need real weights")
        done = export_backbone(
            output, backbone, names, numbers, channels, size, weights, seed, precision
        )
    info = done.model.backbone_info
    typer.echo(f"{output}: {done.size / 1e6:.1f} MB")
    layers_used = ", ".join(info.layers)
    typer.echo(f"  backbone    {info.backbone}, {layers_used}, {info.weights}, {info.precision}")
    typer.echo(f"  channels    {info.selection}")
    typer.echo(f"  validated   differs from torch by {done.difference:.1e} of the largest value")


@contextlib.contextmanager
def _export_extra() -> Iterator[None]:
    from padim_edge.errors import MissingDependencyError

    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] in ("torch", "torchvision", "onnxscript"):
            raise MissingDependencyError(
                "padim-edge export", str(error.name), "export,cpu"
            ) from error
        raise


@_command("fit", "padim-edge fit embedding.onnx photos/ --false-alarm-rate 0.05 -o padim.onnx")
def fit(
    embedding: Annotated[Path, typer.Argument(help="Graph made by 'padim-edge export'.")],
    images: Annotated[
        Path,
        typer.Argument(help="Good images: a folder, a pattern, or a data set with train/good."),
    ],
    preprocess: Annotated[
        str,
        typer.Option(
            "--preprocess",
            help="whole: the entire image, resized. reference: shorter side 256, centre crop 224.",
        ),
    ] = "whole",
    resize: Annotated[
        str | None,
        typer.Option("--resize", help="Instead of a preset: shorter side N, or HxW."),
    ] = None,
    crop: Annotated[
        str | None, typer.Option("--crop", help="Centre crop after the resize: N or HxW.")
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option("--interpolation", help="lanczos (default), bicubic, bilinear or box."),
    ] = None,
    covariance: Annotated[
        str,
        typer.Option(
            "--covariance",
            help="sample (np.cov + eps I), or ledoit-wolf (a larger file).",
        ),
    ] = "sample",
    eps: Annotated[
        float | None,
        typer.Option(
            "--eps", help="Added to the diagonal of the sample covariance [default: 0.01]."
        ),
    ] = None,
    sigma: Annotated[
        float, typer.Option("--sigma", help="Of the Gaussian filter, in pixels of the score map.")
    ] = 4.0,
    constants: Annotated[
        str, typer.Option("--constants", help="Storage: float16, float32 or int8.")
    ] = "float16",
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            help="Share of good parts that may raise an alarm "
            "[default: 0.01, or the lowest rate that the images allow].",
        ),
    ] = None,
    save_moments: Annotated[
        Path | None,
        typer.Option("--save-moments", help="Also save the moments (.npz), for --update later."),
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option("--update", help="Go on from saved moments; IMAGES are the new ones."),
    ] = None,
    strict: Strict = False,
    threads: Threads = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "padim.onnx"
    ),
) -> None:
    """Fit a detector on good images: means, whitening and threshold, in one ONNX file."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import DEFAULT_FALSE_ALARM_RATE, EPS, Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.model.file import read
    from padim_edge.model.threshold import images_needed

    size = read(embedding, "embedding").backbone_info.image_size
    if covariance == "ledoit-wolf" and eps is not None:
        raise UsageError(f"--eps {eps}: Ledoit-Wolf chooses its own shrinkage; leave --eps out")
    settings = Settings(
        Preprocess.choose(size, preprocess, resize, crop, interpolation),
        covariance,
        constants,
        EPS if eps is None else eps,
        sigma,
        false_alarm_rate,
    )
    skipped = _Skipped(strict)
    with _progress() as progress:
        done = fit_detector(
            embedding,
            train_images(images),
            output,
            settings,
            update=update,
            save_moments=save_moments,
            threads=threads,
            on_error=skipped,
            progress=progress,
        )
    skipped.summary()
    detector_info = done.model.detector_info
    if detector_info is None:
        raise PadimEdgeError("the fit gave no detector")
    if false_alarm_rate is None and detector_info.false_alarm_rate > DEFAULT_FALSE_ALARM_RATE:
        _say(
            f"warning: {len(detector_info.good_scores)} images are too few for a false-alarm rate "
            f"of {DEFAULT_FALSE_ALARM_RATE} "
            f"({images_needed(DEFAULT_FALSE_ALARM_RATE)} are needed): "
            f"the threshold is set for {detector_info.false_alarm_rate:.3g}"
        )
    typer.echo(f"{output}: {done.size / 1e6:.1f} MB, fitted on {detector_info.images} images")
    typer.echo(
        f"  threshold   {detector_info.threshold:.3f} for a false-alarm rate of "
        f"{detector_info.false_alarm_rate:.3g} ({detector_info.calibration})"
    )
    typer.echo(
        f"  seconds     {done.seconds_features:.1f} features, {done.seconds_statistics:.1f} "
        "statistics and file"
    )


@_command("run", "padim-edge run padim.onnx photos/new/ --save-maps maps/ --jsonl scores.jsonl")
def run(
    model: ModelFile,
    source: Annotated[str, typer.Argument(help="An image, a folder, or a pattern in quotes.")],
    engine: EngineName = "auto",
    scoring: Scoring = "kernels",
    save_maps: Annotated[
        Path | None,
        typer.Option("--save-maps", help="Write each image with heat map and contour here."),
    ] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option("--jsonl", help="Write one JSON object per image; - for stdout, no table."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run of the engine.")] = 8,
    strict: Strict = False,
    threads: Threads = 0,
) -> None:
    """Judge images: score, threshold, decision, and percentile among good images."""
    from padim_edge.detect.judging import judge
    from padim_edge.files import atomic_write
    from padim_edge.images.find import find_images

    paths = find_images(source)
    on_stdout = jsonl is not None and str(jsonl) == "-"
    skipped = _Skipped(strict)
    anomalous = total = 0
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(atomic_write(jsonl)) if jsonl and not on_stdout else None
        detector = stack.enter_context(_open(model, engine, threads, scoring))
        if not on_stdout:
            typer.echo(f"{'score':>10}  {'threshold':>10}  {'percentile':>10}  decision   image")
        for verdict in judge(detector, paths, batch, skipped, save_maps, root=Path(source)):
            total += 1
            record = verdict.to_json()
            if lines:
                lines.write((json.dumps(record) + "\n").encode())
            if on_stdout:
                typer.echo(json.dumps(record))
            elif "error" not in record:
                decision = "ANOMALY" if record["is_anomalous"] else "ok"
                typer.echo(
                    f"{_number(record['score'])}  {record['threshold']:10.3f}  "
                    f"{record['percentile']:10.1f}  {decision:<9}  {record['path']}"
                )
            anomalous += bool(record.get("is_anomalous"))
    skipped.summary()
    good = total - len(skipped.errors) - anomalous
    _say(f"{good} ok, {anomalous} anomalous, {len(skipped.errors)} unreadable")
    if len(skipped.errors) == total:
        raise PadimEdgeError(f"none of the {total} image(s) could be read")


def _number(value: float | None) -> str:
    return f"{'nan':>10}" if value is None else f"{value:10.3f}"


@_command("eval", "padim-edge eval padim.onnx mvtec/bottle --json bottle.json")
def evaluate(
    model: ModelFile,
    dataset: Annotated[Path, typer.Argument(help="Data set with test/ and ground_truth/.")],
    engine: EngineName = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results as JSON.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run of the engine.")] = 8,
    strict: Strict = False,
    threads: Threads = 0,
) -> None:
    """Measure a detector on images with known defects: AUROC, PRO, F1, false alarms."""
    from padim_edge.detect.evaluation import evaluate as run_evaluate
    from padim_edge.images.dataset import test_samples

    samples = test_samples(dataset)
    skipped = _Skipped(strict)
    with _open(model, engine, threads) as detector, _progress() as progress:
        metrics = run_evaluate(detector, samples, batch, skipped, progress)
    skipped.summary()

    def number(value: float | None) -> str:
        return "no masks" if value is None else f"{value:.4f}"

    _table(
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
        _say(f"{metrics.images_without_mask} defective image(s) have no mask: left out of pixels")
    if json_file:
        _write_json(json_file, metrics.to_json())


@_command("bench", "padim-edge bench padim.onnx --batch 1,32 --json bench.json")
def bench(
    model: ModelFile = Path("padim.onnx"),
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="auto, or engines to compare in one run, as ort,trt. Also trt/graph: TensorRT "
            "without our kernels.",
        ),
    ] = "auto",
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes: 1 or 1,8,32.")] = "1",
    calls: Annotated[
        int, typer.Option("--calls", min=10, help="Counted calls at batch 1, fewer at larger ones.")
    ] = 100,
    frame: Annotated[
        str, typer.Option("--frame", help="Size of the camera's frames, N or HxW.")
    ] = "900",
    threads: Threads = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results as JSON.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Earlier JSON to compare with; exit code 1 if now worse."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Share that is not yet worse [default: 0.10]."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the results: .png, .svg or .pdf.")
    ] = None,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline", help="Also predict what a frame must cost here and on Jetson modules."
        ),
    ] = False,
) -> None:
    """Measure latency by stage, beside the bare backbone; on a GPU also bandwidth and power."""
    from padim_edge.files import atomic_write
    from padim_edge.images.preprocess import parse_size
    from padim_edge.measure.against import check, load
    from padim_edge.measure.bench import announce, check_engines, run_benchmark

    engines = _names(engine) or ()
    batches = _integers("--batch", batch) or ()
    size = parse_size(frame)
    check_engines(engines)
    if tolerance is not None and (against is None or not 0 <= tolerance < float("inf")):
        raise UsageError(f"--tolerance {tolerance}: give a share from 0 up, with --against")
    # All that can be wrong with a file is said now, not after minutes of measuring.
    old = load(against) if against else None
    if old:
        check(old, announce(model, size, threads), engines, batches)
    if plot:
        from padim_edge.measure.plots import draw, kind_of

        kind = kind_of(plot)
    worse: PadimEdgeError | None = None
    with contextlib.ExitStack() as pictures:
        plot_stream = pictures.enter_context(atomic_write(plot)) if plot else None
        with contextlib.ExitStack() as files:
            json_stream = files.enter_context(atomic_write(json_file)) if json_file else None
            with _progress() as progress:
                report = run_benchmark(
                    model, engines, batches, threads, calls, size, progress, roofline
                )
            if json_stream:
                json_stream.write(_json_bytes(report.to_json()))
        _say_skipped(report.engines[0].skipped, report.engines[0].name)
        _print_bench(report)
        try:
            if old:
                _print_changes(old, report, 0.1 if tolerance is None else tolerance)
        except PadimEdgeError as error:
            worse = error
        # Last: whatever goes wrong with a picture, the figures are there.
        if plot_stream:
            draw(report, plot_stream, kind)
    if worse:
        raise worse


def _print_bench(report: Report) -> None:
    machine = report.machine
    typer.echo(f"{report.model.file} on {machine.processor}, {machine.cores} cores, {report.date}")
    for one in report.engines:
        typer.echo(f"{one.name}: {one.description}")
        if one.name == "ort" and not one.results[0].bare:
            _say("no bare backbone, no ratio: a layer without a chosen channel is not in the file")
    for results in zip(*(one.results for one in report.engines), strict=True):
        typer.echo("")
        _print_batch({one.name: of for one, of in zip(report.engines, results, strict=True)})
    typer.echo("")
    for one in report.engines:
        if one.device:
            typer.echo(
                f"{one.name}: device memory {one.device.memory_bytes / 1e6:.0f} MB, copy on the "
                f"device {one.device.copy_bandwidth / 1e9:.1f} GB/s (read + written)"
            )
        typer.echo(
            f"{one.name}: peak memory {one.peak_memory_bytes / 1e6:.0f} MB, process start to "
            f"first score {one.cold_start_seconds:.2f} s"
        )
    typer.echo(f"file {report.file_bytes / 1e6:.1f} MB")
    if report.roofline:
        from padim_edge.measure.roofline import render

        for prediction in report.roofline:
            typer.echo("\n" + "\n".join(render(prediction)))


def _print_batch(results: dict[str, BatchResult]) -> None:
    """The table of one batch size, engines below each other."""
    first, result = next(iter(results.items()))
    whose = {name: f"{name}: " if len(results) > 1 else "" for name in results}
    latencies = {"preprocess": result.stages["preprocess"]}
    for name, result in results.items():
        of = whose[name]
        latencies |= {of + stage: x for stage, x in result.stages.items() if stage != "preprocess"}
        latencies[f"{of}graph: image to score"] = result.graph
        latencies[f"{of}total: frame to score"] = result.total
        if result.bare:
            latencies["bare backbone"] = result.bare
    rows = [
        (name, *(f"{x:.2f}" for x in (one.p50, one.p95, one.p99)), f"{one.throughput:.1f}")
        for name, one in latencies.items()
    ]
    _table(rows, (f"batch {result.batch}, ms per call", "p50", "p95", "p99", "frames/s"))
    typer.echo(f"{result.calls} calls each")
    for name, result in results.items():
        of = whose[name]
        if result.ratio:
            typer.echo(f"{of}graph / bare backbone = {result.ratio:.3f}")
        if result.to_first:
            typer.echo(f"{of}graph / that of {first} = {result.to_first:.3f}")
        if result.kernel:
            typer.echo(
                f"{of}distance kernel: {result.kernel.bytes / 1e6:.1f} MB of constants at "
                f"{result.kernel.bandwidth / 1e9:.1f} GB/s, {result.kernel.of_copy:.2f} of a copy's"
            )
        if result.power:
            by_rail = ", ".join(f"{rail} {x:.2f}" for rail, x in result.power.rails.items())
            typer.echo(
                f"{of}power: {result.power.watts:.2f} W ({by_rail}), "
                f"{result.power.millijoules_per_frame:.1f} mJ per frame"
            )


def _print_changes(old: Earlier, report: Report, tolerance: float) -> None:
    """The table of `--against`; fails if something got worse."""
    from padim_edge.measure.against import compare

    comparison = compare(old, report)
    typer.echo("")
    for note in comparison.notes:
        _say(note)
    rows = [
        (
            one.figure,
            f"{one.old:.3f}",
            f"{one.new:.3f}",
            f"{one.share:+.1%}",
            "worse" if one.worse(tolerance) else "",
        )
        for one in comparison.changes
    ]
    _table(rows, (f"against {old.date}", "old", "new", "change", ""))
    worse = sum(one.worse(tolerance) for one in comparison.changes)
    if worse:
        raise PadimEdgeError(
            f"{worse} of {len(rows)} figures rose by more than {100 * tolerance:.4g} %"
        )


@_command("inspect", "padim-edge inspect padim.onnx")
def inspect(
    model: Annotated[Path, typer.Argument(help="A file made by padim-edge fit or export.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything as JSON.")
    ] = None,
) -> None:
    """Show what is in a file, and what takes how much room."""
    from padim_edge.model.inspect import describe

    description = describe(model)
    if json_file:
        _write_json(json_file, description)
    for name, value in description["fields"].items():
        typer.echo(f"{name:<18}{_short(value)}")
    typer.echo("")
    rows = [(part, f"{size / 1e6:.3f}") for part, size in description["bytes"].items()]
    _table(rows, ("part", "MB"))


def _short(value: Any) -> str:
    """A value in one line; long lists by their ends."""
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} values: {value[0]}, {value[1]}, ... {value[-1]}"
    return str(value)


@_command("demo", "padim-edge demo --folder demo")
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Folder to work in.")] = Path("demo"),
) -> None:
    """Show the whole way on synthetic images: export, fit, run, eval, bench (needs torch)."""
    from padim_edge.cli.demo import steps
    from padim_edge.images.synthetic import make_dataset

    make_dataset(folder / "photos")
    typer.echo(f"synthetic cloth with known defects: {folder / 'photos'}")
    for arguments in steps(folder):
        typer.echo(f"\n$ padim-edge {shlex.join(arguments)}")
        code = app(arguments, standalone_mode=False)
        if code:
            raise typer.Exit(code)
    typer.echo(f"\nLook at {folder / 'maps'}: every test image with its heat map and contour.")


@_command("doctor", "padim-edge doctor --json doctor.json")
def doctor(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all findings as JSON.")
    ] = None,
) -> None:
    """Try out what this machine can run, and name the command that fixes what is missing."""
    from padim_edge.measure.doctor import examine

    with _progress() as progress:
        diagnosis = examine(progress=progress)
    if json_file:
        _write_json(json_file, diagnosis.to_json())
    area = ""
    for finding in diagnosis.findings:
        if finding.area != area:
            typer.echo(f"\n{finding.area}" if area else finding.area)
            area = finding.area
        status = "-" if finding.status == "absent" else finding.status
        typer.echo(f"  {status:<8} {finding.name:<20} {finding.detail}")
        if finding.fix:
            typer.echo(f"  {'':<8} {'':<20} fix:  {finding.fix}")
    typer.echo("")
    if not diagnosis.engines:
        raise PadimEdgeError("no engine runs here: see what is missing above")
    typer.echo(
        f"engines that run: {', '.join(diagnosis.engines)}; auto takes {diagnosis.engines[0]}"
    )
