"""The peers beside us, drawn: one panel a figure, one bar a contender."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rows import OURS

PANELS: tuple[tuple[str, Callable[[dict[str, Any]], float], float], ...] = (
    ("ms per frame, batch 1", lambda entry: entry["batches"]["1"]["infer"], 1.0),
    ("ms per frame, batch 32", lambda entry: entry["batches"]["32"]["infer"], 1.0),
    ("files, MB", lambda entry: entry["file_bytes"], 1e-6),
    ("peak memory, MB", lambda entry: entry["peak"], 1e-6),
    ("start to first score, s", lambda entry: entry["cold_start"], 1.0),
)
COLOURS = {"padim-edge": "#1f77b4", "bare": "#999999"}


def draw(report: dict[str, Any], backbone: str, file: Path) -> None:
    """Bars of every contender; what it could not do is left empty."""
    rows = report["backbones"][backbone]["rows"]
    figure = Figure((17, 0.8 + 0.33 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    names = list(rows)[::-1]
    for axis, (title, of, scale) in zip(axes, PANELS, strict=True):
        for place, name in enumerate(names):
            colour = next((c for start, c in COLOURS.items() if name.startswith(start)), "#ff7f0e")
            try:
                value = of(rows[name]) * scale
            except KeyError:
                axis.text(0, place, " fails", va="center", fontsize=8, color="#cc0000")
                continue
            axis.barh(place, value, color=colour, alpha=1 if name == OURS else 0.6)
            axis.text(value, place, f" {value:.3g}", va="center", fontsize=8)
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
