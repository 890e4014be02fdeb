"""The example in C++, built once: libraries of this machine, the installed ONNX Runtime's own.

The wheel of ONNX Runtime has the library but no headers. Debian 13 has them as a package, which
apt fetches into the cache of `wheels` without installing anything; they may be older than the
library, which serves every older interface.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
from wheels import cache

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
OLDEST = (1, 21)
"""Of ONNX Runtime: what the headers of Debian 13 are of."""

HEADERS = ("libonnxruntime-dev", "nlohmann-json3-dev")
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SOURCE = f"deb [signed-by={_KEYS}] http://deb.debian.org/debian trixie main\n"


def build(folder: Path) -> None:
    """Build ``padim-judge`` in a folder, every warning an error; skips, saying what is lacking."""
    programs = {"cmake": "cmake", "c++": "g++"}
    if lack := [package for name, package in programs.items() if not shutil.which(name)]:
        pytest.skip(f"no {' and no '.join(lack)} here: make parts, as root")
    includes = Path("/usr/include")
    files = {"turbojpeg.h": "libturbojpeg0-dev", "png.h": "libpng-dev"}
    if lack := [package for name, package in files.items() if not (includes / name).exists()]:
        pytest.skip(f"no {' and no '.join(lack)} here: make parts, as root")
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        pytest.skip("no onnxruntime here: pip install 'padim-edge[cpu]'")
    installed = metadata.version("onnxruntime")
    if tuple(map(int, installed.split(".")[:2])) < OLDEST:
        pytest.skip(f"ONNX Runtime {installed} is older than the headers, 1.21: pip install -U it")
    library = next((Path(found.origin).parent / "capi").glob("libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip(f"the wheel of ONNX Runtime {installed} has no library of its own here")
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


def _run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _headers() -> Path:
    """The prefix below which the headers are, fetched if they are not there; skips without."""
    folder = cache() / f"debian-13-{'-'.join(HEADERS)}"
    if folder.is_dir():
        return folder / "usr"
    if lack := [name for name in ("apt-get", "dpkg-deb") if not shutil.which(name)]:
        pytest.skip(f"no {' and no '.join(lack)} here, to fetch ONNX Runtime's headers with")
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        place = Path(name)
        # Lists, archives and state of its own: nothing of the system's is read or changed.
        for made in ("lists/partial", "archives/partial", "packages", "content"):
            (place / made).mkdir(parents=True)
        (place / "sources.list").write_text(_SOURCE)
        (place / "status").touch()
        options = {
            "Dir::Etc::SourceList": place / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-",
            "Dir::Etc::PreferencesParts": "-",
            "Dir::State": place,
            "Dir::State::Status": place / "status",
            "Dir::Cache": place,
            "Acquire::Languages": "none",
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": 20,
            "APT::Sandbox::User": "root",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        for command in ([*apt, "--error-on=any", "update"], [*apt, "download", *HEADERS]):
            done = subprocess.run(
                command, cwd=place / "packages", capture_output=True, text=True, check=False
            )
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["nothing was said"]
                pytest.skip(
                    f"apt-get cannot fetch {' and '.join(HEADERS)} of Debian 13: {said[-1]}"
                )
        for package in (place / "packages").glob("*.deb"):
            _run("dpkg-deb", "-x", package, place / "content")
        for link in (place / "content").rglob("libonnxruntime*.so*"):
            link.unlink()  # it leads to the library of a package that is not there
        try:
            (place / "content").rename(folder)
        except OSError:  # another process was faster
            assert folder.is_dir()
    return folder / "usr"
