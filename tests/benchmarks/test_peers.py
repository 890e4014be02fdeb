"""benchmarks/peers: the worker, the memory groups, install sizes, tables, and a run with us alone.

The peers themselves are not installed here: their environments take 13 GB.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from padim_edge import Detector

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
sys.path.append(str(PEERS))
pytest.importorskip("torch")
import answers  # noqa: E402
import compare  # noqa: E402
import environments  # noqa: E402
import picture  # noqa: E402
import rows  # noqa: E402
import tables  # noqa: E402
import worker  # noqa: E402
import workers  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path, model_file: Path) -> Path:
    """What a worker needs to judge with the small model."""
    generator = np.random.default_rng(3)
    np.save(tmp_path / "images.npy", generator.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8))
    (tmp_path / "padim.onnx").write_bytes(model_file.read_bytes())
    return tmp_path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every environment is this one."""
    monkeypatch.setattr(environments, "python", lambda _: Path(sys.executable))
    monkeypatch.setattr(environments, "build", lambda _: None)


def row(place: str, *arguments: str) -> rows.Row:
    return rows.Row("one", "ours", place, arguments, ("padim-edge[cpu]",), (arguments[0],))


OURS = row("ours:PadimEdge", "padim.onnx", "ort")


# --- a worker ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_worker_times_and_judges(folder: Path) -> None:
    running = workers.Running(OURS, folder)
    try:
        assert running.first["score"] > 0
        assert running.first["peak"] > 20e6
        assert 0 < running.seconds < 60
        timed = running.ask(do="block", batch=7, calls=4)  # more than there are images
        assert [len(timed[part]) for part in ("prepare", "infer")] == [4, 4]
        assert min(timed["infer"]) > 0
        stages = running.ask(do="stages", batch=1, calls=2)
        assert list(stages) == ["backbone", "distances", "smoothing"]
        source, target = folder / "images.npy", folder / "judged.npz"
        running.ask(do="judge", source=str(source), target=str(target))
    finally:
        running.close()
    images = np.load(source)
    with Detector(folder / "padim.onnx", "ort") as detector, np.load(target) as judged:
        for image, score, found in zip(images, judged["scores"], judged["maps"], strict=True):
            expected = detector(image)
            assert score == pytest.approx(expected.score, rel=1e-5)
            np.testing.assert_allclose(found, expected.score_map, rtol=1e-4)


@pytest.mark.usefixtures("here")
def test_frames_of_another_size_are_resized_by_us(folder: Path) -> None:
    frames = np.random.default_rng(4).integers(0, 256, (1, 90, 120, 3), dtype=np.uint8)
    np.save(folder / "test.npy", frames)
    running = workers.Running(OURS, folder)
    running.ask(do="judge", source=str(folder / "test.npy"), target=str(folder / "judged.npz"))
    running.close()
    with Detector(folder / "padim.onnx", "ort") as detector:
        expected = detector(frames[0]).score
    assert np.load(folder / "judged.npz")["scores"] == pytest.approx([expected], rel=1e-5)


@pytest.mark.usefixtures("here")
def test_a_worker_is_given_a_cameras_frames(folder: Path) -> None:
    frames = np.random.default_rng(5).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    np.save(folder / "frames-120x90.npy", frames)
    one = dataclasses.replace(row("ours:Camera", "padim.onnx", "ort"), images="frames-{frame}.npy")
    with workers.Running(rows.at(one, "120x90"), folder) as running:
        with Detector(folder / "padim.onnx", "ort") as detector:
            assert running.first["score"] == pytest.approx(detector(frames[0, ..., ::-1]).score)
        timed = running.ask(do="block", batch=1, calls=4)
        assert len(timed["infer"]) == 4
        assert running.ask(do="stages", batch=1, calls=1) == {}


def test_images_come_in_turn_and_are_not_copied() -> None:
    images = np.zeros((5, 2, 2, 3), np.uint8)
    batches = worker.batches_of(images, 2)
    assert [batch.ctypes.data - images.ctypes.data for batch in batches] == [0, 24]
    assert [batch.shape for batch in batches] == [(2, 2, 2, 3)] * 2
    (many,) = worker.batches_of(images, 7)
    assert many.shape == (7, 2, 2, 3)

    given: list[int] = []

    class Contender:
        def prepare(self, images: np.ndarray) -> np.ndarray:
            given.append(images.ctypes.data)
            return images

        def infer(self, _: np.ndarray) -> None: ...

    worker.block(Contender(), worker.batches_of(images, 1), 6)  # type: ignore[arg-type]
    assert given == [images.ctypes.data + 12 * (place % 5) for place in range(7)]


