"""The doctor on this machine, and among libraries that crash, hang or lie."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import blocking, padim_edge

from padim_edge.errors import PadimEdgeError, ProcessorError
from padim_edge.measure import doctor_nvidia, doctor_software
from padim_edge.measure.doctor import SCHEMA, Diagnosis
from padim_edge.measure.finding import STATUSES, Finding, ask
from padim_edge.runtime import probe
from padim_edge.runtime.engines import ENGINES


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a made-up library in front of all others, in child processes too."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def make(name: str, source: str) -> None:
        (folder / f"{name}.py").write_text(source)

    return make


# --- this machine -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the command says of this machine: the JSON file and the text."""
    pytest.importorskip("onnxruntime")
    file = tmp_path_factory.mktemp("doctor") / "doctor.json"
    done = padim_edge("doctor", "--json", file, timeout=900).worked()
    return json.loads(file.read_text()), done.stdout


def test_the_cpu_engine_runs_here(here):
    report, text = here
    assert "ort" in report["engines"]
    assert "auto takes" in text.splitlines()[-1]
    found = {(one["area"], one["name"]): one for one in report["findings"]}
    assert found["python", "onnxruntime CPU"]["status"] == "ok"
    assert found["python", "numpy"]["detail"] == np.__version__
    assert found["device", "model"]["detail"]
    for name in ENGINES:
        assert ("engine", name) in found


@pytest.mark.parametrize("name", ["TensorRT", "pycuda or cuda-bindings"])
def test_what_is_missing_here_has_its_mending_command(here, name):
    report, text = here
    finding = next(one for one in report["findings"] if one["name"] == name)
    if finding["status"] == "missing":
        assert "install " in finding["fix"]
        assert f"fix:  {finding['fix']}" in text
    else:
        assert finding["detail"]


def test_the_json_has_the_stated_form(here):
    report, _ = here
    assert set(report) == {"schema", "date", "padim_edge", "engines", "findings"}
    assert report["schema"] == SCHEMA == 2
    for finding in report["findings"]:
        assert list(finding) == ["area", "name", "status", "detail", "fix"]
        assert all(isinstance(value, str) for value in finding.values())
        assert finding["area"] in ("device", "nvidia", "python", "engine")
        assert finding["status"] in STATUSES
        assert finding["detail"]
        assert "\n" not in finding["detail"] + finding["fix"]
    names = [(one["area"], one["name"]) for one in report["findings"]]
    assert len(names) == len(set(names))


def test_no_engine_is_exit_code_1(tmp_path, library):
    for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda"):
        library(name, f"raise ModuleNotFoundError('no such module', name={name!r})")
    # The packages that only export needs are slow to load and no concern of this test.
    prelude = (
        f"import sys; sys.path.insert(0, {sys.path[0]!r})\n"
        "from padim_edge.measure import doctor_software as d; d.PACKAGES = d.PACKAGES[:1]"
    )
    file = tmp_path / "doctor.json"
    done = padim_edge("doctor", "--json", file, prelude=prelude)
    done.failed(1, "no engine runs here")
    report = json.loads(file.read_text())
    assert report["engines"] == []
    assert "fix:  pip install 'padim-edge[cpu]'" in done.stdout
    found = {one["name"]: one for one in report["findings"] if one["area"] == "engine"}
    for name in ("openvino", "openvino-bf16"):
        assert found[name]["status"] == "missing"
        assert found[name]["fix"] == "pip install 'padim-edge[openvino]'"


@pytest.mark.parametrize(
    ("running", "automatic"),
    [
        (["trt", "trt/graph", "ort", "openvino-bf16"], "trt"),
        (["trt/graph", "openvino"], "openvino"),
        (["openvino-bf16"], None),
        ([], None),
    ],
)
def test_only_what_auto_tries_is_named_as_what_it_takes(running, automatic):
    findings = tuple(
        Finding("engine", name, "ok" if name in running else "missing", "") for name in ENGINES
    )
    diagnosis = Diagnosis("2026-11-25T00:00:00+00:00", findings)
    assert diagnosis.engines == tuple(running)
    assert diagnosis.automatic == automatic


