"""The device install on AArch64, executed: fitted, judged and measured as on this machine.

    make test-arm64
    python tests/support/arm64.py --suites bookworm,trixie

In a Debian root for arm64, which qemu-user runs where this machine is another one, pip installs
this tree's wheel with `[cpu,openvino,eval]` and whatever it brings from PyPI. Then the same
commands run there and here on the same photos, with each engine, and what they leave is compared.
JetPack's Pythons (3.10, 3.12) are in no Debian release, so of theirs all wheels for AArch64 are
resolved, fetched and unpacked (by uv), and no more. Ends with 0 where nothing differs, 1 where
something does, 2 where this machine lacks something.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debian import ROOT, LackingError, emulated, inside, locked, made, require

ENGINES = ("ort", "openvino")
EXTRAS = "cpu,openvino,eval"
GLIBC = {"3.10": "2_35", "3.12": "2_39"}
"""Of Ubuntu 22.04 and 24.04, which JetPack 6 and 7 are."""

TOLERANCE = 1e-4
"""Relative, of scores, thresholds and every other number that is not named below."""

RELATIVE = {
    "area": 0.02,  # a pixel at the threshold may fall on either side
    "pro": 1e-3,  # and so may one of these curves
    "bytes": 0.01,
}
PIXELS = {"box": 1.0, "peak": 1.0, "centroid": 0.5}
"""Absolute, in pixels of the photo."""

NOT_COMPARED = {"file", "sha256"}
"""Of the detector: constants that are rounded to float16 on each side may differ in a last bit."""

DEVICE = "opt/padim-edge"
WORK = "root/work"
"""Folders in a root."""

PREPARED = """
import hashlib, sys
from pathlib import Path
from padim_edge.images.preprocess import Preprocess
photos = sorted(path for path in Path("photos").rglob("*") if path.suffix in (".png", ".jpg"))
for size in (64, 96):
    for interpolation in ("bilinear", "bicubic", "lanczos", "box"):
        digest = hashlib.sha256()
        for photo in photos:
            digest.update(Preprocess.whole((size, size), interpolation)(photo).tobytes())
        print(size, interpolation, len(photos), digest.hexdigest())
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all of it; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--suites", default="bookworm,trixie", help="Debian's, between commas")
    parser.add_argument("--pythons", default="3.10,3.12", help="whose wheels are fetched alone")
    options = parser.parse_args(arguments)
    wrong: list[str] = []
    try:
        require(unshare="util-linux", chroot="coreutils")
        with locked("arm64"), emulated() as emulator, tempfile.TemporaryDirectory() as name:
            say(f"{platform.machine()}, Python {platform.python_version()}; emulator: {emulator}")
            wheel = built(Path(name))
            here = Here(Path(name) / "here")
            material(here)
            expected = outcome(here)
            for suite in filter(None, options.suites.split(",")):
                there = installed(suite, wheel, here.folder)
                wrong += judged(suite, expected, outcome(there))
            for version in filter(None, options.pythons.split(",")):
                say(f"Python {version}: {fetched(version, wheel, Path(name))}")
    except LackingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in wrong:
        say(f"DIFFERS  {line}")
    say(f"{len(wrong)} differences" if wrong else "all the same within the tolerances")
    return 1 if wrong else 0


def say(line: str) -> None:
    """Print a line at once: the next may be minutes away."""
    print(line, flush=True)


