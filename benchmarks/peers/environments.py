"""Environments of the peers, from PyPI, and what of them must be on a device."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".peers"
REQUIREMENTS = {
    "ours": [f"{ROOT}[cpu,openvino]", "opencv-python-headless"],
    "anomalib": ["anomalib[openvino]==2.7.0", "onnxruntime"],
    "anomavision": ["anomavision[cpu]==3.6.2"],
}
CUDA = ("nvidia-", "cuda-", "triton")
"""Packages that serve GPUs alone; so do the libraries of torch whose names hold "cuda"."""


@dataclass(frozen=True)
class Installed:
    """Packages that must be on a device and their bytes; ``cuda`` bytes of them serve GPUs."""

    packages: int
    bytes: int
    cuda: int


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return HOME / name / "bin" / "python"


def build(name: str) -> str | None:
    """Make an environment, or bring it up to date.

    Returns:
        Why it could not be made, in one line; None if all is well.
    """
    folder = HOME / name
    wanted = REQUIREMENTS[name]
    stamp = folder / ".ready"
    key = hashlib.sha256(" ".join(wanted).encode()).hexdigest()
    install = [str(python(name)), "-m", "pip", "install", "--quiet"]
    commands = [[sys.executable, "-m", "venv", str(folder)], [*install, *wanted]]
    if stamp.exists() and stamp.read_text() == key:
        # Our own code changes from run to run.
        again = [*install, "--no-deps", "--force-reinstall", wanted[0]]
        commands = [again] if name == "ours" else []
    for command in commands:
        print("$", *command, file=sys.stderr, flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return (errors or done.stderr.strip().splitlines() or ["pip failed"])[-1]
    stamp.write_text(key)
    return None


def installed(name: str, roots: list[str]) -> Installed:
    """What some requirements bring along, by the metadata of an environment that holds them."""
    known = _packages(name)
    found: dict[NormalizedName, set[str]] = {}
    queue = [Requirement(root) for root in roots]
    while queue:
        wanted = queue.pop()
        package = canonicalize_name(wanted.name)
        extras = {"", *wanted.extras}
        new = extras - found.get(package, set())
        if not new or package not in known:
            continue
        found.setdefault(package, set()).update(new)
        for line in known[package].requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": x}) for x in extras):
                queue.append(needed)
    files = [(package, file) for package in found for file in _files(known[package])]
    cuda = sum(
        file.stat().st_size
        for package, file in files
        if package.startswith(CUDA) or (package == "torch" and "cuda" in file.name)
    )
    return Installed(len(found), sum(file.stat().st_size for _, file in files), cuda)


def versions(name: str, packages: list[str]) -> dict[str, str]:
    """Versions of some packages of an environment, those that are there."""
    return {str(found): d.version for found, d in _packages(name).items() if found in packages}


def _packages(name: str) -> dict[NormalizedName, Distribution]:
    site = next((HOME / name / "lib").glob("python3*")) / "site-packages"
    return {canonicalize_name(d.metadata["Name"]): d for d in distributions(path=[str(site)])}


def _files(package: Distribution) -> set[Path]:
    """A package's files, compiled Python included."""
    places = {Path(str(package.locate_file(file))) for file in package.files or []}
    return {place for place in places if place.is_file()}
