"""Samples: what of a folder is shown, and that nothing else of the disk is."""

from __future__ import annotations

import io
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import urllib3
from PIL import Image

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.images.decode import NoSuchImageError
from padim_edge.serve import samples as module
from padim_edge.serve.openapi import document
from padim_edge.serve.samples import SIDE, Samples
from padim_edge.serve.settings import Settings

HTTP = urllib3.PoolManager(timeout=60.0, retries=False)
SECRET = b"\x89PNG\r\n\x1a\n of somebody else"


def save(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def samples(folder: Path) -> Samples:
    return Samples(folder, 1 << 20, 1_000_000)


def named(found: Samples) -> list[tuple[str, str]]:
    return [(one["kind"], one["name"]) for one in found.listed()]


def test_images_of_the_folder_are_listed_by_kind_and_links_out_of_it_are_not(tmp_path):
    folder, elsewhere = tmp_path / "samples", save(tmp_path / "elsewhere" / "secret.png")
    for name in ("b.png", "good/a.JPG", "test/deep/c.webp", "good/<b>&'\n.png"):
        save(folder / name)
    save(folder / ".hidden" / "d.png")
    (folder / "note.txt").write_text("no image")
    save(folder / "x.png").rename(folder / "good" / os.fsdecode(b"\xff.png"))
    (folder / "inside.png").symlink_to(folder / "b.png")
    (folder / "outside.png").symlink_to(elsewhere)
    (folder / "all").symlink_to(elsewhere.parent)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    os.mkfifo(folder / "pipe.png")
    found = samples(folder)
    assert sorted(named(found)) == [
        ("", "b.png"),
        ("", "inside.png"),
        ("good", "<b>&'\n.png"),
        ("good", "a.JPG"),
        ("good", "\ufffd.png"),
        ("test/deep", "c.webp"),
    ]
    assert str(found).startswith("6 of ")
    for number in range(6):
        contents, kind = found.read(str(number))
        assert Image.open(io.BytesIO(contents)).size == (40, 30)
        assert kind.startswith("image/")


def test_of_too_many_each_folder_has_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 7)
    for kind, count in (("good", 20), ("hole", 1), ("stain", 5)):
        for number in range(count):
            save(tmp_path / kind / f"{number}.png", (4, 4))
    found = samples(tmp_path)
    kinds = [kind for kind, _ in named(found)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"good": 3, "hole": 1, "stain": 3}
    assert str(found) == f"7 of 26 images in {tmp_path}"


@pytest.mark.parametrize("number", ["", "-1", "1", "+0", "00", " 0", "0x0", "\u0660", "9" * 5000])
def test_a_number_that_was_not_listed_is_none(tmp_path, number):
    save(tmp_path / "only.png")
    with pytest.raises(NoSuchImageError, match="none of this number"):
        samples(tmp_path).read(number)


def test_a_thumbnail_is_small_and_that_of_the_file_as_it_is_now(tmp_path):
    path = save(tmp_path / "wide.png", (900, 30))
    found = samples(tmp_path)
    first = found.thumbnail("0")
    assert Image.open(io.BytesIO(first)).size == (SIDE, SIDE)
    assert found.thumbnail("0") is first  # drawn once
    save(path, (30, 30), seed=1)
    os.utime(path, ns=(0, 0))  # another file, however coarse the clock of the file system
    assert found.thumbnail("0") != first


def replaced(tmp_path: Path, path: Path, by: str) -> None:
    path.unlink()
    secret = tmp_path / "secret.png"
    if by == "link":
        secret.write_bytes(SECRET)
        path.symlink_to(secret)
    elif by == "folder of a link":
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / path.name).write_bytes(SECRET)
        path.parent.rmdir()
        path.parent.symlink_to(tmp_path / "other")
    elif by == "pipe":
        os.mkfifo(path)
    elif by == "folder":
        path.mkdir()
    elif by == "text":
        path.write_text("root:x:0:0")
    elif by == "bytes":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1 << 20))
    elif by == "pixels":
        Image.new("1", (2000, 1000)).save(path)


