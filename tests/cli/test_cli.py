"""The commands end to end, as they are typed: what they write, what they say, and where."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import COMMANDS, TIMEOUT, command, in_process, padim_edge, unchanged
from PIL import Image

import padim_edge as package
from padim_edge.cli.app import app
from padim_edge.detect.detector import Detector
from padim_edge.files import atomic_write
from padim_edge.model.file import read

TEST_IMAGES = 10  # of `photos`: 4 good ones and 2 of each of 3 defects


# --- the program itself -----------------------------------------------------------------------


def test_version():
    done = padim_edge("--version").worked()
    assert (done.stdout, done.stderr) == (f"padim-edge {package.__version__}\n", "")


def test_the_installed_program_is_this_one():
    program = shutil.which("padim-edge", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("padim-edge is not installed beside this Python")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"padim-edge {package.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("--debug",)])
def test_help_of_the_program_names_every_command(arguments):
    done = in_process(*arguments).worked()
    words = done.stdout.split()
    assert all(name in words for name in COMMANDS)
    assert {command.name for command in app.registered_commands} == set(COMMANDS)
    assert "Start here: padim-edge demo" in " ".join(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example_that_it_takes(name):
    text = " ".join(in_process(name, "--help").worked().stdout.split())
    usage, example = text.split("Example: ")
    options = usage.replace(",", " ").split()
    words = example.split()
    assert words[:2] == ["padim-edge", name]
    for word in words:
        if word.startswith("-"):
            assert word in options
    assert in_process(name, "-h").stdout.split() == in_process(name, "--help").stdout.split()


@pytest.mark.parametrize("name", ["fit", "run", "eval", "bench", "inspect"])
def test_the_example_parses(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = " ".join(in_process(name, "--help").stdout.split())
    words = text.split("Example: padim-edge ")[1].split()
    with unchanged(tmp_path):
        in_process(*words).failed(1)  # 2 would be wrong use


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_a_traceback_wherever_it_stands(tmp_path, place):
    arguments: list[object] = ["run", tmp_path / "no.onnx", tmp_path]
    arguments.insert(place, "--debug")
    done = padim_edge(*arguments)
    assert done.code == 1
    assert done.stderr.startswith("Traceback")
    assert "padim_edge.errors.PadimEdgeError: no image found" in done.stderr


# --- export, fit, inspect ---------------------------------------------------------------------


def test_export(tmp_path):
    output = tmp_path / "embedding.onnx"
    done = padim_edge(
        *("export", "--backbone", "resnet18", "--layers", "layer1,layer2", "--dims", "3,5"),
        *("--weights", "random", "--seed", 7, "--image-size", "64x96", "-o", output),
    ).worked()
    assert done.stderr == (
        "warning: RANDOM weights (seed 7): for trials; real parts need real weights\n"
    )
    first, *others = done.stdout.splitlines()
    assert first.startswith(f"{output}: ")
    assert [line.split()[0] for line in others] == ["backbone", "channels", "validated"]
    info = read(output, "embedding").backbone_info
    assert (info.backbone, info.layers, info.image_size) == (
        "resnet18",
        ("layer1", "layer2"),
        (64, 96),
    )
    assert [len(chosen) for chosen in info.selected()] == [3, 5]
    assert os.listdir(tmp_path) == ["embedding.onnx"]  # noqa: PTH208 - hidden ones too


def test_fit_with_every_option(tmp_path, embedding_file, photos):
    output, moments = tmp_path / "padim.onnx", tmp_path / "moments.npz"
    options = (
        *("--preprocess", "reference", "--interpolation", "bilinear", "--eps", 0.02),
        *("--sigma", 2),
    )
    done = padim_edge(
        *("fit", embedding_file, photos, *options, "--constants", "int8"),
        *("--false-alarm-rate", 0.2, "--save-moments", moments, "--threads", 1, "-o", output),
    ).worked()
    assert done.stderr == ""
    first, *others = done.stdout.splitlines()
    assert first.startswith(f"{output}: ")
    assert first.endswith("fitted on 12 images")
    assert [line.split()[0] for line in others] == ["threshold", "engine", "seconds"]
    detector_info = read(output, "padim").detector_info
    assert detector_info is not None
    assert detector_info.preprocess.crop
    assert detector_info.preprocess.interpolation == "bilinear"
    assert (detector_info.constants, detector_info.eps, detector_info.sigma) == ("int8", 0.02, 2.0)
    assert (detector_info.images, detector_info.false_alarm_rate) == (12, 0.2)

    again = (*("fit", embedding_file, photos, *options), "--false-alarm-rate", 0.2, "-o", output)
    done = in_process(*again, "--update", moments, "--save-moments", moments).worked()
    assert "fitted on 24 images" in done.stdout
    done = in_process(*again, "--update", moments).worked()
    assert "fitted on 36 images" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["moments.npz", "padim.onnx"]  # noqa: PTH208


@pytest.mark.parametrize("covariance", ["sample", "ledoit-wolf"])
def test_fit_is_repeatable(tmp_path, embedding_file, photos, covariance):
    if covariance == "ledoit-wolf":
        pytest.importorskip("sklearn")
    files = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for file in files:
        in_process("fit", embedding_file, photos, "--covariance", covariance, "-o", file).worked()
    assert files[0].read_bytes() == files[1].read_bytes()


def test_fit_takes_a_folder_a_pattern_and_a_data_set(tmp_path, embedding_file, photos):
    sources = photos, photos / "train" / "good", photos / "train" / "good" / "*.png"
    written = set()
    for source in sources:
        in_process("fit", embedding_file, source, "-o", tmp_path / "padim.onnx").worked()
        written.add((tmp_path / "padim.onnx").read_bytes())
    assert len(written) == 1


def test_defaults_chain(tmp_path, embedding_file, photos):
    """What the design promises: export && fit embedding.onnx photos/ && bench."""
    shutil.copy(embedding_file, tmp_path / "embedding.onnx")
    padim_edge("fit", "embedding.onnx", photos, cwd=tmp_path).worked()
    done = padim_edge("bench", "--calls", 10, "--frame", 100, cwd=tmp_path).worked()
    assert done.stdout.startswith("padim.onnx on ")


def test_what_fit_writes_is_plain_onnx_that_scores_alone(model_file, photos):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(str(model_file), full_check=True)
    path = photos / "test" / "stain" / "000.png"
    image = Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    scores, maps = session.run(["score", "score_map"], {"image": np.asarray(image)[None]})
    assert maps.shape == (1, 64, 64)
    assert scores[0] == maps.max()
    done = in_process("run", model_file, path, "--jsonl", "-").worked()
    assert json.loads(done.stdout)["score"] == pytest.approx(float(scores[0]), rel=1e-6)


def test_inspect(tmp_path, model_file, embedding_file):
    for file, extra in ((model_file, True), (embedding_file, False)):
        done = padim_edge("inspect", file, "--json", tmp_path / "i.json").worked()
        assert done.stderr == ""
        report = json.loads((tmp_path / "i.json").read_text())
        assert set(report) == {"fields", "bytes"}
        fields = report["fields"]
        assert fields["file"] == str(file)
        assert fields["backbone"] == "resnet18"
        assert fields["image_size"] == [64, 64]
        assert len(fields["channels"]) == 20
        assert len(fields["levels"]) == 3
        assert ("threshold" in fields) == extra
        assert report["bytes"]["file"] == file.stat().st_size
        assert sum(report["bytes"].values()) == 2 * file.stat().st_size
        assert ("whitening" in report["bytes"]) == extra
        lines = done.stdout.splitlines()
        assert all(any(line.startswith(f"{name} ") for line in lines) for name in fields)


# --- run --------------------------------------------------------------------------------------


def test_the_table_of_run(model_file, photos):
    done = padim_edge("run", model_file, photos / "test").worked()
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["score", "threshold", "percentile", "decision", "image"]
    assert len(rows) == TEST_IMAGES
    anomalous = 0
    with Detector(model_file) as detector:
        for row in rows:
            score, threshold, percentile, decision, path = row.split()
            result = detector(Image.open(path))
            assert float(score) == pytest.approx(result.score, abs=6e-4)
            assert float(threshold) == pytest.approx(result.threshold, abs=6e-4)
            assert float(percentile) == pytest.approx(result.percentile, abs=0.06)
            assert decision == ("ANOMALY" if result.is_anomalous else "ok")
            anomalous += result.is_anomalous
    assert [row.split()[-1] for row in rows] == sorted(
        str(path) for path in (photos / "test").rglob("*.png")
    )
    assert done.stderr == f"{TEST_IMAGES - anomalous} ok, {anomalous} anomalous, 0 unreadable\n"


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_json_lines_of_run(tmp_path, model_file, photos, batch):
    lines = tmp_path / "scores.jsonl"
    arguments = ("run", model_file, photos / "test", "--batch", batch, "--jsonl")
    done = in_process(*arguments, lines).worked()
    assert len(done.stdout.splitlines()) == 1 + TEST_IMAGES  # the table is there as well
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(records) == TEST_IMAGES
    for record in records:
        assert set(record) == {"path", "score", "threshold", "is_anomalous", "percentile"}
        assert record["is_anomalous"] is (record["score"] > record["threshold"])
        assert 0 <= record["percentile"] <= 100
    done = in_process(*arguments, "-").worked()
    assert [json.loads(line) for line in done.stdout.splitlines()] == records


def test_run_finds_the_defects(model_file, photos):
    done = in_process("run", model_file, photos / "test", "--jsonl", "-").worked()
    scores: dict[bool, list[float]] = {True: [], False: []}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        scores["good" in Path(record["path"]).parts].append(record["score"])
    assert np.median(scores[False]) > np.median(scores[True])


def test_sources_of_run(model_file, photos, monkeypatch):
    def paths(source: object) -> list[str]:
        done = in_process("run", model_file, source, "--jsonl", "-").worked()
        return [json.loads(line)["path"] for line in done.stdout.splitlines()]

    test = photos / "test"
    one = test / "stain" / "000.png"
    assert paths(one) == [str(one)]
    assert len(paths(test)) == TEST_IMAGES
    assert paths(test / "good") == [str(path) for path in sorted((test / "good").iterdir())]
    assert paths(test / "*" / "000.png") == [str(path) for path in sorted(test.glob("*/000.png"))]
    assert len(paths(test / "**" / "*.png")) == TEST_IMAGES
    monkeypatch.chdir(test)
    assert paths("stain") == ["stain/000.png", "stain/001.png"]
    assert paths("sta*/*1.png") == ["stain/001.png"]


def test_stdout_holds_results_alone_on_a_terminal(tmp_path, model_file, photos, embedding_file):
    """With a terminal on stderr there are progress bars, and none of them on stdout."""
    (tmp_path / "test").symlink_to(photos / "test")
    (tmp_path / "ground_truth").symlink_to(photos / "ground_truth")
    for arguments, lines in (
        (("fit", embedding_file, photos, "-o", tmp_path / "padim.onnx"), 4),
        (("run", model_file, tmp_path / "test", "--jsonl", "-"), TEST_IMAGES),
        (("eval", model_file, tmp_path), 9),
    ):
        main, side = pty.openpty()
        done = padim_edge(*arguments, stderr=side)
        os.close(side)
        shown = os.read(main, 100_000).decode()
        os.close(main)
        assert done.code == 0
        assert len(done.stdout.splitlines()) == lines
        assert "\x1b" not in done.stdout
        if arguments[0] != "run":
            assert "\x1b" in shown


def test_a_reader_that_goes_away(model_file, photos):
    with subprocess.Popen(
        command("run", model_file, photos / "test", "--batch", 1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.readline()
        child.stdout.close()
        err = child.stderr.read()
        child.wait(TIMEOUT)
    assert "Traceback" not in err
    assert "error" not in err


# --- overlays ---------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_maps_keep_the_folders_of_their_images(tmp_path, model_file, photos):
    maps = tmp_path / "new" / "maps"
    done = padim_edge("run", model_file, photos / "test", "--save-maps", maps).worked()
    assert len(done.stdout.splitlines()) == 1 + TEST_IMAGES
    assert names(maps) == names(photos / "test")
    for name in names(maps):
        picture = Image.open(maps / name)
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        frame = np.asarray(Image.open(photos / "test" / name).convert("RGB"))
        assert picture.width >= frame.shape[1]
        assert not np.array_equal(np.asarray(picture), frame)


def test_maps_of_images_that_differ_in_their_suffix_alone(tmp_path, model_file, photos):
    source, maps = tmp_path / "source", tmp_path / "maps"
    (source / "sub").mkdir(parents=True)
    image = Image.open(photos / "test" / "good" / "000.png")
    files = ("a.jpg", "a.png", "a.jpg.png", "b.bmp", "c.tif", "sub/a.png", "d.e.png")
    for name in files:
        image.save(source / name)
    in_process("run", model_file, source, "--save-maps", maps).worked()
    found = names(maps)
    assert len(found) == len(files)  # none has replaced another
    assert {"a.jpg.png", "a.png.png", "b.png", "c.png", "d.e.png", "sub/a.png"} <= set(found)
    # Each overlay stands where a second run would put it again.
    before = {name: (maps / name).read_bytes() for name in found}
    in_process("run", model_file, source, "--save-maps", maps).worked()
    assert {name: (maps / name).read_bytes() for name in names(maps)} == before


def test_maps_of_a_file_and_of_a_pattern(tmp_path, model_file, photos):
    test = photos / "test"
    in_process(
        "run", model_file, test / "good" / "001.png", "--save-maps", tmp_path / "file"
    ).worked()
    assert names(tmp_path / "file") == ["001.png"]
    in_process("run", model_file, test / "*" / "000.png", "--save-maps", tmp_path / "p").worked()
    assert names(tmp_path / "p") == [
        f"{kind}/000.png" for kind in ("good", "missing_thread", "scratch", "stain")
    ]


def test_maps_of_unreadable_images_are_none(tmp_path, model_file, photos):
    source, maps = tmp_path / "source", tmp_path / "maps"
    shutil.copytree(photos / "test" / "good", source)
    (source / "000.png").write_bytes(b"")
    in_process("run", model_file, source, "--save-maps", maps).worked()
    assert names(maps) == ["001.png", "002.png", "003.png"]


# --- eval -------------------------------------------------------------------------------------


def test_eval(tmp_path, model_file, photos):
    pytest.importorskip("sklearn")
    done = padim_edge("eval", model_file, photos, "--json", tmp_path / "e.json").worked()
    assert done.stderr == ""
    metrics = json.loads((tmp_path / "e.json").read_text())
    assert set(metrics) == {
        *("good", "defective", "images_without_mask", "image_auroc", "pixel_auroc", "pro"),
        *("best_f1", "best_f1_threshold", "threshold", "f1", "precision", "recall"),
        "false_alarm_rate",
    }
    assert (metrics["good"], metrics["defective"], metrics["images_without_mask"]) == (4, 6, 0)
    for name in ("image_auroc", "pixel_auroc", "pro", "best_f1", "f1", "recall"):
        assert 0 <= metrics[name] <= 1
    assert metrics["image_auroc"] > 0.5
    head, *rows = done.stdout.splitlines()
    assert head.strip() == "4 good, 6 defective"
    shown = {row.rsplit(maxsplit=1)[0]: float(row.rsplit(maxsplit=1)[1]) for row in rows}
    assert shown["image AUROC"] == pytest.approx(metrics["image_auroc"], abs=1e-4)
    assert shown["pixel AUROC"] == pytest.approx(metrics["pixel_auroc"], abs=1e-4)
    assert shown["false-alarm rate"] == pytest.approx(metrics["false_alarm_rate"], abs=1e-4)


def test_eval_agrees_with_run(tmp_path, model_file, photos):
    metrics_module = pytest.importorskip("sklearn.metrics")
    in_process("eval", model_file, photos, "--json", tmp_path / "e.json").worked()
    metrics = json.loads((tmp_path / "e.json").read_text())
    done = in_process("run", model_file, photos / "test", "--jsonl", "-").worked()
    records = [json.loads(line) for line in done.stdout.splitlines()]
    labels = ["good" not in Path(record["path"]).parts for record in records]
    auroc = metrics_module.roc_auc_score(labels, [record["score"] for record in records])
    assert metrics["image_auroc"] == pytest.approx(auroc)
    alarms = [r["is_anomalous"] for r, bad in zip(records, labels, strict=True) if not bad]
    assert metrics["false_alarm_rate"] == pytest.approx(np.mean(alarms))


def test_eval_takes_both_names_of_masks_and_does_without(tmp_path, model_file, photos):
    pytest.importorskip("sklearn")
    dataset = Path(shutil.copytree(photos, tmp_path / "set"))
    results = []
    for change in ("", "rename", "remove"):
        for mask in sorted((dataset / "ground_truth").rglob("*.png")):
            if change == "rename":
                mask.rename(mask.with_name(mask.name.replace("_mask", "")))
            elif change == "remove":
                mask.unlink()
        done = in_process("eval", model_file, dataset, "--json", tmp_path / "e.json").worked()
        results.append(json.loads((tmp_path / "e.json").read_text()))
    assert results[0] == results[1]
    assert results[2]["image_auroc"] == results[0]["image_auroc"]
    assert (results[2]["pixel_auroc"], results[2]["pro"]) == (None, None)
    assert "no masks" in done.stdout
    assert "6 defective image(s) have no mask" in done.stderr


# --- demo -------------------------------------------------------------------------------------


def test_demo(tmp_path):
    """The whole way, at its real size: the one slow test of this file."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    folder = tmp_path / "demo"
    done = padim_edge("demo", "--folder", folder, timeout=600).worked()
    for step in ("export", "fit", "inspect", "run", "eval", "bench"):
        assert f"$ padim-edge {step} " in done.stdout
    assert "RANDOM weights" in done.stderr
    assert {"embedding.onnx", "padim.onnx", "photos", "maps"} <= {
        path.name for path in folder.iterdir()
    }
    judged = list((folder / "photos" / "test").rglob("*.png"))
    assert len(names(folder / "maps")) == len(judged) == 50
    (auroc,) = (line.split()[-1] for line in done.stdout.splitlines() if "image AUROC" in line)
    assert float(auroc) > 0.9
    assert f"Look at {folder / 'maps'}" in done.stdout


def test_atomic_writing_leaves_a_link_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").chmod(0o640)
    with atomic_write(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_overlays_never_go_where_the_images_are(model_file, photos, tmp_path):
    folder = tmp_path / "ph"
    folder.mkdir()
    good = sorted((photos / "test" / "good").iterdir())[0]
    Image.open(good).save(folder / "a.bmp")
    Image.open(good).save(folder / "a.png")
    before = (folder / "a.png").read_bytes()
    done = padim_edge("run", model_file, folder / "a.bmp", "--save-maps", folder)
    assert done.code == 2
    assert "choose another folder" in done.stderr
    assert (folder / "a.png").read_bytes() == before


def test_eps_with_ledoit_wolf_is_refused_not_ignored(embedding_file, photos, tmp_path):
    done = padim_edge(
        "fit", embedding_file, photos, "--covariance", "ledoit-wolf", "--eps", "0.1",
        "-o", tmp_path / "p.onnx",
    )  # fmt: skip
    assert done.code == 2
    assert "leave --eps out" in done.stderr
