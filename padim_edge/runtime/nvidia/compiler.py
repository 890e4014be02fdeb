"""The kernels as machine code for the device at hand: compiled once, then kept.

By NVRTC where it is found (a library, and all that these files need), else by nvcc, which also
needs a C++ compiler. The code lives in the plan cache and is handed out under the same rules: a
folder that nobody else can write, a header that names exactly what was asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from padim_edge.errors import PadimEdgeError
from padim_edge.processes import run_child
from padim_edge.runtime.nvidia.plan_cache import PlanCache, SealedFile

CUDA = Path("/usr/local/cuda")
"""Where JetPack and NVIDIA's installers put the toolkit, whether or not it is on PATH."""

SECONDS = 600.0  # an Orin Nano in its smallest power mode is slow
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())  # a library stays silent unless it is asked


@dataclass(frozen=True)
class Compiler:
    """What makes machine code.

    Attributes:
        name: with its version.
        compile: from the name of a file, its text and an architecture (sm_87); raises
            PadimEdgeError with the reason.
    """

    name: str
    compile: Callable[[str, str, str], bytes]


def kernels(file: str, architecture: str, cache: PlanCache, newest: int | None = None) -> bytes:
    """The machine code of a file of kernels, from the cache or compiled now.

    Args:
        file: its name: kernels.cu or prepare.cu.
        architecture: of the device, as in sm_87.
        cache: where it is kept.
        newest: CUDA major version of the driver; it loads no code of a newer compiler.

    Raises:
        PadimEdgeError: there is no compiler, or none that compiles for this device.
    """
    source = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    reasons = []
    for compiler in compilers(newest):
        kept = _kept(cache, source, architecture, compiler.name)
        code = kept.read()
        if code is not None:
            return code
        try:
            code = compiler.compile(file, source, architecture)
        except PadimEdgeError as error:
            reasons.append(f"{compiler.name}: {error}")
            continue
        try:
            kept.write(code)
        except PadimEdgeError as error:
            _logger.warning("the kernels will be compiled again next time: %s", error)
        return code
    if reasons:
        raise PadimEdgeError(
            f"the CUDA kernels do not compile for {architecture}: {'; '.join(reasons)}"
        )
    raise PadimEdgeError(
        "compiling the CUDA kernels needs NVRTC or nvcc, and neither is found: on Jetson run  "
        "sudo apt install nvidia-jetpack  and elsewhere  pip install nvidia-cuda-nvrtc-cu12"
    )


def _kept(cache: PlanCache, source: str, architecture: str, compiler: str) -> SealedFile:
    place = json.dumps([hashlib.sha256(source.encode()).hexdigest(), architecture])
    key = hashlib.sha256(json.dumps([place, compiler]).encode()).digest()
    # Named without the compiler, so that an upgrade replaces the old code.
    name = hashlib.sha256(place.encode()).hexdigest()[:32] + ".cubin"
    return SealedFile(cache.folder / name, key)


def compilers(newest: int | None = None) -> Iterator[Compiler]:
    """What is found here, the quickest first; no NVRTC newer than the driver.

    Each is asked for only when the one before does not compile: an older NVRTC may be what the
    loader finds first, and not know the device.
    """
    known = set()
    for library in _find_nvrtc(newest):
        compiler = _nvrtc(library)
        if compiler.name not in known:
            yield compiler
        known.add(compiler.name)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=str(CUDA / "bin"))
    if nvcc is not None:
        yield _nvcc(nvcc)


# --- NVRTC ----------------------------------------------------------------------------------


def _find_nvrtc(newest: int | None = None) -> Iterator[ctypes.CDLL]:
    """NVRTC from where the loader looks, from the toolkit, or from NVIDIA's wheels."""
    names = [f"libnvrtc.so.{version}" for version in ("13", "12", "11.2")]
    wheels = [
        path
        for folder in sys.path
        for path in sorted(Path(folder or ".").glob("nvidia/*/lib/libnvrtc.so.[0-9]*"))
        if ".alt." not in path.name
    ]
    for library in (*names, *(CUDA / "lib64" / name for name in names), *wheels):
        major = int(str(library).rsplit(".so.", 1)[1].split(".")[0])
        if newest is not None and major > newest:
            continue
        try:
            if isinstance(library, Path):
                # It asks for its second half by name alone: what is loaded already is found.
                for part in library.parent.glob("libnvrtc-builtins.so.[0-9]*"):
                    ctypes.CDLL(str(part))
            loaded = ctypes.CDLL(str(library))
        except OSError:
            continue
        yield loaded


def _nvrtc(library: ctypes.CDLL) -> Compiler:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))

    def check(status: int, why: str = "") -> None:
        if status:
            reason = library.nvrtcGetErrorString(status).decode(errors="replace")
            raise PadimEdgeError(f"{reason}{why}")

    def text(program: ctypes.c_void_p, kind: str) -> bytes:
        size = ctypes.c_size_t()
        check(getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        content = ctypes.create_string_buffer(size.value)
        check(getattr(library, f"nvrtcGet{kind}")(program, content))
        return content.raw

    def run(file: str, source: str, architecture: str) -> bytes:
        program = ctypes.c_void_p()
        check(
            library.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), file.encode(), 0, None, None
            )
        )
        try:
            options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
            status = library.nvrtcCompileProgram(program, len(options), options)
            log = text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            check(status, _first_error(log))
            return text(program, "CUBIN")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    return Compiler(f"NVRTC {major.value}.{minor.value}", run)


# --- nvcc -----------------------------------------------------------------------------------


def _nvcc(nvcc: str) -> Compiler:
    def call(*arguments: str) -> str:
        # It calls its own tools, and the C++ compiler, by name.
        path = os.pathsep.join([os.fspath(Path(nvcc).parent), os.environ.get("PATH", "")])
        done = run_child([nvcc, *arguments], SECONDS, {**os.environ, "PATH": path})
        if done.code is None or done.code < 0:
            raise PadimEdgeError(done.trouble)
        if done.code:
            said = _first_error(done.stderr or done.stdout)
            raise PadimEdgeError(f"it ends with status {done.code}{said}")
        return done.stdout

    def run(file: str, source: str, architecture: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            place, result = Path(folder) / file, Path(folder) / "kernels.cubin"
            place.write_text(source, encoding="utf-8")
            call("-cubin", f"-arch={architecture}", "-o", str(result), str(place))
            return result.read_bytes()

    version = ""
    with contextlib.suppress(PadimEdgeError):
        version = " ".join(re.findall(r"V\d[\d.]*", call("--version"))[:1])
    return Compiler(f"nvcc {version}".rstrip(), run)


def _first_error(log: str) -> str:
    """': ' and the line of a compiler's output that says what is wrong, if there is one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines
    return f": {telling[0]}" if telling else ""
