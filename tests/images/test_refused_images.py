"""Files that are no images, or are damaged, or too large."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import FORMATS, failure, noise, png, silent, upright
from PIL import Image

from padim_edge.errors import ImageError
from padim_edge.images import decode
from padim_edge.images.decode import load_image


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
