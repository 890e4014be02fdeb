"""fit, run and eval over Ray: what comes of them is that of one process, byte by byte."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import Outcome, contents, in_process, padim_edge, unchanged

from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.images.stored_path import StoredPath

if TYPE_CHECKING:
    from padim_edge.scale.cluster import Cluster

DEADLINE = 600
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
    tmp_path, cluster, small_runs, embedding_file, mixed, monkeypatch
):
    """Of photos whose paths begin here, which is not where Ray was started."""
    monkeypatch.chdir(mixed.parent)

    def fit(name: str, *options: object) -> Outcome:
        return in_process(
            *("fit", embedding_file, mixed.name, "-o", tmp_path / f"{name}.onnx"),
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
    ("workers", "options"),
    [(2, {"preset": "whitened"}), (1, {"preset": "reference", "dims": 30})],
    ids=str,
)
def test_presets_give_the_same_file_for_one_worker_and_two(
    tmp_path, cluster, small_runs, whole_embedding, mixed, workers, options
):
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.find import find_images
    from padim_edge.images.preprocess import Preprocess

    settings = Settings(Preprocess.whole((64, 64)), **options)
    some = dataclasses.replace(cluster, cpus=(workers,))
    for name, extra in (("plain", {}), ("ray", {"extract": spread(some)})):
        bad: list[Path] = []
        fit_detector(
            whole_embedding, find_images(mixed), tmp_path / name, settings,
            on_error=lambda path, _, bad=bad: bad.append(path), reject_outliers=True, **extra,
        )  # fmt: skip
        assert [path.name for path in bad] == ["001b.png", "007b.png"]
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "plain").read_bytes()


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
    killed: list[str] = []

    def kill() -> None:
        pipe = opened_for_writing(halted)  # as soon as somebody reads
        readers = readers_of(halted)
        killed.extend(Path(f"/proc/{pid}/comm").read_text() for pid in readers)
        shutil.move(tmp_path / "kept.png", halted)
        for pid in readers:
            os.kill(pid, signal.SIGKILL)
        os.close(pipe)

    killer = threading.Thread(target=kill)
    killer.start()
    fit_detector(embedding_file, photos, tmp_path / "ray", settings, extract=spread(cluster))
    killer.join()
    (name,) = killed
    assert name.startswith("ray::")  # a worker, whose like has read the photo in the end
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


def test_lines_have_their_regions_where_no_map_is_sent(
    tmp_path, cluster, small_runs, model_file, photos, monkeypatch
):
    """Of photos whose paths begin here, and of a list that names one that is not there."""
    monkeypatch.chdir(photos)
    (tmp_path / "list").write_text("none.png\n")
    run = ("run", model_file, "test", "--files-from", tmp_path / "list", "--jsonl", "-")
    plain, ours = (in_process(*run, "--threshold", 5, *more).worked() for more in ((), ("--ray",)))
    assert ours.stdout == plain.stdout
    assert said(ours) == said(plain)
    *lines, last = map(json.loads, ours.stdout.splitlines())
    assert any(line["regions"] for line in lines)
    assert "none.png: cannot be read" in last["error"]


def test_eval_gives_the_same_figures(
    tmp_path, cluster, small_runs, model_file, photos, monkeypatch
):
    pytest.importorskip("sklearn")
    from padim_edge.scale import judging  # noqa: F401 - with the true read_head

    def refuse(path: Path) -> None:
        raise AssertionError(f"the head of {path} came from a worker")

    plain = in_process("eval", model_file, photos, "--json", tmp_path / "plain.json").worked()
    monkeypatch.setattr("padim_edge.images.decode.read_head", refuse)
    ours = in_process("eval", model_file, photos, "--ray", "--json", tmp_path / "ray.json").worked()
    assert ours.stdout == plain.stdout
    assert said(ours) == said(plain)
    assert (tmp_path / "ray.json").read_bytes() == (tmp_path / "plain.json").read_bytes()


def test_categories_are_fitted_and_measured_at_once(
    tmp_path, cluster, photos, embedding_file, monkeypatch
):
    """By paths that begin here."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    datasets = Path("data")
    for name in ("bolt", "cap", "nut"):
        shutil.copytree(photos, datasets / name)
    (datasets / "bolt" / "train" / "good" / "003.png").write_bytes(b"no image")
    shutil.rmtree(datasets / "nut" / "test")

    def measure(*options: object) -> Outcome:
        """In a folder of the same name each time: the JSON names it."""
        made = Path("made")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        return in_process(
            *("eval", made / "detectors", datasets, "--fit-from", "embedding.onnx"),
            *("--json", made / "all.json", *options),
        )

    shutil.copy(embedding_file, "embedding.onnx")
    plain = measure()
    before = contents(Path("made"))
    ours = measure("--ray")
    assert ours.code == plain.code == 1
    assert contents(Path("made")) == before
    assert ours.stdout == plain.stdout
    assert said(ours) == said(plain)
    assert any("003.png" in line for line in ours.warnings())
    assert any("nut is left out" in line for line in ours.warnings())


