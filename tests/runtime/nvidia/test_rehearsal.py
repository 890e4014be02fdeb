"""The tests for a GPU themselves: they need no torch, and a run that skips them all can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fake_gpu
import pytest
from helpers import blocking

from padim_edge.images.formats import PIXEL_FORMATS

HERE = Path(__file__).parent
SUPPORT = Path(fake_gpu.__file__).parent


def python(code: str) -> tuple[int, str]:
    """Run code that can import from tests/support; the exit code and what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE.parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_tests_for_a_gpu_run_without_torch(folder: str) -> None:
    """Over the fake driver: the kernels, and an engine beside the CPU's."""
    code = f"""
{blocking("torch", "torchvision", "onnxscript")}
sys.path.append({str(fake_gpu.pycuda())!r})
import fake_gpu, pytest
device = fake_gpu.enter({folder!r})
from padim_edge.runtime.nvidia import ort_cuda
ort_cuda.OrtCudaEngine = fake_gpu.cpu_engine(device)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--require-gpu",
                      "-k", "test_kernels or test_parity or test_frames_are",
                      {str(HERE / "test_gpu.py")!r}]))
"""
    ended, said = python(code)
    assert ended == 0, said
    formats = len(PIXEL_FORMATS)
    passed = 36 + 3 + formats  # of kernels, and of ort-cuda; TensorRT is not here
    assert f"{passed} passed, {2 * (3 + formats)} skipped" in said


RAN = """
import pytest
pytestmark = pytest.mark.gpu
def test_one(): pytest.skip("no pycuda")
def test_two(): pass
"""
SKIPPED = """
import pytest
@pytest.fixture(autouse=True)
def gpu(): pytest.skip("no NVIDIA driver")
@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2])
def test_one(number): pass
"""
OTHERS = "def test_one(): pass"


@pytest.mark.parametrize(
    ("source", "options", "code", "reason"),
    [
        (RAN, (), 0, ""),
        (RAN, ("-m", "gpu", "--require-gpu"), 0, ""),
        (SKIPPED, ("-m", "gpu"), 0, ""),
        (SKIPPED, ("-m", "gpu", "--require-gpu"), 1, "no NVIDIA driver (2 tests)"),
        (OTHERS, ("--require-gpu",), 1, "no test is marked gpu"),
    ],
)
def test_a_run_without_a_gpu_fails_where_one_is_required(
    tmp_path: Path, source: str, options: tuple[str, ...], code: int, reason: str
) -> None:
    (tmp_path / "test_it.py").write_text(source)
    arguments = ["-p", "require_gpu", "-c", os.devnull, "-p", "no:cacheprovider", *options]
    arguments.append(str(tmp_path / "test_it.py"))
    ended, said = python(f"import sys, pytest; sys.exit(pytest.main({arguments!r}))")
    assert ended == code, said
    assert reason in said
    assert ("not one test ran on a GPU" in said) == bool(reason)
