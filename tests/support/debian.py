"""Debian roots of a suite and an architecture: made once by debootstrap, kept in .cache/debian.

For what needs a machine that this one is not: `arm64.py` runs in an emulated one, `containers.py`
makes base images of one. Needs root, as debootstrap and chroot do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "debian"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

# The head of an ELF file for AArch64, and which of its bits count (qemu's own registration).
_MAGIC = rb"\x7fELF\x02\x01\x01" + rb"\x00" * 9 + rb"\x02\x00\xb7\x00"
_MASK = rb"\xff" * 7 + rb"\x00" + rb"\xff" * 8 + rb"\xfe\xff\xff\xff"
_EMULATOR = "qemu-aarch64-static"
_ENTRY = "padim-edge-arm64"

# The cores of Jetson Orin are Cortex-A78AE, whose instructions are those of the Cortex-A76. What
# Linux says of them: older emulators show the real machine's, where ONNX Runtime finds no core.
_CPU = "cortex-a76"
_CPUINFO = """\
processor\t: {core}
BogoMIPS\t: 100.00
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""


class LackingError(Exception):
    """What this machine has not got, and how to get it, in one line."""


def require(**packages: str) -> None:
    """Check for programs, each given with Debian's package that has it; and for root.

    Raises:
        LackingError: one is not there.
    """
    if os.geteuid():
        raise LackingError("debootstrap and chroot need root, and this is not: run it as root")
    programs = {name.replace("_", "-"): package for name, package in packages.items()}
    lack = {program: package for program, package in programs.items() if not shutil.which(program)}
    if lack:
        raise LackingError(
            f"{', '.join(lack)} not found: apt-get install {' '.join(sorted(set(lack.values())))}"
        )


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One run of a name at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LackingError(f"another run of {name} is under way: wait until it ends") from None
        yield


def made(suite: str, architecture: str, *packages: str) -> Path:
    """The root of a suite with these packages, by debootstrap if it is not there yet (minutes)."""
    folder = CACHE / "-".join((suite, architecture, *packages))
    if not folder.exists():
        require(debootstrap="debootstrap")
        unfinished = CACHE / f"unfinished-{folder.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        print(f"debootstrap of {suite} for {architecture}, once, into {folder}", flush=True)
        included = ",".join(("ca-certificates", *packages))
        command = ["debootstrap", f"--arch={architecture}", "--variant=minbase"]
        command += [f"--include={included}", suite, str(unfinished), MIRROR]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()
            raise LackingError(f"debootstrap of {suite} for {architecture}: {said[-1]}")
        shutil.rmtree(unfinished / "var/cache/apt/archives", ignore_errors=True)
        unfinished.rename(folder)
    # How this machine reaches the network may have changed since.
    for file in ("/etc/resolv.conf", CERTIFICATES):
        if Path(file).exists():
            shutil.copy(file, folder / file[1:])
    return folder


@contextlib.contextmanager
def emulated() -> Iterator[str]:
    """AArch64's programs run while this is open; gives what runs them.

    Where nobody has registered an emulator with the kernel (Debian's package does at boot), it is
    registered now and taken back at the end. The flag F opens it at once, so that it is found
    from within a chroot.
    """
    if NATIVE == "arm64":
        yield "this machine itself"
        return
    require(qemu_aarch64_static="qemu-user-static")
    program = shutil.which(_EMULATOR)
    version = subprocess.run([str(program), "--version"], capture_output=True, text=True)
    said = version.stdout.partition("\n")[0]
    with tempfile.TemporaryDirectory() as name:
        mounted = subprocess.run(
            ["mount", "-t", "binfmt_misc", "none", name], capture_output=True, text=True
        )
        if mounted.returncode:
            raise LackingError(f"the kernel has no binfmt_misc here: {mounted.stderr.strip()}")
        try:
            if any("qemu-aarch64" in entry.read_text() for entry in _entries(Path(name))):
                yield said
                return
            rule = b":%s:M::%s:%s:%s:F" % (
                *(_ENTRY.encode(), _MAGIC, _MASK, str(program).encode()),
            )
            (Path(name) / "register").write_bytes(rule)
            try:
                yield said
            finally:
                (Path(name) / _ENTRY).write_text("-1")
        finally:
            subprocess.run(["umount", name], check=False)


def _entries(mounted: Path) -> Iterator[Path]:
    return (path for path in mounted.iterdir() if path.name not in ("register", "status"))


def architecture(root: Path) -> str:
    """What Debian calls the machine that a root of `made` is for."""
    return root.name.split("-")[1]


def inside(root: Path, *command: object, folder: str = "/") -> str:
    """Run a command in a root, in namespaces of its own; returns what it printed.

    Raises:
        subprocess.CalledProcessError: it failed; its output was printed.
    """
    at = shlex.quote(str(root))
    mounts = [f"mount -t proc proc {at}/proc"]
    mounts += [f"mount --rbind /{name} {at}/{name}" for name in ("sys", "dev")]
    if architecture(root) != NATIVE:
        cores = "".join(_CPUINFO.format(core=core) for core in range(os.cpu_count() or 1))
        (root / "cpuinfo").write_text(cores)
        mounts.append(f"mount --bind {at}/cpuinfo {at}/proc/cpuinfo")
    within = f"cd {shlex.quote(folder)} && exec {shlex.join(map(str, command))}"
    # The shell stays, as the first process of the namespace: it would be deaf to its own SIGSEGV.
    line = f"{' && '.join(mounts)} && chroot {at} sh -c {shlex.quote(within)}; exit $?"
    passed = {
        key: os.environ[key]
        for key in os.environ
        if re.fullmatch("(?i).*_proxy|pip_index_url", key)
    }
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", line],
        env={
            **passed,
            "QEMU_CPU": _CPU,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PIP_CERT": CERTIFICATES,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_WARN_SCRIPT_LOCATION": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout, flush=True)
        done.check_returncode()
    return done.stdout