# --- clusters ---------------------------------------------------------------------------------


def test_what_a_worker_refuses_is_said_in_its_words(cluster):
    """What it did before has its answers, in order; a fault is told in a line, too."""

    def opened() -> Callable[[int], int]:
        def work(piece: int) -> int:
            if piece == 3:
                raise PadimEdgeError("three is too many")
            return 6 // piece

        return work

    assert list(cluster.spread(opened, [])) == []
    answers = cluster.spread(opened, [6, 1, 2, 3, 4])
    assert [next(answers) for _ in range(3)] == [1, 6, 3]
    with pytest.raises(PadimEdgeError, match=r"^three is too many \(on "):
        next(answers)
    with pytest.raises(
        PadimEdgeError, match=r"this should not happen \(ZeroDivisionError: "
    ) as caught:
        list(cluster.spread(opened, [0]))
    assert "\n" not in str(caught.value)


def test_what_a_cluster_cannot_give_is_refused(tmp_path, cluster, embedding_file, photos):
    with unchanged(tmp_path):
        done = in_process(
            *("fit", embedding_file, photos, "--ray", "--threads", 64, "-o", tmp_path / "p.onnx")
        )
    done.failed(1, "--threads 64", "2 CPUs", said=(RAY,))
    with pytest.raises(PadimEdgeError, match="has a GPU that Ray knows of"):
        cluster.workers("trt")


def test_what_ends_its_worker_each_time_is_given_up(tmp_path, cluster, monkeypatch):
    """As a photo does for which the memory does not suffice."""
    monkeypatch.setattr("padim_edge.scale.cluster.RETRIES", 1)  # a worker's start takes seconds
    monkeypatch.chdir(tmp_path)

    def opened() -> Callable[[int], int]:
        return lambda _: os._exit(1)

    with pytest.raises(PadimEdgeError, match="did not do the work") as caught:
        list(cluster.spread(opened, [1]))
    assert "\n" not in str(caught.value)
    # Ray goes on, and its workers are where it was started.
    (answer,) = cluster.spread(lambda: lambda piece: (piece, str(Path.cwd())), [1])
    assert answer[0] == 1
    assert answer[1] != str(tmp_path)


def test_paths_begin_in_the_folder_of_the_first_process(tmp_path, cluster, monkeypatch):
    """As Ray was started elsewhere, its workers are elsewhere."""
    from padim_edge.scale.cluster import start_of

    def opened() -> Callable[[int], str]:
        return lambda _: str(Path.cwd())

    monkeypatch.chdir(tmp_path)
    assert start_of([tmp_path, StoredPath("s3://photos/a.png")]) is None
    assert start_of([tmp_path, Path("a.png")]) == tmp_path
    assert list(cluster.spread(opened, [1], folder=tmp_path)) == [str(tmp_path)]
    with pytest.raises(PadimEdgeError, match="which cannot be entered here") as caught:
        list(cluster.spread(opened, [1], folder=tmp_path / "none"))
    assert str(tmp_path / "none") in str(caught.value)


