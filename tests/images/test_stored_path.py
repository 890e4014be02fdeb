"""Object stores: photos by the addresses of a real S3 server (moto) on this machine."""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import blocking, in_process, padim_edge
from s3_server import s3_server

from padim_edge.errors import ImageError, MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.images.dataset import Folders, train_images
from padim_edge.images.dataset import test_samples as samples_of
from padim_edge.images.decode import load_image, read_head
from padim_edge.images.find import beside, find_images, look, places
from padim_edge.images.stored_path import StoredPath, StoreError, as_path

Put = Callable[[str, bytes], object]


@pytest.fixture(scope="module")
def put() -> Iterator[Put]:
    """What stores an object in the bucket."""
    with s3_server() as put:
        yield put


@pytest.fixture(scope="module")
def bucket(put: Put, photos: Path) -> str:
    """The address of a bucket with `photos`, and a hidden folder and a text beside them."""
    for file in photos.rglob("*"):
        if file.is_file():
            put("cloth/" + file.relative_to(photos).as_posix(), file.read_bytes())
    put("cloth/train/good/readme.txt", b"photos")
    put("cloth/train/good/.cache/000.png", b"of no use")
    put("bad/000.png", b"no image")
    return "s3://photos"


@pytest.fixture
def anew() -> Iterator[None]:
    """fsspec reads the environment again, before the test and after it."""
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    yield
    fsspec.filesystem("s3").clear_instance_cache()


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


def test_what_is_not_there_is_one_line(tmp_path, bucket, model_file):
    for address in (f"{bucket}/none", "s3://others"):
        with pytest.raises(PadimEdgeError, match=f"no such file or folder: {address}"):
            find_images(address)
        in_process("run", model_file, address).failed(1, f"no such file or folder: {address}")
    # Of a list it is a photo that cannot be read; the others are judged.
    photos = tmp_path / "photos.txt"
    photos.write_text(f"{bucket}/cloth/test/good/000.png\n{bucket}/cloth/test/good/none.png\n")
    done = in_process("run", model_file, "--files-from", photos, "--jsonl", "-").worked()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "score" in lines[0]
    assert lines[1]["error"].startswith(
        f"{bucket}/cloth/test/good/none.png: cannot be read (not in"
    )


def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")


@pytest.mark.parametrize("fault", [closed, without_credentials])
def test_a_store_that_does_not_answer_is_no_bad_photo(
    tmp_path, bucket, model_file, anew, monkeypatch, fault
):
    fault(monkeypatch)
    photo = f"{bucket}/cloth/test/good/000.png"
    for read in (load_image, read_head, find_images):
        with pytest.raises(StoreError, match="does not answer") as caught:
            read(photo)
        assert not isinstance(caught.value, ImageError)
    photos = tmp_path / "photos.txt"
    photos.write_text(f"{photo}\n")
    for arguments in (("--files-from", photos), (photo,), (f"{bucket}/cloth/*/*",)):
        in_process("run", model_file, *arguments).failed(
            1, f"cannot fetch {bucket}/cloth/", "the store does not answer"
        )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("stone://photos", "no kind of store is called stone"),
        ("file:///data/photos", "give the path itself"),
        ("hdfs:///photos", "does not say where"),
        ("s3://", "does not say where"),
        ("s3://ph*/good", "name the bucket or the host"),
        ("s3://photos//good", "an empty or a . part"),
        ("s3://photos/./good", "an empty or a . part"),
        ("simplecache::s3://photos", "addresses with :: are not taken"),
        ("zip://a.png::s3://photos/all.zip", "addresses with :: are not taken"),
    ],
)
def test_what_may_name_another_place_is_refused(address, words):
    with pytest.raises(UsageError, match=words) as caught:
        as_path(address)
    assert str(caught.value).startswith(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["a//b.png", "a/./b.png", "a::b.png"])
def test_names_that_no_path_has_are_refused(bucket, put, key):
    folder = f"{bucket}/odd{ord(key[2])}"
    put(f"{folder.removeprefix(bucket)[1:]}/{key}", b"no image")
    with pytest.raises(PadimEdgeError, match="rename or remove it") as caught:
        find_images(folder)
    assert f"{folder}/{key}" in str(caught.value)


def test_patterns_match_what_they_do_on_a_disk(tmp_path, bucket, put):
    for name in ("a.png", "deep/b.png", ".c.png", ".d/e.png", "deep/.f/g.png", "h.png/i.jpg"):
        put(f"some/{name}", b"no image")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    for pattern in ("*.png", "*/*.png", "**/*.png", ".d/*.png", "*/.f/*", "**/.f/*.png", "[ah]*"):
        theirs = [
            path.relative_to(tmp_path).as_posix()
            for path in find_images(f"{tmp_path}/{pattern}")
            if path.is_file()
        ]
        ours = find_images(f"{bucket}/some/{pattern}")
        assert [path.relative_to(as_path(f"{bucket}/some")).as_posix() for path in ours] == theirs


def test_what_came_meanwhile_is_found(bucket, put):
    put("new/000.png", b"no image")
    assert len(find_images(f"{bucket}/new")) == 1
    assert [path.name for path in as_path(f"{bucket}/new").iterdir()] == ["000.png"]
    put("new/001.png", b"no image")
    assert len(find_images(f"{bucket}/new")) == 2
    assert len(list(as_path(f"{bucket}/new").iterdir())) == 2
    assert as_path(f"{bucket}/new/001.png").is_file()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def web(folder: Path) -> Iterator[str]:
    """The address of a server whose pages list the files of a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_pattern_keeps_the_host(photos):
    pytest.importorskip("aiohttp", reason="needs aiohttp, of the extra stores")
    with web(photos) as address:
        found = find_images(f"{address}/test/good/*.png")
        names = sorted(path.name for path in (photos / "test" / "good").glob("*.png"))
        assert [str(path) for path in found] == [f"{address}/test/good/{name}" for name in names]
        assert found[0].read_bytes() == (photos / "test" / "good" / names[0]).read_bytes()


def test_a_folder_that_is_named_may_be_elsewhere(bucket, photos):
    named = Folders(normal=(f"{bucket}/cloth/train/good",))
    assert len(train_images(photos, named)) == 12
    named = Folders(normal=(str(photos / "train" / "good"),))
    assert train_images(f"{bucket}/cloth", named) == train_images(photos)


def test_without_the_client_its_extra_is_named(model_file):
    done = padim_edge("run", model_file, "s3://photos", prelude=blocking("s3fs"))
    done.failed(1, "s3://photos needs s3fs", "pip install 'padim-edge[stores]'")
    done = padim_edge("run", model_file, "s3://photos", prelude=blocking("fsspec"))
    done.failed(1, "s3://photos needs fsspec", "pip install 'padim-edge[stores]'")
    assert MissingDependencyError.exit_code == 1
    done = padim_edge("run", model_file, "gs://photos", prelude=blocking("gcsfs"))
    done.failed(1, "gs://photos: Please install gcsfs")
