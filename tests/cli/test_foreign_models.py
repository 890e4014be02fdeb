"""Files that are no models, not whole, or not the kind that is needed."""

from __future__ import annotations

import pickle
from pathlib import Path

import onnx
import pytest
from helpers import in_process, refused, unchanged
from onnx import TensorProto, helper


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
    done = in_process(name, foreign(tmp_path / "theirs.onnx"), *source)
    done.failed(1, "theirs.onnx", "not made by padim-edge")


def test_fit_on_an_onnx_file_that_is_not_ours(tmp_path, photos):
    theirs = foreign(tmp_path / "theirs.onnx")
    with unchanged(tmp_path):
        done = in_process("fit", theirs, photos, "-o", tmp_path / "padim.onnx")
    done.failed(1, "theirs.onnx", "not made by padim-edge")


@pytest.mark.parametrize("name", ["run", "fit", "inspect", "eval", "bench", "serve"])
def test_a_model_that_is_not_there_or_a_folder(tmp_path, photos, name):
    source = (photos,) if name in ("run", "fit", "eval") else ()
    in_process(name, tmp_path / "no.onnx", *source).failed(1, "no.onnx", "No such file")
    words = (
        "is one data set" if name == "eval" else f"is a folder: give a file in it, or {tmp_path}/*."
    )
    in_process(name, tmp_path, *source).failed(1, str(tmp_path), words)


def test_files_that_are_no_onnx(tmp_path, good):
    path = tmp_path / "photo.onnx"
    for data in (good[0].read_bytes(), b"some text\n" * 100, bytes(1000), pickle.dumps([1])):
        path.write_bytes(data)
        refused(path)


@pytest.mark.parametrize("length", [0, 1, 10, 1000, 0.1, 0.5, 0.9, -1000, -20, -1])
def test_a_truncated_model(tmp_path, model_file, length):
    sound = model_file.read_bytes()
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


def test_an_embedding_where_a_detector_is_needed(embedding_file, photos):
    for name in ("run", "eval", "bench"):
        source = () if name == "bench" else (photos,)
        done = in_process(name, embedding_file, *source)
        done.failed(1, str(embedding_file), "this is an embedding", "a detector", "padim-edge fit")


def test_a_detector_where_an_embedding_is_needed(tmp_path, model_file, photos):
    with unchanged(tmp_path):
        done = in_process("fit", model_file, photos, "-o", tmp_path / "padim.onnx")
    done.failed(1, str(model_file), "this is a detector", "an embedding", "padim-edge export")
