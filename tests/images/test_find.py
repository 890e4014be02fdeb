"""Finding images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from padim_edge.errors import PadimEdgeError
from padim_edge.images.find import beside, find_images, look, places, read_list


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.PNG",
        "a.jpg",
        "sub/deep/c.Tiff",
        "sub/d.webp",
        "notes.txt",
        "model.onnx",
        ".hidden.png",
        "._a.jpg",
        ".cache/e.png",
        "sub/Thumbs.db",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(found: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_find_in_a_folder(tree: Path) -> None:
    everything = ["a.jpg", "b.PNG", "sub/d.webp", "sub/deep/c.Tiff"]
    assert names(find_images(tree), tree) == everything
    assert names(find_images(str(tree) + "/"), tree) == everything
    assert names(find_images(tree / ".cache"), tree) == [".cache/e.png"]  # named, so wanted


def test_find_a_file_of_any_name(tree: Path) -> None:
    assert find_images(tree / "notes.txt") == [tree / "notes.txt"]
    odd = tree / "a[1].png"
    odd.touch()
    assert find_images(odd) == [odd]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg"]),
        ("*", ["a.jpg", "b.PNG"]),
        ("**/*", ["a.jpg", "b.PNG", "sub/d.webp", "sub/deep/c.Tiff"]),
        ("sub/**/*.[tT]iff", ["sub/deep/c.Tiff"]),
        ("s?b/*", ["sub/d.webp"]),
    ],
)
def test_find_by_pattern(tree: Path, pattern: str, found: list[str]) -> None:
    assert names(find_images(str(tree / pattern)), tree) == found
    assert names(find_images(tree / pattern), tree) == found


def test_links_are_followed_once(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "f.png").touch()
    (tree / "link").symlink_to(elsewhere)
    (tree / "twin").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tree)
    (tree / "dangling.png").symlink_to(tree / "gone.png")
    found = names(find_images(tree), tree)
    # A link that leads nowhere was meant to be a photo: it is one that cannot be read.
    assert found == [
        *("a.jpg", "b.PNG", "dangling.png", "link/f.png", "sub/d.webp", "sub/deep/c.Tiff"),
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "no such file or folder: .*missing"),
        ("missing.png", "no such file or folder"),
        ("*.bmp", "no image found in"),
        ("missing/**/*.png", "no image found in"),
        ("folder.png", "no image found in .*folder.png"),
    ],
)
def test_nothing_found(tree: Path, source: str, message: str) -> None:
    with pytest.raises(PadimEdgeError, match=message) as caught:
        find_images(tree / source)
    assert caught.value.exit_code == 1


def test_a_folder_that_cannot_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def denied(path: Any) -> Any:  # chmod would not stop root
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PadimEdgeError, match=r"cannot read .*deep: Permission denied"):
        find_images(tree)


# ----------------------------------------------------------------------- what is no image


def test_what_is_no_image_is_counted_by_kind(tree: Path) -> None:
    for name in ("x.heic", "y.HEIC", "z.tga", "README", "sub/.DS_Store"):
        (tree / name).touch()
    (tree / "gone.txt").symlink_to(tree / "nowhere")
    os.mkfifo(tree / "pipe.png")
    found = look([tree])
    assert names(found.images, tree) == ["a.jpg", "b.PNG", "sub/d.webp", "sub/deep/c.Tiff"]
    assert found.others == {
        ".db": 1,
        ".heic": 2,
        ".onnx": 1,
        ".tga": 1,
        ".txt": 2,
        "device or pipe": 1,
        "hidden": 4,  # .hidden.png, ._a.jpg, the folder .cache, sub/.DS_Store
        "without a suffix": 1,
    }
    assert str(found) == (
        "1 .db, 2 .heic, 1 .onnx, 1 .tga, 2 .txt, 1 device or pipe, 4 hidden, 1 without a suffix"
    )


def test_what_a_pattern_matches_and_is_no_image(tree: Path) -> None:
    assert look([tree / "*"]).others == {".txt": 1, ".onnx": 1, "folder": 2}
    assert "folder" not in look([tree / "**" / "*"]).others  # it looks into them


def test_nothing_but_other_kinds(tree: Path) -> None:
    (tree / "folder.png" / "a.heic").touch()
    with pytest.raises(PadimEdgeError, match=r"no image found in .*; there are 1 \.heic; names"):
        find_images(tree / "folder.png")


def test_several_sources_give_each_image_once(tree: Path) -> None:
    found = look([tree / "sub", tree / "b.PNG", tree / "*.PNG", tree / "sub" / "d.webp"])
    assert names(found.images, tree) == ["sub/d.webp", "sub/deep/c.Tiff", "b.PNG"]
    assert found.others == {".db": 1}
    with pytest.raises(PadimEdgeError, match=r"no such file or folder: .*missing"):
        look([tree / "sub", tree / "missing"])


def test_what_lies_beside_images(tree: Path) -> None:
    (tree / "sub" / "x.heic").touch()
    found = beside(find_images(tree))
    assert str(found) == "1 .db, 1 .heic, 1 .onnx, 1 .txt, 3 hidden"


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_lists(separator: str) -> None:
    wanted = [Path("a.png"), Path("with space.png"), Path("ü.png")]
    text = separator.join(map(str, wanted)).encode()
    for data in (text, text + separator.encode(), b"\xef\xbb\xbf" + text):
        assert read_list(data) == wanted
    assert read_list(b"") == []
    assert read_list(b"a\nb.png\0c.png") == [Path("a\nb.png"), Path("c.png")]
    assert os.fsencode(read_list(b"\xff.png")[0]) == b"\xff.png"


def test_where_files_lie_in_words() -> None:
    assert places([Path("a/1.png"), Path("b/1.png"), Path("a/2.png")]) == "2 of a, 1 of b"
    many = [Path(f"{folder}/{number}.png") for folder in range(7) for number in range(7 - folder)]
    assert places(many) == "7 of 0, 6 of 1, 5 of 2, 4 of 3, 6 of 3 more folders"
