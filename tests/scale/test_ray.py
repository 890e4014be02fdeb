"""fit, run and eval over Ray: what comes of them is that of one process, byte by byte."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import Outcome, blocking, contents, in_process, padim_edge, unchanged

from padim_edge.errors import PadimEdgeError

if TYPE_CHECKING:
    from padim_edge.scale.cluster import Cluster

DEADLINE = 120
RAY = "Ray of this program, "


def said(done: Outcome) -> list[str]:
    """Lines on stderr but for the one that tells of Ray."""
    lines = done.stderr.splitlines()
    assert sum(line.startswith(RAY) for line in lines) <= 1
    return [line for line in lines if not line.startswith(RAY)]


def spread(cluster: Cluster) -> Callable[..., Any]:
    from padim_edge.scale.features import extract

    return functools.partial(extract, cluster)


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of three photos, so that a dozen are several."""
    monkeypatch.setattr("padim_edge.scale.features.RUN", 3)
    monkeypatch.setattr("padim_edge.scale.judging.RUN", 3)


@pytest.fixture
def mixed(mine: Path) -> Path:
    """Good photos, among them two that are no images, a copy, and one nearly equal to another."""
    from PIL import Image

    (mine / "001b.png").write_bytes(b"no image")
    (mine / "007b.png").write_bytes((mine / "007.png").read_bytes()[:200])
    shutil.copy(mine / "004.png", mine / "010b.png")
    with Image.open(mine / "002.png") as image:
        image.convert("RGB").save(mine / "009b.jpg", quality=95)
    return mine


# --- fit --------------------------------------------------------------------------------------