@pytest.mark.parametrize(
    ("by", "error"),
    [
        ("nothing", "is not there any more"),
        ("link", "is not there any more"),
        ("folder of a link", "is not there any more"),
        ("pipe", "is not there any more"),
        ("folder", "cannot be read"),
        ("text", "not an image"),
        ("bytes", "has more than 1048576 bytes"),
        ("pixels", "too many pixels"),
    ],
)
def test_what_takes_the_place_of_a_sample_is_not_handed_out(tmp_path, by, error):
    path = save(tmp_path / "samples" / "good" / "0.png")
    found = samples(tmp_path / "samples")
    found.thumbnail("0")
    replaced(tmp_path, path, by)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for get in (found.read, found.thumbnail):
        with pytest.raises(PadimEdgeError, match=error):
            get("0")
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


@pytest.mark.parametrize("what", ["missing", "a file", "empty", "links alone"])
def test_a_folder_without_samples_is_refused_in_a_line(tmp_path, what):
    folder = tmp_path / "samples"
    if what == "a file":
        save(tmp_path / "photo.png").rename(folder)
    elif what != "missing":
        folder.mkdir()
    if what == "links alone":
        (folder / "a.png").symlink_to(save(tmp_path / "a.png"))
    words = {
        "missing": "there is no such folder",
        "a file": "there is no such folder",
        "empty": "no image found in",
        "links alone": "none of its 1 images is a file within it",
    }
    with pytest.raises(PadimEdgeError, match=words[what]) as caught:
        samples(folder)
    assert isinstance(caught.value, UsageError) == (what in ("missing", "a file"))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_they_are_served_by_number_to_who_may_ask(serve, model, tmp_path):
    path = save(tmp_path / "stain" / "0.png")
    damaged = tmp_path / "stain" / "1.png"
    damaged.write_bytes(b"\xff\xd8\xff\xe0 and no more")
    service = serve(model, samples=tmp_path, token="0123456789abcdef")
    assert f"samples: 2 of 2 images in {tmp_path}" in service.described()
    bearer = {"authorization": "Bearer 0123456789abcdef"}

    def get(address: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
        return HTTP.request(method, service.url + address, headers={**bearer, **headers})

    listed = get("v1/samples").json()
    schemas = document(Settings())["components"]
    jsonschema.validate(listed, {"$ref": "#/components/schemas/Samples", "components": schemas})
    assert listed["samples"][0] == {"number": 0, "kind": "stain", "name": "0.png"}
    given = get("v1/samples/0")
    assert (given.data, given.headers["content-type"]) == (path.read_bytes(), "image/png")
    assert given.headers["x-content-type-options"] == "nosniff"
    small = get("v1/samples/0/thumbnail")
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.data)).size == (SIDE, SIDE)
    for address, status, words in (
        ("v1/samples/2", 404, "none of this number"),
        ("v1/samples/..%2f..%2fsecret.png", 404, "nothing here"),
        ("v1/samples/%2e%2e/secret.png", 404, "nothing here"),
        ("v1/samples/stain%2f0.png", 404, "nothing here"),
        ("v1/samples/0.png", 404, "none of this number"),
        ("v1/samples/1/thumbnail", 422, "damaged or truncated"),
    ):
        given = get(address)
        assert (given.status, words in given.json()["error"]) == (status, True), given.data
    assert get("v1/samples/0", "DELETE").status == 405
    assert get("v1/samples/0", **{"sec-fetch-site": "cross-site"}).status == 403
    for address in ("v1/samples", "v1/samples/0", "v1/samples/0/thumbnail"):
        assert HTTP.request("GET", service.url + address).status == 401
    service.stop()


@pytest.mark.slow
def test_without_a_folder_there_are_none(service):
    assert HTTP.request("GET", service.url + "v1/samples").json() == {"samples": []}
    given = HTTP.request("GET", service.url + "v1/samples/0")
    assert (given.status, given.json()) == (404, {"error": "there are no samples here"})
