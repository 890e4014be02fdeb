"""What a user can get wrong, and what the machine can: one line, the right code, no harm done."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import (
    COMMANDS,
    Outcome,
    command,
    contents,
    in_process,
    link,
    obeying_permissions,
    padim_edge,
    unchanged,
)
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.files import atomic_write
from padim_edge.model.file import read

SUMMARY = ("0 ok", "1 ok")
OLD = b"what was there before"


@pytest.fixture
def good(photos: Path) -> list[Path]:
    return sorted((photos / "train" / "good").iterdir())


@pytest.fixture
def folder(tmp_path: Path, good: list[Path]) -> Path:
    """A folder of the caller's own with the 12 good photos."""
    return Path(shutil.copytree(good[0].parent, tmp_path / "mine"))


# --- where there are no images ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["fit", "run", "eval"])
def test_no_such_folder(tmp_path, embedding_file, model_file, name):
    graph = embedding_file if name == "fit" else model_file
    output = ("-o", tmp_path / "padim.onnx") if name == "fit" else ()
    with unchanged(tmp_path):
        padim_edge(name, graph, tmp_path / "nowhere", *output).failed(1, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["fit", "run", "eval"])
def test_empty_folder(tmp_path, embedding_file, model_file, name):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    graph = embedding_file if name == "fit" else model_file
    output = ("-o", tmp_path / "padim.onnx") if name == "fit" else ()
    with unchanged(tmp_path):
        done = padim_edge(name, graph, tmp_path / "photos", *output)
    done.failed(1, str(tmp_path / "photos"))


@pytest.mark.parametrize("source", ["*.png", "no*/**"])
def test_a_pattern_that_matches_nothing(tmp_path, model_file, source):
    in_process("run", model_file, tmp_path / source).failed(1, source, "no image found")


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_to_fit(tmp_path, embedding_file, good, count):
    source = link(good, tmp_path / "few", count)
    with unchanged(tmp_path):
        done = padim_edge("fit", embedding_file, source, "-o", tmp_path / "padim.onnx")
    done.failed(1, f"{count} usable image", "at least 3")


def test_one_image_to_fit_as_a_file(tmp_path, embedding_file, good):
    with unchanged(tmp_path):
        done = in_process("fit", embedding_file, good[0], "-o", tmp_path / "padim.onnx")
    done.failed(1, "1 usable image given", "at least 3")


def test_one_image_is_enough_to_run(model_file, good):
    assert padim_edge("run", model_file, good[0]).worked().stdout.count("000.png") == 1


def test_a_test_set_without_defects(tmp_path, model_file, photos):
    shutil.copytree(photos / "test" / "good", tmp_path / "test" / "good")
    in_process("eval", model_file, tmp_path).failed(1, "no defective image", "test/<defect>")


def test_fit_takes_no_defective_image(tmp_path, embedding_file, photos):
    with unchanged(tmp_path):
        done = in_process("fit", embedding_file, photos / "test", "-o", tmp_path / "padim.onnx")
    done.failed(1, "defective", str(photos / "test" / "good"))


# --- images of every kind ---------------------------------------------------------------------


def test_images_of_every_kind_in_one_folder(tmp_path, embedding_file, good):
    folder = tmp_path / "mixed"
    folder.mkdir()
    image = Image.open(good[0]).convert("RGB")
    grey16 = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "rgb.png")
    image.resize((640, 200)).save(folder / "wide.jpg")
    image.resize((33, 500)).save(folder / "tall.webp")
    image.resize((1, 1)).save(folder / "dot.ppm")
    image.convert("L").save(folder / "grey.png")
    image.convert("LA").save(folder / "grey-alpha.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P").save(folder / "palette.gif")
    image.convert("1").save(folder / "binary.bmp")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("CMYK").save(folder / "cmyk.tif")
    grey16.save(folder / "deep.png")
    grey16.save(folder / "deep.tif")
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "SHOUTED.PNG")
    count = len(list(folder.iterdir()))
    model = tmp_path / "padim.onnx"

    done = padim_edge(
        "fit", embedding_file, folder, "--false-alarm-rate", 0.1, "-o", model
    ).worked()
    assert f"fitted on {count} images" in done.stdout
    assert not done.stderr

    done = padim_edge("run", model, folder, "--jsonl", "-").worked()
    assert len(done.stdout.splitlines()) == count
    assert done.stderr.endswith(" 0 unreadable\n")


