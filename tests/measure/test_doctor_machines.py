"""The doctor on other machines: Jetsons and PCs made of files, tools and a driver in C."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from padim_edge.measure import doctor_device, doctor_nvidia
from padim_edge.measure.finding import Finding, ask
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


def details(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.detail for finding in findings}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole of PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


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
    # There are no tools in PATH.
    assert "absent" in {f.status for f in doctor_device.device(tmp_path / "root")}


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
    answer = ask("driver")
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
def test_no_nvcc(tmp_path, tools, monkeypatch, jetson, package):
    monkeypatch.setattr(doctor_nvidia, "ask", lambda _: {"status": "missing", "detail": ""})
    finding = doctor_nvidia.toolkit(tmp_path, jetson)
    assert finding.status == "missing"
    assert package in finding.fix


def test_where_nvrtc_is_nvcc_is_not_missing(tmp_path, tools, monkeypatch):
    library = tmp_path / "libnvrtc.so.12"
    source = tmp_path / "nvrtc.c"
    source.write_text(
        "int nvrtcVersion(int *a, int *b) { *a = 12; *b = 6; return 0; }\n"
        "const char *nvrtcGetErrorString(int x) { return 0; }\n"
    )
    compiler = shutil.which("cc", path=os.defpath)
    if compiler is None:
        pytest.skip("no C compiler")
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, env={"PATH": os.defpath})
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    finding = doctor_nvidia.toolkit(tmp_path, jetson=True)
    assert (finding.status, finding.fix) == ("absent", "")
    assert "NVRTC" in finding.detail
