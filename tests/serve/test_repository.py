"""Repositories of other servers: checked by their own schemas and readers, and run for real."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import contents, in_process, names, padim_edge, unchanged

from padim_edge import Detector
from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings as FitSettings
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.serve import repository
from padim_edge.serve.repository import MARKER, TARGETS, Batching, export_repository


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def config_of():
    """Reads config.pbtxt by the published message, which tritonclient carries."""
    tritonclient = pytest.importorskip(
        "tritonclient", reason="needs pip install 'tritonclient[http]'"
    )
    text_format = pytest.importorskip("google.protobuf.text_format")
    # Its package asks for grpc; the message itself does not.
    file = Path(tritonclient.__file__).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    messages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(messages)

    def read(path):
        return text_format.Parse(path.read_text(), messages.ModelConfig()), messages

    return read


def test_triton_reads_its_configuration_and_the_file_has_those_tensors(
    model, tmp_path, config_of, images
):
    onnxruntime = pytest.importorskip("onnxruntime")
    done = export_repository(model, tmp_path / "t", "triton", Batching(16, 0.002, 100))
    assert done.files == ("bottle/1/model.onnx", "bottle/config.pbtxt")
    config, messages = config_of(tmp_path / "t" / "bottle" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("bottle", "onnxruntime", 16)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 100
    assert [group.count for group in config.instance_group] == [1]
    assert config.instance_group[0].kind == messages.ModelInstanceGroup.KIND_AUTO
    with Detector(model, "ort") as detector:
        expected = detector.judge(images)
        assert float(config.parameters["padim_edge.threshold"].string_value) == detector.threshold
    # As Triton's backend asks the same runtime: tensors by these names, with the batch in front.
    session = onnxruntime.InferenceSession(
        tmp_path / "t" / "bottle" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    types = {"tensor(uint8)": messages.TYPE_UINT8, "tensor(float)": messages.TYPE_FP32}
    for said, there in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [one.name for one in said] == [one.name for one in there]
        for one, real in zip(said, there, strict=True):
            assert one.data_type == types[real.type]
            assert one.dims  # Triton refuses a tensor without
            dims = one.reshape.shape if one.HasField("reshape") else one.dims
            assert list(dims) == real.shape[1:]
    score, score_map = session.run(["score", "score_map"], {"image": images})
    assert score == pytest.approx([one.score for one in expected], rel=1e-5)
    assert score_map == pytest.approx(np.stack([one.score_map for one in expected]), rel=1e-4)


def test_a_file_that_takes_frames_says_so(embedding_file, photos, tmp_path, config_of):
    file = tmp_path / "frames.onnx"
    settings = FitSettings(Preprocess.whole((64, 64)), frame_input=True)
    fit_detector(embedding_file, train_images(photos), file, settings)
    export_repository(file, tmp_path / "t", "triton")
    config, _ = config_of(tmp_path / "t" / "frames" / "config.pbtxt")
    assert (config.input[0].name, list(config.input[0].dims)) == ("frame", [-1, -1, 3])
    export_repository(file, tmp_path / "m", "mlserver")
    said = json.loads((tmp_path / "m" / "frames" / "model-settings.json").read_bytes())
    assert said["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]


def test_openvino_runs_what_its_server_is_given(model, tmp_path, images):
    openvino = pytest.importorskip("openvino")
    export_repository(model, tmp_path / "o", "ovms")
    (listed,) = json.loads((tmp_path / "o" / "config.json").read_bytes())["model_config_list"]
    config = listed["config"]
    assert config["name"] == "bottle"
    versions = tmp_path / "o" / config["base_path"]
    assert names(versions) == ["1/bottle.onnx"]
    core = openvino.Core()
    compiled = core.compile_model(versions / "1" / "bottle.onnx", "CPU", config["plugin_config"])
    given = compiled([images])
    with Detector(model, "ort") as detector:
        expected = [one.score for one in detector.judge(images)]
    assert given["score"] == pytest.approx(expected, rel=1e-4)  # bfloat16 would be 1e-2 off


@pytest.mark.parametrize("target", TARGETS)
def test_a_second_model_joins_and_a_model_is_replaced(model, other_model, tmp_path, target):
    folder = tmp_path / "models"
    export_repository(model, folder, target)
    before = contents(folder / "bottle")
    cable = tmp_path / "cable.onnx"
    shutil.copy(other_model, cable)
    done = export_repository(cable, folder, target)
    assert done.models == ("bottle", "cable")
    assert contents(folder / "bottle") == before
    replacing = tmp_path / "new" / "bottle.onnx"
    replacing.parent.mkdir()
    shutil.copy(other_model, replacing)
    assert export_repository(replacing, folder, target).models == ("bottle", "cable")
    (file,) = (folder / "bottle").rglob("*.onnx")
    assert file.read_bytes() == other_model.read_bytes()
    if target == "ovms":
        listed = json.loads((folder / "config.json").read_bytes())["model_config_list"]
        assert [one["config"]["name"] for one in listed] == ["bottle", "cable"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cable.onnx", "models", "new"]


def test_a_folder_that_is_not_ours_is_left_alone(model, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    with unchanged(tmp_path), pytest.raises(UsageError, match="no repository that padim-edge made"):
        export_repository(model, folder, "triton")
    with pytest.raises(UsageError, match="is no folder"):
        export_repository(model, folder / "thesis.tex", "triton")


def test_the_working_directory_is_not_replaced(model, tmp_path, monkeypatch):
    inside = tmp_path / "models" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    for folder in (".", inside, "..", tmp_path / "models"):
        with unchanged(tmp_path):
            done = in_process("export-repository", model, folder, "--for", "triton")
        done.failed(2, f"{folder} is replaced as a whole", "name a new folder")
    in_process("export-repository", model, "new", "--for", "triton").worked()
    assert (inside / "new" / MARKER).exists()


def test_what_another_hand_changed_is_not_overwritten(model, tmp_path):
    folder = tmp_path / "models"
    export_repository(model, folder, "triton")
    with pytest.raises(UsageError, match="was made for triton"):
        export_repository(model, folder, "ovms")
    config = folder / "bottle" / "config.pbtxt"
    kept = config.read_text()
    config.write_text(kept + "# tuned\n")
    with unchanged(tmp_path), pytest.raises(UsageError, match=r"config\.pbtxt was changed by"):
        export_repository(model, folder, "triton")
    config.write_text(kept)
    (folder / "labels.txt").write_text("ok")
    with unchanged(tmp_path), pytest.raises(UsageError, match=r"labels\.txt was changed by"):
        export_repository(model, folder, "triton")
    (folder / "labels.txt").unlink()
    (folder / "bottle" / "2").mkdir()
    with unchanged(tmp_path), pytest.raises(UsageError, match="bottle/2 was changed by"):
        export_repository(model, folder, "triton")
    (folder / "bottle" / "2").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    with unchanged(tmp_path), pytest.raises(UsageError, match="more was changed by"):
        export_repository(model, folder, "triton")
    (folder / "more").unlink()
    same = tmp_path / "config.pbtxt"
    config.rename(same)
    config.symlink_to(same)
    with unchanged(tmp_path), pytest.raises(UsageError, match=r"config\.pbtxt was changed by"):
        export_repository(model, folder, "triton")
    same.replace(config)
    export_repository(model, folder, "triton")


@pytest.mark.parametrize(
    "change",
    [
        {"models": {"../../evil": {}}},  # which say what is copied, and where to
        {"models": {"/etc": {}}},
        {"models": []},
        {"files": []},
        {"for": ["triton"]},
    ],
)
def test_a_marker_that_nobody_here_wrote_is_not_believed(model, tmp_path, change):
    folder = tmp_path / "deep" / "models"
    export_repository(model, folder, "triton")
    said = json.loads((folder / MARKER).read_bytes())
    (folder / MARKER).write_text(json.dumps({**said, **change}))
    (tmp_path / "evil").mkdir()
    with (
        unchanged(tmp_path),
        pytest.raises(UsageError, match="no repository that padim-edge made"),
    ):
        export_repository(model, folder, "triton")


@pytest.mark.parametrize("name", ["config.json", "Settings.json", MARKER])
def test_a_model_is_not_called_as_a_file_of_the_repository(model, tmp_path, name):
    odd = tmp_path / f"{name}.onnx"
    shutil.copy(model, odd)
    for target in TARGETS:
        with unchanged(tmp_path), pytest.raises(UsageError, match="is a file of repositories"):
            export_repository(odd, tmp_path / "m", target)


def test_what_fails_half_way_leaves_nothing(model, tmp_path, monkeypatch):
    folder = tmp_path / "models"
    export_repository(model, folder, "triton")
    before = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    in_process("export-repository", model, folder, "--for", "triton").failed(1, "No space left")
    in_process("export-repository", model, tmp_path / "new", "--for", "ovms").failed(1, "No space")
    assert contents(tmp_path) == before


def test_a_folder_is_exchanged_and_never_away(model, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if not repository._exchanged(tmp_path / "one", tmp_path / "other"):
        pytest.skip(f"the file system of {tmp_path} does not exchange folders")
    folder = tmp_path / "models"
    export_repository(model, folder, "triton")
    folder.chmod(0o750)
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("a folder is renamed"))
    export_repository(model, folder, "triton", Batching(4))
    assert "max_batch_size: 4" in (folder / "bottle" / "config.pbtxt").read_text()
    assert folder.stat().st_mode & 0o777 == 0o750


def test_a_mount_is_not_replaced(model, tmp_path, monkeypatch):
    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy", "x")

    folder = tmp_path / "models"
    export_repository(model, folder, "triton")
    monkeypatch.setattr(repository, "_exchanged", busy)
    with unchanged(tmp_path), pytest.raises(UsageError, match="name a folder within it"):
        export_repository(model, folder, "triton")


@pytest.mark.parametrize("moment", ["new", "old"])
def test_what_a_killed_export_left_is_put_in_order_by_the_next(model, tmp_path, moment):
    """Killed when all is written, and between two renames, where folders are not exchanged."""
    folder = tmp_path / "models"
    export_repository(model, folder, "triton")
    before = contents(folder)
    cable = tmp_path / "cable.onnx"
    shutil.copy(model, cable)
    prelude = f"""
