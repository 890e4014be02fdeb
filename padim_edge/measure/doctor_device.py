"""The doctor's findings on the device: board, memory, clocks; a Jetson's release and power mode."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from padim_edge.measure.finding import TOOL_SECONDS, Finding
from padim_edge.processes import Done, run_child
from padim_edge.system import memory, module, processor, read_text


def is_jetson(root: Path) -> bool:
    """Whether this is a Jetson: only L4T has this file, or a device tree of that name."""
    return bool(read_text(root / "etc/nv_tegra_release")) or "Jetson" in module(root)


def device(root: Path) -> list[Finding]:
    """Model, processor, memory, and on a Jetson its release and power mode; clocks anywhere."""
    sizes = [memory(root).get(key, 0) / 2**30 for key in ("MemTotal", "MemAvailable")]
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    found = [
        Finding("device", "model", "ok", processor(root)),
        Finding("device", "system", "ok", f"{system}, {platform.machine()}"),
        Finding("device", "memory", "ok", f"{sizes[0]:.1f} GiB, {sizes[1]:.1f} available"),
    ]
    if is_jetson(root):
        found += [_l4t(root), _jetpack(), _power_mode()]
    else:
        found.append(Finding("device", "L4T", "absent", "this is no Jetson"))
    return [*found, _clocks(root)]


def _l4t(root: Path) -> Finding:
    text = read_text(root / "etc/nv_tegra_release")
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+)((?:\.\d+)*)", text)
    if not found:
        return Finding("device", "L4T", "broken", "/etc/nv_tegra_release names no release")
    release, revision = int(found[1]), int(found[2])
    name = f"{release}.{revision}{found[3]}"
    if (release, revision) < (36, 4):
        detail = f"{name}; TensorRT 10.3 and newer come with 36.4 (JetPack 6.1): flash a newer one"
        return Finding("device", "L4T", "broken", detail)
    return Finding("device", "L4T", "ok", name)


def _jetpack() -> Finding:
    """The metapackage; its parts can be there without it, and are tried for themselves."""
    name = "JetPack"
    if not shutil.which("dpkg-query"):
        return Finding("device", name, "absent", "no dpkg here to ask")
    done = run_child(["dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"], TOOL_SECONDS)
    if done.code == 0 and done.stdout.strip():
        return Finding("device", name, "ok", done.stdout.strip())
    fix = "sudo apt install nvidia-jetpack"
    return Finding("device", name, "missing", "nvidia-jetpack is not installed", fix)


def _power_mode() -> Finding:
    name = "power mode"
    if not shutil.which("nvpmodel"):
        return Finding("device", name, "absent", "no nvpmodel here (in a container: ask outside)")
    done, mode = _nvpmodel()
    if mode:
        return Finding("device", name, "ok", mode)
    return Finding("device", name, "broken", f"nvpmodel {done.trouble}", "sudo nvpmodel -q")


def _nvpmodel() -> tuple[Done, str | None]:
    done = run_child(["nvpmodel", "-q"], TOOL_SECONDS)
    mode = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    return done, mode[1] if done.code == 0 and mode else None


def power_mode() -> str | None:
    """The power mode of a Jetson; None elsewhere, and where nvpmodel is not there or refuses."""
    return _nvpmodel()[1] if shutil.which("nvpmodel") else None


def _clocks(root: Path) -> Finding:
    """What cpufreq and devfreq tell everybody; jetson_clocks --show would need root."""
    parts = []
    processors = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    if processors:
        now, low, high = (
            [_number(folder / f"scaling_{name}_freq") // 1000 for folder in processors]
            for name in ("cur", "min", "max")
        )
        governor = read_text(processors[0] / "scaling_governor").strip()
        span = _span("CPU", max(now), min(low), max(high))
        parts.append(f"{span}, {governor}" if governor else span)
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        # 17000000.gpu on Orin, 17000000.gv11b on Xavier, gpu-gpc-0 on Thor.
        if re.search(r"gpu|gv11b|gp10b", folder.name):
            values = (_number(folder / f"{name}_freq") // 10**6 for name in ("cur", "min", "max"))
            parts.append(_span(folder.name, *values))
    if not parts:
        return Finding("device", "clocks", "absent", "neither cpufreq nor devfreq is readable")
    return Finding("device", "clocks", "ok", "; ".join(parts))


def _span(name: str, now: int, low: int, high: int) -> str:
    floating = f"free from {low} to {high}" if low < high else "pinned"
    return f"{name} {now} MHz ({floating})"


def _number(path: Path) -> int:
    text = read_text(path).strip()
    return int(text) if text.isdigit() else 0
