"""export, fit and inspect as they are typed: what they write, what they say, and where."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import onnx
import pytest
from helpers import in_process, padim_edge, unchanged
from PIL import Image

from padim_edge.model.file import read


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
    done = in_process(
        *("fit", embedding_file, photos, *options, "--constants", "int8"),
        *("--false-alarm-rate", 0.2, "--save-moments", moments, "--threads", 1, "-o", output),
    ).worked()
    assert done.stderr == f"images: 12 of {photos / 'train' / 'good'}\n"
    first, *others = done.stdout.splitlines()
    assert first.startswith(f"{output}: ")
    assert first.endswith("fitted on 12 images")
    assert [line.split()[0] for line in others] == ["threshold", "true", "engine", "seconds"]
    detector_info = read(output, "padim").detector_info
    assert detector_info is not None
    assert detector_info.preprocess.crop
    assert detector_info.preprocess.interpolation == "bilinear"
    assert (detector_info.constants, detector_info.eps, detector_info.sigma) == ("int8", 0.02, 2.0)
    assert (detector_info.images, detector_info.false_alarm_rate) == (12, 0.2)

    again = (*options, "--false-alarm-rate", 0.2, "-o", output, "--update", moments)
    fit = ("fit", embedding_file, photos, "--normal-dir")
    done = in_process(*fit, "test/good", *again, "--save-moments", moments).worked()
    assert "fitted on 16 images" in done.stdout
    done = in_process(*fit, "test", *again).worked()
    assert "warning: 4 image(s) equal others pixel by pixel and are left out" in done.stderr
    assert "= one of an earlier fit" in done.stderr
    assert "fitted on 22 images" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["moments.npz", "padim.onnx"]  # noqa: PTH208


def test_fit_with_a_whitened_preset(tmp_path, whole_embedding, photos):
    output = tmp_path / "padim.onnx"
    fit = ("fit", whole_embedding, photos, "-o", output)
    done = in_process(*fit, "--preset", "whitened-fine", "--dims", 7, "--grid", 4).worked()
    preset = next(line for line in done.stdout.splitlines() if line.split()[0] == "preset")
    info = read(output, "padim").detector_info
    assert preset == (
        "  preset      whitened-fine: 7 principal directions of layer2, layer3, 4 x 4, "
        f"shrinkage {info.shrinkage:g}"
    )
    done = in_process("inspect", output).worked()
    assert "['whitened: 7 x 4 x 4']" in done.stdout
    assert "projection" in done.stdout
    in_process("run", output, photos / "test").worked()
    in_process(*fit, "--preset", "whitened", "--shrinkage", 0.25).worked()
    assert read(output, "padim").detector_info.shrinkage == 0.25
    in_process(*fit, "--preset", "whitened", "--shrinkage", "auto").worked()
    in_process(*fit).failed(2, "all 448 channels", "--dims 100", "--preset")
    in_process(*fit, "--dims", 9).worked()
    assert len(read(output, "padim").backbone_info.channels) == 9


def test_a_photo_of_another_shape_is_named(tmp_path, embedding_file, mine):
    fit = ("fit", embedding_file, mine, "-o", tmp_path / "padim.onnx")
    Image.open(mine / "000.png").resize((960, 950)).save(mine / "nearly.png")
    assert "another shape" not in in_process(*fit).worked().stderr
    Image.open(mine / "001.png").resize((400, 20)).save(mine / "long.png")
    (said,) = [line for line in in_process(*fit).worked().warnings() if "another shape" in line]
    assert said == (
        "warning: 1 image(s) have another shape than most, so that parts are squeezed or cut "
        f"otherwise in them: {mine / 'long.png'} (400 x 20)"
    )
    for place, path in enumerate(sorted(mine.iterdir())):
        Image.open(path).resize((200 + 100 * place, 200)).save(path)
    (said,) = [line for line in in_process(*fit).worked().warnings() if "squeezed" in line]
    widest = 1 + place / 2
    assert said == (
        f"warning: the photos have shapes from 1 to {widest:.3g} (width / height), so that parts "
        "are squeezed or cut in many ways"
    )


def test_a_camera_that_fills_12_of_16_bits(tmp_path, embedding_file, photos):
    """The photos in grey: of 8 bits, and as a camera's Mono12 writes them. One is as the other."""
    for kind in ("8", "12"):
        (tmp_path / kind).mkdir()
    for path in sorted((photos / "train" / "good").iterdir()):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey).save(tmp_path / "8" / f"{path.stem}.png")
        twelve = (grey.astype(np.uint32) * 4095 + 127) // 255
        Image.fromarray(twelve.astype(np.uint16)).save(tmp_path / "12" / f"{path.stem}.png")
    fit = ("fit", embedding_file)
    in_process(*fit, tmp_path / "8", "-o", tmp_path / "8.onnx").worked()
    done = in_process(*fit, tmp_path / "12", "-o", tmp_path / "dark.onnx").worked()
    assert re.search(r"warning: nothing .* brighter than 1\d of 255; .* --bit-depth", done.stderr)
    told = in_process(*fit, tmp_path / "12", "--bit-depth", 12, "-o", tmp_path / "12.onnx").worked()
    assert "brighter" not in told.stderr
    infos = [read(tmp_path / f"{kind}.onnx", "padim").detector_info for kind in ("8", "12")]
    assert infos[0].good_scores == infos[1].good_scores
    assert infos[1].preprocess.bit_depth == 12
    run = in_process(
        *("run", tmp_path / "12.onnx", tmp_path / "12", "--save-maps", tmp_path / "maps"),
        *("--jsonl", tmp_path / "12.jsonl"),
    ).worked()
    assert "0 unreadable" in run.stderr + run.stdout
    drawn = np.asarray(Image.open(next((tmp_path / "maps").rglob("*.png"))).convert("RGB"))
    assert drawn.mean() > 60  # and not black
    in_process(
        *fit, tmp_path / "12", "--bit-depth", 10, "--strict", "-o", tmp_path / "10.onnx"
    ).failed(1, "10 bits hold up to 1023")


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