def test_fit_gives_the_same_file_moments_and_warnings(
    tmp_path, cluster, small_runs, embedding_file, mixed
):
    def fit(name: str, *options: object) -> Outcome:
        return in_process(
            *("fit", embedding_file, mixed, "-o", tmp_path / f"{name}.onnx"),
            *("--save-moments", tmp_path / f"{name}.npz", *options),
        ).worked()

    plain, ours = fit("plain"), fit("ray", "--ray")
    assert (tmp_path / "ray.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
    with np.load(tmp_path / "plain.npz") as one, np.load(tmp_path / "ray.npz") as other:
        assert sorted(one) == sorted(other)
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert said(ours) == said(plain)
    assert f"{RAY}2 CPUs on 1 machine" in ours.stderr
    assert any("001b.png" in line for line in ours.warnings())
    assert any("equal others pixel by pixel" in line for line in ours.warnings())
    assert "in workers of Ray" in ours.stdout


@pytest.mark.parametrize(
    "options", [{"preset": "whitened"}, {"preset": "reference", "dims": 30}], ids=lambda o: str(o)
)
def test_presets_give_the_same_file_for_one_worker_and_two(
    tmp_path, cluster, small_runs, whole_embedding, mixed, options
):
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.find import find_images
    from padim_edge.images.preprocess import Preprocess

    settings = Settings(Preprocess.whole((64, 64)), **options)
    one = dataclasses.replace(cluster, cpus=1)
    for name, extra in (
        ("plain", {}), ("one", {"extract": spread(one)}), ("two", {"extract": spread(cluster)})
    ):  # fmt: skip
        bad: list[Path] = []
        fit_detector(
            whole_embedding, find_images(mixed), tmp_path / name, settings,
            on_error=lambda path, _, bad=bad: bad.append(path), reject_outliers=True, **extra,
        )  # fmt: skip
        assert [path.name for path in bad] == ["001b.png", "007b.png"]
    plain = (tmp_path / "plain").read_bytes()
    assert (tmp_path / "one").read_bytes() == plain
    assert (tmp_path / "two").read_bytes() == plain


def test_a_worker_that_is_killed_is_survived(tmp_path, cluster, small_runs, embedding_file, mine):
    """It is killed while it reads a photo, which is a pipe until then."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.find import find_images
    from padim_edge.images.preprocess import Preprocess

    settings, photos = Settings(Preprocess.whole((64, 64))), find_images(mine)
    fit_detector(embedding_file, photos, tmp_path / "plain", settings)
    halted = mine / "006.png"
    shutil.move(halted, tmp_path / "kept.png")
    os.mkfifo(halted)
    killed: list[int] = []

    def kill() -> None:
        pipe = opened_for_writing(halted)  # as soon as somebody reads
        killed.extend(readers_of(halted))
        shutil.move(tmp_path / "kept.png", halted)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        os.close(pipe)

    killer = threading.Thread(target=kill)
    killer.start()
    fit_detector(embedding_file, photos, tmp_path / "ray", settings, extract=spread(cluster))
    killer.join()
    assert len(killed) == 1
    assert killed[0] != os.getpid()
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "plain").read_bytes()


def opened_for_writing(pipe: Path) -> int:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            time.sleep(0.01)
    raise AssertionError(f"nobody has read {pipe}")


def readers_of(pipe: Path) -> list[int]:
    """Processes but this that have it open."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        found = set()
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if link.readlink() == pipe and int(link.parts[2]) != os.getpid():
                    found.add(int(link.parts[2]))
            except OSError:  # of another user, or gone
                continue
        if found:
            return sorted(found)
        time.sleep(0.01)
    raise AssertionError(f"no process has {pipe} open")


def test_strict_ends_at_the_first_bad_photo(tmp_path, cluster, small_runs, embedding_file, mixed):
    with unchanged(tmp_path):
        done = in_process(
            "fit", embedding_file, mixed, "--ray", "--strict", "-o", tmp_path / "padim.onnx"
        )
    done.failed(1, "001b.png", said=(RAY,))


# --- run and eval -----------------------------------------------------------------------------


def test_run_says_the_same_and_draws_the_same(tmp_path, cluster, small_runs, model_file, photos):
    test = tmp_path / "test"
    shutil.copytree(photos / "test", test)
    (test / "good" / "001b.png").write_bytes(b"no image")

    def run(name: str, *options: object) -> Outcome:
        return in_process(
            *("run", model_file, test, "--save-maps", tmp_path / name / "maps"),
            *("--jsonl", tmp_path / name / "lines", "--report", tmp_path / f"{name}.html"),
            *("--fail-on-anomaly", "--threshold", 5, *options),
        )

    for name in ("plain", "ray"):
        (tmp_path / name).mkdir()
    plain, ours = run("plain"), run("ray", "--ray")
    assert ours.code == plain.code == 3
    assert ours.stdout == plain.stdout
    assert said(ours) == said(plain)
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
    assert "regions" in (tmp_path / "ray" / "lines").read_text()


def test_lines_have_their_regions_where_no_map_is_sent(cluster, small_runs, model_file, photos):
    run = ("run", model_file, photos / "test", "--jsonl", "-", "--threshold", 5)
    plain, ours = in_process(*run).worked(), in_process(*run, "--ray").worked()
    assert ours.stdout == plain.stdout
    assert any(json.loads(line)["regions"] for line in ours.stdout.splitlines())


def test_eval_gives_the_same_figures(tmp_path, cluster, small_runs, model_file, photos):
    pytest.importorskip("sklearn")
    plain = in_process("eval", model_file, photos, "--json", tmp_path / "plain.json").worked()
    ours = in_process("eval", model_file, photos, "--ray", "--json", tmp_path / "ray.json").worked()
    assert ours.stdout == plain.stdout
    assert said(ours) == said(plain)
    assert (tmp_path / "ray.json").read_bytes() == (tmp_path / "plain.json").read_bytes()


def test_categories_are_fitted_and_measured_at_once(tmp_path, cluster, photos, embedding_file):
    pytest.importorskip("sklearn")
    datasets = tmp_path / "data"
    for name in ("bolt", "cap", "nut"):
        shutil.copytree(photos, datasets / name)
    (datasets / "bolt" / "train" / "good" / "003.png").write_bytes(b"no image")
    shutil.rmtree(datasets / "nut" / "test")

    def measure(*options: object) -> Outcome:
        """In a folder of the same name each time: the JSON names it."""
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        (tmp_path / "made").mkdir()
        return in_process(
            *("eval", tmp_path / "made" / "detectors", datasets, "--fit-from", embedding_file),
            *("--json", tmp_path / "made" / "all.json", *options),
        )

    plain = measure()
    before = contents(tmp_path / "made")
    ours = measure("--ray")
    assert ours.code == plain.code == 1
    assert contents(tmp_path / "made") == before
    assert ours.stdout == plain.stdout
    assert said(ours) == said(plain)
    assert any("003.png" in line for line in ours.warnings())
    assert any("nut is left out" in line for line in ours.warnings())


# --- clusters ---------------------------------------------------------------------------------


def test_what_a_worker_refuses_is_said_in_its_words(cluster):
    def opened() -> Callable[[int], int]:
        def work(piece: int) -> int:
            if piece == 3:
                raise PadimEdgeError("three is too many")
            return piece + 1

        return work

    assert list(cluster.spread(opened, [5, 1, 2])) == [6, 2, 3]
    assert list(cluster.spread(opened, [])) == []
    with pytest.raises(PadimEdgeError, match=r"^three is too many \(on "):
        list(cluster.spread(opened, [1, 2, 3, 4]))


def test_a_fault_of_a_worker_is_one_line(cluster):
    def opened() -> Callable[[int], int]:
        return lambda piece: 1 // piece

    with pytest.raises(
        PadimEdgeError, match=r"this should not happen \(ZeroDivisionError: "
    ) as caught:
        list(cluster.spread(opened, [1, 0]))
    assert "\n" not in str(caught.value)


def test_what_a_cluster_cannot_give_is_refused(tmp_path, cluster, embedding_file, photos):
    with unchanged(tmp_path):
        done = in_process(
            *("fit", embedding_file, photos, "--ray", "--threads", 64, "-o", tmp_path / "p.onnx")
        )
    done.failed(1, "--threads 64", "2 CPUs", said=(RAY,))
    with pytest.raises(PadimEdgeError, match="has a GPU that Ray knows of"):
        cluster.workers("trt")


def test_another_program_joins_a_cluster_by_its_address(
    tmp_path, cluster, embedding_file, good, model_file
):
    import ray

    address = ray.get_runtime_context().gcs_address
    # On Linux Ray takes itself for reachable from other machines; this says that it is not.
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ADDRESS": address}
    done = padim_edge(
        *("fit", embedding_file, good[0].parent, "--ray", "-o", tmp_path / "padim.onnx"),
        env=environment,
    ).worked()
    assert f"Ray at {address}, 2 CPUs on 1 machine" in done.stderr
    assert (tmp_path / "padim.onnx").read_bytes() == model_file.read_bytes()
    assert ray.cluster_resources()["CPU"] == 2  # it goes on


STARTED = """
import os, sys, tempfile
from pathlib import Path
from padim_edge.scale.cluster import connected

def listening(state="0A"):
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == state:
                yield words[1].rsplit(":", 1)[0], words[9]

def family():
    parents = {}
    for one in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(one.name)] = int((one / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return own

def sockets(pids):
    found = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                found.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    return found

with connected() as cluster:
    print(cluster)
    own = sockets(family())
    print(*sorted({address for address, socket in listening() if socket in own}))
    print(*os.listdir(tempfile.gettempdir()))
    print(list(cluster.spread(lambda: str, [1, 2])))
print(*family() - {os.getpid()})
"""


def test_one_that_was_started_listens_to_this_machine_alone_and_leaves_nothing(tmp_path):
    """Nor does it send statistics home: its processes are told, see RAY_USAGE_STATS_ENABLED."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'padim-edge[ray]'")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    environment.pop("RAY_ADDRESS", None)
    if len(str(tmp_path)) > 40:  # a socket's name takes 107 bytes
        environment["TMPDIR"] = tempfile.mkdtemp(prefix="pe-", dir="/tmp")
    done = subprocess.run(
        [sys.executable, "-c", STARTED], env=environment, text=True, capture_output=True,
        timeout=DEADLINE, check=True,
    )  # fmt: skip
    named, addresses, folders, answers, left = done.stdout.splitlines()
    assert named.startswith("Ray started here, ")
    local = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(addresses.split())
    assert set(addresses.split()) <= local
    assert folders.startswith("pe-ray-")
    assert answers == "['1', '2']"
    assert left == ""
    assert not list(Path(environment["TMPDIR"]).glob("pe-ray-*"))
    assert not done.stderr


def test_without_ray_its_extra_is_named(tmp_path, embedding_file, model_file, photos):
    absent = blocking("ray")
    for arguments in (
        ("fit", embedding_file, photos, "-o", tmp_path / "padim.onnx"),
        ("run", model_file, photos / "test"),
        ("eval", model_file, photos),
    ):
        with unchanged(tmp_path):
            done = padim_edge(*arguments, "--ray", prelude=absent)
        done.failed(1, "--ray needs ray", "pip install 'padim-edge[ray]'")
