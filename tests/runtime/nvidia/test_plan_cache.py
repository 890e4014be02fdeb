"""The plan cache with builders that are no TensorRT: what is kept, and what is never handed out."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.model.file import Model, read
from padim_edge.runtime.graphs import open_graph
from padim_edge.runtime.nvidia.graphs import backbone_graph, whole_graph
from padim_edge.runtime.nvidia.plan_cache import (
    MAGIC,
    BuildSettings,
    PlanCache,
    PlanKey,
)

KEY = PlanKey.of(b"graph", BuildSettings(), "Orin, 8.7", "tensorrt 10.3.0")
PLAN = b"a plan " * 1000


class Builder:
    """Counts its calls."""

    def __init__(self, plan: bytes = PLAN) -> None:
        self.plan = plan
        self.builds = 0

    def __call__(self) -> bytes:
        self.builds += 1
        return self.plan


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


@pytest.fixture
def file(cache: PlanCache) -> Path:
    """The file of a plan that was built and kept."""
    cache.build(KEY, Builder())
    return cache.folder / KEY.name


def test_a_plan_is_built_once(cache: PlanCache) -> None:
    builder = Builder()
    assert cache.load(KEY) is None
    assert cache.build(KEY, builder) == PLAN
    assert cache.build(KEY, builder) == PLAN
    assert cache.load(KEY) == PLAN
    assert PlanCache(cache.folder).load(KEY) == PLAN
    assert builder.builds == 1


@pytest.mark.parametrize(
    "other",
    [
        PlanKey.of(b"grapH", BuildSettings(), KEY.gpu, KEY.library),
        replace(KEY, settings=BuildSettings(batch=(1, 1, 16))),
        replace(KEY, settings=BuildSettings(tf32=True)),
        replace(KEY, settings=BuildSettings(workspace=2**29)),
        replace(KEY, gpu="Orin, 8.9"),
        replace(KEY, gpu="Thor, 8.7"),
        replace(KEY, library="tensorrt 10.3.1"),
        replace(KEY, library="tensorrt_rtx 10.3.0"),
        replace(KEY, gpu="Orin, 8.7tensorrt", library=" 10.3.0"),
    ],
)
def test_everything_that_a_plan_depends_on_tells_plans_apart(
    cache: PlanCache, file: Path, other: PlanKey
) -> None:
    assert cache.load(other) is None
    assert cache.load(KEY) == PLAN


def test_an_upgrade_replaces_the_plan_of_the_old_library(cache: PlanCache, file: Path) -> None:
    newer = replace(KEY, library="tensorrt 11.4.0")
    assert cache.load(newer) is None
    cache.build(newer, Builder(b"a new plan"))
    assert cache.load(newer) == b"a new plan"
    assert cache.load(KEY) is None  # stale, if the library is downgraded again
    assert [path.name for path in cache.folder.glob("*.plan")] == [file.name]


HEADER = len(MAGIC) + 64


def test_the_header_is_as_documented(file: Path) -> None:
    data = file.read_bytes()
    assert data.startswith(MAGIC + KEY.digest)
    assert data[HEADER:] == PLAN


@pytest.mark.parametrize("place", [0, len(MAGIC), len(MAGIC) + 32, HEADER, HEADER + 6999])
def test_no_changed_byte_passes(cache: PlanCache, file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert cache.load(KEY) is None


@pytest.mark.parametrize(
    "length", [0, 1, len(MAGIC), HEADER - 1, HEADER, HEADER + 1, HEADER + len(PLAN) - 1]
)
def test_a_truncated_plan_is_built_again(cache: PlanCache, file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    builder = Builder()
    assert cache.build(KEY, builder) == PLAN
    assert builder.builds == 1
    assert cache.load(KEY) == PLAN


@pytest.mark.parametrize("content", [b"ftrt" + PLAN, b"\x00" * 4096, PLAN])
def test_a_foreign_file_is_built_over(cache: PlanCache, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert cache.load(KEY) is None
    assert cache.build(KEY, Builder()) == PLAN
    assert cache.load(KEY) == PLAN


def test_a_plan_appended_to_is_refused(cache: PlanCache, file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\x00")
    assert cache.load(KEY) is None


def test_links_and_pipes_are_not_followed(cache: PlanCache, file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert cache.load(KEY) is None
    file.unlink()
    os.mkfifo(file)
    assert cache.load(KEY) is None  # and this does not wait for a writer
    file.unlink()
    file.mkdir()
    assert cache.load(KEY) is None


def test_a_plan_of_another_user_is_not_run(
    cache: PlanCache, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: file.stat().st_uid + 1)
    assert cache.load(KEY) is None


def test_a_refused_plan_is_replaced_once_there_is_another(cache: PlanCache, file: Path) -> None:
    def fail() -> bytes:
        raise PadimEdgeError("no GPU")

    with pytest.raises(PadimEdgeError, match="no GPU"):
        cache.build(KEY, fail, refused=PLAN)
    assert cache.load(KEY) == PLAN
    assert cache.build(KEY, Builder(b"a better one"), refused=PLAN) == b"a better one"
    assert cache.load(KEY) == b"a better one"
    # Somebody else was faster: theirs is not the refused one, so it is taken.
    assert cache.build(KEY, Builder(), refused=PLAN) == b"a better one"


# --- the folder -----------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_the_folder_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        cache = PlanCache(tmp_path / "a" / "b")
        assert cache.build(KEY, Builder()) == PLAN
        assert cache.load(KEY) == PLAN
    finally:
        os.umask(before)
    assert mode(cache.folder) == 0o700


def test_a_readable_folder_is_made_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert mode(PlanCache(tmp_path).folder) == 0o700


@pytest.mark.parametrize("permissions", [0o770, 0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, permissions: int) -> None:
    tmp_path.chmod(permissions)
    with pytest.raises(PadimEdgeError, match=r"others can write .*rm -r"):
        PlanCache(tmp_path)
    tmp_path.chmod(0o700)


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PadimEdgeError, match=r"belongs to another user .*XDG_CACHE_HOME"):
        PlanCache(tmp_path)


def test_a_file_in_the_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "plans").write_text("")
    with pytest.raises(PadimEdgeError, match=r"cannot use the plan cache .*XDG_CACHE_HOME"):
        PlanCache(tmp_path / "plans")


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert PlanCache().folder == tmp_path / "cache" / "padim-edge" / "plans"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert PlanCache().folder == tmp_path / "home" / ".cache" / "padim-edge" / "plans"


# --- failures and company -------------------------------------------------------------------------


def test_a_failed_build_leaves_nothing(cache: PlanCache) -> None:
    def fail() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build(KEY, fail)
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]
    assert cache.build(KEY, Builder()) == PLAN  # the lock was given back


def test_a_plan_that_cannot_be_kept_is_used(
    cache: PlanCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert cache.build(KEY, Builder()) == PLAN
    assert "No space left on device" in caplog.text
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def _die_while_writing(folder: Path) -> None:
    """Build a plan, and be killed when half of it is on disk."""

    def killed(descriptor: int) -> None:
        os.ftruncate(descriptor, HEADER + len(PLAN) // 2)
        os.kill(os.getpid(), 9)

    os.fsync = killed
    PlanCache(folder).build(KEY, Builder())


def _build_slowly(folder: Path, key: PlanKey, built: Path, ready: object) -> None:
    def build() -> bytes:
        with built.open("a") as stream:
            stream.write(f"begin {key.gpu}\n")
        time.sleep(0.3)
        with built.open("a") as stream:
            stream.write(f"end {key.gpu}\n")
        return PLAN

    ready.wait()  # type: ignore[attr-defined]
    assert PlanCache(folder).build(key, build) == PLAN


spawn = multiprocessing.get_context("spawn")


def test_a_crash_while_writing_leaves_no_plan_and_no_lock(cache: PlanCache) -> None:
    child = spawn.Process(target=_die_while_writing, args=(cache.folder,))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    assert cache.load(KEY) is None
    assert cache.build(KEY, Builder()) == PLAN
    assert cache.load(KEY) == PLAN


@pytest.mark.parametrize("gpus", [("Orin", "Orin"), ("Orin", "Thor")])
def test_two_processes_do_not_build_at_once(
    cache: PlanCache, tmp_path: Path, gpus: tuple[str, str]
) -> None:
    built = tmp_path / "built"
    ready = spawn.Barrier(len(gpus))
    children = [
        spawn.Process(
            target=_build_slowly, args=(cache.folder, replace(KEY, gpu=gpu), built, ready)
        )
        for gpu in gpus
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    lines = built.read_text().split("\n")[:-1]
    assert len(lines) == 2 * len(set(gpus))  # the same plan is built once
    for begin, end in zip(lines[::2], lines[1::2], strict=True):
        assert begin.replace("begin", "end") == end  # and no two are built at the same time


def test_without_locks_the_last_one_wins(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    both_build = threading.Barrier(2)
    results: list[bytes] = []

    def run(plan: bytes) -> None:
        def build() -> bytes:
            both_build.wait(10)
            return plan

        results.append(cache.build(KEY, build))

    plans = [b"one" * 10000, b"two" * 20000]
    threads = [threading.Thread(target=run, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(plans)
    assert cache.load(KEY) in plans


def test_timings_are_kept_by_gpu_and_library(cache: PlanCache) -> None:
    timings = cache.timings("Orin, 8.7", "tensorrt 10.3.0")
    assert timings.read() is None
    timings.write(b"timings")
    assert cache.timings("Orin, 8.7", "tensorrt 10.3.0").read() == b"timings"
    assert cache.timings("Thor, 11.0", "tensorrt 10.3.0").read() is None
    assert cache.timings("Orin, 8.7", "tensorrt 11.4.0").read() is None


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(0, 1, 1), (1, 0, 1), (2, 1, 3), (1, 3, 2), (-1, 1, 1)])
def test_impossible_batches_are_refused(batch: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="smallest, the usual and the largest"):
        BuildSettings(batch=batch)


def test_impossible_workspace_is_refused() -> None:
    with pytest.raises(UsageError, match="workspace of 0 bytes"):
        BuildSettings(workspace=0)


@pytest.fixture(scope="module")
def int8_model(
    embedding_file: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    """A fit on other images, and with other constants, than `model_file`."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess

    path = tmp_path_factory.mktemp("int8") / "padim.onnx"
    settings = Settings(Preprocess.whole((64, 64)), constants="int8")
    fit_detector(embedding_file, train_images(photos)[:6], path, settings)
    return read(path, "padim")


def test_another_fit_keeps_the_plan(int8_model: Model, model_file: Path) -> None:
    """The backbone's graph, and with it the key of its plan, does not depend on the fit."""
    other = read(model_file, "padim")
    assert backbone_graph(int8_model) == backbone_graph(other)
    assert whole_graph(int8_model) != whole_graph(other)
    assert len(backbone_graph(other)) < len(whole_graph(other))


def test_widened_int8_constants_score_the_same(int8_model: Model) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    results = []
    for data in (int8_model.proto.SerializeToString(), whole_graph(int8_model)):
        with open_graph(data) as graph:
            results.append(graph.run({"image": images}, ["score", "score_map"]))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    types = {
        t.data_type for t in onnx.load_model_from_string(whole_graph(int8_model)).graph.initializer
    }
    assert onnx.TensorProto.INT8 not in types


def test_a_graph_beyond_what_onnx_can_hold_is_refused(
    int8_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("padim_edge.runtime.nvidia.graphs.MAX_BYTES", 10**6)
    with pytest.raises(PadimEdgeError, match="leave the scoring to the CUDA kernels"):
        whole_graph(int8_model)
