"""What this machine can run, found by trying it; and for what is missing, the command that fixes.

Files of the system are read, tools are called, libraries are loaded and run; a name in a list
proves nothing. Whatever loads native code does so in a child process (`padim_edge.runtime.probe`),
because a library that does not suit the machine may crash or hang: that is a finding here, not
the end. For the same reason this file imports the standard library alone: it has to work where
little else does.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from padim_edge import __version__
from padim_edge.progress import Progress, silent
from padim_edge.system import memory, module, processor, read_text

SCHEMA = 1
STATUSES = ("ok", "missing", "broken", "absent")
"""Of a finding; "absent" does not apply to this machine, and nothing is wrong with that."""

PROBE_SECONDS = 120.0
ENGINE_SECONDS = 600.0  # the first time, kernels are compiled and a plan is built
TOOL_SECONDS = 60.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: "device", "nvidia", "python" or "engine".
        name: what it is.
        status: one of `STATUSES`.
        detail: versions and figures, or what is wrong, in one line.
        fix: the command that fixes it; empty if there is none.
    """

    area: str
    name: str
    status: str
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings of one examination; `to_json` is the stable form."""

    date: str
    findings: tuple[Finding, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines through which frames really went, the one that `auto` takes first."""
        return tuple(f.name for f in self.findings if f.area == "engine" and f.status == "ok")

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the version of the schema."""
        return {
            "schema": SCHEMA,
            "date": self.date,
            "padim_edge": __version__,
            "engines": list(self.engines),
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(root: Path = Path("/"), progress: Progress = silent) -> Diagnosis:
    """Look at everything, which takes seconds to minutes.

    Args:
        root: where /proc, /sys and /etc are; another folder stands for another machine.
        progress: called as work goes on.
    """
    jetson = is_jetson(root)
    checks: list[Callable[[], list[Finding]]] = [
        lambda: device(root),
        lambda: [_driver(root), _toolkit(root, jetson)],
        lambda: [_tensorrt(jetson), _pycuda()],
        _onnxruntime,
        lambda: [_package(*of) for of in PACKAGES],
        _engines,
    ]
    findings: list[Finding] = []
    for done, check in enumerate(checks):
        progress("trying", done, len(checks))
        findings += check()
    progress("trying", len(checks), len(checks))
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Diagnosis(date, tuple(findings))


# --- the device -------------------------------------------------------------------------------


def is_jetson(root: Path) -> bool:
    """Whether this is a Jetson: only L4T has this file, or a device tree of that name."""
    return bool(read_text(root / "etc/nv_tegra_release")) or "Jetson" in module(root)


def device(root: Path) -> list[Finding]:
    """Model, processor, memory, and on a Jetson its release and power mode; clocks anywhere."""
    sizes = [memory(root).get(key, 0) / 2**30 for key in ("MemTotal", "MemAvailable")]
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    found = [
        Finding("device", "model", "ok", processor(root)),
        Finding("device", "system", "ok", f"{system}, {platform.machine()}"),
        Finding("device", "memory", "ok", f"{sizes[0]:.1f} GiB, {sizes[1]:.1f} available"),
    ]
    if is_jetson(root):
        found += [_l4t(root), _jetpack(), _power_mode()]
    else:
        found.append(Finding("device", "L4T", "absent", "this is no Jetson"))
    return [*found, _clocks(root)]


def _l4t(root: Path) -> Finding:
    text = read_text(root / "etc/nv_tegra_release")
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+)((?:\.\d+)*)", text)
    if not found:
        return Finding("device", "L4T", "broken", "/etc/nv_tegra_release names no release")
    release, revision = int(found[1]), int(found[2])
    name = f"{release}.{revision}{found[3]}"
    if (release, revision) < (36, 4):
        detail = f"{name}; TensorRT 10.3 and newer come with 36.4 (JetPack 6.1): flash a newer one"
        return Finding("device", "L4T", "broken", detail)
    return Finding("device", "L4T", "ok", name)


def _jetpack() -> Finding:
    """The metapackage; its parts can be there without it, and are tried for themselves."""
    name = "JetPack"
    if not shutil.which("dpkg-query"):
        return Finding("device", name, "absent", "no dpkg here to ask")
    done = execute(["dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"], TOOL_SECONDS)
    if done.code == 0 and done.stdout.strip():
        return Finding("device", name, "ok", done.stdout.strip())
    fix = "sudo apt install nvidia-jetpack"
    return Finding("device", name, "missing", "nvidia-jetpack is not installed", fix)


def _power_mode() -> Finding:
    name = "power mode"
    if not shutil.which("nvpmodel"):
        return Finding("device", name, "absent", "no nvpmodel here (in a container: ask outside)")
    done, mode = _nvpmodel()
    if mode:
        return Finding("device", name, "ok", mode)
    return Finding("device", name, "broken", f"nvpmodel {done.trouble}", "sudo nvpmodel -q")


def _nvpmodel() -> tuple[Done, str | None]:
    done = execute(["nvpmodel", "-q"], TOOL_SECONDS)
    mode = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    return done, mode[1] if done.code == 0 and mode else None


def power_mode() -> str | None:
    """The power mode of a Jetson; None elsewhere, and where nvpmodel is not there or refuses."""
    return _nvpmodel()[1] if shutil.which("nvpmodel") else None


def _clocks(root: Path) -> Finding:
    """What cpufreq and devfreq tell everybody; jetson_clocks --show would need root."""
    parts = []
    processors = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    if processors:
        now, low, high = (
            [_number(folder / f"scaling_{name}_freq") // 1000 for folder in processors]
            for name in ("cur", "min", "max")
        )
        governor = read_text(processors[0] / "scaling_governor").strip()
        span = _span("CPU", max(now), min(low), max(high))
        parts.append(f"{span}, {governor}" if governor else span)
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        # 17000000.gpu on Orin, 17000000.gv11b on Xavier, gpu-gpc-0 on Thor.
        if re.search(r"gpu|gv11b|gp10b", folder.name):
            values = (_number(folder / f"{name}_freq") // 10**6 for name in ("cur", "min", "max"))
            parts.append(_span(folder.name, *values))
    if not parts:
        return Finding("device", "clocks", "absent", "neither cpufreq nor devfreq is readable")
    return Finding("device", "clocks", "ok", "; ".join(parts))


def _span(name: str, now: int, low: int, high: int) -> str:
    floating = f"free from {low} to {high}" if low < high else "pinned"
    return f"{name} {now} MHz ({floating})"


# --- NVIDIA -----------------------------------------------------------------------------------


def _driver(root: Path) -> Finding:
    name = "driver and GPU"
    answer = ask("driver")
    release = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", read_text(root / "proc/driver/nvidia/version"))
    if answer["status"] == "ok":
        detail = f"{release[1]}, {answer['detail']}" if release else answer["detail"]
        return Finding("nvidia", name, "ok", detail)
    if not is_jetson(root) and not _has_gpu(root):
        return Finding("nvidia", name, "absent", "no NVIDIA GPU on the PCI bus")
    if (root / ".dockerenv").exists():
        fix = "docker run --runtime nvidia"
    elif is_jetson(root):
        fix = "sudo apt install --reinstall nvidia-l4t-cuda"
    else:
        fix = "sudo ubuntu-drivers install"
    return Finding("nvidia", name, answer["status"], answer["detail"], fix)


def _has_gpu(root: Path) -> bool:
    return any(
        read_text(folder / "vendor").strip() == "0x10de"
        and read_text(folder / "class").startswith("0x03")
        for folder in (root / "sys/bus/pci/devices").glob("*")
    )


def _toolkit(root: Path, jetson: bool) -> Finding:
    """nvcc, by compiling a kernel: it also needs a host compiler that suits it."""
    name = "CUDA toolkit"
    beside = root / "usr/local/cuda/bin/nvcc"
    nvcc = shutil.which("nvcc") or (str(beside) if beside.exists() else None)
    if nvcc is None:
        fix = f"sudo apt install {'nvidia-jetpack' if jetson else 'nvidia-cuda-toolkit'}"
        return Finding("nvidia", name, "missing", "no nvcc", fix)
    version = execute([nvcc, "--version"], TOOL_SECONDS)
    known = re.search(r"release \S+ V(\S+)", version.stdout)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cu"
        source.write_text("__global__ void trial(float *x) { x[threadIdx.x] *= 2; }\n")
        done = execute([nvcc, "-cubin", "-o", f"{source}bin", str(source)], TOOL_SECONDS)
    if done.code != 0:
        return Finding(
            "nvidia", name, "broken", f"{nvcc} {done.trouble}", "sudo apt install build-essential"
        )
    off_path = not shutil.which("nvcc")
    return Finding(
        "nvidia",
        name,
        "ok",
        f"{known[1] if known else nvcc}, compiles" + (", but is not on PATH" if off_path else ""),
        f"export PATH={beside.parent}:$PATH" if off_path else "",
    )


def _tensorrt(jetson: bool) -> Finding:
    answer = ask("tensorrt")
    fix = answer["fix"]
    if answer["status"] == "missing" and jetson:
        fix = "sudo apt install python3-libnvinfer"
    return Finding("nvidia", "TensorRT", answer["status"], answer["detail"], fix)


def _pycuda() -> Finding:
    answer = ask("pycuda")
    missing = answer["status"] == "missing"
    # It has no wheels: building it wants nvcc, which JetPack leaves off PATH.
    fix = "PATH=/usr/local/cuda/bin:$PATH pip install 'pycuda>=2024.1'" if missing else ""
    return Finding("nvidia", "pycuda", answer["status"], answer["detail"], fix)


# --- Python -----------------------------------------------------------------------------------

PACKAGES = (
    ("numpy", "numpy", "pip install numpy"),
    ("onnx", "onnx", "pip install onnx"),
    ("PIL", "pillow", "pip install pillow"),
    ("torch", "torch", "pip install 'padim-edge[export]'"),
    ("torchvision", "torchvision", "pip install 'padim-edge[export]'"),
    ("onnxscript", "onnxscript", "pip install 'padim-edge[export]'"),
    ("sklearn", "scikit-learn", "pip install 'padim-edge[eval]'"),
    ("scipy", "scipy", "pip install 'padim-edge[eval]'"),
)
"""Importable name, name of the distribution, and what brings it."""

_PURPOSES = {"export": "only for export", "eval": "only for eval and ledoit-wolf"}


def _package(module: str, distribution: str, fix: str) -> Finding:
    answer = ask("package", module, distribution)
    good = answer["status"] == "ok"
    extra = re.search(r"\[(\w+)\]", fix)
    purpose = f" ({_PURPOSES[extra[1]]})" if extra else ""
    return Finding(
        "python", distribution, answer["status"], answer["detail"] + purpose, "" if good else fix
    )


def _onnxruntime() -> list[Finding]:
    answer = ask("onnxruntime")
    found = [Finding("python", "onnxruntime", answer["status"], answer["detail"], answer["fix"])]
    for provider in answer["items"]:
        trial = ask("provider", provider)
        status = trial["status"]
        # Every wheel lists it, and it sends requests to a service: nothing here is broken.
        if provider == "AzureExecutionProvider" and status == "broken":
            status, trial["detail"] = "absent", "runs no graph on this machine"
        name = f"onnxruntime {provider.removesuffix('ExecutionProvider')}"
        found.append(Finding("python", name, status, trial["detail"]))
    return found


def _engines() -> list[Finding]:
    answer = ask("engines")
    if answer["status"] != "ok":
        detail = answer["detail"]
        return [Finding("engine", "all", "broken", detail, "pip install --upgrade padim-edge")]
    found = []
    for name in answer["items"]:
        trial = ask("engine", name, seconds=ENGINE_SECONDS)
        found.append(Finding("engine", name, trial["status"], trial["detail"], trial["fix"]))
    return found


# --- child processes --------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """How a child process ended.

    Attributes:
        code: its exit status, negative for a signal; None if it had to be stopped.
        stdout: what it printed.
        stderr: what it printed there.
        seconds: how long it was given.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def trouble(self) -> str:
        """What went wrong, in words, with the last that it said."""
        if self.code is None:
            what = f"gave no answer within {self.seconds:g} s and was stopped"
        elif self.code < 0:
            with contextlib.suppress(ValueError):
                return self._with_words(f"crashed ({signal.Signals(-self.code).name})")
            what = f"crashed (signal {-self.code})"
        else:
            what = f"failed (exit code {self.code})"
        return self._with_words(what)

    def _with_words(self, what: str) -> str:
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return f"{what}: {lines[-1].strip()}" if lines else what


