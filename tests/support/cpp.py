"""The example in C++, built once: libraries of this machine, the installed ONNX Runtime's own.

The wheel of ONNX Runtime has the library but no headers. Debian 13 has them as a package (see
`debs`); they may be older than the library, which serves every older interface.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from debs import unpacked_debs

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
OLDEST = (1, 21)
"""Of ONNX Runtime: what the headers of Debian 13 are of."""

HEADERS = ("libonnxruntime-dev", "nlohmann-json3-dev")


def build(folder: Path) -> None:
    """Build ``padim-judge`` in a folder, every warning an error; skips, saying what is lacking."""
    programs = {"cmake": "cmake", "c++": "g++"}
    if lack := [package for name, package in programs.items() if not shutil.which(name)]:
        pytest.skip(f"no {' and no '.join(lack)} here: make parts, as root")
    includes = Path("/usr/include")
    files = {"turbojpeg.h": "libturbojpeg0-dev", "png.h": "libpng-dev"}
    if lack := [package for name, package in files.items() if not (includes / name).exists()]:
        pytest.skip(f"no {' and no '.join(lack)} here: make parts, as root")
    library = runtime_library(OLDEST)
    headers = _headers()
    # Under the names that a linker and a loader look for.
    libraries = folder / "onnxruntime" / "lib"
    libraries.mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (libraries / name).symlink_to(library)
    _run(
        *("cmake", "-S", EXAMPLE, "-B", folder, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"),
        # Debug compiles in half the time; the folder is moved once it is built.
        *("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"),
        f"-DCMAKE_PREFIX_PATH={libraries.parent};{headers}",
    )
    _run("cmake", "--build", folder)


def runtime_library(oldest: tuple[int, int]) -> Path:
    """The library of the installed wheel of ONNX Runtime; skips if it is older, or has none."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        pytest.skip("no onnxruntime here: pip install 'padim-edge[cpu]'")
    installed = metadata.version("onnxruntime")
    if tuple(map(int, installed.split(".")[:2])) < oldest:
        wanted = ".".join(map(str, oldest))
        pytest.skip(f"ONNX Runtime {installed} is older than {wanted}: pip install -U it")
    library = next((Path(found.origin).parent / "capi").glob("libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip(f"the wheel of ONNX Runtime {installed} has no library of its own here")
    return library


def _run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _headers() -> Path:
    """The prefix below which the headers are; skips without."""
    return unpacked_debs("trixie", *HEADERS) / "usr"
