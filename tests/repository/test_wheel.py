"""What is given away: sdist and wheel, and the wheel at work in a clean environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import COMMANDS

import padim_edge

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "padim_edge"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """The environment with the wheel in it, and a folder outside of the checkout."""

    python: Path
    folder: Path

    def run(self, *arguments: object) -> str:
        """Run a program of the environment; returns what it prints on stdout."""
        program, *rest = map(str, arguments)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            [str(self.python.parent / program), *rest],
            cwd=self.folder,
            env=clean,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with sdist and wheel; the wheel is built from the sdist, as `build` does."""
    pytest.importorskip("build")
    pytest.importorskip("uv")  # seconds faster than pip
    # A copy: setuptools leaves a build/ behind, whose contents would get into the next wheel.
    source = tmp_path_factory.mktemp("source") / "padim-edge"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "demo", "site", "shared", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--installer", "uv", "--outdir", str(folder), str(source)],
        capture_output=True,
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    """The wheel."""
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
    """The wheel with the extra cpu, in an environment of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    python = folder / "env" / "bin" / "python"
    for command in (
        ("venv", "--quiet", "--python", sys.executable, folder / "env"),
        ("pip", "install", "--quiet", "--python", python, f"{wheel}[cpu]"),
    ):
        subprocess.run([sys.executable, "-m", "uv", *map(str, command)], check=True)
    return Installed(python, folder)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".cu", ".typed", ".html", ".css", ".js")
    }
    ours = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert ours == wanted
    assert "padim_edge/runtime/nvidia/kernels.cu" in ours


def test_the_sdist_holds_what_the_wheel_is_built_from(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert {"padim_edge/py.typed", "padim_edge/runtime/nvidia/kernels.cu"} <= names
    assert not {name.split("/")[0] for name in names} & {"tests", "export", "fit", "runtime"}


def test_the_installed_package_is_the_wheels(installed):
    code = "import padim_edge, sys; print(padim_edge.__file__)"
    assert Path(installed.run("python", "-c", code).strip()).is_relative_to(installed.folder)
    assert installed.run("padim-edge", "--version").strip() == (
        f"padim-edge {padim_edge.__version__}"
    )


def test_every_help_works(installed):
    assert "demo" in installed.run("padim-edge", "--help")
    code = (
        "from padim_edge.cli.app import app\n"
        f"for name in {COMMANDS!r}:\n"
        "    app([name, '--help'], standalone_mode=False)\n"
        "    print('end of', name)"
    )
    helps = installed.run("python", "-c", code).split("end of ")
    assert len(helps) == len(COMMANDS) + 1
    assert all("Example" in shown for shown in helps[:-1])


def test_the_kernels_are_found(installed):
    code = (
        "from importlib import resources\n"
        "file = resources.files('padim_edge.runtime.nvidia') / 'kernels.cu'\n"
        "print(file.read_text())"
    )
    text = (PACKAGE / "runtime" / "nvidia" / "kernels.cu").read_text()
    assert installed.run("python", "-c", code) == text + "\n"


def test_the_whole_way_without_torch(installed):
    code = (
        "import importlib.util, pathlib\n"
        "assert not importlib.util.find_spec('torch')\n"
        "from padim_edge.images.synthetic import make_dataset\n"
        "make_dataset(pathlib.Path('photos'), train=12, good=2, per_defect=1, size=96)"
    )
    installed.run("python", "-c", code)
    shutil.copy(ROOT / "tests" / "model" / "format_1" / "embedding.onnx", installed.folder)
    installed.run("padim-edge", "fit", "embedding.onnx", "photos", "-o", "padim.onnx")
    told = installed.run(
        "padim-edge", "run", "padim.onnx", "photos/test", "--save-maps", "maps", "--engine", "ort"
    )
    assert len(told.splitlines()) == 1 + 5
    assert len(list((installed.folder / "maps").rglob("*.png"))) == 5
    installed.run("padim-edge", "run", "padim.onnx", "photos/test", "--report", "report.html")
    page = (installed.folder / "report.html").read_text()
    assert (PACKAGE / "detect" / "report" / "report.js").read_text() in page
    assert "threshold" in installed.run("padim-edge", "inspect", "padim.onnx")
    told = installed.run(
        *("padim-edge", "bench", "padim.onnx", "--engine", "ort", "--calls", 30),
        *("--frame", "120x90", "--threads", 1),
    )
    assert "graph / bare backbone" in told
