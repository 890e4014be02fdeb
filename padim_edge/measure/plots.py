"""Measurements as pictures: the only place that imports matplotlib."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from padim_edge.errors import MissingDependencyError, UsageError

try:
    import matplotlib as mpl
    from matplotlib import ticker
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingDependencyError("--plot", "matplotlib", "dev") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from padim_edge.detect.calibration import Row
    from padim_edge.measure.report import BatchResult, Latency, Report
    from padim_edge.measure.tune import Tuned

FORMATS = ("png", "svg", "pdf")

# Stages have the same colour in every engine; those that only move data are grey.
COLOURS = {
    "upload": "#c9c9c9",
    "backbone": "#4878a8",
    "all in TensorRT": "#4878a8",
    "whole graph": "#30465e",
    "distances": "#e0903c",
    "smoothing": "#6aa56a",
    "download": "#a0a0a0",
    "prepare": "#ecdcb0",
    "rest": "#9070a0",
}
BARE = "#b03030"
BARE_LABEL = "bare backbone"
LINES = ("--", ":", "-.")
"""Of bare backbones, a model each."""


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

    A row (a model in an engine) has a bar of its stages; below it the whole graph's median with a
    whisker up to p95; then a bar for each camera: preparing, graph and rest.

    Args:
        report: at least one engine and batch size.
        stream: takes the picture.
        kind: one of `FORMATS`.
    """
    first = report.engines[0]
    bars = len(report.engines) * (2 + len(first.results[0].frames))
    batches = len(first.results)
    # Text stays text in an SVG, and no file says when it was drawn.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "padim-edge", "font.size": 9}):
        figure = Figure(figsize=(9, 1.8 + batches * (0.8 + 0.38 * bars)), layout="constrained")
        panels = figure.subplots(batches, 1, squeeze=False)[:, 0]
        for index, panel in enumerate(panels):
            _panel(panel, [(report.label(one), one.results[index]) for one in report.engines])
        panels[-1].set_xlabel("ms per frame (median; whisker: 95th percentile)")
        labels = {
            label: handle
            for panel in panels
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        order = sorted(labels, key=lambda label: label.startswith(BARE_LABEL))  # after the bars
        figure.legend(
            [labels[label] for label in order],
            order,
            loc="outside lower center",
            ncols=min(len(order), 6),
            frameon=False,
        )
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=9)
        figure.savefig(stream, format=kind, dpi=150, metadata=_undated(kind))


def draw_recall(rows: Sequence[Row], chosen: float, stream: BinaryIO, kind: str) -> None:
    """Draw how many defective images are found by false-alarm rate, and where the true one lies.

    Args:
        rows: at least one, each with its recall, by ascending rate.
        chosen: the rate that is marked.
        stream: takes the picture.
        kind: one of `FORMATS`.
    """
    rates = [row.false_alarm_rate for row in rows]
    recalls = [row.recall or 0.0 for row in rows]
    bounds = [row.true_recall or (0.0, 1.0) for row in rows]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "padim-edge", "font.size": 9}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        panel = figure.subplots()
        low, high = zip(*bounds, strict=True)
        panel.fill_between(rates, low, high, step="post", color=COLOURS["backbone"], alpha=0.2,
                           linewidth=0, label="of all such defects, at 95 %")  # fmt: skip
        panel.step(rates, recalls, where="post", color=COLOURS["backbone"], label="found")
        panel.axvline(chosen, color=BARE, linestyle="--", linewidth=1, label=f"chosen: {chosen:g}")
        panel.set(xscale="log", ylim=(0, 1.02), xlabel="false-alarm rate",
                  ylabel="defective images found")  # fmt: skip
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(loc="lower right", frameon=False)
        figure.savefig(stream, format=kind, dpi=150, metadata=_undated(kind))


