"""The peers beside us, drawn: one panel a figure, one bar a contender."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rows import OURS

Panel = tuple[str, Callable[[dict[str, Any]], float]]

COLOURS = {"padim-edge": "#1f77b4", "bare": "#999999"}


def draw(report: dict[str, Any], backbone: str, file: Path) -> None:
    """Bars of every contender; what it could not do is left empty."""
    rows: dict[str, dict[str, Any]] = report["backbones"][backbone]["rows"]
    panels = _panels(rows)
    figure = Figure((17, 0.8 + 0.33 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    names = list(rows)[::-1]
    for axis, (title, of) in zip(axes, panels, strict=True):
        for place, name in enumerate(names):
            colour = next((c for start, c in COLOURS.items() if name.startswith(start)), "#ff7f0e")
            try:
                value = of(rows[name])
            except KeyError:
                axis.text(0, place, " fails", va="center", fontsize=8, color="#cc0000")
                continue
            axis.barh(place, value, color=colour, alpha=1 if name == OURS else 0.6)
            text = f" {value:.0f}" if value >= 100 else f" {value:.3g}"
            axis.text(value, place, text, va="center", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_yticks(range(len(names)), names, fontsize=9)
        axis.margins(x=0.22)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", labelsize=8)
    machine = report["machine"]
    figure.suptitle(
        f"{backbone}, 224 x 224, {machine['processor']}, {machine['cores']} cores, "
        f"{report['date'][:10]}",
        fontsize=10,
    )
    figure.savefig(file, dpi=70)


def _panels(rows: dict[str, dict[str, Any]]) -> list[Panel]:
    """What is drawn of each row: a title, and its value."""

    def latency(batch: str) -> Panel:
        return f"ms per frame, batch {batch}", lambda entry: float(entry["batches"][batch]["infer"])

    batches = dict.fromkeys(b for entry in rows.values() for b in entry.get("batches", {}))
    return [
        *map(latency, batches),
        ("files, MB", lambda entry: entry["file_bytes"] / 1e6),
        ("peak memory, MB", lambda entry: entry["peak"] / 1e6),
        ("start to first score, s", lambda entry: float(entry["cold_start"])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="the JSON of compare.py")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    report = json.loads(options.report.read_text())
    for backbone in report["backbones"]:
        draw(report, backbone, options.output / f"peers-{backbone}.png")


if __name__ == "__main__":
    main()