def test_what_only_the_first_process_has_is_no_bad_photo(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'padim-edge[ray]'")
    from padim_edge.images.decode import NoSuchImageError
    from padim_edge.scale.cluster import Cluster, check_missing

    cluster, there = Cluster("at head:6379", (4,), (0,)), tmp_path / "a.png"
    error = NoSuchImageError(f"{there}: cannot be read")
    check_missing(cluster, there, error)  # as without Ray
    there.touch()
    check_missing(cluster, there, ImageError(f"{there}: damaged"))
    with pytest.raises(PadimEdgeError, match=r"a\.png is not there for a worker of Ray at head"):
        check_missing(cluster, there, error)


def test_workers_are_counted_on_each_machine():
    pytest.importorskip("ray", reason="needs Ray: pip install 'padim-edge[ray]'")
    from padim_edge.scale.cluster import Cluster

    cluster = Cluster("at head:6379", (3, 5, 0), (0, 1, 0))
    assert str(cluster) == "Ray at head:6379, 8 CPUs on 3 machines"
    assert cluster.workers() == 8
    assert cluster.workers(threads=2) == 1 + 2
    assert cluster.workers(threads=5) == 1
    assert cluster.workers("trt", 2) == 1
    with pytest.raises(PadimEdgeError, match=r"--threads 8: no machine of .* 5 is the most of one"):
        cluster.workers(threads=8)
    with pytest.raises(PadimEdgeError, match="--threads 6: no machine with a GPU"):
        cluster.workers("trt", 6)
    for none in (Cluster("at head:6379", (0,), (1,)), Cluster("at head:6379", (), ())):
        with pytest.raises(PadimEdgeError, match="has no CPU that Ray may use"):
            none.workers("trt")


@pytest.mark.parametrize("room", ["features", "judging"])
def test_workers_of_different_engines_are_refused(
    small_runs, embedding_file, model_file, good, room
):
    """As `auto` chooses them on machines with different extras."""
    for name in ("ray", "openvino"):
        pytest.importorskip(name)
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.model.file import read
    from padim_edge.scale.cluster import Cluster
    from padim_edge.scale.features import extract
    from padim_edge.scale.judging import judge_on

    class Differing(Cluster):
        """Its workers are in this process, each with an engine of its own."""

        def spread(self, open_worker: Any, pieces: Any, *_: Any) -> Iterator[Any]:
            for piece, engine in zip(pieces, itertools.cycle(("ort", "openvino")), strict=False):
                arguments = [engine if one == "auto" else one for one in open_worker.args]
                yield open_worker.func(*arguments)(piece)

    cluster = Differing("at head:6379", (1, 1), (0, 0))

    def work() -> None:
        if room == "features":
            extract(cluster, read(embedding_file, "embedding"), good, Preprocess.whole((64, 64)))
        else:
            list(judge_on(cluster, model_file, good, batch=2))

    with pytest.raises(PadimEdgeError, match="or name one with --engine") as caught:
        work()
    first, other = ("ONNX Runtime", "OpenVINO") if room == "features" else ("ort", "openvino")
    assert f"workers run {first}" in str(caught.value)
    assert f" and {other}" in str(caught.value)


def test_another_version_of_ours_is_named():
    pytest.importorskip("ray", reason="needs Ray: pip install 'padim-edge[ray]'")
    from padim_edge import __version__
    from padim_edge.scale.cluster import _Asked

    (answer,) = _Asked(None, "0.0.1", None)({"piece": [pickle.dumps(1)]})["answer"]
    reason = pickle.loads(answer).reason
    assert f"padim_edge {__version__} is installed, and the command is of 0.0.1" in reason


def test_a_ray_that_would_listen_elsewhere_is_not_started(monkeypatch):
    pytest.importorskip("ray", reason="needs Ray: pip install 'padim-edge[ray]'")
    from padim_edge.scale import cluster

    monkeypatch.delattr(cluster.services, "resolve_ip_for_localhost")
    with pytest.raises(PadimEdgeError, match="cannot be kept to"), cluster._loopback():
        pass


def test_where_nothing_is_left_no_ray_is_started(tmp_path, model_file, photos):
    lines = tmp_path / "lines"
    run = ("run", model_file, photos / "test", "--jsonl", lines)
    in_process(*run).worked()
    shutil.move(lines, f"{lines}.part")
    # No cluster answers there.
    done = in_process(*run, "--resume", "--ray-address", "127.0.0.1:1").worked()
    assert not any(line.startswith("Ray ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("address", ["", " ", "6379", "head", "head:", ":6379", "head:70000"])
def test_what_is_no_address_is_refused(address):
    """An empty one is that of a variable which is not set: it starts nothing of its own."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'padim-edge[ray]'")
    from padim_edge.scale.cluster import connected

    with pytest.raises(UsageError, match="HOST:PORT"), connected(address):
        pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nobody_listens_ray_is_not_asked(scheme, monkeypatch, free_port):
    """Ray would ask for minutes and say nothing."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'padim-edge[ray]'")
    from padim_edge.scale import cluster

    monkeypatch.setattr(cluster.ray, "init", lambda **_: pytest.fail("Ray was asked"))
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)  # other tests share one
    address = f"{scheme}127.0.0.1:{free_port}"
    words = f"answers at {address} .*refused"
    with pytest.raises(PadimEdgeError, match=words), cluster.connected(address):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PadimEdgeError, match=words), cluster.connected():
        pass


@pytest.fixture
def free_port() -> Iterator[int]:
    """One that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


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
import os, sys, tempfile, time
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
    ours = family() - {os.getpid()}
    print(len(ours))
# Those whose parent ends first are no family any more.
end = time.monotonic() + 60
while (left := [pid for pid in ours if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
    time.sleep(0.1)
print(*left)
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
    named, addresses, folders, answers, ours, left = done.stdout.splitlines()
    assert named.startswith("Ray started here, ")
    local = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(addresses.split())
    assert set(addresses.split()) <= local
    assert folders.startswith("pe-ray-")
    assert answers == "['1', '2']"
    assert int(ours) > 2  # its servers and its workers, and
    assert left == ""
    assert not list(Path(environment["TMPDIR"]).glob("pe-ray-*"))
    assert not done.stderr


def test_without_ray_its_extra_is_named(tmp_path, embedding_file, model_file, photos, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("padim_edge.scale.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    for arguments in (
        ("fit", embedding_file, photos, "-o", tmp_path / "padim.onnx"),
        ("run", model_file, photos / "test"),
        ("eval", model_file, photos),
    ):
        with unchanged(tmp_path):
            done = in_process(*arguments, "--ray")
        done.failed(1, "--ray needs ray", "pip install 'padim-edge[ray]'")
