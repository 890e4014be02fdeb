"""A benchmark as a picture: the only place that imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from padim_edge.errors import MissingDependencyError, UsageError

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingDependencyError("bench --plot", "matplotlib", "dev") from error

if TYPE_CHECKING:
    from padim_edge.measure.report import BatchResult, Report

FORMATS = ("png", "svg", "pdf")

# Stages have the same colour in every engine; those that only move data are grey.
COLOURS = {
    "upload": "#c9c9c9",
    "backbone": "#4878a8",
    "graph": "#4878a8",
    "distances": "#e0903c",
    "smoothing": "#6aa56a",
    "download": "#a0a0a0",
    "preprocess": "#ecdcb0",
}
WHOLE = "#30465e"
BARE = "#b03030"
BARE_LABEL = "bare backbone (ort)"


def kind_of(path: Path) -> str:
    """The format of a picture, by its name.

    Raises:
        UsageError: the name ends in none of `FORMATS`.
    """
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        raise UsageError(f"--plot {path}: name a file that ends in .{', .'.join(FORMATS)}")
    return kind


def draw(report: Report, stream: BinaryIO, kind: str) -> None:
    """Draw a panel for each batch size, all in ms per frame.

    An engine has two bars: its stages, and the whole graph's median with a whisker up to p95.
    Preparing the frame comes last, so that all else lines up with the graph and the backbone.

    Args:
        report: at least one engine and batch size.
        stream: takes the picture.
        kind: one of `FORMATS`.
    """
    engines = len(report.engines)
    batches = len(report.engines[0].results)
    # Text stays text in an SVG, and no file says when it was drawn.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "padim-edge", "font.size": 9}):
        figure = Figure(figsize=(9, 1.8 + batches * (0.8 + 0.75 * engines)), layout="constrained")
        panels = figure.subplots(batches, 1, squeeze=False)[:, 0]
        for index, panel in enumerate(panels):
            _panel(panel, [(one.name, one.results[index]) for one in report.engines])
        panels[-1].set_xlabel("ms per frame (median; whisker: 95th percentile)")
        labels = {
            label: handle
            for panel in panels
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        order = sorted(labels, key=BARE_LABEL.__eq__)  # the line after the bars
        figure.legend(
            [labels[label] for label in order],
            order,
            loc="outside lower center",
            ncols=min(len(order), 6),
            frameon=False,
        )
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=9)
        figure.savefig(stream, format=kind, dpi=150, metadata=_undated(kind))


def _panel(panel: Any, results: list[tuple[str, BatchResult]]) -> None:
    """The bars of one batch size, the first engine on top."""
    batch = results[0][1].batch
    for place, (_, result) in enumerate(results):
        left = 0.0
        names = [name for name in result.stages if name != "preprocess"] + ["preprocess"]
        for name in names:
            width = result.stages[name].p50 / batch
            # A stage of engine trt/graph is the graph, which here is a bar of its own.
            label = "all in TensorRT" if name == "graph" else name
            hatch = "///" if name == "graph" else None
            style = {"color": COLOURS.get(name, "#9070a0"), "hatch": hatch, "edgecolor": "white"}
            panel.barh(place - 0.2, width, 0.36, left=left, label=label, linewidth=0.5, **style)
            left += width
        panel.text(left, place - 0.2, f"  {left:.3g}", va="center", fontsize=8)
        median, tail = result.graph.p50 / batch, result.graph.p95 / batch
        panel.barh(place + 0.2, median, 0.28, color=WHOLE, label="whole graph")
        panel.errorbar(
            median, place + 0.2, xerr=[[0], [tail - median]], color="black", capsize=3, linewidth=1
        )
        panel.text(tail, place + 0.2, f"  {median:.3g}", va="center", fontsize=8)
        if result.bare:
            bare = result.bare.p50 / batch
            panel.axvline(bare, color=BARE, linestyle="--", linewidth=1, label=BARE_LABEL)
    panel.set_yticks(range(len(results)), [name for name, _ in results])
    panel.set_ylim(len(results) - 0.45, -0.55)
    panel.set_title(f"batch {batch}", loc="left", fontsize=9, fontweight="bold")
    panel.margins(x=0.08)
    panel.spines[["top", "right"]].set_visible(False)


def _title(report: Report) -> str:
    model, machine = report.model, report.machine
    height, width = report.frame_size
    lines = [
        f"{model.file}: {model.backbone}, {model.channels} channels, "
        f"{model.image_size[0]} x {model.image_size[1]}, {model.constants} constants",
        f"{machine.processor}, {machine.cores} cores; frames of {height} x {width}; {report.date}",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        *(f"{one.name}: {one.description}" for one in report.engines),
    ]
    return "\n".join(lines)


def _undated(kind: str) -> dict[str, None]:
    return {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
