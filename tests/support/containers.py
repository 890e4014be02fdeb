"""The images of examples/, built by podman and run: as whom, writing what, and to what scores.

    make test-containers

No registry is asked: what the Dockerfiles name as their base is made of Debian's packages first
(debootstrap's bookworm with Python 3.11, for this machine), so of the base images of the Python
project and of NVIDIA, and of a Jetson, this shows nothing. Packages come from PyPI and Debian.
Ends with 0 where all holds, 1 where something does not, 2 where this machine lacks something.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arm64
from debian import CACHE, CERTIFICATES, NATIVE, ROOT, LackingError, locked, made, require

EXAMPLES = ROOT / "examples"
PYTHON = "3.11"
BASES = {
    "serve": f"docker.io/library/python:{PYTHON}-slim-bookworm",
    "jetson": "nvcr.io/nvidia/l4t-jetpack:r36.4.0",
}
FILES = {"serve": EXAMPLES / "serve" / "Dockerfile", "jetson": EXAMPLES / "Dockerfile"}
ALONE = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all")
ALONE += ("--security-opt=no-new-privileges",)
# Without CAP_SYS_RESOURCE podman's own limits, which are higher, cannot be set.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
TOKEN = "0123456789abcdef"
SECONDS = 300
"""For what is waited for, on a machine that does other things."""


class WrongError(Exception):
    """What an image does that it must not, or does not do that it must."""


def main() -> int:
    """Build and run all of it; returns the exit code."""
    try:
        require(podman="podman", runc="runc", debootstrap="debootstrap")
        with locked("containers"), tempfile.TemporaryDirectory() as name:
            podman = Podman(Path(name))
            material(podman.work)
            bases(podman)
            for kind, check in (("serve", serve), ("jetson", jetson)):
                start = time.monotonic()
                podman.build(kind)
                say(f"{kind}: built in {time.monotonic() - start:.0f} s; {podman.sizes(kind)}")
                check(podman)
    except LackingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WrongError as error:
        print(f"WRONG  {error}", file=sys.stderr)
        return 1
    say("all as it should be")
    return 0


def say(line: str) -> None:
    """Print a line at once: the next may be minutes away."""
    print(line, flush=True)


def must(holds: bool, what: str) -> None:
    """Say that something holds.

    Raises:
        WrongError: it does not.
    """
    if not holds:
        raise WrongError(what)
    say(f"  {what}")


class Podman:
    """podman, with images and containers of its own in .cache/podman.

    Attributes:
        work: a folder for this run.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        store = CACHE.parent / "podman"
        self._podman = ["podman", "--runtime=runc", "--cgroup-manager=cgroupfs"]
        # Always the same: podman notes it with the images, and refuses another.
        self._podman += [f"--root={store}", "--runroot=/run/padim-edge-podman"]

    def __call__(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run podman; its output is kept, whatever comes of it."""
        command = [*self._podman, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    def says(self, *arguments: object, **options: Any) -> str:
        """What podman prints.

        Raises:
            WrongError: it failed.
        """
        done = self(*arguments, **options)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()[-15:]
            raise WrongError(f"podman {' '.join(map(str, arguments))}\n" + "\n".join(said))
        return done.stdout.strip()

    def build(self, kind: str) -> None:
        """Build an image from its Dockerfile, in a context with the wheel."""
        settings = self.work / "pip.conf"  # how this machine reaches PyPI: not a part of the image
        settings.write_text(f"[global]\ncert = {CERTIFICATES}\ndisable-pip-version-check = true\n")
        self.says(
            *("build", "--pull=never", "--no-cache", "--network=host", "--format=docker"),
            *(
                f"--volume={CERTIFICATES}:{CERTIFICATES}:ro",
                f"--volume={settings}:/etc/pip.conf:ro",
            ),
            *(*LIMITS, f"--build-arg=PYTHON={PYTHON}"),
            *(f"--tag=localhost/{kind}", f"--file={FILES[kind]}", self.work / "context"),
        )

    def sizes(self, kind: str) -> str:
        """How large an image is, and what it adds to its base."""
        image = json.loads(self.says("image", "inspect", f"localhost/{kind}"))[0]
        base = json.loads(self.says("image", "inspect", BASES[kind]))[0]
        layers = len(image["RootFS"]["Layers"]) - len(base["RootFS"]["Layers"])
        added = image["Size"] - base["Size"]
        return f"{added / 1e6:.0f} MB in {layers} layers on a base of {base['Size'] / 1e6:.0f} MB"

    @contextlib.contextmanager
    def running(self, *arguments: object) -> Iterator[str]:
        """A container, from start to end; gives its number."""
        number = self.says("run", "--detach", *ALONE, *LIMITS, *arguments)
        try:
            yield number
        except BaseException:
            print(self("logs", number).stderr, file=sys.stderr)
            raise
        finally:
            self("rm", "--force", "--time=0", number)


def material(work: Path) -> None:
    """What goes in: a context with the wheel, a detector, photos, and what they score here."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, work / "context", ROOT], check=True)
    device = arm64.Here(work / "data")
    arm64.material(device)
    device.run("padim-edge", "fit", "embedding.onnx", "photos/train/good", "-o", "cloth.onnx")
    device.run("padim-edge", "run", "cloth.onnx", "photos/test/good", "--jsonl", "here.jsonl")
    # Containers have other users, who must be able to read this.
    work.chmod(0o755)


def scores(lines: str) -> dict[str, float]:
    """Of JSON lines: the score of each photo, by its name."""
    records = (json.loads(line) for line in lines.splitlines())
    return {Path(one["path"]).name: one["score"] for one in records if "score" in one}


def agree(expected: dict[str, float], got: dict[str, float]) -> bool:
    """Whether the same photos have the same scores, to 1e-5."""
    return expected.keys() == got.keys() and all(
        abs(got[name] - score) <= 1e-5 * score for name, score in expected.items()
    )


def bases(podman: Podman) -> None:
    """Stand-ins for the images that the Dockerfiles begin with, of Debian's packages."""
    root = made("bookworm", NATIVE, "python3", "python3-venv", "python3-pip")
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        podman.says("import", "-", "localhost/debian", stdin=tar.stdout)
    file = podman.work / "Base"
    # As in the image of the Python project, whose programs have no number.
    links = "ln -s /usr/bin/python3 /usr/local/bin/python"
    file.write_text(f"FROM localhost/debian\nRUN {links}\n")
    for base in BASES.values():
        podman.says("build", *LIMITS, f"--tag={base}", f"--file={file}", podman.work / "context")
    podman.says("image", "prune", "--force")
    say(f"bases of Debian {(root / 'etc/debian_version').read_text().strip()}: stand-ins")


def privileges(podman: Podman, number: str, *places: str) -> None:
    """Check who a container's first process is, and that not even root writes to these places."""
    status = podman.says("exec", number, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    must(set(fields["Uid"].split()) == {"10001"}, f"its user is 10001, not root: {fields['Uid']}")
    must(set(fields["Gid"].split()) == {"10001"}, f"so is its group: {fields['Gid']}")
    must(int(fields["CapEff"], 16) == 0 == int(fields["CapPrm"], 16), "it has no capabilities")
    must(fields["NoNewPrivs"].strip() == "1", "it can get none")
    for place in places:
        done = podman("exec", "--user=0", number, "touch", f"{place}/new")
        must("Read-only file system" in done.stderr, f"root cannot write to {place}")
    inside = podman.says("exec", number, "sh", "-c", "ls /tmp /opt/padim-edge/bin")
    must(not re.search(r"\.whl$|^pip", inside, re.M), "no wheel and no pip is left in it")


def stopped(podman: Podman, number: str) -> None:
    """End a container as docker does, and check that it ends well."""
    podman.says("stop", "--time=60", number)
    code = podman.says("wait", number)
    must(code == "0", f"SIGTERM ends it with exit code {code}")


def healthy(podman: Podman, number: str) -> None:
    """Wait for the image's own health check to hold."""
    deadline = time.monotonic() + SECONDS
    while (done := podman("healthcheck", "run", number)).returncode:
        if time.monotonic() > deadline:
            raise WrongError(f"not healthy after {SECONDS} s: {done.stdout}{done.stderr}")
        time.sleep(0.5)
    must(True, "its health check is green")


def serve(podman: Podman) -> None:
    """The server: who may ask, what a photo scores, how it ends."""
    data = podman.work / "data"
    models = podman.work / "models"
    models.mkdir()
    shutil.copy(data / "cloth.onnx", models)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    published = (f"--publish=127.0.0.1:{port}:8000", f"--volume={models}:/models:ro")
    options = ("--env=PADIM_EDGE_TOKEN", "--stop-timeout=35", *published)
    os.environ["PADIM_EDGE_TOKEN"] = TOKEN
    with podman.running(*options, "localhost/serve") as number:
        healthy(podman, number)
        privileges(podman, number, "/", "/tmp", "/opt/padim-edge")
        got = {}
        for photo in sorted((data / "photos/test/good").iterdir()):
            address = f"http://127.0.0.1:{port}/v1/models/cloth/judge"
            request = urllib.request.Request(address, photo.read_bytes())
            request.add_header("Authorization", f"Bearer {TOKEN}")
            with urllib.request.urlopen(request, timeout=60) as answer:
                got[photo.name] = json.load(answer)["score"]
        expected = scores((data / "here.jsonl").read_text())
        must(agree(expected, got), f"{len(got)} photos by HTTP score as here: {got}")
        try:
            urllib.request.urlopen(urllib.request.Request(address, b"x"), timeout=60)
        except urllib.error.HTTPError as error:
            must(error.code == 401, "without the token it judges nothing (401)")
        else:
            raise WrongError("it judges without a token")
        stopped(podman, number)
        must("has been answered" in podman("logs", number).stderr, "what was begun was answered")


def jetson(podman: Podman) -> None:
    """The device's image, without its GPU: doctor, run, and a watch with its health check."""
    data = podman.work / "data"
    expected = scores((data / "here.jsonl").read_text())
    volumes = [f"--volume={data}:/data:ro", "--tmpfs=/tmp"]  # doctor makes itself a model there
    for name in ("cache", "lib"):
        podman("volume", "rm", "--force", f"jetson-{name}")
        volumes.append(f"--volume=jetson-{name}:/var/{name}/padim-edge")
    options = ("--rm", *ALONE, *LIMITS, *volumes, "localhost/jetson")
    said = podman.says("run", *options)
    must("engines that run: ort" in said, f"doctor: {said.splitlines()[-1]}")
    lines = podman.says(
        *("run", *options, "run", "cloth.onnx", "photos/test/good", "--engine", "ort"),
        *("--jsonl", "-"),
    )
    must(agree(expected, scores(lines)), f"{len(expected)} photos score as here")
    check = "python -c \"import urllib.request as u; u.urlopen('http://127.0.0.1:9464/metrics')\""
    watch = ("watch", "cloth.onnx", "hot:photos/test/good", "--engine", "ort")
    watch += ("--to", "jsonl:/var/lib/padim-edge/events.jsonl")
    watch += ("--to", "prometheus://127.0.0.1:9464")
    options = (f"--health-cmd={check}", "--health-interval=disable", *volumes, "localhost/jetson")
    with podman.running(*options, *watch) as number:
        healthy(podman, number)
        privileges(podman, number, "/", "/data", "/opt/padim-edge")
        place = json.loads(podman.says("volume", "inspect", "jetson-lib"))[0]["Mountpoint"]
        events = Path(place) / "events.jsonl"
        deadline = time.monotonic() + SECONDS
        while not events.exists() or len(scores(events.read_text())) < len(expected):
            if time.monotonic() > deadline:
                raise WrongError(f"after {SECONDS} s the watch has not written {events}")
            time.sleep(0.5)
        got = scores(events.read_text())
        must(agree(expected, got), f"{len(got)} photos of a watch score as here")
        must(events.stat().st_uid == 10001, "its events are in the volume, and its own")
        stopped(podman, number)


if __name__ == "__main__":
    sys.exit(main())
