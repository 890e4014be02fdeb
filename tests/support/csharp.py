"""The example in C#, built once, without an SDK of .NET: each part is had where it can be had.

| part | whence |
|---|---|
| .NET Core 3.1, the runtime | Microsoft's wheel dotnetcore2 |
| Roslyn, the compiler, called by pythonnet | Microsoft's npm package @autorest/csharp holds it |
| OpenSSL 1.1, whose sums the compiler takes | Debian 11 |
| Microsoft.ML.OnnxRuntime, the C# of ONNX Runtime | its sources, in an npm package for Unity |
| the library of ONNX Runtime | its wheel, as it is installed |

What a user of .NET does instead is `dotnet build`, which needs an SDK and NuGet.
"""

from __future__ import annotations

import ctypes.util
import functools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
from cpp import runtime_library
from debs import unpacked_debs
from wheels import cache, unpacked

EXAMPLE = Path(__file__).parents[2] / "examples" / "csharp"

_RUNTIME = "dotnetcore2==3.1.23"
_BRIDGE = ("pythonnet==3.2.1", "clr-loader==0.3.1", "cffi==2.1.1", "pycparser==3.0")
_ROSLYN = "@autorest/csharp@3.0.0-beta.20220420.1"
_BINDINGS = "com.github.asus4.onnxruntime@0.4.9"


def build(folder: Path) -> None:
    """Build ``padim-judge.dll`` in a folder, every warning an error; skips, saying what lacks."""
    if not ctypes.util.find_library("turbojpeg"):
        pytest.skip("no libturbojpeg0 here: make parts, as root")
    library = runtime_library((1, 14))  # whose interface the bindings ask for
    bindings = _bindings()
    project = xml.etree.ElementTree.parse(EXAMPLE / "PadimJudge.csproj").getroot()
    said = {one.tag: one.text for one in project.iterfind("PropertyGroup/*")}
    name = said["AssemblyName"]
    options = [f"/langversion:{said['LangVersion']}", f"/nullable:{said['Nullable']}"]
    sources = sorted(EXAMPLE.glob("*.cs"))
    output = folder / f"{name}.dll"
    _compile(output, sources, "/target:exe", f"/reference:{bindings}", "/warnaserror+", *options)
    shutil.copy(bindings, folder)
    (folder / "libonnxruntime.so").symlink_to(library)
    invariant = said["InvariantGlobalization"] == "true"
    runtime = {
        "framework": {"name": "Microsoft.NETCore.App", "version": "3.1.0"},
        "configProperties": {"System.Globalization.Invariant": invariant},
    }
    config = json.dumps({"runtimeOptions": runtime})
    output.with_suffix(".runtimeconfig.json").write_text(config)


def command(folder: Path) -> list[object]:
    """Runs what `build` made."""
    return [_root() / "dotnet", folder / "padim-judge.dll"]


def _root() -> Path:
    """The folder of the program `dotnet`."""
    root = unpacked(_RUNTIME) / "dotnetcore2" / "bin"
    (root / "dotnet").chmod(0o755)
    return root


def _bindings() -> Path:
    """Microsoft.ML.OnnxRuntime.dll, compiled once from its sources."""
    sources = _package(_BINDINGS, "Runtime")
    assembly = sources / "Microsoft.ML.OnnxRuntime.dll"
    if not assembly.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as name:
            made = Path(name) / assembly.name
            # As its own package for .NET before 8 is made.
            options = ("/target:library", "/unsafe+", "/define:NETSTANDARD2_0", "/langversion:9")
            _compile(made, sorted((sources / "Runtime").rglob("*.cs")), *options)
            made.replace(assembly)
    return assembly


def _compile(output: Path, sources: Sequence[Path], *options: str) -> None:
    pythons = [unpacked(wheel) for wheel in _BRIDGE]
    openssl = next(unpacked_debs("bullseye", "libssl1.1").rglob("libssl.so.1.1")).parent
    program = [sys.executable, Path(__file__).parent / "csharp_compiler.py"]
    program += [_root(), _package(_ROSLYN), "/nologo", "/noconfig", "/nostdlib+", "/optimize+"]
    done = subprocess.run(
        list(map(str, [*program, f"/out:{output}", *options, *sources])),
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(openssl),
            "PYTHONPATH": os.pathsep.join(map(str, pythons)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _package(name: str, folder: str = "") -> Path:
    """The files of an npm package, of one of its folders; skips if they cannot be had."""
    place, reason = _unpacked(name, folder)
    if reason:
        pytest.skip(reason)
    return place


@functools.cache  # a failure too
def _unpacked(name: str, folder: str) -> tuple[Path, str]:
    place = cache() / name.strip("@").replace("/", "-")
    if place.is_dir():
        return place, ""
    if not shutil.which("npm"):
        return place, "no npm here: apt-get install npm"
    with tempfile.TemporaryDirectory(dir=cache()) as temporary:
        program = ["npm", "pack", "--loglevel=error", "--pack-destination", temporary, name]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or not archives:
            said = done.stderr.strip().splitlines() or ["no word"]
            return place, f"npm cannot fetch {name}: {said[0]}"
        with tarfile.open(archives[0]) as archive:
            wanted = [one for one in archive if one.name.startswith(f"package/{folder}")]
            archive.extractall(temporary, wanted, filter="data")
        try:
            (Path(temporary) / "package").rename(place)
        except OSError:  # another process was faster
            assert place.is_dir()
    return place, ""
