"""The doctor: on this machine, on made-up ones, and among libraries that crash, hang or lie."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import blocking, padim_edge

from padim_edge.errors import MissingDependencyError, PadimEdgeError, ProcessorError
from padim_edge.measure import doctor_device, doctor_nvidia, doctor_software, finding
from padim_edge.runtime import probe, trial
from padim_edge.runtime.engines import ENGINES, open_engine
from padim_edge.system import processor

Files = dict[str, str]

ORIN: Files = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, "
    "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n",
    "proc/meminfo": "MemTotal:        7802328 kB\nMemFree:          512000 kB\n"
    "MemAvailable:    5242880 kB\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  "
    "540.4.0  Release Build  (buildbrain@mobile)  Wed Jan  8 01:49:37 UTC 2025\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/15480000.nvdec/cur_freq": "1\n",
    **{
        f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}": value
        for core, now in enumerate(("729600", "1728000"))
        for name, value in {
            "scaling_cur_freq": now,
            "scaling_min_freq": "729600",
            "scaling_max_freq": "1728000",
            "scaling_governor": "schedutil\n",
        }.items()
    },
}
THOR: Files = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic, "
    "EABI: aarch64, DATE: Fri Aug 22 00:00:00 UTC 2025\n",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
    "sys/class/devfreq/gpu-gpc-0/min_freq": "1575000000\n",
    "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
}
DESKTOP: Files = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD Ryzen 9 5950X 16-Core Processor\n",
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
}


def tree(root: Path, files: Files) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def details(findings: list[finding.Finding]) -> dict[str, str]:
    return {finding.name: finding.detail for finding in findings}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole of PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


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


@pytest.mark.parametrize("name", ["TensorRT", "pycuda"])
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
    assert report["schema"] == 1
    for finding in report["findings"]:
        assert list(finding) == ["area", "name", "status", "detail", "fix"]
        assert all(isinstance(value, str) for value in finding.values())
        assert finding["area"] in ("device", "nvidia", "python", "engine")
        assert finding["status"] in finding.STATUSES
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
        blocking(*absent) + "import padim_edge.measure.doctor_device as d; d.is_jetson(d.Path('/'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# --- other machines ---------------------------------------------------------------------------


def test_orin(tmp_path, tools):
    root = tree(tmp_path / "root", ORIN)
    tool(tools, "dpkg-query", '[ "$4" = nvidia-jetpack ] && printf 6.2+b77')
    tool(tools, "nvpmodel", '[ "$1" = -q ] && printf "NV Power Mode: 25W\\n1\\n"')
    findings = doctor_device.device(root)
    assert {finding.status for finding in findings} == {"ok"}
    found = details(findings)
    assert found["model"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
    assert found["memory"] == "7.4 GiB, 5.0 available"
    assert found["L4T"] == "36.4.3"
    assert found["JetPack"] == "6.2+b77"
    assert found["power mode"] == doctor_device.power_mode() == "25W"
    # /proc/cpuinfo of a Jetson tells no module from another.
    assert processor(root) == found["model"]
    assert found["clocks"] == (
        "CPU 1728 MHz (free from 729 to 1728), schedutil; "
        "17000000.gpu 306 MHz (free from 306 to 1020)"
    )


def test_thor_with_pinned_clocks(tmp_path, tools):
    found = details(doctor_device.device(tree(tmp_path / "root", THOR)))
    assert found["L4T"] == "38.2.0"
    assert found["clocks"] == "gpu-gpc-0 1575 MHz (pinned)"
    assert "absent" in {
        f.status for f in doctor_device.device(tmp_path / "root")
    }  # no tools in PATH


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("# R35 (release), REVISION: 6.0, GCID", "broken"),
        ("# R36 (release), REVISION: 3.0, GCID", "broken"),
        ("# R36 (release), REVISION: 4.0, GCID", "ok"),
        ("# R39 (release), REVISION: 0, GCID", "ok"),
        ("something else", "broken"),
    ],
)
def test_releases_older_than_the_oldest_tensorrt(tmp_path, tools, line, status):
    root = tree(tmp_path / "root", {"etc/nv_tegra_release": line})
    finding = next(one for one in doctor_device.device(root) if one.name == "L4T")
    assert finding.status == status


def test_a_jetson_without_jetpack_or_rights(tmp_path, tools):
    tool(tools, "dpkg-query", "echo 'no packages found matching nvidia-jetpack' >&2; exit 1")
    tool(tools, "nvpmodel", "echo 'NVPM ERROR: permission denied' >&2; exit 255")
    found = {one.name: one for one in doctor_device.device(tree(tmp_path / "root", ORIN))}
    assert found["JetPack"].status == "missing"
    assert found["JetPack"].fix == "sudo apt install nvidia-jetpack"
    assert found["power mode"].status == "broken"
    assert "NVPM ERROR: permission denied" in found["power mode"].detail
    assert doctor_device.power_mode() is None


def test_desktop(tmp_path, tools):
    found = details(doctor_device.device(tree(tmp_path / "root", DESKTOP)))
    assert found["model"] == "AMD Ryzen 9 5950X 16-Core Processor"
    assert found["L4T"] == "this is no Jetson"


@pytest.mark.parametrize(
    ("files", "status", "fix"),
    [
        ({}, "absent", ""),
        (DESKTOP, "missing", "sudo ubuntu-drivers install"),
        (ORIN, "missing", "sudo apt install --reinstall nvidia-l4t-cuda"),
        (DESKTOP | {".dockerenv": ""}, "missing", "docker run --runtime nvidia"),
    ],
)
def test_a_missing_driver(tmp_path, monkeypatch, files, status, fix):
    gone = {"status": "missing", "detail": "no libcuda", "fix": "", "items": []}
    monkeypatch.setattr(doctor_nvidia, "ask", lambda *_: gone)
    finding = doctor_nvidia.driver(tree(tmp_path / "root", files))
    assert (finding.status, finding.fix) == (status, fix)


def test_the_release_of_the_driver_is_read(tmp_path, monkeypatch):
    good = {"status": "ok", "detail": "for CUDA up to 12.6; Orin (sm_87), 7.4 GiB"}
    monkeypatch.setattr(doctor_nvidia, "ask", lambda *_: good)
    finding = doctor_nvidia.driver(tree(tmp_path / "root", ORIN))
    assert finding.detail == "540.4.0, for CUDA up to 12.6; Orin (sm_87), 7.4 GiB"


LIBCUDA = r"""
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return INIT; }
int cuGetErrorString(int code, const char **text) { *text = "no CUDA-capable device"; return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 40 ? "Orin" : "wrong", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 8ul << 30; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? 8 : which == 76 ? 7 : -1; return 0; }
"""


@pytest.mark.parametrize(
    ("init", "count", "status", "detail"),
    [
        (0, 1, "ok", "for CUDA up to 12.6; Orin (sm_87), 8.0 GiB"),
        (100, 1, "broken", "cuInit: no CUDA-capable device (100)"),
        (0, 0, "broken", "the driver is there, and no GPU that it can use"),
    ],
)
def test_the_driver_is_asked_itself(tmp_path, monkeypatch, init, count, status, detail):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (tmp_path / "cuda.c").write_text(LIBCUDA)
    defined = [f"-DINIT={init}", f"-DCOUNT={count}"]
    files = ["-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "cuda.c")]
    subprocess.run([compiler, "-shared", "-fPIC", *defined, *files], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    answer = finding.ask("driver")
    assert (answer["status"], answer["detail"]) == (status, detail)


def test_nvcc_beside_path_is_found_and_tried(tmp_path, tools):
    root = tree(tmp_path / "root", {"usr/local/cuda/bin/nvcc": ""})
    tool(
        root / "usr/local/cuda/bin",
        "nvcc",
        'case "$1" in --version) echo "Cuda compilation tools, release 12.6, V12.6.68";; '
        '-cubin) [ -f "$4" ];; *) exit 1;; esac',
    )
    finding = doctor_nvidia.toolkit(root, jetson=True)
    assert finding.status == "ok"
    assert finding.detail.startswith("12.6.68, compiles")
    assert finding.fix == f"export PATH={root}/usr/local/cuda/bin:$PATH"


def test_nvcc_that_cannot_compile_is_no_toolkit(tmp_path, tools):
    tool(tools, "nvcc", "echo 'nvcc fatal   : Failed to preprocess host compiler' >&2; exit 1")
    finding = doctor_nvidia.toolkit(tmp_path, jetson=False)
    assert finding.status == "broken"
    assert "Failed to preprocess host compiler" in finding.detail
    assert finding.fix


@pytest.mark.parametrize(("jetson", "package"), [(True, "nvidia-jetpack"), (False, "cuda-toolkit")])
def test_no_nvcc(tmp_path, tools, jetson, package):
    finding = doctor_nvidia.toolkit(tmp_path, jetson)
    assert finding.status == "missing"
    assert package in finding.fix


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
    assert "crashed (SIGABRT)" in finding.ask("package", "sklearn", "scikit-learn")["detail"]


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
    monkeypatch.setattr(finding, "PROBE_SECONDS", 5.0)
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
    assert (finding.status, finding.detail) == ("ok", "2026.1, 2 device(s), 3.0 of 8.0 GiB free")


def test_what_a_library_prints_is_not_taken_for_the_answer(library):
    library("scipy", "import os; os.write(1, b'{\"status\": \"ok\"}'); print('hello')")
    answer = finding.ask("package", "scipy", "no-such-distribution")
    assert answer["detail"] == "of unknown version"


def test_a_broken_import_is_not_missing(library):
    library("sklearn", "import a_part_that_is_gone")
    answer = finding.ask("package", "sklearn", "scikit-learn")
    assert "a_part_that_is_gone" in answer["detail"]
    library("sklearn", "raise ImportError('libgomp.so.1: cannot allocate memory in static TLS')")
    answer = finding.ask("package", "sklearn", "scikit-learn")
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


def test_errors_of_ours_keep_their_remedy():
    def fails(error: Exception) -> Callable[[], probe.Answer]:
        def raising() -> probe.Answer:
            raise error

        return raising

    answer = probe.tried(fails(MissingDependencyError("this", "that", "cpu")))
    assert (answer.status, answer.fix) == ("missing", "pip install 'padim-edge[cpu]'")
    answer = probe.tried(fails(PadimEdgeError("no: run  sudo apt install x  and try again")))
    assert (answer.status, answer.fix) == ("broken", "sudo apt install x")
    answer = probe.tried(fails(ValueError("two\nlines")))
    assert (answer.status, answer.detail, answer.fix) == ("broken", "ValueError: two lines", "")


@pytest.mark.parametrize(("machine", "command"), [("aarch64", "apt x"), ("x86_64", "pip y")])
def test_a_remedy_for_another_machine_is_none(monkeypatch, machine, command):
    monkeypatch.setattr(probe.platform, "machine", lambda: machine)
    assert probe.remedy("no: on Jetson run  apt x  and on x86 run  pip y") == command
    assert probe.remedy("no: on Jetson run  apt x") == ("apt x" if machine == "aarch64" else "")


# --- the trial model --------------------------------------------------------------------------


class Altered:
    """An engine whose results are altered on the way out."""

    def __init__(self, engine: Any, alter: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        self._engine, self._alter = engine, alter

    def infer(self, images: Any) -> tuple[Any, Any]:
        return self._alter(*self._engine.infer(images))


@pytest.fixture(scope="module")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("onnxruntime")
    model = trial.write_model(tmp_path_factory.mktemp("trial") / "padim.onnx")
    engine = open_engine("ort", model, 1)
    yield engine
    engine.close()


def test_the_trial_model_is_answered_as_numpy_answers_it(tiny_engine):
    trial.check(tiny_engine)
    images = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = trial.answer(images)
    scores, maps = tiny_engine.infer(images)
    np.testing.assert_allclose(maps, expected, rtol=1e-4)
    np.testing.assert_allclose(scores, expected.max(axis=(1, 2)), rtol=1e-4)
    assert expected.std() > 0.1 * expected.mean()  # a flat map would hide misplaced positions


@pytest.mark.parametrize(
    "alter",
    [
        lambda scores, maps: (scores * 1.02, maps),
        lambda scores, maps: (scores, maps[:, ::-1]),
        lambda scores, maps: (scores, maps.transpose(0, 2, 1)),
        lambda scores, maps: (scores[::-1], maps[::-1]),
        lambda scores, maps: (scores, np.where(maps == maps.min(), np.nan, maps)),
        lambda scores, maps: (scores[:, None], maps),
    ],
    ids=["scaled", "upside down", "transposed", "frames mixed up", "one NaN", "misshapen"],
)
def test_an_engine_with_wrong_scores_does_not_count(tiny_engine, alter):
    with pytest.raises(PadimEdgeError, match=r"WRONG SCORES|scores \(1, 1\)"):
        trial.check(Altered(tiny_engine, alter))