def test_a_turned_image_scores_as_the_upright_one(tmp_path, model_file, good):
    image = Image.open(good[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    image.save(tmp_path / "upright.png")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    done = in_process("run", model_file, tmp_path, "--jsonl", "-").worked()
    turned, upright = (json.loads(line)["score"] for line in done.stdout.splitlines())
    assert turned == upright


# --- images that are none ---------------------------------------------------------------------


def spoil(folder: Path, good: list[Path]) -> int:
    """Put files that are no images between the good ones; returns how many."""
    photo = good[0].read_bytes()
    jpeg = folder / "whole.jpg"
    Image.open(good[0]).save(jpeg)
    (folder / "000-empty.png").write_bytes(b"")
    (folder / "001-truncated.png").write_bytes(photo[: len(photo) // 2])
    (folder / "003-truncated.jpg").write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    (folder / "005-head-only.png").write_bytes(photo[:40])
    (folder / "007-text.jpg").write_text("not an image at all")
    (folder / "zzz-archive.tif").write_bytes(b"PK\3\4" + bytes(100))
    jpeg.unlink()
    (folder / "notes.txt").write_text("does not count")
    return 6


def test_fit_leaves_out_and_counts_what_is_no_image(tmp_path, embedding_file, folder, good):
    clean, model = tmp_path / "clean.onnx", tmp_path / "padim.onnx"
    padim_edge("fit", embedding_file, folder, "-o", clean).worked()
    bad = spoil(folder, good)
    done = padim_edge("fit", embedding_file, folder, "-o", model).worked()
    said = done.warnings()
    assert sum("left out: " in line for line in said) == bad
    assert f"warning: {bad} unreadable image(s) were left out" in said
    for name in ("000-empty.png", "001-truncated.png", "007-text.jpg", "zzz-archive.tif"):
        assert sum(name in line for line in said) == 1
    assert "fitted on 12 images" in done.stdout
    assert model.read_bytes() == clean.read_bytes()


def test_strict_fit_stops_at_what_is_no_image(tmp_path, embedding_file, folder, good):
    spoil(folder, good)
    with unchanged(tmp_path):
        done = padim_edge("fit", embedding_file, folder, "--strict", "-o", tmp_path / "padim.onnx")
    done.failed(1, "000-empty.png")
    assert not done.stdout


def test_nothing_but_bad_images(tmp_path, embedding_file, model_file, good):
    folder = tmp_path / "bad"
    folder.mkdir()
    bad = spoil(folder, good)
    with unchanged(tmp_path):
        done = padim_edge("fit", embedding_file, folder, "-o", tmp_path / "padim.onnx")
        done.failed(1, "0 usable images")
        assert len(done.warnings()) >= bad
        done = padim_edge("run", model_file, folder)
        done.failed(1, f"none of the {bad} image(s) could be read", said=SUMMARY)


def test_run_reports_bad_images_and_goes_on(tmp_path, model_file, folder, good):
    bad = spoil(folder, good)
    lines = tmp_path / "scores.jsonl"
    done = padim_edge("run", model_file, folder, "--jsonl", lines, "--batch", 3).worked()
    assert f"warning: {bad} unreadable image(s) were left out" in done.stderr
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [Path(record["path"]).name for record in records] == sorted(
        path.name for path in folder.iterdir() if path.suffix != ".txt"
    )
    assert sum("error" in record for record in records) == bad
    assert sum("score" in record for record in records) == 12


def test_strict_run_stops_and_keeps_the_old_lines(tmp_path, model_file, folder, good):
    spoil(folder, good)
    lines = tmp_path / "scores.jsonl"
    lines.write_bytes(OLD)
    with unchanged(tmp_path):
        done = padim_edge("run", model_file, folder, "--strict", "--jsonl", lines)
    done.failed(1, "000-empty.png")


def test_eval_leaves_out_bad_images_and_bad_masks(tmp_path, model_file, photos):
    dataset = Path(shutil.copytree(photos, tmp_path / "set"))
    (dataset / "test" / "good" / "000.png").write_bytes(b"")
    mask = dataset / "ground_truth" / "stain" / "000_mask.png"
    mask.write_bytes(mask.read_bytes()[:60])
    done = padim_edge("eval", model_file, dataset).worked()
    assert "warning: 2 unreadable image(s) were left out" in done.stderr
    assert "3 good, 5 defective" in done.stdout
    done = padim_edge("eval", model_file, dataset, "--strict", "--json", tmp_path / "e.json")
    done.failed(1, "000.png")
    assert not (tmp_path / "e.json").exists()


def huge_png(path: Path, side: int = 20_000) -> None:
    """A sound PNG of side x side black pixels, 1 bit each: 50 MB decoded, 50 kB on the disk."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + check

    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(side * (1 + side // 8)), 1)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_20000_x_20000_image_among_good_ones(tmp_path, embedding_file, model_file, folder):
    clean, model = tmp_path / "clean.onnx", tmp_path / "padim.onnx"
    in_process("fit", embedding_file, folder, "-o", clean).worked()
    huge_png(folder / "005-huge.png")
    done = padim_edge("fit", embedding_file, folder, "-o", model).worked()
    assert any("005-huge.png" in line and "178,956,970" in line for line in done.warnings())
    assert "warning: 1 unreadable image(s) were left out" in done.stderr
    assert model.read_bytes() == clean.read_bytes()
    done = padim_edge("run", model_file, folder / "005-huge.png")
    done.failed(1, "none of the 1 image(s)", said=SUMMARY)


def test_an_image_that_may_not_be_read(tmp_path, embedding_file, folder):
    (folder / "003.png").chmod(0)
    model = tmp_path / "padim.onnx"
    done = padim_edge(
        "fit", embedding_file, folder, "-o", model, preexec_fn=obeying_permissions()
    ).worked()
    assert any("003.png" in line and "Permission denied" in line for line in done.warnings())
    assert "fitted on 11 images" in done.stdout


def test_a_folder_that_may_not_be_read(tmp_path, model_file, folder):
    (folder / "locked").mkdir()
    (folder / "locked").chmod(0)
    done = padim_edge("run", model_file, folder, preexec_fn=obeying_permissions())
    done.failed(1, "locked", "Permission denied")


# --- files that are no models -----------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    """Check that what runs and what shows a detector refuses this file in the same way."""
    photo = path.parent / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    for arguments in (("run", path, photo), ("inspect", path)):
        with unchanged(path.parent):
            in_process(*arguments).failed(1, str(path), *words)


@pytest.fixture(scope="module")
def sound(model_file: Path) -> bytes:
    return model_file.read_bytes()


@pytest.fixture
def altered(tmp_path: Path, sound: bytes) -> Callable[..., Path]:
    """Writes the detector after something was done to it."""

    def write(change: Callable[[onnx.ModelProto], object], source: bytes = sound) -> Path:
        proto = onnx.load_model_from_string(source)
        change(proto)
        path = tmp_path / "altered.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return write


def foreign(path: Path) -> Path:
    """An ONNX file that somebody else made."""
    node = helper.make_node("Identity", ["image"], ["score"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])
    onnx.save(helper.make_model(helper.make_graph([node], "g", [image], [score])), path)
    return path


@pytest.mark.parametrize("name", ["run", "eval", "bench"])
def test_an_onnx_file_that_is_not_ours(tmp_path, photos, name):
    source = () if name == "bench" else (photos,)
    done = padim_edge(name, foreign(tmp_path / "theirs.onnx"), *source)
    done.failed(1, "theirs.onnx", "not made by padim-edge")


def test_fit_on_an_onnx_file_that_is_not_ours(tmp_path, photos):
    theirs = foreign(tmp_path / "theirs.onnx")
    with unchanged(tmp_path):
        done = padim_edge("fit", theirs, photos, "-o", tmp_path / "padim.onnx")
    done.failed(1, "theirs.onnx", "not made by padim-edge")


@pytest.mark.parametrize("name", ["run", "fit", "inspect", "eval", "bench"])
def test_a_model_that_is_not_there_or_a_folder(tmp_path, photos, name):
    source = (photos,) if name in ("run", "fit", "eval") else ()
    in_process(name, tmp_path / "no.onnx", *source).failed(1, "no.onnx", "No such file")
    in_process(name, tmp_path, *source).failed(1, str(tmp_path), "Is a directory")


def test_files_that_are_no_onnx(tmp_path, good):
    path = tmp_path / "photo.onnx"
    for data in (good[0].read_bytes(), b"some text\n" * 100, bytes(1000), pickle.dumps([1])):
        path.write_bytes(data)
        refused(path)


@pytest.mark.parametrize("length", [0, 1, 10, 1000, 0.1, 0.5, 0.9, -1000, -20, -1])
def test_a_truncated_model(tmp_path, sound, length):
    path = tmp_path / "padim.onnx"
    size = int(length * len(sound)) if isinstance(length, float) else length % len(sound)
    path.write_bytes(sound[:size])
    refused(path)


def test_a_truncated_embedding(tmp_path, embedding_file, photos):
    path = tmp_path / "embedding.onnx"
    data = embedding_file.read_bytes()
    for size in (0, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with unchanged(tmp_path):
            done = in_process("fit", path, photos, "-o", tmp_path / "padim.onnx")
        done.failed(1, str(path))


def test_a_model_truncated_between_two_fields(altered, sound):
    # What is left parses: graph and metadata up to some entry. There are some 30 entries.
    whole = onnx.load_model_from_string(sound)
    for kept in range(0, len(whole.metadata_props), 3):

        def cut(proto: onnx.ModelProto, kept: int = kept) -> None:
            del proto.metadata_props[kept:]

        path = altered(cut)
        assert sound.startswith(path.read_bytes())
        refused(path)


def metadata(name: str, value: str) -> Callable[[onnx.ModelProto], None]:
    """Puts JSON text into a field of the metadata."""

    def change(proto: onnx.ModelProto) -> None:
        (entry,) = (e for e in proto.metadata_props if e.key == "padim_edge." + name)
        entry.value = value

    return change


@pytest.mark.parametrize("version", ["2", "0", "99", '"1"', "null", "1.5"])
def test_another_format_version(altered, version):
    refused(altered(metadata("format", version)), "format", "version", "install the padim-edge")


def test_another_format_version_of_an_embedding(altered, embedding_file, photos, tmp_path):
    path = altered(metadata("format", "2"), embedding_file.read_bytes())
    with unchanged(tmp_path):
        done = padim_edge("fit", path, photos, "-o", tmp_path / "padim.onnx")
    done.failed(1, str(path), "version 2", "reads version 1")


@pytest.mark.parametrize("value", ["", "{", "nul", "[1,", "'8'", "[" * 100_000, "1" * 6000])
def test_damaged_metadata(altered, value):
    refused(altered(metadata("threshold", value)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", '"8"'),
        ("threshold", "[8]"),
        ("threshold", "null"),
        ("threshold", "NaN"),
        ("threshold", "Infinity"),
        ("threshold", "1e999"),
        ("threshold", "1" * 400),
        ("threshold", "true"),
        ("images", "1.5"),
        ("good_scores", "[]"),
        ("good_scores", '["a"]'),
        ("good_scores", "5"),
        ("good_scores", "[1.0, NaN]"),
        ("preprocess", "null"),
        ("preprocess", '{"size": [64, 64]}'),
        ("preprocess", '{"size": [64, 64], "resize": 3, "crop": 0, "interpolation": "lanczos"}'),
        ("image_size", "64"),
        ("image_size", "[64]"),
        ("image_size", '["64", "64"]'),
        ("image_size", "[32, 32]"),
        ("image_size", "[-64, 64]"),
        ("layers", '["layer1"]'),
        ("layers", "[1, 2, 3]"),
        ("layer_channels", "[64]"),
        ("layer_shapes", "[[16, 16], [8, 8]]"),
        ("layer_shapes", "[[0, 0], [0, 0], [0, 0]]"),
        ("layer_shapes", "[[16, 16], [7, 7], [4, 4]]"),
        ("channels", '["a"]'),
        ("channels", "[1, 1, 1]"),
        ("kind", '"something"'),
    ],
)
def test_wrong_values_in_the_metadata(altered, name, value):
    refused(altered(metadata(name, value)))


def test_preprocessing_for_another_size_than_the_graph(altered):
    value = {"size": [32, 32], "resize": [32, 32], "crop": False, "interpolation": "lanczos"}
    refused(altered(metadata("preprocess", json.dumps(value))))


def test_missing_metadata(altered):
    def drop(proto: onnx.ModelProto) -> None:
        kept = [e for e in proto.metadata_props if e.key != "padim_edge.threshold"]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)

    refused(altered(drop), "lacks 'threshold'")


def constant(
    name: str, change: Callable[[onnx.TensorProto], object]
) -> Callable[[onnx.ModelProto], None]:
    def of_model(proto: onnx.ModelProto) -> None:
        (tensor,) = (t for t in proto.graph.initializer if t.name == name)
        change(tensor)

    return of_model


def put(value: float) -> Callable[[onnx.TensorProto], None]:
    """Puts a number into a tensor, at the end of it."""

    def change(tensor: onnx.TensorProto) -> None:
        values = numpy_helper.to_array(tensor).copy()
        values.flat[-1] = value
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


CONSTANTS = ("mean.0", "mean.2", "whitening.0.0", "whitening.2.1", "smoothing.rows")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_with_nan_or_infinity(altered, name, value):
    refused(altered(constant(name, put(value))), name, "NaN")


@pytest.mark.parametrize("name", ["run", "eval", "bench"])
def test_a_mean_with_nan_from_the_command_line(altered, photos, name):
    path = altered(constant("mean.1", put(np.nan)))
    source = () if name == "bench" else (photos,)
    padim_edge(name, path, *source).failed(1, str(path), "mean.1", "NaN")


def test_a_backbone_with_nan(altered, photos, sound, embedding_file, tmp_path):
    def change(proto: onnx.ModelProto) -> None:
        put(np.nan)(next(t for t in proto.graph.initializer if len(t.dims) == 4))

    refused(altered(change), "NaN")
    path = altered(change, embedding_file.read_bytes())
    with unchanged(tmp_path):
        done = padim_edge("fit", path, photos, "-o", tmp_path / "padim.onnx")
    done.failed(1, "NaN")


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_missing_constant(altered, name):
    def drop(proto: onnx.ModelProto) -> None:
        kept = [t for t in proto.graph.initializer if t.name != name]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)

    refused(altered(drop), name)


def shorten(tensor: onnx.TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-4]


def outside(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def of_unknown_type(tensor: onnx.TensorProto) -> None:
    tensor.data_type = 99


def transpose(tensor: onnx.TensorProto) -> None:
    tensor.dims[:] = reversed(tensor.dims)


@pytest.mark.parametrize("name", ["mean.1", "whitening.1.0"])
@pytest.mark.parametrize("change", [shorten, outside, of_unknown_type, transpose])
def test_a_constant_with_damaged_data(altered, name, change):
    refused(altered(constant(name, change)))


def test_a_graph_that_no_runtime_loads(altered, good):
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[5].op_type = "Nonsense"

    padim_edge("run", altered(change), good[0]).failed(1, "ONNX Runtime")


def test_other_inputs_or_outputs(altered):
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.output[0].name = "something"

    refused(altered(change), "something")


def test_an_embedding_where_a_detector_is_needed(embedding_file, photos):
    for name in ("run", "eval", "bench"):
        source = () if name == "bench" else (photos,)
        done = padim_edge(name, embedding_file, *source)
        done.failed(1, str(embedding_file), "this is an embedding", "a detector", "padim-edge fit")


def test_a_detector_where_an_embedding_is_needed(tmp_path, model_file, photos):
    with unchanged(tmp_path):
        done = padim_edge("fit", model_file, photos, "-o", tmp_path / "padim.onnx")
    done.failed(1, str(model_file), "this is a detector", "an embedding", "padim-edge export")


# --- outputs that cannot be written -----------------------------------------------------------


@pytest.fixture
def outputs(
    tmp_path: Path, embedding_file: Path, model_file: Path, photos: Path
) -> dict[str, tuple[object, ...]]:
    """A command for each option that names an output; the output's path comes last."""
    new = tmp_path / "new"
    new.mkdir()
    return {
        "export": (
            *("export", "--weights", "random", "--image-size", 64, "--dims", 20),
            "-o",
        ),
        "fit": ("fit", embedding_file, photos, "-o"),
        "moments": ("fit", embedding_file, photos, "-o", new / "padim.onnx", "--save-moments"),
        "jsonl": ("run", model_file, photos / "test", "--jsonl"),
        "eval": ("eval", model_file, photos, "--json"),
        "bench": ("bench", model_file, "--calls", 10, "--json"),
        "inspect": ("inspect", model_file, "--json"),
    }


OUTPUTS = ("export", "fit", "moments", "jsonl", "eval", "bench", "inspect")


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written(tmp_path, outputs, name):
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path / "missing" / "out": "No such file or directory",
        tmp_path / "file" / "out": "Not a directory",
        tmp_path / "folder": "it is a folder",
        tmp_path / "pipe": "it is a device or a pipe",
        tmp_path / ("x" * 300): "File name too long",
    }
    with unchanged(tmp_path):
        for path, reason in cases.items():
            done = in_process(*outputs[name], path)
            done.failed(1, f"cannot write {path}", reason)


@pytest.mark.parametrize("name", ["fit", "jsonl"])
def test_a_read_only_folder(tmp_path, outputs, name):
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "out").write_bytes(OLD)
    locked.chmod(0o555)
    with unchanged(tmp_path):
        for target in ("out", "other"):
            done = padim_edge(*outputs[name], locked / target, preexec_fn=obeying_permissions())
            done.failed(1, f"cannot write {locked / target}", "Permission denied")


def test_a_device_is_not_replaced(tmp_path, model_file, good):
    # Never the machine's own: as root, a test that failed would replace it.
    with contextlib.ExitStack() as stack:
        device = tmp_path / "null"
        try:
            os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
        except OSError:
            pytest.skip("only root can make a device")
        stack.callback(device.unlink)
        done = in_process("run", model_file, good[0], "--jsonl", device)
        done.failed(1, f"cannot write {device}", "device")
        assert device.is_char_device()


def test_save_maps_where_no_folder_can_be(tmp_path, model_file, photos):
    (tmp_path / "file").write_bytes(OLD)
    for folder in (tmp_path / "file", tmp_path / "file" / "maps"):
        with unchanged(tmp_path):
            done = in_process("run", model_file, photos / "test", "--save-maps", folder)
        done.failed(1, str(folder), "Not a directory" if folder.parent != tmp_path else "")


def test_the_demo_leaves_a_folder_of_others_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(OLD)
    (tmp_path / "file").write_bytes(OLD)
    with unchanged(tmp_path):
        in_process("demo", "--folder", tmp_path).failed(2, "photos", "is not empty")
        in_process("demo", "--folder", tmp_path / "file").failed(1, str(tmp_path / "file"))


# --- a full disk ------------------------------------------------------------------------------


def limit(size: int) -> Callable[[], None]:
    """A preexec_fn: the system refuses to let any file grow beyond ``size`` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("name", ["fit", "moments", "jsonl", "inspect"])
def test_a_file_that_the_system_refuses_to_grow(tmp_path, outputs, name):
    target = tmp_path / "out"
    target.write_bytes(OLD)
    with unchanged(tmp_path):
        size = {"fit": 1_000_000, "moments": 10_000_000, "jsonl": 200, "inspect": 200}[name]
        arguments = (*outputs[name], target)
        if name == "moments":  # more than the detector, which is to be written first
            prelude = "import numpy; savez = numpy.savez\n"
            prelude += "numpy.savez = lambda f, **a: savez(f, filler=numpy.ones(2_000_000), **a)"
            done = padim_edge(*arguments, prelude=prelude, preexec_fn=limit(size))
        else:
            done = padim_edge(*arguments, preexec_fn=limit(size))
    done.failed(1, f"cannot write {target}", os.strerror(errno.EFBIG))


def test_an_export_that_the_system_refuses_to_write(tmp_path, outputs):
    target = tmp_path / "embedding.onnx"
    target.write_bytes(OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with unchanged(tmp_path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            done = in_process(*outputs["export"], target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done.failed(1, f"cannot write {target}", os.strerror(errno.EFBIG))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    mounted = tmp_path / "tiny"
    mounted.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mounted)]
    done = mount and subprocess.run([mount, *options], capture_output=True, check=False)
    if not done or done.returncode:
        pytest.skip("only root can mount a file system")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_fit_on_a_full_disk(tiny_disk, embedding_file, photos):
    target = tiny_disk / "padim.onnx"
    target.write_bytes(OLD)
    with unchanged(tiny_disk):
        done = padim_edge("fit", embedding_file, photos, "-o", target)
    done.failed(1, f"cannot write {target}", "No space left on device")


def test_maps_on_a_full_disk(tiny_disk, model_file, photos):
    done = padim_edge("run", model_file, photos, "--save-maps", tiny_disk / "maps", "--batch", 1)
    done.failed(1, "No space left on device")
    left = [path for path in tiny_disk.rglob("*") if path.is_file()]
    assert left  # some had room
    for path in left:
        assert path.suffix == ".png"
        Image.open(path).load()


def test_no_room_for_the_features(tmp_path, tiny_disk, embedding_file, good):
    source = link(good, tmp_path / "many", 200)  # some 4 kB of features each
    (tmp_path / "out").mkdir()
    with unchanged(tmp_path / "out"):
        done = padim_edge(
            *("fit", embedding_file, source, "-o", tmp_path / "out" / "padim.onnx"),
            prelude="import padim_edge.fit.features as features; features.STORE_IN_MEMORY = 0",
            env={**os.environ, "TMPDIR": str(tiny_disk)},
        )
    done.failed(1, str(tiny_disk), "No space left on device", "TMPDIR")


def test_standard_output_that_is_full(model_file, photos):
    for arguments in (("run", photos / "test"), ("run", photos / "test", "--jsonl", "-")):
        with Path("/dev/full").open("w") as full:
            done = padim_edge(arguments[0], model_file, *arguments[1:], stdout=full)
        done.failed(1, "No space left on device")


# --- interrupted ------------------------------------------------------------------------------

# Each line stops a child where the test wants it, and says so. The signal is real.
SAY = "print('READY', flush=True)"
STAGES = {
    # Goes on running, so that the signal comes at any moment of the extraction.
    "features": f"""
import padim_edge.runtime.cpu.ort as ort
run = ort.Graph.run
def said(*arguments):
    result = run(*arguments)
    {SAY}
    return result
ort.Graph.run = said
""",
    "statistics": f"""
import time
import padim_edge.fit.features as features
from padim_edge.fit import gaussian
features.CHUNK_BYTES = 1
whitening = gaussian.whitening
def slow(*arguments):
    {SAY}
    time.sleep(0.3)
    return whitening(*arguments)
gaussian.whitening = slow
""",
    "writing": f"""
import os, time
os.fsync = lambda _: ({SAY}, time.sleep(60))
""",
}


def interrupt(arguments: tuple[object, ...], prelude: str, number: signal.Signals) -> Outcome:
    """Run a command, and send it a signal as soon as it says that it is ready."""
    with subprocess.Popen(
        command(*arguments, prelude=prelude),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stdout
        for line in child.stdout:
            if line == "READY\n":
                break
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    return Outcome(child.returncode, out, err)


@pytest.mark.parametrize(
    ("stage", "number", "old"),
    [
        ("features", signal.SIGINT, True),
        ("features", signal.SIGINT, False),
        ("features", signal.SIGTERM, True),
        ("features", signal.SIGHUP, True),
        ("statistics", signal.SIGINT, True),
        ("writing", signal.SIGINT, True),
        ("writing", signal.SIGTERM, False),
    ],
)
def test_fit_interrupted(tmp_path, embedding_file, good, stage, number, old):
    source = link(good, tmp_path / "many", 1500 if stage == "features" else 12)
    target = tmp_path / "padim.onnx"
    if old:
        target.write_bytes(OLD)
    with unchanged(tmp_path):
        done = interrupt(("fit", embedding_file, source, "-o", target), STAGES[stage], number)
    assert done.code == 130
    assert done.stderr == "interrupted: no half-written file was left\n"


def test_fit_killed_leaves_the_old_file(tmp_path, embedding_file, photos):
    target = tmp_path / "padim.onnx"
    target.write_bytes(OLD)
    done = interrupt(
        ("fit", embedding_file, photos, "-o", target), STAGES["writing"], signal.SIGKILL
    )
    assert done.code == -signal.SIGKILL
    assert target.read_bytes() == OLD


def test_run_interrupted(tmp_path, model_file, good):
    source = link(good, tmp_path / "many", 1500)
    lines = tmp_path / "scores.jsonl"
    lines.write_bytes(OLD)
    with unchanged(tmp_path):
        done = interrupt(
            ("run", model_file, source, "--jsonl", lines), STAGES["features"], signal.SIGINT
        )
    assert done.code == 130
    assert done.stderr == "interrupted: no half-written file was left\n"


# --- wrong use --------------------------------------------------------------------------------

FIT = ("fit", "{embedding}", "{photos}", "-o", "{new}")
RUN = ("run", "{model}", "{photos}")
EXPORT = ("export", "--weights", "random", "--image-size", "64", "-o", "{new}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bogus",), ["bogus", "padim-edge --help"]),
        (("--bogus",), ["--bogus"]),
        *(
            ((name,), ["Missing argument", f"padim-edge {name} --help"])
            for name in ("fit", "run", "eval", "inspect")
        ),
        *(((name, "--bogus"), ["--bogus", f"padim-edge {name} --help"]) for name in COMMANDS),
        ((*RUN, "one more"), ["one more"]),
        (("inspect", "{model}", "--json"), ["--json"]),
        ((*FIT, "--preprocess", "half"), ["half", "whole, reference"]),
        ((*FIT, "--resize", "big"), ["big", "224x448"]),
        ((*FIT, "--resize", "32"), ["32", "at least 64x64"]),
        ((*FIT, "--resize", "0"), ["0", "224x448"]),
        ((*FIT, "--crop", "32"), ["32", "64x64"]),
        ((*FIT, "--crop", "-64"), ["-64"]),
        ((*FIT, "--interpolation", "cubist"), ["cubist", "lanczos, bicubic, bilinear, box"]),
        ((*FIT, "--covariance", "diagonal"), ["diagonal", "sample or ledoit-wolf"]),
        ((*FIT, "--constants", "int4"), ["int4", "float32, float16, int8"]),
        ((*FIT, "--eps", "-1"), ["--eps -1"]),
        ((*FIT, "--eps", "nan"), ["--eps nan"]),
        ((*FIT, "--eps", "inf"), ["--eps inf"]),
        ((*FIT, "--eps", "small"), ["--eps"]),
        ((*FIT, "--sigma", "-1"), ["--sigma -1", "0 to 64"]),
        ((*FIT, "--sigma", "nan"), ["--sigma nan", "0 to 64"]),
        ((*FIT, "--sigma", "1000"), ["--sigma 1000", "0 to 64"]),
        ((*FIT, "--false-alarm-rate", "0"), ["--false-alarm-rate 0", "a number", "1 is needed"]),
        ((*FIT, "--false-alarm-rate", "1"), ["--false-alarm-rate 1", "a number", "1 is needed"]),
        ((*FIT, "--false-alarm-rate", "nan"), ["--false-alarm-rate nan", "1 is needed"]),
        ((*FIT, "--threads", "-1"), ["--threads"]),
        ((*FIT, "--threads", "99999999999"), ["--threads"]),
        (
            (*FIT, "--covariance", "ledoit-wolf", "--save-moments", "{new}.npz"),
            ["ledoit-wolf", "no moments"],
        ),
        ((*RUN, "--engine", "warp"), ["warp", "auto", "ort"]),
        ((*RUN, "--batch", "0"), ["--batch", "1"]),
        ((*RUN, "--batch", "many"), ["--batch"]),
        ((*RUN, "--threads", "99999999999"), ["--threads"]),
        (("eval", "{model}", "{photos}", "--engine", "warp"), ["warp", "auto", "ort"]),
        (("eval", "{model}", "{photos}", "--batch", "-3"), ["--batch"]),
        (("bench", "{model}", "--engine", "warp"), ["warp", "auto", "ort"]),
        (("bench", "{model}", "--batch", "0"), ["--batch 0", "at least 1"]),
        (("bench", "{model}", "--batch", "1,x"), ["--batch 1,x", "integers with commas"]),
        (("bench", "{model}", "--batch", ""), ["--batch", "integers with commas"]),
        (("bench", "{model}", "--calls", "3"), ["--calls", "10"]),
        (("bench", "{model}", "--frame", "large"), ["large", "224x448"]),
        (("bench", "{model}", "--frame", "0x5"), ["0x5", "224x448"]),
        (("export", "--backbone", "resnet19", "-o", "{new}"), ["resnet19", "resnet18"]),
        (("export", "--backbone", "vgg11", "-o", "{new}"), ["vgg11", "--layers", "resnet18"]),
        ((*EXPORT, "--layers", "layer9"), ["layer9", "--layers", "layer1"]),
        ((*EXPORT, "--layers", "fc"), ["fc", "--layers", "layer1"]),
        ((*EXPORT, "--layers", "layer1,layer1"), ["layer1,layer1", "twice"]),
        ((*EXPORT, "--layers", ""), ["--layers", "layer1"]),
        ((*EXPORT, "--dims", "0"), ["--dims 0", "448"]),
        ((*EXPORT, "--dims", "449"), ["--dims 449", "448"]),
        ((*EXPORT, "--dims", "-5"), ["--dims -5"]),
        ((*EXPORT, "--dims", "many"), ["--dims many", "integers with commas"]),
        ((*EXPORT, "--dims", "1,2"), ["--dims 1,2", "3 layers"]),
        ((*EXPORT, "--dims", "65,0,0"), ["--dims 65,0,0", "64,128,256"]),
        ((*EXPORT, "--dims", "0,0,0"), ["--dims 0,0,0"]),
        ((*EXPORT, "--image-size", "100"), ["100", "multiples of 32"]),
        ((*EXPORT, "--image-size", "0"), ["0"]),
        ((*EXPORT, "--image-size", "64x64x3"), ["64x64x3", "224x448"]),
        ((*EXPORT, "--seed", "-1"), ["--seed"]),
        ((*EXPORT, "--seed", "1" * 30), ["--seed"]),
        ((*EXPORT, "--channels", "{new}"), ["--channels", "No such file"]),
        ((*EXPORT, "--channels", "{photos}"), ["--channels", "directory"]),
        ((*EXPORT, "--channels", "{model}"), ["--channels", "text"]),
        ((*EXPORT, "--channels", "{list}", "--dims", "3"), ["--channels", "--dims"]),
        ((*EXPORT, "--channels", "{list}"), ["--channels", "999", "0 to 447"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_wrong_use(tmp_path, embedding_file, model_file, photos, arguments, words):
    (tmp_path / "list.txt").write_text("1, 2, 999")
    names = {
        "embedding": embedding_file,
        "model": model_file,
        "photos": photos,
        "new": tmp_path / "new.onnx",
        "list": tmp_path / "list.txt",
    }
    with unchanged(tmp_path):
        done = in_process(*(argument.format(**names) for argument in arguments))
    done.failed(2, *words)


def test_wrong_use_from_a_shell(model_file, photos):
    padim_edge("run", model_file).failed(2, "source", "padim-edge run --help")
    padim_edge("run", model_file, photos, "--engine", "warp").failed(2, "warp", "auto", "ort")


def test_weights_that_are_none(tmp_path, good):
    import torch

    export = ("export", "--image-size", 64, "-o", tmp_path / "embedding.onnx", "--weights")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with (tmp_path / "evil.pth").open("wb") as stream:
        pickle.dump(Evil(tmp_path / "run by a pickle"), stream)
    cases = {
        tmp_path / "none.pth": "No such file",
        tmp_path: "directory",
        tmp_path / "text.pth": "not a file of torch weights",
        tmp_path / "empty.pth": "not a file of torch weights",
        tmp_path / "evil.pth": "not a file of torch weights",
        good[0]: "not a file of torch weights",
        tmp_path / "part.pth": "lacks",
        tmp_path / "list.pth": "no state dict",
    }
    with unchanged(tmp_path):
        for weights, reason in cases.items():
            in_process(*export, weights).failed(1, str(weights), reason)


class Evil:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


# --- too few images for the threshold ---------------------------------------------------------


def test_a_false_alarm_rate_that_so_few_images_cannot_promise(tmp_path, embedding_file, photos):
    with unchanged(tmp_path):
        done = padim_edge(
            *("fit", embedding_file, photos, "--false-alarm-rate", 0.01),
            *("-o", tmp_path / "padim.onnx"),
        )
    done.failed(1, "12 images are too few", "0.01", "at least 99 images", "0.077 or more")


def test_a_rate_that_only_fails_because_an_image_is_bad(tmp_path, embedding_file, folder):
    arguments = ("fit", embedding_file, folder, "--false-alarm-rate", 0.077)
    arguments = (*arguments, "-o", tmp_path / "padim.onnx")
    in_process(*arguments).worked()
    (folder / "003.png").write_bytes(b"")
    with unchanged(tmp_path):
        done = padim_edge(*arguments)
    done.failed(1, "11 images are too few", "at least 12 images")
    assert len(done.warnings()) == 1


def test_the_default_rate_is_what_the_images_allow_and_said(tmp_path, embedding_file, photos):
    done = padim_edge("fit", embedding_file, photos, "-o", tmp_path / "padim.onnx").worked()
    assert len(done.warnings()) == 1
    assert "99 are needed" in done.stderr
    assert "a false-alarm rate of 0.0769 " in done.stdout


# --- saved moments ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moments(
    tmp_path_factory: pytest.TempPathFactory, embedding_file: Path, photos: Path
) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("moments")
    in_process(
        *("fit", embedding_file, photos, "-o", folder / "padim.onnx"),
        *("--save-moments", folder / "moments.npz"),
    ).worked()
    with np.load(folder / "moments.npz") as arrays:
        return dict(arrays)


def header(arrays: dict[str, np.ndarray], **changes: object) -> np.ndarray:
    """The header of saved moments, changed."""
    text = json.dumps(json.loads(bytes(arrays["header"])) | changes)
    return np.frombuffer(text.encode(), dtype=np.uint8)


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = np.nan
    return array


def update_refused(
    tmp_path: Path,
    embedding: Path,
    photos: Path,
    code: int,
    *words: str,
    options: tuple[object, ...] = (),
) -> None:
    target = tmp_path / "padim.onnx"
    target.write_bytes(OLD)
    file = tmp_path / "moments.npz"
    with unchanged(tmp_path):
        done = in_process("fit", embedding, photos, "--update", file, "-o", target, *options)
    done.failed(code, str(file), *words)


def test_moments_that_are_sound_are_taken(tmp_path, embedding_file, photos, moments):
    np.savez(tmp_path / "moments.npz", **moments)
    done = in_process(
        *("fit", embedding_file, photos, "--update", tmp_path / "moments.npz"),
        *("-o", tmp_path / "padim.onnx"),
    ).worked()
    assert "fitted on 24 images" in done.stdout


def test_moments_that_cannot_be_read(tmp_path, embedding_file, photos):
    update_refused(tmp_path, embedding_file, photos, 1, "No such file")
    (tmp_path / "moments.npz").mkdir()
    update_refused(tmp_path, embedding_file, photos, 1, "directory")


@pytest.mark.parametrize("part", [0, 10, 0.3, 0.7, -1, -30])
def test_truncated_moments(tmp_path, embedding_file, photos, moments, part):
    file = tmp_path / "moments.npz"
    np.savez(file, **moments)
    data = file.read_bytes()
    file.write_bytes(data[: int(part * len(data)) if isinstance(part, float) else part])
    update_refused(tmp_path, embedding_file, photos, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {"weights": a["scores"]},
        lambda a: {k: v for k, v in a.items() if k != "mean.1"},
        lambda a: {k: v for k, v in a.items() if k != "header"},
        lambda a: a | {"header": np.frombuffer(b"{", dtype=np.uint8)},
        lambda a: a | {"header": np.frombuffer(b"[1]", dtype=np.uint8)},
        lambda a: a | {"header": header(a, count="12")},
        lambda a: a | {"header": header(a, count=-1)},
        lambda a: a | {"header": header(a, count=1.5)},
        lambda a: a | {"header": header(a, count=13)},
        lambda a: a | {"mean.0": with_nan(a["mean.0"])},
        lambda a: a | {"scatter.1.0": with_nan(a["scatter.1.0"])},
        lambda a: a | {"scores": with_nan(a["scores"])},
        lambda a: a | {"mean.0": a["mean.0"][:-1]},
        lambda a: a | {"scatter.2.1": a["scatter.2.1"][..., :-1]},
        lambda a: a | {"scores": a["scores"][:, None]},
        lambda a: a | {"mean.0": a["mean.0"].astype("U3")},
    ],
)
def test_foreign_or_damaged_moments(tmp_path, embedding_file, photos, moments, change):
    np.savez(tmp_path / "moments.npz", **change(dict(moments)))
    update_refused(tmp_path, embedding_file, photos, 1)


def test_moments_that_are_a_pickle(tmp_path, embedding_file, photos, moments):
    evil = np.array([Evil(tmp_path / "run by a pickle")], dtype=object)
    np.savez(tmp_path / "moments.npz", **(moments | {"scores": evil}))
    update_refused(tmp_path, embedding_file, photos, 1)
    (tmp_path / "moments.npz").write_bytes(pickle.dumps(evil))
    update_refused(tmp_path, embedding_file, photos, 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--eps", 0.1), "eps"),
        (("--sigma", 2), "sigma"),
        (("--preprocess", "reference"), "preprocess"),
    ],
)
def test_moments_of_other_settings(tmp_path, embedding_file, photos, moments, options, word):
    np.savez(tmp_path / "moments.npz", **moments)
    update_refused(tmp_path, embedding_file, photos, 2, f"another {word}", options=options)


def test_moments_of_another_embedding(tmp_path, embedding_file, photos, moments):
    other = header(moments, embedding="0" * 64)
    np.savez(tmp_path / "moments.npz", **(moments | {"header": other}))
    update_refused(tmp_path, embedding_file, photos, 2, "another embedding")


# --- overlays that would harm the images ------------------------------------------------------


def test_save_maps_inside_the_source(tmp_path, model_file, folder):
    with unchanged(tmp_path):
        padim_edge("run", model_file, folder, "--save-maps", folder / "maps").failed(2)
        for maps in (folder, folder / "maps", folder / "deep" / "maps", folder / ".." / "mine"):
            done = in_process("run", model_file, folder, "--save-maps", maps)
            done.failed(2, f"--save-maps {maps}", "choose a folder outside")


def test_save_maps_inside_the_source_by_a_link(tmp_path, model_file, folder):
    (tmp_path / "link").symlink_to(folder)
    with unchanged(tmp_path):
        done = in_process("run", model_file, folder, "--save-maps", tmp_path / "link" / "maps")
    done.failed(2, "choose a folder outside")


def test_save_maps_never_replaces_an_image(tmp_path, model_file, folder):
    sources = (folder / "000.png", folder / "*.png", folder / "00?.png")
    for source in sources:
        for maps in (folder, tmp_path / "elsewhere" / ".." / "mine"):
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            with unchanged(tmp_path):
                done = in_process("run", model_file, source, "--save-maps", maps)
            done.failed(2, f"--save-maps {maps}", "replace", "choose another folder")


# --- files that change while they are used ----------------------------------------------------


def test_a_model_read_while_it_is_replaced_is_the_old_or_the_new_one(
    tmp_path, altered, model_file, sound
):
    other = altered(metadata("threshold", "1.0")).read_bytes()
    known = {read(model_file, "padim").sha256, read(tmp_path / "altered.onnx", "padim").sha256}
    target = tmp_path / "padim.onnx"
    target.write_bytes(sound)
    stop = threading.Event()

    def replace() -> None:
        for data in [other, sound] * 200:
            with atomic_write(target) as stream:
                stream.write(data)
            if stop.is_set():
                return

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        seen = [read(target, "padim").sha256 for _ in range(15)]
    finally:
        stop.set()
        writer.join()
    assert set(seen) <= known
    assert len(set(seen)) == 2
    assert set(contents(tmp_path)) == {"altered.onnx", "padim.onnx"}


def test_an_open_detector_outlives_its_file(tmp_path, model_file, altered, good):
    target = tmp_path / "padim.onnx"
    shutil.copy(model_file, target)
    frame = np.asarray(Image.open(good[0]).convert("RGB"))
    with Detector(target) as detector:
        before = detector(frame)
        with atomic_write(target) as stream:
            stream.write(altered(metadata("threshold", "1.0")).read_bytes())
        after = detector(frame)
    assert (after.score, after.threshold) == (before.score, before.threshold)
    with Detector(target) as detector:
        assert detector(frame).threshold == 1.0


def test_names_that_are_no_text(tmp_path, model_file, good):
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)  # noqa: PTH102 - bytes
    for name in (b"\xff.png", "Stück.png".encode()):
        shutil.copy(good[0], os.path.join(folder, name))  # noqa: PTH118 - bytes
    for encoding in ("utf-8:strict", "ascii:strict"):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = padim_edge("run", model_file, tmp_path / "odd", env=env).worked()
        assert len(done.stdout.splitlines()) == 3
        done = padim_edge("run", model_file, tmp_path / "odd", "--jsonl", "-", env=env).worked()
        paths = [json.loads(line)["path"] for line in done.stdout.splitlines()]
        assert sorted(os.fsencode(path) for path in paths) == sorted(
            os.path.join(folder, name)  # noqa: PTH118 - bytes
            for name in os.listdir(folder)  # noqa: PTH208 - bytes
        )
