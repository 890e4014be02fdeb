"""The CUDA kernels compile for every architecture, without warnings and without spills.

NVRTC, from NVIDIA's wheels on PyPI, compiles to machine code on machines without a GPU; its log
holds the assembler's report of registers, stack and static shared memory.
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

import pytest
import wheels

from padim_edge.runtime.nvidia import launch

FOLDER = Path(launch.__file__).parent
KERNELS = FOLDER / "kernels.cu"
PREPARE = FOLDER / "prepare.cu"
NAMES = [f"mahalanobis_{format_}_{n}" for format_ in launch.FORMATS for n in launch.FRAMES]
NVRTC_12 = "nvidia-cuda-nvrtc-cu12==12.9.86"
NVRTC_13 = "nvidia-cuda-nvrtc==13.0.88"
# Of Jetsons: Nano 53, TX2 62, Xavier 72, Orin 87, Thor 110.
ARCHITECTURES = [(NVRTC_12, n) for n in (53, 62, 72, 87, 90, 100, 120)] + [(NVRTC_13, 110)]


@functools.cache
def nvrtc(requirement):
    folder = wheels.unpacked(requirement)
    # NVRTC asks for its second library by name alone: what is loaded already is found.
    for path in folder.rglob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(path))
    (library,) = (p for p in folder.rglob("libnvrtc.so.*") if ".alt." not in p.name)
    return ctypes.CDLL(str(library))


def compiled(requirement, source, *options, result="CUBIN"):
    """The compiler's log, and what it made."""
    library = nvrtc(requirement)

    def content(kind):
        size = ctypes.c_size_t()
        assert getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)) == 0
        text = ctypes.create_string_buffer(size.value)
        assert getattr(library, f"nvrtcGet{kind}")(program, text) == 0
        return text.raw

    program = ctypes.c_void_p()
    arguments = [source.encode(), b"kernels.cu", 0, None, None]
    assert library.nvrtcCreateProgram(ctypes.byref(program), *arguments) == 0
    try:
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), encoded)
        log = content("ProgramLog").rstrip(b"\0").decode()
        assert status == 0, log
        return log, content(result)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def warnings(log):
    """Those about the source: that an architecture is old is no news."""
    lines = [line for line in log.splitlines() if "warning" in line.lower()]
    return [line for line in lines if not re.search("Architectures prior to .* deprecated", line)]


def report(log):
    """Kernel -> registers, and bytes of stack, of spills and of static shared memory."""
    kernels = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'", 1)[0]
        (registers,) = re.findall(r"Used (\d+) registers", part)
        (stack,) = re.findall(r"(\d+) bytes stack frame", part)
        stores, loads = re.findall(r"(\d+) bytes spill (?:stores|loads)", part)
        shared = re.findall(r"(\d+) bytes smem", part) or ["0"]
        kernels[name] = int(registers), int(stack), int(stores) + int(loads), int(shared[0])
    return kernels


@pytest.mark.parametrize(
    ("requirement", "architecture"), ARCHITECTURES, ids=[f"sm_{n}" for _, n in ARCHITECTURES]
)
def test_compiles_without_warnings_and_spills(requirement, architecture, capsys):
    options = [f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v"]
    log, code = compiled(requirement, KERNELS.read_text(), *options)
    assert not warnings(log)
    assert code[:4] == b"\x7fELF"
    kernels = report(log)
    assert sorted(kernels) == sorted([*NAMES, "smooth"])
    for name, (registers, *memory) in kernels.items():
        assert memory == [0, 0, 0], name
        assert registers <= 128, name
    with capsys.disabled():
        print(f"\n  registers on sm_{architecture}: smooth {kernels['smooth'][0]}", end="")
        for format_ in launch.FORMATS:
            used = [kernels[f"mahalanobis_{format_}_{n}"][0] for n in launch.FRAMES]
            print(f", {format_} {used}", end="")
        print(" at 1, 2, 4, 8 frames; shared 0 B static", end="")


@pytest.mark.parametrize(
    ("requirement", "architecture"), ARCHITECTURES, ids=[f"sm_{n}" for _, n in ARCHITECTURES]
)
def test_prepare_compiles_without_warnings_and_spills(requirement, architecture, capsys):
    options = [f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v"]
    log, code = compiled(requirement, PREPARE.read_text(), *options)
    assert not warnings(log)
    assert code[:4] == b"\x7fELF"
    kernels = report(log)
    assert sorted(kernels) == ["prepare_16", "prepare_8"]
    for name, (registers, *memory) in kernels.items():
        assert memory == [0, 0, 0], name
        assert registers <= 64, name  # four blocks of 256 threads on a multiprocessor
    with capsys.disabled():
        print(f"\n  registers on sm_{architecture}: {kernels}", end="")


def test_spills_and_warnings_would_be_seen():
    source = KERNELS.read_text()
    bounds = "__launch_bounds__(256, blocks)"
    assert bounds in source
    tight = source.replace(bounds, "__launch_bounds__(1024, 2)")
    tight += "\nextern __global__ void unused() { int never; }\n"
    log, _ = compiled(NVRTC_12, tight, "--gpu-architecture=sm_87", "--ptxas-options=-v")
    assert warnings(log)
    assert report(log)["mahalanobis_float16_8"][2] > 0


def bodies_in(source):
    """PTX of each kernel by its name, for Orin."""
    _, ptx = compiled(NVRTC_12, source.read_text(), "--gpu-architecture=compute_87", result="PTX")
    entries = re.split(r"\.visible \.entry ", ptx.decode())[1:]
    return {entry.split("(", 1)[0]: entry for entry in entries}


def parameter_bytes(name, body):
    (size,) = re.findall(rf"\.param \.align 8 \.b8 {name}_param_0\[(\d+)\]", body)
    return int(size)


def test_parameters_of_prepare_and_width_of_its_loads():
    """The struct is as large as the host's; rows come in 4 bytes, and by the byte at their ends."""
    bodies = bodies_in(PREPARE)
    assert len(bodies) == 2
    for name, body in bodies.items():
        assert parameter_bytes(name, body) == launch.PREPARE.itemsize
        assert set(re.findall(r"ld\.global\.nc\.\S+", body)) == {
            "ld.global.nc.u32",
            "ld.global.nc.u8",
            "ld.global.nc.s32",  # tables
        }


def test_parameters_and_width_of_loads():
    """The structs are as large as the host's; constants (loads with .cs) come in 16 bytes."""
    bodies = bodies_in(KERNELS)
    for name, body in bodies.items():
        argument = launch.SMOOTH if name == "smooth" else launch.MAHALANOBIS
        assert parameter_bytes(name, body) == argument.itemsize
    for name in NAMES:
        loads = re.findall(r"ld\.global\.cs\.\S+", bodies[name])
        assert len(loads) >= 4, name
        assert set(loads) == {"ld.global.cs.v4.u32"}, name
