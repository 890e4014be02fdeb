"""Compiling the kernels: what is compiled when, by which compiler, and what is said if none can."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from wheels import interpreter, unpacked

from padim_edge.errors import PadimEdgeError
from padim_edge.runtime.nvidia import compiler
from padim_edge.runtime.nvidia.plan_cache import PlanCache


@pytest.fixture
def plans(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def counting(name: str, calls: list[str], code: bytes = b"code") -> compiler.Compiler:
    def run(file: str, source: str, architecture: str) -> bytes:
        assert "mahalanobis_float16_8" not in source  # made by a macro: it is the source itself
        assert 'extern "C" __global__' in source
        assert file == "kernels.cu"
        calls.append(architecture)
        return code

    return compiler.Compiler(name, run)


def test_code_is_compiled_once_per_source_architecture_and_compiler(
    plans: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    use = ["a compiler 1.0"]
    monkeypatch.setattr(compiler, "compilers", lambda _newest: [counting(use[0], calls)])
    for _ in range(2):
        assert compiler.kernels("kernels.cu", "sm_87", plans) == b"code"
    assert calls == ["sm_87"]
    compiler.kernels("kernels.cu", "sm_110", plans)
    assert calls == ["sm_87", "sm_110"]
    use[0] = "a compiler 1.1"
    compiler.kernels("kernels.cu", "sm_87", plans)
    assert len(calls) == 3
    kept = sorted(plans.folder.glob("*.cubin"))
    assert len(kept) == 2
    assert plans.folder.stat().st_mode & 0o777 == 0o700
    for file in kept:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert compiler.kernels("kernels.cu", "sm_87", plans) == b"code"
    assert len(calls) == 4


def failing(reason: str) -> compiler.Compiler:
    def run(file: str, source: str, architecture: str) -> bytes:
        raise PadimEdgeError(reason)

    return compiler.Compiler("an old one", run)


def test_the_next_compiler_is_asked_when_one_fails(
    plans: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [failing("sm_110 is unknown"), counting("a new one", [])]
    monkeypatch.setattr(compiler, "compilers", lambda _newest: both)
    assert compiler.kernels("kernels.cu", "sm_110", plans) == b"code"
    del both[1]
    (plans.folder / next(plans.folder.glob("*.cubin"))).unlink()
    with pytest.raises(PadimEdgeError, match="for sm_110: an old one: sm_110 is unknown"):
        compiler.kernels("kernels.cu", "sm_110", plans)
    both.clear()
    with pytest.raises(PadimEdgeError, match=r"needs NVRTC or nvcc, .* run  sudo apt install"):
        compiler.kernels("kernels.cu", "sm_110", plans)


def check_nvrtc(folder: str, plans: str) -> str:
    """Compile with the NVRTC of an unpacked wheel; the reason if another one is found first."""
    sys.path[:] = [folder]
    compiler.CUDA = Path(folder) / "no toolkit"
    found = next(compiler._find_nvrtc())
    if folder not in found._name:
        return f"{found._name} is where the loader looks"
    nvrtc = compiler._nvrtc(found)
    assert nvrtc.name == "NVRTC 12.9"
    compiler.compilers = lambda _newest: iter([nvrtc])
    cache = PlanCache(Path(plans))
    assert compiler.kernels("kernels.cu", "sm_87", cache)[:4] == b"\x7fELF"
    with pytest.raises(PadimEdgeError, match=r"do not compile for sm_1: NVRTC 12\.9: .*gpu-arch"):
        compiler.kernels("kernels.cu", "sm_1", cache)
    with pytest.raises(PadimEdgeError, match=r"prepare\.cu\(1\): error: .*undeclared"):
        nvrtc.compile("prepare.cu", "__global__ void f() { undeclared = 1; }", "sm_87")
    return ""


def test_nvrtc_from_a_wheel_compiles(tmp_path: Path) -> None:
    folder = str(unpacked("nvidia-cuda-nvrtc-cu12==12.9.86"))
    with interpreter() as pool:  # this one may have torch's NVRTC loaded
        reason = pool.submit(check_nvrtc, folder, str(tmp_path / "plans")).result(timeout=300)
    if reason:
        pytest.skip(reason)


def check_next_nvrtc(folders: list[str], plans: str) -> None:
    """An older NVRTC comes first, which does not know the device."""
    sys.path[:] = folders
    compiler.CUDA = Path(plans) / "no toolkit"
    os.environ["PATH"] = ""  # nor an nvcc
    names = [one.name for one in compiler.compilers()]
    assert names.index("NVRTC 12.9") < names.index("NVRTC 13.0")
    assert len(set(names)) == len(names)
    cache = PlanCache(Path(plans))
    # Whatever the loader finds on this machine knows Thor as little as 12.9, or is 13 itself.
    assert compiler.kernels("kernels.cu", "sm_110", cache)[:4] == b"\x7fELF"
    with pytest.raises(PadimEdgeError, match=r"for sm_110: .*NVRTC 12\.9: .*gpu-arch"):
        compiler.kernels("kernels.cu", "sm_110", PlanCache(Path(plans) / "other"), newest=12)


def test_the_next_nvrtc_is_asked_when_one_does_not_know_the_device(tmp_path: Path) -> None:
    wheels = ("nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia-cuda-nvrtc==13.0.88")
    folders = [str(unpacked(wheel)) for wheel in wheels]
    with interpreter() as pool:
        pool.submit(check_next_nvrtc, folders, str(tmp_path / "plans")).result(timeout=300)


def script(folder: Path, text: str) -> str:
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_nvcc_is_called_with_the_architecture(tmp_path: Path) -> None:
    found = compiler._nvcc(
        script(
            tmp_path,
            'if [ "$1" = --version ]; then echo "release 12.6, V12.6.68"; exit; fi\n'
            'test "$1 $2 $3" = "-cubin -arch=sm_87 -o" || exit 3\n'
            'cat "$5" > "$4"; echo " by $1 ${5##*/}" >> "$4"',
        )
    )
    assert found.name == "nvcc V12.6.68"
    assert found.compile("prepare.cu", "source", "sm_87") == b"source by -cubin prepare.cu\n"


def test_nvcc_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    found = compiler._nvcc(script(tmp_path, "echo noise; echo 'x.cu(1): error: no' >&2; exit 2"))
    with pytest.raises(PadimEdgeError) as caught:
        found.compile("prepare.cu", "source", "sm_87")
    assert str(caught.value) == "it ends with status 2: x.cu(1): error: no"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'out of memory' >&2; kill -SEGV $$", "crashed (SIGSEGV): out of memory"),
        ("sleep 600", "gave no answer within 1 s and was stopped"),
    ],
)
def test_nvcc_that_crashes_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setattr(compiler, "SECONDS", 1.0)
    found = compiler._nvcc(script(tmp_path, f'[ "$1" = --version ] || {{ {text}; }}'))
    assert found.name == "nvcc"
    with pytest.raises(PadimEdgeError) as caught:
        found.compile("prepare.cu", "source", "sm_87")
    assert str(caught.value) == words