@pytest.mark.usefixtures("here")
def test_what_a_user_would_write(folder: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    frames = np.random.default_rng(6).integers(0, 256, (1, 448, 672, 3), dtype=np.uint8)
    np.save(folder / "frames-672x448.npy", frames)
    one = dataclasses.replace(row("runtimes:OpenCv", "padim.onnx"), images="frames-672x448.npy")
    small = cv2.resize(frames[0], (64, 64), interpolation=cv2.INTER_AREA)[..., ::-1]
    with workers.Running(one, folder) as running, Detector(folder / "padim.onnx", "ort") as ours:
        assert running.first["score"] == pytest.approx(ours(small).score, rel=1e-5)


@pytest.mark.usefixtures("here")
def test_a_failing_contender_says_why(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"nowhere\.onnx"):
        workers.Running(row("runtimes:Onnx", "nowhere.onnx", "plain"), folder)
    with pytest.raises(RuntimeError, match="No module named 'nobody'"):
        workers.Running(row("nobody:Torch", "x"), folder)
    running = workers.Running(row("runtimes:Onnx", "padim.onnx", "uint8"), folder)
    with pytest.raises(RuntimeError, match=r"nothing\.npy"):
        running.ask(do="judge", source=str(folder / "nothing.npy"), target="x.npz")
    assert running.ask(do="block", batch=1, calls=1)["infer"]  # it goes on
    running._process.kill()
    running._process.wait()
    with pytest.raises(RuntimeError, match="ended with code -9"):
        running.ask(do="block", batch=1, calls=1)
    running.close()


def test_a_row_by_itself(folder: Path) -> None:
    """The command that stands below the tables."""
    line = [sys.executable, str(PEERS / "worker.py"), "time", "ours:PadimEdge", "padim.onnx", "ort"]
    line += ["--folder", str(folder), "--batch", "1,2", "--calls", "3"]
    done = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert done.count("ms per frame, and") == 2
    assert "distances" in done
    assert "peak memory" in done


# --- what is compared with whom ---------------------------------------------------------------


def test_groups_fit_into_memory_and_hold_the_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    gigabytes = dict.fromkeys((one.name for one in rows.ROWS), 5)
    gigabytes |= {rows.OURS: 1, rows.BARE: 1}
    peaks = {name: size * 10**9 for name, size in gigabytes.items()}
    monkeypatch.setattr(compare, "available_memory", lambda: 24 * 10**9)
    groups = compare.groups(rows.ROWS, peaks)
    assert len(groups) > 1
    for group in groups:
        names = [one.name for one in group]
        assert {rows.OURS, rows.BARE} <= set(names)
        assert sum(peaks[name] for name in names) < 24e9
    measured = [one.name for group in groups for one in group]
    assert set(measured) == {one.name for one in rows.ROWS}
    monkeypatch.setattr(compare, "available_memory", lambda: 240 * 10**9)
    assert len(compare.groups(rows.ROWS, peaks)) == 1


def test_errors_in_one_telling_line() -> None:
    error = "RuntimeError: Exception from src/a.cpp:223:\nException from src/b.cpp:1:\nNo batch\n"
    assert workers._message(error) == "No batch"
    assert workers._message("Fail: one\n two") == "Fail: one two"
    assert workers._message("Exception from src/a.cpp:1:") == "Exception from src/a.cpp:1:"


def test_names_and_makers_are_there() -> None:
    assert set(rows.MAKERS) == set(environments.REQUIREMENTS)
    for table in (rows.ROWS, rows.CAMERA_ROWS):
        assert len({one.name for one in table}) == len(table)
        assert {rows.OURS, rows.BARE} <= {one.name for one in table}
        assert {one.environment for one in table} == set(environments.REQUIREMENTS)
    for one in rows.ROWS + rows.CAMERA_ROWS:
        module, _, name = one.place.partition(":")
        assert f"class {name}" in (PEERS / f"{module}.py").read_text()


def test_rows_of_a_camera() -> None:
    named = {one.name: rows.at(one, "640x480") for one in rows.CAMERA_ROWS}
    onnx = named["anomalib, ONNX in ONNX Runtime"]
    assert onnx.arguments == ("anomalib-onnx@640x480/weights/onnx/model.onnx",)
    assert (onnx.export, onnx.images) == ("onnx@640x480", "frames-640x480.npy")
    line = workers.command(onnx, Path("work"), "time")
    assert line[-2:] == ["--images", "frames-640x480.npy"]
    assert named[rows.BARE].images == "images.npy"  # its input is ready
    assert "--images" not in workers.command(named[rows.BARE], Path("work"), "time")
    assert not [one for one in named.values() if "{" in str(one)]


# --- what must be on a device -----------------------------------------------------------------


def test_install_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "HOME", tmp_path)
    (tmp_path / "ours").symlink_to(sys.prefix)
    numpy = environments.installed("ours", ["numpy"])
    assert numpy.packages == 1
    assert numpy.bytes > 10e6
    device = environments.installed("ours", ["padim-edge[cpu]"])
    bare = environments.installed("ours", ["padim-edge"])
    workstation = environments.installed("ours", ["padim-edge[cpu,export]"])
    assert numpy.bytes < bare.bytes < device.bytes < workstation.bytes
    assert device.bytes < 400e6  # no torch
    assert device.cuda == 0
    assert workstation.packages > device.packages > bare.packages >= 10