import os, signal
from pathlib import Path
from padim_edge.serve import repository
repository._exchanged = lambda *_: False
real = Path.rename
def rename(self, target):
    if Path(target).name == "old" and {moment == "old"}:
        real(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename
"""
    killed = padim_edge("export-repository", cable, folder, "--for", "triton", prelude=prelude)
    assert killed.code == -signal.SIGKILL
    assert folder.exists() == (moment == "new")
    if moment == "new":
        assert contents(folder) == before
    done = export_repository(cable, folder, "triton")
    assert done.models == ("bottle", "cable")
    assert before.items() - contents(folder).items() == {(MARKER, before[MARKER])}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cable.onnx", "models"]


def test_where_folders_are_not_exchanged_an_error_leaves_the_one_before(
    model, tmp_path, monkeypatch
):
    folder = tmp_path / "models"
    export_repository(model, folder, "triton")
    monkeypatch.setattr(repository, "_exchanged", lambda *_: False)
    export_repository(model, folder, "triton", Batching(4))
    assert "max_batch_size: 4" in (folder / "bottle" / "config.pbtxt").read_text()
    real = Path.rename

    def rename(self, target):
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with unchanged(tmp_path), pytest.raises(PadimEdgeError, match="Input/output error"):
        export_repository(model, folder, "triton")


def test_several_exports_into_one_folder_wait_for_each_other(model, tmp_path):
    names = [f"bottle{number}" for number in range(4)]
    for name in names:
        os.link(model, tmp_path / f"{name}.onnx")
    folder = tmp_path / "models"
    with ThreadPoolExecutor(len(names)) as pool:
        futures = [
            pool.submit(export_repository, tmp_path / f"{name}.onnx", folder, "triton")
            for name in names
        ]
        counts = sorted(len(future.result().models) for future in futures)
    assert counts == [1, 2, 3, 4]
    assert {path.name for path in folder.iterdir()} == {*names, MARKER}


def test_the_command(model, tmp_path):
    done = in_process("export-repository", model, tmp_path / "t", "--for", "triton").worked()
    assert done.stdout.splitlines() == [
        f"{tmp_path / 't'} for triton: bottle",
        "  bottle/1/model.onnx",
        "  bottle/config.pbtxt",
    ]
    wrong = in_process("export-repository", model, tmp_path / "x", "--for", "torchserve")
    wrong.failed(2, "triton, ovms, mlserver are allowed")
    odd = tmp_path / "a model.onnx"
    shutil.copy(model, odd)
    in_process("export-repository", odd, tmp_path / "x", "--for", "ovms").failed(2, "rename")
    in_process("export-repository", tmp_path / "no.onnx", tmp_path / "x", "--for", "ovms").failed(
        1, "no.onnx"
    )
    assert not (tmp_path / "x").exists()


# --- MLServer, for real -----------------------------------------------------------------------


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def mlserver(folder):
    """The server over a repository; its REST port."""
    program = os.environ.get("PADIM_EDGE_MLSERVER") or shutil.which("mlserver")
    if program is None:
        pytest.skip(
            "no MLServer: pip install 'padim-edge[mlserver,cpu]' in an environment of its own, and "
            "PADIM_EDGE_MLSERVER=.../bin/mlserver"
        )
    port = free_port()
    ports = {"HTTP_PORT": port, "GRPC_PORT": free_port(), "METRICS_PORT": free_port()}
    environment = {f"MLSERVER_{name}": str(value) for name, value in ports.items()}
    environment |= {
        "MLSERVER_HOST": "127.0.0.1",
        "PYTHONPATH": str(Path(repository.__file__).parents[2]),
    }
    log = folder.parent / "mlserver.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, "start", str(folder)],
            env={**os.environ, **environment},
            stdout=stream,
            stderr=stream,
        )
    try:
        yield port, process, log
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_mlserver_answers_what_the_detector_says(model, tmp_path, images):
    triton = pytest.importorskip("tritonclient.http")
    export_repository(model, tmp_path / "m", "mlserver", Batching(8, 0.005))
    with mlserver(tmp_path / "m") as (port, process, log):
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        end = time.monotonic() + 90
        while True:
            with contextlib.suppress(Exception):
                if client.is_model_ready("bottle"):
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        said = client.get_model_metadata("bottle")
        assert said["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]
        tensor = triton.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images, binary_data=False)
        wanted = [
            triton.InferRequestedOutput(name, binary_data=False) for name in ("score_map", "score")
        ]
        answer = client.infer("bottle", [tensor], outputs=wanted)
        bad = triton.InferInput("image", [1, 2, 2, 3], "UINT8")
        bad.set_data_from_numpy(images[:1, :2, :2], binary_data=False)
        with pytest.raises(Exception, match=r"uint8 \[N, 64, 64, 3\]"):
            client.infer("bottle", [bad], outputs=wanted)
    with Detector(model, "ort") as detector:
        expected = detector.judge(images)
    assert answer.as_numpy("score").tolist() == pytest.approx(
        [one.score for one in expected], rel=1e-5
    )
    assert answer.as_numpy("score_map") == pytest.approx(
        np.stack([one.score_map for one in expected]), rel=1e-4
    )
