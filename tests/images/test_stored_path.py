"""Object stores: photos by the addresses of a real S3 server (moto) on this machine."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import blocking, in_process, padim_edge
from s3_server import s3_server

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.images.dataset import test_samples as samples_of
from padim_edge.images.dataset import train_images
from padim_edge.images.decode import load_image, read_head
from padim_edge.images.find import beside, find_images, look, places
from padim_edge.images.stored_path import StoredPath, as_path


@pytest.fixture(scope="module")
def bucket(photos: Path) -> Iterator[str]:
    """The address of a bucket with `photos`, and a hidden folder and a text beside them."""
    with s3_server() as put:
        for file in photos.rglob("*"):
            if file.is_file():
                put("cloth/" + file.relative_to(photos).as_posix(), file.read_bytes())
        put("cloth/train/good/readme.txt", b"photos")
        put("cloth/train/good/.cache/000.png", b"of no use")
        put("bad/000.png", b"no image")
        yield "s3://photos"


def test_an_address_is_a_path(bucket):
    path = as_path(f"{bucket}/cloth/train/good/000.png")
    assert str(path) == f"{bucket}/cloth/train/good/000.png"
    assert (path.name, path.suffix, path.parent.name) == ("000.png", ".png", "good")
    assert path.parent / "000.png" == path
    assert str(path.with_suffix(".jpg")) == f"{bucket}/cloth/train/good/000.jpg"
    assert str(path.relative_to(as_path(bucket))) == "cloth/train/good/000.png"
    again = pickle.loads(pickle.dumps(path))
    assert isinstance(again, StoredPath)
    assert (again, hash(again), str(again)) == (path, hash(path), str(path))
    assert path.is_file()
    assert path.parent.is_dir()
    assert not (path.parent / "none").exists()


def test_folders_and_files_are_those_of_the_disk(bucket, photos):
    cloth = as_path(f"{bucket}/cloth")
    found = train_images(str(cloth))
    assert [path.relative_to(cloth).as_posix() for path in found] == [
        path.relative_to(photos).as_posix() for path in train_images(photos)
    ]
    assert (
        load_image(found[0]).tobytes()
        == load_image(photos / "train" / "good" / found[0].name).tobytes()
    )
    assert read_head(found[0]) == (96, 96, 1)
    assert places(found) == f"12 of {bucket}/cloth/train/good"
    assert str(beside(found)) == "1 .txt"
    assert str(look([f"{bucket}/cloth/train/good"])) == "1 .txt, 1 hidden"
    ours = [(s.path.name, s.defect, [m.name for m in s.masks]) for s in samples_of(str(cloth))]
    theirs = [(s.path.name, s.defect, [m.name for m in s.masks]) for s in samples_of(photos)]
    assert ours == theirs
    pattern = find_images(f"{bucket}/cloth/test/*/000.png")
    assert [path.parent.name for path in pattern] == sorted(
        path.name for path in (photos / "test").iterdir()
    )


def test_fit_run_and_eval_from_addresses(tmp_path, bucket, photos, embedding_file, model_file):
    model = tmp_path / "padim.onnx"
    done = in_process("fit", embedding_file, f"{bucket}/cloth", "-o", model).worked()
    assert model.read_bytes() == model_file.read_bytes()
    assert f"images: 12 of {bucket}/cloth/train/good" in done.stderr
    maps = tmp_path / "maps"
    done = in_process(
        *("run", model, f"{bucket}/cloth/test", f"{bucket}/bad/000.png"),
        *("--jsonl", "-", "--save-maps", maps),
    ).worked()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    local = in_process("run", model, photos / "test", "--jsonl", "-").worked()
    assert [line["score"] for line in lines[:-1]] == [
        json.loads(line)["score"] for line in local.stdout.splitlines()
    ]
    assert lines[0]["path"].startswith(f"{bucket}/cloth/test/")
    assert lines[-1]["error"].startswith(f"{bucket}/bad/000.png: not an image")
    assert len(list(maps.rglob("*.png"))) == len(lines) - 1
    pytest.importorskip("sklearn")
    ours = in_process("eval", model, f"{bucket}/cloth").worked()
    assert ours.stdout == in_process("eval", model, photos).worked().stdout


def test_what_cannot_be_reached_is_one_line(tmp_path, bucket, model_file, monkeypatch):
    with pytest.raises(PadimEdgeError, match="no such file or folder: s3://photos/none"):
        find_images(f"{bucket}/none")
    in_process("run", model_file, "s3://others").failed(1, "s3://others")
    with pytest.raises(UsageError, match="no kind of store is called stone"):
        as_path("stone://photos")


def test_without_the_client_its_extra_is_named(model_file):
    done = padim_edge("run", model_file, "s3://photos", prelude=blocking("s3fs"))
    done.failed(1, "s3://photos needs s3fs", "pip install 'padim-edge[stores]'")
    done = padim_edge("run", model_file, "s3://photos", prelude=blocking("fsspec"))
    done.failed(1, "s3://photos needs fsspec", "pip install 'padim-edge[stores]'")
    assert MissingDependencyError.exit_code == 1