# --- tables -----------------------------------------------------------------------------------


REPORT = {
    "date": "2026-01-02T03:04:05+00:00",
    "machine": {"processor": "P", "cores": 2},
    "versions": {"ours": {"onnxruntime": "1.2"}},
    "missing_environments": {"anomalib": "ERROR: no such version"},
    "backbones": {
        "resnet18": {
            "fit": {
                "ours": {"features": 1.0, "statistics": 0.5, "peak": 3e8, "command": "fit us"},
                "other": {"error": "exit 1: no memory", "command": "fit them"},
            },
            "rows": {
                rows.OURS: {
                    "command": "time us", "file_bytes": 25_000_000, "peak": 2e8, "cold_start": 0.4,
                    "install": {"bytes": 220e6, "cuda": 20e6, "packages": 22},
                    "batches": {"1": {
                        "prepare": 0.01, "infer": 10.0, "quartiles": [9.5, 10.25],
                        "times_ours": 1.0, "times_bare": 1.2, "group": 1,
                        "stages": {"backbone": 8.0, "distances": 2.0}, "calls": 100,
                    }},
                },
                "peer": {
                    "command": "time peer", "file_bytes": 1e6, "peak": 1e9, "cold_start": 3.0,
                    "install": {"bytes": 1e9, "cuda": 0, "packages": 3},
                    "batches": {"1": {"error": "batches of 1 alone", "group": 2}},
                },
                "broken": {"command": "time broken", "error": "no file"},
            },
            "cameras": {
                "640x480": {
                    rows.OURS: {
                        "command": "time us --images frames-640x480.npy",
                        "batches": {"1": {
                            "prepare": 0.0, "infer": 12.0, "quartiles": [11.5, 12.25],
                            "times_ours": 1.0, "times_bare": 1.3, "group": 1, "calls": 10,
                        }},
                    },
                    "peer": {"command": "time peer", "error": "no such size"},
                },
            },
        }
    },
}  # fmt: skip


def test_tables_show_figures_and_failures() -> None:
    text = tables.backbone("resnet18", REPORT)
    ours = ["10.00 (9.50 to 10.25)", "1.00", "1.20", "all", "0.01", "25.0", "200", "0.40"]
    assert f"| **{rows.OURS}** | {' | '.join(ours)} | 200 (20) | 22 |" in text
    assert "| peer | fails | - | - | 2 |" in text
    assert "P, 2 cores, 2026-01-02. ours: onnxruntime 1.2." in text
    assert "- peer: `batch 1: batches of 1 alone`" in text
    assert "- broken: `no file`" in text
    assert "- environment anomalib: `ERROR: no such version`" in text
    assert "| other | - | - | exit 1: no memory |" in text
    assert "backbone 8.00, distances 2.00" in text
    of_ours = ["12.00 (11.50 to 12.25)", "1.00", "1.30"]
    assert f"| **{rows.OURS}** | {' | '.join(of_ours)} |" in text
    assert "- peer, 640x480: `no such size`" in text
    assert "\ntime us --images frames-640x480.npy\n" in text
    assert text.count("\ntime peer\n") == 1
    for command in ("fit us", "fit them", "time us", "time peer", "time broken"):
        assert f"\n{command}\n" in text


