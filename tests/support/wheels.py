"""Wheels of PyPI for tests alone: fetched by pip into a cache, unpacked, imported elsewhere.

The cache is $PADIM_EDGE_TEST_CACHE, or ~/.cache/padim-edge-tests. Without pip, network or
compiler the tests that ask for them skip and say why.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

NATIVE = Path(__file__).parent / "native"


@functools.cache
def cache() -> Path:
    configured = os.environ.get("PADIM_EDGE_TEST_CACHE")
    folder = Path(configured) if configured else Path.home() / ".cache" / "padim-edge-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unpacked(requirement: str) -> Path:
    """The folder of an unpacked wheel, for the running interpreter; skips if it cannot be had."""
    folder, reason = _unpacked(requirement)
    if reason:
        pytest.skip(reason)
    return folder


@functools.cache  # a failure too: pip's patience with a dead network is spent once
def _unpacked(requirement: str) -> tuple[Path, str]:
    folder = cache() / f"{requirement.replace('==', '-')}-{sys.implementation.cache_tag}"
    if folder.is_dir():
        return folder, ""
    with tempfile.TemporaryDirectory(dir=cache()) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--retries=1", "--timeout=20", "--dest", temporary]
        result = subprocess.run([*command, requirement], capture_output=True, text=True)
        wheels = list(Path(temporary).glob("*.whl"))
        if result.returncode or not wheels:
            said = result.stderr.strip().splitlines() or ["nothing was said"]
            return folder, f"pip cannot fetch {requirement}: {said[-1]}"
        content = Path(temporary) / "content"
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(content)
        try:
            content.rename(folder)
        except OSError:  # another process was faster, and its content is the same
            assert folder.is_dir()
    return folder, ""


def compile_c(source: str, library: Path) -> None:
    """Compile a file of tests/native into a shared library; skips if there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler (cc, gcc or clang) on PATH")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(NATIVE / source)]
    command += [f"-Wl,-soname,{library.name}", "-Wl,-rpath,$ORIGIN", "-ldl"]
    subprocess.run(command, check=True)


def facade(module: str, wheel: Path, folder: Path) -> Path:
    """Copy the bindings into a folder, under the name that users import as in NVIDIA's packages.

    Returns:
        The folder of the native module, where its libraries are looked for.
    """
    bindings = f"{module}_bindings"
    shutil.copytree(wheel / bindings, folder / bindings)
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(
        f"from {bindings} import *\nfrom {bindings} import __version__\n"
    )
    return folder / bindings


def interpreter(*folders: Path) -> ProcessPoolExecutor:
    """A fresh interpreter that imports from these folders first.

    Native modules of different versions do not live together in one process, and what crashes
    there must not take the tests with it. Functions given to `submit` are those of a module.
    """
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_extend_path,
        initargs=([str(folder) for folder in folders],),
    )


def _extend_path(folders: list[str]) -> None:
    sys.path[:0] = folders
