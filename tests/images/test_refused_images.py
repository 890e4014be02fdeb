"""Files that are no images, or are damaged, or too large."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import FORMATS, failure, noise, png, silent, upright
from PIL import Image

from padim_edge.errors import ImageError
from padim_edge.images import decode
from padim_edge.images.decode import MAX_SCANS, TooManyPixelsError, check_head, load_image


@silent
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, {"tif": "TIFF", "jpg": "JPEG"}.get(suffix, suffix))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
    assert "damaged or truncated" in failure(path)


@pytest.mark.filterwarnings("ignore")  # Pillow on damaged EXIF
@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_end_in_an_image_or_an_image_error(tmp_path: Path, suffix: str) -> None:
    whole = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(upright()).save(
        whole, {"tif": "TIFF", "jpg": "JPEG"}.get(suffix, suffix), exif=exif
    )
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(150):
        body = bytearray(whole.getvalue())
        for position in rng.integers(0, min(len(body), 400), 3):
            body[position] = rng.integers(256)
        path.write_bytes(body)
        try:
            assert load_image(path).mode == "RGB"
        except ImageError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize(
    "body", [b"just text\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0" * 100]
)
def test_other_files_named_png(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "notes.png"
    path.write_bytes(body)
    assert "not an image; PNG, JPEG" in failure(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    assert "empty" in failure(path)


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in failure(tmp_path / "missing.png")
    assert "directory" in failure(tmp_path)
    assert "cannot be read" in failure("a\0.png")

    def denied(*_: object) -> None:  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in failure(tmp_path / "a.png")


def test_400_megapixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png(20000, 20000, 1, 0, (b"\0" * 2501) * 20000))
    script = """if True:
        import resource, sys, time
        from padim_edge.errors import ImageError
        from padim_edge.images.decode import load_image
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            load_image(sys.argv[1])
        except ImageError as error:
            print(error)
        print(time.perf_counter() - start)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    message, seconds, kilobytes = done.stdout.splitlines()
    assert "20000 x 20000" in message
    assert "178,956,970" in message
    assert float(seconds) < 0.5  # milliseconds on an idle machine; decoding takes seconds
    assert int(kilobytes) < 20_000  # decoding takes 400 MB


@silent
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_limit_is_exact_in_every_format(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(10, 12)).save(path)
    monkeypatch.setattr(decode, "MAX_PIXELS", 120)
    load_image(path)
    monkeypatch.setattr(decode, "MAX_PIXELS", 119)
    assert "12 x 10" in failure(path)


@silent
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif", "ppm"])
def test_large_allowed_images_raise_no_warning(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(10, 12)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Image.open warns up to 200, then raises
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    load_image(path)


def _tiled(side: int, *again: int) -> bytes:
    """A TIFF of 8 x 8 pixels in one tile, of which the sides may be said again."""
    data = zlib.compress(bytes(side * side))
    tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(tag, one) for tag in (322, 323) for one in (side, *again)]
    tags += [(324, 8 + 2 + 12 * (len(tags) + 2) + 4), (325, len(data))]
    body = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return body + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags) + bytes(4) + data


def test_a_tile_that_is_larger_than_its_image_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    check_head(_tiled(4096), 4096**2)
    assert load_image(_tiled(4096)).size == (8, 8)
    with pytest.raises(TooManyPixelsError, match=r"\(tiles of 4096 x 4096\); at most 16,777,215"):
        check_head(_tiled(4096), 4096**2 - 1)
    # libtiff takes the first, and Pillow says the last.
    with pytest.raises(ImageError, match="sides of its tiles"):
        load_image(_tiled(4096, 16))
    monkeypatch.setattr(decode, "MAX_PIXELS", 4096**2 - 1)
    with pytest.raises(ImageError, match="tiles of 4096 x 4096"):
        load_image(_tiled(4096))


def test_a_jpeg_of_scans_without_end_is_refused() -> None:
    stream = io.BytesIO()
    Image.new("L", (16, 16), 128).save(stream, "JPEG", progressive=True)
    whole = stream.getvalue()
    last = whole.rindex(b"\xff\xda")
    before = whole.count(b"\xff\xda")
    scans = whole[last:-2] * (MAX_SCANS - before)
    assert load_image(whole[:last] + scans + whole[last:]).size == (16, 16)
    # What looks like scans after the image, such as a phone's film, is none.
    assert load_image(whole + b"\xff\xda" * 1000).size == (16, 16)
    with pytest.raises(ImageError, match="JPEG of 501 scans; at most 500"):
        load_image(whole[:last] + scans + whole[last:-2] + whole[last:])