def test_the_picture(tmp_path: Path) -> None:
    picture.draw(REPORT, "resnet18", tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


# --- all of it --------------------------------------------------------------------------------


@pytest.mark.fuzz  # a whole run of the script
@pytest.mark.usefixtures("here")
def test_ourselves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole comparison, with a peer whose fit fails, on 12 images."""
    monkeypatch.setattr(environments, "HOME", tmp_path)
    (tmp_path / "ours").symlink_to(sys.prefix)
    (tmp_path / "anomavision").symlink_to(sys.prefix)
    monkeypatch.setattr(compare, "IMAGES", 12)
    line = ["compare.py", "--backbones", "resnet18", "--batch", "1,2", "--rounds", "1"]
    line += [
        "--frames",
        "90x60",
        "--repeats",
        "1",
        "--only",
        "AnomaVision, torch",
        "--output",
        str(tmp_path / "p.json"),
    ]
    monkeypatch.setattr(sys, "argv", line)
    compare.main()
    report = json.loads((tmp_path / "p.json").read_text())
    result = report["backbones"]["resnet18"]
    ours, bare = (result["rows"][name] for name in (rows.OURS, rows.BARE))
    for batch in ("1", "2"):
        one = ours["batches"][batch]
        assert one["times_ours"] == 1
        assert one["times_bare"] == one["infer"] / bare["batches"][batch]["infer"]
    work = tmp_path / "work" / "resnet18"
    assert ours["need"] >= ours["peak"] - 2e6
    assert ours["file_bytes"] == (work / "padim.onnx").stat().st_size
    assert bare["file_bytes"] == (work / "bare.onnx").stat().st_size
    assert "No module named 'anomavision'" in result["rows"]["AnomaVision, torch"]["error"]
    camera = result["cameras"]["90x60"]
    assert list(camera) == [rows.OURS, "AnomaVision, torch", rows.BARE]
    one, bare = (camera[name]["batches"]["1"] for name in (rows.OURS, rows.BARE))
    assert one["times_bare"] == one["infer"] / bare["infer"]
    assert "No module named 'anomavision'" in camera["AnomaVision, torch"]["error"]
    assert "No module named 'anomavision'" in capsys.readouterr().out


# --- same answers -----------------------------------------------------------------------------


@pytest.mark.fuzz  # a whole run of the script
@pytest.mark.usefixtures("here")
def test_what_rows_say_of_a_data_set(
    tmp_path: Path, photos: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We agree with the float64 reference; a map that is off, or missing, is seen."""
    monkeypatch.setattr(environments, "HOME", tmp_path)
    off = tmp_path / "off.py"
    off.write_text(
        "from ours import PadimEdge\n"
        "class Off(PadimEdge):\n"
        "    def infer(self, prepared):\n"
        "        scores, maps = super().infer(prepared)\n"
        "        maps[:, :8] *= 1.25\n"
        "        return scores, maps\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    weights = data / "weights" / "resnet18-imagenet1k-v1-to-layer3.pth"
    chosen = [
        next(one for one in rows.ROWS if one.name == rows.OURS),
        dataclasses.replace(row("off:Off", "padim.onnx", "ort"), name="off"),
        dataclasses.replace(row("runtimes:Onnx", "padim.onnx", "uint8"), name="plain file"),
        dataclasses.replace(row("nobody:Torch", "x"), name="nobody", smoothed=False),
    ]
    report = answers.compare(photos, str(weights), chosen)
    assert (report["train"], report["test"]) == (12, 10)
    found = report["prepared"]
    reference = found["float64 reference"]
    assert reference["image_auroc"] > 0.5
    for name in (rows.OURS, "plain file"):
        assert found[name]["largest_difference"] < 2e-3  # float16 constants
        assert found[name]["image_auroc"] == reference["image_auroc"]
        assert found[name]["false_alarms"] == reference["false_alarms"]
    assert found["off"]["largest_difference"] == pytest.approx(0.25, abs=0.01)
    assert found["off"]["largest_inside"] < 2e-3
    assert "nobody" in found["nobody"]["error"]
    assert "| off |" in tables.answers(report)