@pytest.mark.parametrize(
    ("error", "status"),
    [(ProcessorError("cannot"), "absent"), (PadimEdgeError("does not"), "broken")],
)
def test_what_a_processor_cannot_do_is_no_fault(monkeypatch, error, status):
    def fail(name):
        raise error

    def ask(which, *given, **_):
        return dataclasses.asdict(probe.tried(fail if which == "engine" else probe.engines, *given))

    monkeypatch.setattr(doctor_software, "ask", ask)
    found = {one.name: (one.status, one.detail) for one in doctor_software.engines()}
    assert found == dict.fromkeys(ENGINES, (status, str(error)))


def test_the_doctor_itself_needs_the_standard_library_alone():
    absent = ("numpy", "onnx", "PIL", "rich", "typer", "onnxruntime", "torch")
    code = (
        blocking(*absent) + "import padim_edge.measure.doctor as d; print(d.is_jetson(d.Path('/')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# --- libraries that crash, hang or lie ----------------------------------------------------------


def test_a_crash_is_a_finding(library):
    library("pycuda", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    finding = doctor_nvidia.pycuda()
    assert finding.status == "broken"
    assert "crashed (SIGSEGV)" in finding.detail


def test_a_crash_on_the_way_out_is_a_finding(library):
    library(
        "sklearn",
        "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGABRT)",
    )
    assert "crashed (SIGABRT)" in ask("package", "sklearn", "scikit-learn")["detail"]


def test_a_hang_is_a_finding_and_leaves_nobody_behind(tmp_path, library, monkeypatch):
    noted = tmp_path / "pid"
    # With a grandchild that holds the output open, as compilers started by a library do.
    library(
        "tensorrt",
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(noted)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)",
    )
    monkeypatch.setattr("padim_edge.measure.finding.PROBE_SECONDS", 5.0)
    start = time.monotonic()
    finding = doctor_nvidia.tensorrt(jetson=False)
    assert time.monotonic() - start < 30
    assert finding.status == "broken"
    assert "no answer within 5 s" in finding.detail
    pid = int(noted.read_text())
    for _ in range(50):
        if not running(pid):
            break
        time.sleep(0.1)
    assert not running(pid)


def running(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_device_that_pycuda_reaches(tmp_path, library):
    library("pycuda", f"VERSION_TEXT = '2026.1'; __path__ = [{str(tmp_path / 'libraries')!r}]")
    library(
        "driver",
        "from unittest.mock import Mock\n"
        "init, Device, Context = Mock(), Mock(), Mock()\n"
        "Device.count.return_value = 2\n"
        "mem_get_info = lambda: (3 * 2**30, 8 * 2**30)\n",
    )
    finding = doctor_nvidia.pycuda()
    assert (finding.status, finding.detail) == (
        "ok",
        "pycuda 2026.1 is used, 2 device(s), 3.0 of 8.0 GiB free",
    )


def test_what_a_library_prints_is_not_taken_for_the_answer(library):
    library("scipy", "import os; os.write(1, b'{\"status\": \"ok\"}'); print('hello')")
    answer = ask("package", "scipy", "no-such-distribution")
    assert answer["detail"] == "of unknown version"


def test_a_broken_import_is_not_missing(library):
    library("sklearn", "import a_part_that_is_gone")
    answer = ask("package", "sklearn", "scikit-learn")
    assert "a_part_that_is_gone" in answer["detail"]
    library("sklearn", "raise ImportError('libgomp.so.1: cannot allocate memory in static TLS')")
    answer = ask("package", "sklearn", "scikit-learn")
    assert answer["status"] == "broken"
    assert "static TLS" in answer["detail"]


def test_a_provider_that_is_only_listed_does_not_count(library):
    library(
        "onnxruntime",
        "__version__ = '9.9'\n"
        "get_available_providers = lambda: ['CUDAExecutionProvider', 'CPUExecutionProvider']\n"
        "class SessionOptions:\n"
        "    def add_session_config_entry(self, *_): pass\n"
        "class InferenceSession:\n"
        "    def __init__(self, *_, providers): pass\n"
        "    def get_providers(self): return ['CPUExecutionProvider']\n"
        "    def run(self, outputs, feed):\n"
        "        import numpy; return [numpy.zeros((1, 4, 16, 16))]\n",
    )
    found = {finding.name: finding for finding in doctor_software.onnxruntime()}
    assert found["onnxruntime CUDA"].status == "broken"
    assert "listed, but does not start" in found["onnxruntime CUDA"].detail
    assert found["onnxruntime CPU"].status == "broken"
    assert "wrong result" in found["onnxruntime CPU"].detail