def test_fit_takes_several_sources_as_a_shell_expands_them(tmp_path, embedding_file, good):
    done = in_process("fit", embedding_file, *good, good[0], "-o", tmp_path / "p.onnx").worked()
    assert "fitted on 12 images" in done.stdout


def test_fit_takes_the_folders_that_are_named(tmp_path, embedding_file, photos):
    fit = ("fit", embedding_file, photos, "-o", tmp_path / "p.onnx", "--normal-dir")
    done = in_process(*fit, "test/good", "--normal-dir", "Train/good").failed(1, "no folder")
    done = in_process(*fit, "test/good", "--normal-dir", "train/good").worked()
    assert done.stderr.startswith(
        f"images: 12 of {photos / 'train' / 'good'}, 4 of {photos / 'test' / 'good'}\n"
    )
    assert "fitted on 16 images" in done.stdout


def test_defaults_chain(tmp_path, embedding_file, photos):
    """What the design promises: export && fit embedding.onnx photos/ && bench."""
    shutil.copy(embedding_file, tmp_path / "embedding.onnx")
    padim_edge("fit", "embedding.onnx", photos, cwd=tmp_path).worked()
    done = padim_edge("bench", "--calls", 10, "--frame", "100x80", cwd=tmp_path).worked()
    assert done.stdout.startswith("padim.onnx on ")


def test_what_fit_writes_is_plain_onnx_that_scores_alone(model_file, photos):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(str(model_file), full_check=True)
    path = photos / "test" / "stain" / "000.png"
    image = read(model_file, "padim").detector_info.preprocess(path)
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    scores, maps = session.run(["score", "score_map"], {"image": image[None]})
    assert maps.shape == (1, 64, 64)
    assert scores[0] == maps.max()
    done = in_process("run", model_file, path, "--jsonl", "-").worked()
    assert json.loads(done.stdout)["score"] == pytest.approx(float(scores[0]), rel=1e-6)


def test_eps_with_ledoit_wolf_is_refused_not_ignored(embedding_file, photos, tmp_path):
    done = in_process(
        "fit", embedding_file, photos, "--covariance", "ledoit-wolf", "--eps", "0.1",
        "-o", tmp_path / "p.onnx",
    )  # fmt: skip
    assert done.code == 2
    assert "leave --eps out" in done.stderr


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
        # A line for each of its numbers stands for the whole.
        appearance = fields.pop("appearance", {})
        assert bool(appearance) == extra
        assert all(any(line.startswith(f"{name} ") for line in lines) for name in appearance)
        shown = {name for name in fields if any(line.startswith(f"{name} ") for line in lines)}
        # What a file does not have says nothing.
        assert shown == {name for name, value in fields.items() if value not in ("", [], None)}
        assert "source_layers" in fields.keys() - shown


# --- too few images for the threshold -------------------------------------------------------------


def test_a_false_alarm_rate_that_so_few_images_cannot_promise(tmp_path, embedding_file, photos):
    with unchanged(tmp_path):
        done = in_process(
            *("fit", embedding_file, photos, "--false-alarm-rate", 0.01),
            *("-o", tmp_path / "padim.onnx"),
        )
    done.failed(1, "12 images are too few", "0.01", "at least 99 images", "0.077 or more")


def test_a_rate_that_only_fails_because_an_image_is_bad(tmp_path, embedding_file, mine):
    arguments = ("fit", embedding_file, mine, "--false-alarm-rate", 0.077)
    arguments = (*arguments, "-o", tmp_path / "padim.onnx")
    in_process(*arguments).worked()
    (mine / "003.png").write_bytes(b"")
    with unchanged(tmp_path):
        done = in_process(*arguments)
    done.failed(1, "11 images are too few", "at least 12 images")
    assert len(done.warnings()) == 1


def test_the_default_rate_is_what_the_images_allow_and_said(tmp_path, embedding_file, photos):
    done = in_process("fit", embedding_file, photos, "-o", tmp_path / "padim.onnx").worked()
    assert len(done.warnings()) == 1
    assert "99 are needed" in done.stderr
    assert "a false-alarm rate of 0.0769 " in done.stdout
