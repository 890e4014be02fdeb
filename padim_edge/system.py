"""What the system says of the machine. The standard library alone: the doctor needs this."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

ROOT = Path("/")
"""Where /proc and /sys are; another folder stands for another machine."""


def read_text(path: Path) -> str:
    """A file of the system, or nothing: which of them exist differs from machine to machine."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def module(root: Path = ROOT) -> str:
    """What the device tree calls the board; empty where there is none, as on a PC."""
    return read_text(root / "proc/device-tree/model").rstrip("\0").strip()


def processor(root: Path = ROOT) -> str:
    """The board or the processor; /proc/cpuinfo of a Jetson tells no module from another."""
    named = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", read_text(root / "proc/cpuinfo"), re.M)
    return module(root) or (named[1] if named else platform.processor() or platform.machine())


def memory(root: Path = ROOT) -> dict[str, int]:
    """Bytes by the names of /proc/meminfo."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", read_text(root / "proc/meminfo"), re.M)
    return {name: 1024 * int(size) for name, size in lines}


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def whole_memory() -> int:
    """Bytes of RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be had without swapping; where nothing says, those of the whole memory."""
    return memory(root).get("MemAvailable", whole_memory())


def resident_memory(root: Path = ROOT) -> int:
    """Bytes of RAM that this process holds; 0 where nothing says."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", read_text(root / "proc/self/status"), re.M)
    return 1024 * int(found[1]) if found else 0


def last_cache(root: Path = ROOT) -> int:
    """Bytes of the largest cache of the first core; 0 where they cannot be read."""
    folder = root / "sys/devices/system/cpu/cpu0/cache"
    sizes = (read_text(file).strip() for file in folder.glob("index*/size"))
    return max((int(size[:-1]) * 1024 for size in sizes if re.fullmatch(r"\d+K", size)), default=0)