def execute(command: Sequence[str], seconds: float) -> Done:
    """Run a command to its end, or stop it and everything that it started when time is up.

    Its output goes to files, not pipes: a grandchild that holds a pipe open would keep us waiting.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # a process group of its own, to be stopped as one
            )
        except OSError as error:
            return Done(127, "", str(error), seconds)
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(seconds)
        finally:  # Ctrl-C too
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            # A process that hangs within the driver cannot be killed: do not wait for it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
        return Done(code, _text(stdout), _text(stderr), seconds)


def ask(probe: str, *arguments: str, seconds: float | None = None) -> dict[str, Any]:
    """Run a probe in a child process that has this process's import path.

    Returns:
        status, detail, fix and items of `padim_edge.runtime.probe.Answer`; a crash or a timeout
        is "broken".
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from padim_edge.runtime.probe import main; main()"
    )
    done = execute([sys.executable, "-c", code, probe, *arguments], seconds or PROBE_SECONDS)
    if done.code == 0:
        with contextlib.suppress(ValueError):
            answer = json.loads(done.stdout)
            if isinstance(answer, dict):
                return answer
    return {"status": "broken", "detail": done.trouble, "fix": "", "items": []}


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def _number(path: Path) -> int:
    text = read_text(path).strip()
    return int(text) if text.isdigit() else 0