def draw_front(tuned: Tuned, metric: str, under: float | None, stream: BinaryIO, kind: str) -> None:
    """Draw candidates by latency and separation, with the front that nothing beats.

    Numbers are those of the table; whiskers the 95 % intervals of separation, each candidate's
    own: two that overlap may differ measurably all the same, for the photos are the same.

    Args:
        tuned: what was measured.
        metric: what separation is, in words.
        under: a latency in ms that is marked, if any.
        stream: takes the picture.
        kind: one of `FORMATS`.
    """
    by = tuned.plan.by
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "padim-edge", "font.size": 9}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        panel = figure.subplots()
        for row in tuned.rows:
            value = tuned.value(row)
            low, high = row.separation.interval(by) or (value, value)
            colour = COLOURS["distances"] if row.on_front else COLOURS["download"]
            whisker = [[max(0, value - low)], [max(0, high - value)]]
            panel.errorbar(row.frame.p50, value, yerr=whisker, fmt="o", color=colour,
                           capsize=2, linewidth=0.8, markersize=5)  # fmt: skip
            panel.annotate(str(row.number), (row.frame.p50, value), xytext=(5, 3),
                           textcoords="offset points", fontsize=8)  # fmt: skip
        best = [row for row in tuned.rows if row.on_front]
        panel.step([row.frame.p50 for row in best], [tuned.value(row) for row in best],
                   where="post", color=COLOURS["distances"], label="front")  # fmt: skip
        if under is not None:
            panel.axvline(under, color=BARE, linestyle="--", linewidth=1, label=f"{under:g} ms")
        latency = f"ms from a frame of {tuned.plan.camera} to the decision (median)"
        panel.set(xscale="log", xlabel=latency, ylabel=f"{metric} (whisker: 95 %)")
        panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.xaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
        panel.tick_params(axis="x", which="minor", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(loc="lower right", frameon=False)
        lines = [
            f"{tuned.machine.processor}, {tuned.machine.cores} cores; {tuned.date}",
            *textwrap.wrap(str(tuned.plan.photos), 110),
        ]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8)
        figure.savefig(stream, format=kind, dpi=150, metadata=_undated(kind))


def _panel(panel: Any, results: list[tuple[str, BatchResult]]) -> None:
    """The bars of one batch size, the first row on top."""
    batch = results[0][1].batch
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for name, result in results:
        # A stage of engine trt/graph is the graph, which here is a bar of its own.
        stages = {"all in TensorRT" if stage == "graph" else stage: latency
                  for stage, latency in result.stages.items()}  # fmt: skip
        left = _stacked(panel, place, stages, batch)
        panel.text(left, place, f"  {left:.3g}", va="center", fontsize=8)
        ticks.append((place, name))
        place += 0.4
        _whiskered(panel, place, {"whole graph": result.graph}, result.graph, batch)
        for one in result.frames:
            place += 0.4
            parts = {"prepare": one.prepare, "whole graph": one.graph, "rest": one.rest}
            _whiskered(panel, place, parts, one.whole, batch)
            ticks.append((place, str(one.camera)))
        place += 0.6
    bares = [(name, result.bare) for name, result in results if result.bare]
    for (name, bare), style in zip(bares, itertools.cycle(LINES)):
        label = f"{BARE_LABEL} ({name})"
        panel.axvline(bare.p50 / batch, color=BARE, linestyle=style, linewidth=1, label=label)
    panel.set_yticks(*zip(*ticks, strict=True))
    panel.set_ylim(place - 0.25, -0.35)
    panel.set_title(f"batch {batch}", loc="left", fontsize=9, fontweight="bold")
    panel.margins(x=0.08)
    panel.spines[["top", "right"]].set_visible(False)


def _stacked(panel: Any, place: float, parts: Mapping[str, Latency], batch: int) -> float:
    """Medians end to end, in ms per frame; returns where they end."""
    left = 0.0
    for name, latency in parts.items():
        width = latency.p50 / batch
        hatch = "///" if name == "all in TensorRT" else None
        style = {"color": COLOURS.get(name, "#9070a0"), "hatch": hatch, "edgecolor": "white"}
        panel.barh(place, width, 0.36, left=left, label=name, linewidth=0.5, **style)
        left += width
    return left


def _whiskered(
    panel: Any, place: float, parts: Mapping[str, Latency], whole: Latency, batch: int
) -> None:
    """Medians end to end, and median and p95 of the whole."""
    _stacked(panel, place, parts, batch)
    median, tail = whole.p50 / batch, whole.p95 / batch
    panel.errorbar(
        median, place, xerr=[[0], [tail - median]], color="black", capsize=3, linewidth=1
    )
    panel.text(tail, place, f"  {median:.3g}", va="center", fontsize=8)


def _title(report: Report) -> str:
    machine = report.machine
    lines = [
        *(f"{model.file}: {model}" for model in report.models),
        f"{machine.processor}, {machine.cores} cores; {report.date}",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        *dict.fromkeys(f"{one.name}: {one.description}" for one in report.engines),
    ]
    return "\n".join(lines)


def _undated(kind: str) -> dict[str, None]:
    return {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
