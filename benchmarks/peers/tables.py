"""The results as Markdown."""

from __future__ import annotations

from typing import Any

from rows import BARE, OURS, ROWS

SMOOTHED = {row.name: row.smoothed for row in ROWS}


def _ms(entry: dict[str, Any], batch: str) -> str:
    one = entry.get("batches", {}).get(batch, {})
    if "infer" not in one:
        return "fails" if "error" in one else "-"
    low, high = one["quartiles"]
    return f"{one['infer']:.2f} ({low:.2f} to {high:.2f})"


def _ratio(entry: dict[str, Any], batch: str, key: str) -> str:
    one = entry.get("batches", {}).get(batch, {})
    return f"{one[key]:.2f}" if key in one else "-"


def _prepare(entry: dict[str, Any], batch: str) -> str:
    one = entry.get("batches", {}).get(batch, {})
    return f"{one['prepare']:.2f}" if "prepare" in one else "-"


def _megabytes(entry: dict[str, Any], key: str) -> str:
    return f"{entry[key] / 1e6:.1f}" if key in entry else "-"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def backbone(name: str, report: dict[str, Any]) -> str:
    """Everything measured with one backbone."""
    result = report["backbones"][name]
    rows: dict[str, dict[str, Any]] = result["rows"]
    batches = list(dict.fromkeys(b for entry in rows.values() for b in entry.get("batches", {})))
    header = ["contender"]
    for batch in batches:
        header += [f"batch {batch}: ms/frame (quartiles)", "x padim-edge", "x bare (ORT)"]
    groups = {one.get("group") for e in rows.values() for one in e.get("batches", {}).values()}
    header += ["run"] if len(groups) > 1 else []
    header += ["prepare ms", "files MB", "peak MB", "cold start s", "install MB (CUDA)", "packages"]
    cells = []
    for row, entry in rows.items():
        line = [f"**{row}**" if row == OURS else row + ("" if SMOOTHED.get(row, True) else "*")]
        for batch in batches:
            line += [_ms(entry, batch), _ratio(entry, batch, "times_ours"),
                     _ratio(entry, batch, "times_bare")]  # fmt: skip
        if len(groups) > 1:
            runs = {one["group"] for one in entry.get("batches", {}).values()}
            line += [", ".join(map(str, sorted(runs))) if row not in (OURS, BARE) else "all"]
        install = entry.get("install")
        line += [
            _prepare(entry, batches[0]) if batches else "-",
            _megabytes(entry, "file_bytes"),
            f"{entry['peak'] / 1e6:.0f}" if "peak" in entry else "-",
            f"{entry['cold_start']:.2f}" if "cold_start" in entry else "-",
            f"{(install['bytes'] - install['cuda']) / 1e6:.0f} ({install['cuda'] / 1e6:.0f})"
            if install
            else "-",
            str(install["packages"]) if install else "-",
        ]
        cells.append(line)
    machine = report["machine"]
    versions = "; ".join(
        f"{environment}: {', '.join(f'{k} {v}' for k, v in found.items())}"
        for environment, found in report["versions"].items()
    )
    parts = [
        f"### {name}",
        f"{machine['processor']}, {machine['cores']} cores, {report['date'][:10]}. {versions}.",
        table(header, cells),
        "*: its maps are not smoothed.",
    ]
    failed = [(f"environment {name}", error)
              for name, error in report["missing_environments"].items()]  # fmt: skip
    failed += [(row, error) for row, entry in rows.items() for error in _errors(entry)]
    if failed:
        parts.append("Failed:\n\n" + "\n".join(f"- {row}: `{error}`" for row, error in failed))
    parts.append(_fits(result["fit"]))
    parts += [one for batch in batches if (one := _stages(rows, batch))]
    from_cameras = result.get("cameras", {})
    if from_cameras:
        parts += _cameras(from_cameras)
    commands = [
        entry["command"]
        for entries in (result["fit"], rows, *from_cameras.values())
        for entry in entries.values()
    ]
    parts.append("Each row by itself:\n\n```sh\n" + "\n".join(dict.fromkeys(commands)) + "\n```")
    return "\n\n".join(parts) + "\n"


def _cameras(sizes: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """From a camera's pixels to the decision: all sizes in one table, and what failed."""
    header = ["from a camera's frame, BGR, width x height"]
    for size in sizes:
        header += [f"{size}: ms (quartiles)", "x padim-edge", "x bare (ORT)"]
    cells, failed = [], []
    for row in next(iter(sizes.values())):
        # The backbone's input is ready: no camera is before it.
        line = [f"**{row}**" if row == OURS else f"*{row}*" if row == BARE else row]
        for size, rows in sizes.items():
            entry = rows[row]
            line += [_ms(entry, "1"), _ratio(entry, "1", "times_ours"),
                     _ratio(entry, "1", "times_bare")]  # fmt: skip
            failed += [f"- {row}, {size}: `{error}`" for error in _errors(entry)]
        cells.append(line)
    return [table(header, cells), *(["Failed:\n\n" + "\n".join(failed)] if failed else [])]


def _errors(entry: dict[str, Any]) -> list[str]:
    found = [entry["error"]] if "error" in entry else []
    for batch, one in entry.get("batches", {}).items():
        if "error" in one:
            found.append(f"batch {batch}: {one['error']}")
    return found


def _fits(fits: dict[str, dict[str, Any]]) -> str:
    rows = [
        [name, "-", "-", entry["error"]]
        if "error" in entry
        else [
            "**padim-edge**" if name == "ours" else name,
            f"{entry['features']:.2f}",
            f"{entry['statistics']:.2f}",
            f"{entry['peak'] / 1e6:.0f}",
        ]
        for name, entry in fits.items()
    ]
    return table(["fit of 60 images", "features s", "statistics s", "peak MB"], rows)


def _stages(rows: dict[str, dict[str, Any]], batch: str) -> str:
    lines = []
    for row, entry in rows.items():
        stages = entry.get("batches", {}).get(batch, {}).get("stages")
        if stages:
            lines.append([row, ", ".join(f"{name} {ms:.2f}" for name, ms in stages.items())])
    return table([f"batch {batch}", "ms/frame by stage, each alone"], lines) if lines else ""


def answers(found: dict[str, Any]) -> str:
    """What everybody says of one data set."""
    parts = [f"### Same answers: {found['dataset']}, {found['train']} images to fit, "
             f"{found['test']} to judge"]  # fmt: skip
    for kind in ("prepared", "as shipped"):
        if kind not in found:
            continue
        rows = []
        for name, entry in found[kind].items():
            if "error" in entry:
                rows.append([name, f"`{entry['error']}`", *["-"] * 5])
                continue
            off = [
                f"{entry[key]:.1e}" if key in entry else "-"
                for key in ("largest_difference", "largest_inside", "median_difference")
            ]
            note = "" if entry.get("smoothed", True) else " (not smoothed)"
            alarms = entry["false_alarms"]
            rows.append([
                name + note, f"{entry['image_auroc']:.4f}", f"{entry['pixel_auroc']:.4f}",
                "-" if alarms is None else f"{alarms} of {entry['good']}", *off,
            ])  # fmt: skip
        header = [kind, "image AUROC", "pixel AUROC", "alarms on good", "largest difference",
                  "away from the border", "median"]  # fmt: skip
        parts.append(table(header, rows))
    return "\n\n".join(parts) + "\n"
