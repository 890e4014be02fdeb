"""The example in JavaScript judges as Python does: in Node.js, and in a real browser."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import raw_http
from browser import chromium
from heat import check_heat
from node import EXAMPLE, example
from pictures import png
from PIL import Image, ImageCms
from wide_grey import check_wide_grey

from padim_edge import Detector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Path:
    return example()


def judged(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["node", folder / "judge.mjs", *arguments]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False
    )


def with_a_profile(stained: Path, path: Path) -> None:
    """The same pixels with a colour profile that takes red for blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    Image.open(stained).save(path, icc_profile=bytes(profile))


def with_alpha(stained: Path, path: Path) -> None:
    """The same colours, of which some are transparent."""
    image = Image.open(stained)
    alpha = np.random.default_rng(0).integers(0, 256, (image.height, image.width), np.uint8)
    image.putalpha(Image.fromarray(alpha))
    image.save(path)


def test_node_says_what_python_says(folder, model, twelve_bit_model, frames, tmp_path):
    stained = frames[-1]
    with_a_profile(stained, tmp_path / "profile.png")
    with_alpha(stained, tmp_path / "alpha.png")
    image = Image.open(stained)
    image.quantize(60).save(tmp_path / "palette.png")
    image.convert("1").save(tmp_path / "bits.png")
    rows = np.asarray(image).astype(">u2") * 257
    unfiltered = b"".join(b"\0" + row.tobytes() for row in rows)
    (tmp_path / "colours-16.png").write_bytes(png(*image.size, 16, 2, unfiltered))
    photos = [*frames, *sorted(tmp_path.glob("*.png"))]

    image.convert("CMYK").save(tmp_path / "print.jpg")
    Image.fromarray(np.zeros((70, 70), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "no.png").write_text("no image")
    refused = {"print.jpg": "cmyk", "float.tif": "float", "no.png": "unsupported image format"}
    done = judged(folder, model, *photos, *(tmp_path / name for name in refused))
    assert done.returncode == 3, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for (name, said), line in zip(refused.items(), lines[len(photos) :], strict=True):
        assert line["path"] == str(tmp_path / name)
        assert said in line["error"]
    del lines[len(photos) :]
    with Detector(model, engine="ort") as detector:
        for path, line in zip(photos, lines, strict=True):
            result = detector(path)
            assert line["path"] == str(path)
            assert math.isclose(line["score"], result.score, rel_tol=1e-5)
            assert line["threshold"] == result.threshold
            assert line["isAnomalous"] == result.is_anomalous
            assert math.isclose(line["percentile"], result.percentile)
    assert {Path(line["path"]).name for line in lines if line["isAnomalous"]} >= {"stained.png"}
    assert not all(line["isAnomalous"] for line in lines)

    def said(file: Path, photo: Path) -> str:
        return judged(folder, file, photo).stdout

    check_wide_grey(said, model, twelve_bit_model, image, tmp_path / "wide.png")


def test_a_map_with_nan_is_no_proof_of_a_good_part(folder, numberless_model, frames):
    done = judged(folder, numberless_model, frames[0])
    line = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    assert line["isAnomalous"] is True
    assert line["score"] is None
    assert line["percentile"] == 0


def test_node_refuses_other_files_in_a_line(folder, model_file, embedding_file, frames, tmp_path):
    photo = frames[0]
    (tmp_path / "half.onnx").write_bytes(model_file.read_bytes()[:5000])
    newer = onnx.load(model_file)
    next(one for one in newer.metadata_props if one.key == "padim_edge.format").value = "3"
    onnx.save(newer, tmp_path / "newer.onnx")
    for path, said in (
        (model_file, "--frame-input"),
        (embedding_file, "is no detector"),
        (photo, "no ONNX file"),
        (tmp_path / "half.onnx", "no whole ONNX file"),
        (tmp_path / "newer.onnx", "its format is version 3, this program reads 1 and 2"),
        (tmp_path / "absent.onnx", "ENOENT"),
    ):
        done = judged(folder, path, photo)
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.startswith(f"error: {path}: ")
        assert done.stderr.count("\n") == 1
    for key, value in (("preprocess", "{}"), ("threshold", "1,5")):
        damaged = onnx.load(model_file)
        next(one for one in damaged.metadata_props if one.key == f"padim_edge.{key}").value = value
        onnx.save(damaged, tmp_path / "damaged.onnx")
        done = judged(folder, tmp_path / "damaged.onnx", photo)
        assert done.returncode == 1
        assert key in done.stderr
        assert done.stderr.endswith("): fit it again\n")
        assert done.stderr.count("\n") == 1
    assert judged(folder, model_file).returncode == 2


def test_real_photos_in_node(folder, bottle_model, bottles):
    """As PNG, which all decoders read alike; a JPEG padim-edge decodes smaller than others do."""
    done = judged(folder, bottle_model, *bottles)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    with Detector(bottle_model, engine="ort") as detector:
        for path, line in zip(bottles, lines, strict=True):
            assert math.isclose(line["score"], detector(path).score, rel_tol=1e-5), path
    assert {line["isAnomalous"] for line in lines} == {True, False}


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the example's own server."""
    command = ["node", str(folder / "page-server.mjs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def test_the_pages_server_goes_on_whatever_is_asked_for(folder):
    with served(folder) as address:
        for place in ("//", "//x:y", "/http://[", "/none", "/package.json", "/%", "/?photo=1", "/"):
            answer = raw_http.ask(address.rstrip("/"), raw_http.get(place))
            assert answer[0] == (200 if place in ("/", "/?photo=1") else 404), place
        again = server_refuses(folder, address.rstrip("/").rpartition(":")[2])
        assert "EADDRINUSE" in again


def server_refuses(folder: Path, *arguments: str) -> str:
    """The only line that the example's server says before it ends."""
    command = ["node", str(folder / "page-server.mjs"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_what_is_not_installed_is_said_in_a_line(folder, tmp_path):
    for path in EXAMPLE.glob("*.*"):
        shutil.copy(path, tmp_path)
    assert "run npm ci" in server_refuses(tmp_path)
    assert "is no port" in server_refuses(folder, "http")
    done = judged(tmp_path, "padim.onnx", "photo.png")
    assert done.returncode == 1
    assert done.stderr.startswith("error: Cannot find package 'onnxruntime-node'")
    assert done.stderr.endswith(": run npm ci beside this file\n")
    assert done.stderr.count("\n") == 1


def shows(page, selector: str, text: str) -> None:
    """Wait until an element has this text; the page allows no eval, as other ways to wait need."""
    page.locator(selector).filter(has_text=text).wait_for(timeout=120_000)


# Sessions of the page's runtime that have been made and not released.
COUNT = """async () => {
  const { InferenceSession } = await import(new URL("ort/ort.wasm.min.mjs", location).href);
  const create = InferenceSession.create.bind(InferenceSession);
  window.sessions = 0;
  InferenceSession.create = async (...from) => {
    const session = await create(...from);
    const release = session.release.bind(session);
    session.release = async () => {
      await release();
      window.sessions -= 1;
    };
    window.sessions += 1;
    return session;
  };
}"""


def picture(page) -> np.ndarray:
    """What the page shows, [H, W, 3]."""
    encoded = page.evaluate("picture.toDataURL()").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")).astype(int)


def test_the_page_says_what_python_says(
    folder,
    model,
    model_file,
    twelve_bit_model,
    cropping_model,
    numberless_model,
    frames,
    tmp_path,
):
    stained = frames[-1]
    with_a_profile(stained, tmp_path / "profile.png")
    with_alpha(stained, tmp_path / "transparent.png")
    with chromium() as browser, served(folder) as address:
        page = browser.new_page()
        troubles, asked = [], []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.evaluate(COUNT)
        page.set_input_files("#photo", frames[0])
        shows(page, "#verdict", "model first")
        page.set_input_files("#model", model_file)
        shows(page, "#verdict", "--frame-input")
        assert page.evaluate("sessions") == 0
        page.set_input_files("#model", model)
        shows(page, "#verdict", "Now a photo")
        page.set_input_files("#model", twelve_bit_model)
        shows(page, "#verdict", "twelve.onnx: it is for grey photos of 12 bits")
        assert page.evaluate("sessions") == 1  # the one before, which goes on
        with Detector(model, engine="ort") as detector:
            for path in (*frames, tmp_path / "profile.png"):
                page.set_input_files("#photo", path)
                shows(page, "#details", f"{path.name}: ")
                result = detector(path)
                verdict = page.locator("#verdict")
                assert math.isclose(
                    float(verdict.get_attribute("data-score")), result.score, rel_tol=1e-5
                )
                assert verdict.text_content() == ("ANOMALY" if result.is_anomalous else "OK")
                width, height = Image.open(path).size
                assert page.evaluate("[picture.width, picture.height]") == [width, height]
        for file in (model, cropping_model):
            page.set_input_files("#model", file)
            shows(page, "#verdict", "Now a photo")
            assert page.evaluate("sessions") == 1
            page.set_input_files("#photo", stained)
            shows(page, "#details", "stained.png: ")
            with_heat = picture(page)
            page.locator("#heat").uncheck()
            with Detector(file, engine="ort") as detector:
                outside = check_heat(picture(page), with_heat, detector(stained))
            assert outside == (file == cropping_model)
            page.locator("#heat").check()
        page.set_input_files("#model", numberless_model)
        shows(page, "#verdict", "Now a photo")
        page.set_input_files("#photo", stained)
        shows(page, "#details", "stained.png: score NaN")
        assert page.locator("#verdict").text_content() == "ANOMALY"
        page.set_input_files("#photo", tmp_path / "transparent.png")
        shows(page, "#verdict", "transparent.png: has transparent pixels")
        (tmp_path / "no.png").write_text("no image")
        page.set_input_files("#photo", tmp_path / "no.png")
        shows(page, "#verdict", "no.png: ")
        assert all(url.startswith((address, "blob:", "data:")) for url in asked)
        assert not troubles
