"""A machine that lacks a GPU, pycuda or TensorRT: one line says what is missing and what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import in_process

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.runtime.engines import ENGINES, NVIDIA, open_engine

MODULES = ("tensorrt", "builder", "plan", "driver", "cuda_bindings", "device", "scorer", "preparer",
           "engine", "trt", "ort_cuda")  # fmt: skip
"""Those that import a library of NVIDIA's, or one another."""


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver, TensorRT, pycuda or cuda-bindings, and an x86 processor."""
    for name in ("tensorrt", "tensorrt_rtx", "pycuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"padim_edge.runtime.nvidia.{name}", raising=False)
    monkeypatch.setattr("padim_edge.runtime.engines.has_driver", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.parametrize("command", ["run", "eval", "bench"])
@pytest.mark.parametrize(
    ("engine", "missing", "fix"),
    [
        ("trt", "tensorrt", "pip install 'padim-edge[trt]'"),
        ("trt/graph", "tensorrt", "pip install 'padim-edge[trt]'"),
        ("ort-cuda", "pycuda", "pip install 'padim-edge[gpu]'"),
    ],
)
@pytest.mark.usefixtures("bare_machine")
def test_one_line_says_what_is_missing(
    model_file: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    engine: str,
    missing: str,
    fix: str,
) -> None:
    # bench says whose error it is: it may have been asked for several.
    source, asked = ((), f"ort,{engine}") if command == "bench" else ((photos,), engine)
    done = in_process(command, model_file, *source, "--engine", asked)
    line = done.failed(1, missing, f"run  {fix}  (", "nor is there an NVIDIA driver")
    assert (f"engine {engine}: " in line) == (command == "bench")


@pytest.mark.usefixtures("bare_machine")
def test_auto_is_quiet_without_a_driver(model_file: Path, photos: Path) -> None:
    done = in_process("run", model_file, photos / "test" / "good", "--engine", "auto").worked()
    assert len(done.stderr.splitlines()) == 1  # the summary


def test_auto_says_what_it_skipped(
    model_file: Path, photos: Path, bare_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("padim_edge.runtime.engines.has_driver", lambda: True)
    done = in_process("run", model_file, photos / "test" / "good", "--engine", "auto").worked()
    lines = done.stderr.splitlines()
    assert lines[0].startswith("not on this machine: trt: ")
    assert lines[1].startswith("not on this machine: ort-cuda: ")
    assert lines[2] == "engine ort is used"
    assert len(lines) == 4


def test_missing_pieces_have_an_error_of_their_own(model_file: Path, bare_machine: None) -> None:
    from padim_edge.model.file import read

    model = read(model_file, "padim")
    for name in NVIDIA:
        with pytest.raises(MissingDependencyError):
            open_engine(name, model)
    with pytest.raises(UsageError, match=f"choose auto, {', '.join(ENGINES)}"):
        open_engine("cuda", model)


# --- without pycuda -----------------------------------------------------------------------------


@pytest.fixture
def without_pycuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    for name in ("device", "driver", "cuda_bindings"):
        monkeypatch.delitem(sys.modules, f"padim_edge.runtime.nvidia.{name}", raising=False)

    def load() -> None:
        import padim_edge.runtime.nvidia.device  # noqa: F401

    return load


@pytest.mark.parametrize(
    ("machine", "fix"),
    [
        ("x86_64", r"needs pycuda, .*pip install 'padim-edge\[gpu\]'"),
        ("aarch64", r"needs pycuda or cuda-bindings, .*pip install 'padim-edge\[cuda\]'"),
    ],
)
def test_neither_package_is_there(
    without_pycuda: Callable[[], None], monkeypatch: pytest.MonkeyPatch, machine: str, fix: str
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(MissingDependencyError, match=fix):
        without_pycuda()


@pytest.mark.parametrize("there", [False, True])
def test_cuda_bindings_without_a_driver(
    without_pycuda: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    there: bool,
) -> None:
    """Its import says nothing of a driver: the first call does."""
    place = tmp_path / "cuda" / "bindings"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("__version__ = '12.9.1'\n")
    (place / "driver.py").write_text(
        "def cuDriverGetVersion():\n    raise RuntimeError('no such\\nlibrary')\n"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    monkeypatch.setattr("padim_edge.runtime.engines.has_driver", lambda: there)
    words = "cuDriverGetVersion failed: no such library" if there else "libcuda.so.1 is not found"
    with pytest.raises(PadimEdgeError, match=rf"cuda-bindings cannot load it \({words}\)"):
        without_pycuda()


@pytest.mark.parametrize("beside", [False, True])
def test_pycuda_of_another_cuda(
    without_pycuda: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    beside: bool,
) -> None:
    """It is linked to a library that went with an upgrade; cuda-bindings takes its place."""
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("VERSION_TEXT = '2026.1'\n")
    reason = "libcurand.so.10: cannot open shared object file"
    (tmp_path / "pycuda" / "driver.py").write_text(f"raise ImportError({reason!r})\n")
    if beside:
        place = tmp_path / "cuda" / "bindings"
        place.mkdir(parents=True)
        (place / "__init__.py").write_text("__version__ = '12.9.1'\n")
        (place / "driver.py").write_text(
            "def cuDriverGetVersion():\n    raise OSError('reached')\n"
        )
    for name in [name for name in sys.modules if name.split(".")[0] in ("cuda", "pycuda")]:
        monkeypatch.delitem(sys.modules, name)
    if not beside:
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    monkeypatch.setattr("padim_edge.runtime.engines.has_driver", lambda: True)
    words = (
        r"cuda-bindings cannot load it \(reached\)"
        if beside
        else rf"does not load \({reason}\): run  pip install --force-reinstall"
    )
    with pytest.raises(PadimEdgeError, match=words):
        without_pycuda()


# --- without TensorRT ---------------------------------------------------------------------------


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Imports the product's file as if no TensorRT were installed."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "padim_edge.runtime.nvidia.tensorrt", raising=False)

    def load() -> None:
        import padim_edge.runtime.nvidia.tensorrt  # noqa: F401

    return load


def test_tensorrt_missing_on_x86(
    without_tensorrt: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(MissingDependencyError, match=r"pip install 'padim-edge\[trt\]'"):
        without_tensorrt()


def test_tensorrt_missing_on_jetson(
    without_tensorrt: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(MissingDependencyError, match="sudo apt install python3-lib") as caught:
        without_tensorrt()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_installed_but_broken(
    without_tensorrt: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    module: str,
) -> None:
    reason = "libnvinfer.so.10: cannot open shared object file"
    (tmp_path / f"{module}.py").write_text(f"raise ImportError({reason!r})\n")
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    monkeypatch.delitem(sys.modules, module)
    if module == "tensorrt_rtx":  # only asked for where the other is not installed
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PadimEdgeError, match=f"cannot be loaded .*{reason}"):
        without_tensorrt()