@dataclass(frozen=True)
class Here:
    """This environment, in a folder of its own."""

    folder: Path
    name: str = "here"

    def run(self, program: str, *arguments: str) -> str:
        """What a program of the environment prints.

        Raises:
            subprocess.CalledProcessError: it failed; its output was printed.
        """
        done = subprocess.run(
            [Path(sys.executable).parent / program, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stdout, done.stderr, flush=True)
            done.check_returncode()
        return done.stdout


@dataclass(frozen=True)
class There:
    """The device install in an emulated root."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / WORK

    def run(self, program: str, *arguments: str) -> str:
        """As `Here.run`."""
        return inside(self.root, f"/{DEVICE}/bin/{program}", *arguments, folder=f"/{WORK}")


def built(work: Path) -> Path:
    """This tree's wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, work / "dist", ROOT], check=True)
    (wheel,) = (work / "dist").glob("*.whl")
    return wheel


def material(here: Here) -> None:
    """A small embedding, which only this side can export, and photos as PNG and as JPEG."""
    from PIL import Image

    from padim_edge.images.synthetic import make_dataset

    here.folder.mkdir()
    make_dataset(here.folder / "photos", train=16, good=6, per_defect=3, size=160)
    for photo in sorted((here.folder / "photos/test").rglob("*1.png")):
        with Image.open(photo) as image:
            image.save(photo.with_suffix(".jpg"), quality=92)
        photo.unlink()
    options = ("--backbone", "resnet18", "--weights", "random", "--image-size", "64")
    here.run("padim-edge", "export", *options, "--dims", "20", "-o", "embedding.onnx")


def installed(suite: str, wheel: Path, work: Path) -> There:
    """A device as docs/jetson.md makes one: a virtual environment, and pip with its own eyes."""
    root = made(suite, "arm64", "python3", "python3-venv")
    for old in (DEVICE, WORK):
        shutil.rmtree(root / old, ignore_errors=True)
    shutil.copytree(work, root / WORK)
    shutil.copy(wheel, root / WORK)
    start = time.monotonic()
    inside(root, "python3", "-m", "venv", f"/{DEVICE}")
    package = f"/{WORK}/{wheel.name}[{EXTRAS}]"
    inside(
        root,
        f"/{DEVICE}/bin/pip",
        "install",
        "--quiet",
        "--no-compile",
        "--only-binary=:all:",
        package,
    )
    there = There(root, suite)
    versions = json.loads(there.run("pip", "list", "--format=json"))
    shown = ("numpy", "onnx", "onnxruntime", "openvino", "pillow", "scipy", "scikit-learn")
    said = [f"{one['name']} {one['version']}" for one in versions if one["name"] in shown]
    machine = there.run(
        "python", "-c", "import platform as p; print(p.machine(), p.python_version())"
    )
    print(
        f"{suite}: {machine.strip()}, {', '.join(said)}; "
        f"installed in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return there


def outcome(side: Here | There) -> dict[str, Any]:
    """What a user does with a detector, with each engine; returns what came of it, by its name."""
    found: dict[str, Any] = {}

    def timed(*arguments: str, leaves: str = "") -> str:
        start = time.monotonic()
        side.run("padim-edge", *arguments, *([leaves] if leaves else []))
        say(f"  {side.name}: {arguments[0]:<8} {time.monotonic() - start:6.1f} s")
        return (side.folder / leaves).read_text() if leaves else ""

    for engine in ENGINES:
        model, chosen = f"{engine}.onnx", ("--engine", engine)
        timed("fit", "embedding.onnx", "photos/train/good", "-o", model, *chosen)
        lines = timed("run", model, "photos/test", *chosen, "--jsonl", leaves=f"{engine}.jsonl")
        found[f"{engine} run"] = [json.loads(line) for line in lines.splitlines()]
        for command, *rest in (("eval", "photos", *chosen), ("inspect",)):
            text = timed(command, model, *rest, "--json", leaves=f"{engine}-{command}.json")
            found[f"{engine} {command}"] = json.loads(text)
    diagnosis = json.loads(timed("doctor", "--json", leaves="doctor.json"))
    # The rest of it is each machine's own: versions, cores, memory, what is not installed.
    working = [engine for engine in ENGINES if engine in diagnosis["engines"]]
    found["doctor"] = {"schema": diagnosis["schema"], "engines": working}
    say(f"  {side.name}: engines that run: {', '.join(diagnosis['engines'])}")
    found["prepared"] = side.run("python", "-c", PREPARED).splitlines()
    return found


def judged(suite: str, expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Say how far the numbers are apart; returns what is further than allowed, a line each."""
    found = list(compared(expected, got))
    for engine in ENGINES:
        scores = [
            error
            for where, error, _ in found
            if where[0] == f"{engine} run" and where[-1] == "score"
        ]
        (threshold,) = (
            error
            for where, error, _ in found
            if where == (f"{engine} inspect", "fields", "threshold")
        )
        say(
            f"{suite}: {engine}: {len(scores)} scores within {max(scores):.1e} of this machine's, "
            f"the threshold within {threshold:.1e}"
        )
    return [
        f"{suite}: {' / '.join(map(str, where))}: {error:.1e}, allowed {allowed:.1e}"
        for where, error, allowed in found
        if error > allowed
    ]


Where = tuple[str | int, ...]


def compared(expected: Any, got: Any, where: Where = ()) -> Iterator[tuple[Where, float, float]]:
    """Where two values of JSON are to be equal, how far apart they are, and how far they may be.

    What is no number, and of a list its length, is apart by 0 or by infinity.
    """
    kinds = [
        bool
        if isinstance(one, bool)
        else dict
        if isinstance(one, dict)
        else list
        if isinstance(one, list)
        else float
        if isinstance(one, int | float)
        else str
        for one in (expected, got)
    ]
    if kinds[0] is not kinds[1] or kinds[0] in (bool, str):
        yield where, 0 if expected == got else math.inf, 0
    elif kinds[0] is dict:
        yield (*where, "names"), 0 if expected.keys() == got.keys() else math.inf, 0
        for key in expected.keys() & got.keys() - NOT_COMPARED:
            yield from compared(expected[key], got[key], (*where, key))
    elif kinds[0] is list:
        yield (*where, "length"), 0 if len(expected) == len(got) else math.inf, 0
        for index, pair in enumerate(zip(expected, got, strict=False)):
            yield from compared(*pair, (*where, index))
    else:
        error = abs(expected - got)
        named = [name for name in where if isinstance(name, str)]
        if pixels := PIXELS.get(named[-1]):
            yield where, error, pixels
        else:
            relative = next((RELATIVE[name] for name in named if name in RELATIVE), TOLERANCE)
            yield where, error / max(abs(expected), 1e-9), relative


def fetched(version: str, wheel: Path, work: Path) -> str:
    """Resolve, fetch and unpack all wheels of a Python that no Debian has; returns what they are.

    Raises:
        LackingError: uv cannot, or a library in them is for another machine or Python.
    """
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        raise LackingError(f"{uv} not found: pip install uv")
    target = work / f"python{version}"
    command = [uv, "pip", "install", "--quiet", "--only-binary=:all:", "--target", target]
    command += ["--python-version", version, "--python-platform"]
    command += [f"aarch64-manylinux_{GLIBC[version]}", f"{wheel}[{EXTRAS},cuda,live]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LackingError(f"uv for Python {version}: {' '.join(done.stderr.split())}")
    libraries = [path for path in target.rglob("*.so*") if path.is_file()]
    tag = version.replace(".", "")
    for path in libraries:
        with path.open("rb") as file:
            head = file.read(20)
        machine = struct.unpack_from("<H", head, 18)[0] if head[:4] == b"\x7fELF" else None
        other = ".cpython-" in path.name and f".cpython-{tag}-" not in path.name
        if machine != 183 or other:
            raise LackingError(
                f"{path.relative_to(target)} is no library of Python {version} for AArch64"
            )
    wheels = len(list(target.glob("*.dist-info")))
    return f"{wheels} wheels for AArch64 fetched, with {len(libraries)} libraries; not executed"


if __name__ == "__main__":
    sys.exit(main())
