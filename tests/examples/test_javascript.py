"""The example in JavaScript judges as Python does: in Node.js, and in a real browser."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import raw_http
from browser import chromium
from node import EXAMPLE, example
from PIL import Image

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


def test_node_says_what_python_says(folder, model, frames, tmp_path):
    (tmp_path / "no.png").write_text("no image")
    done = judged(folder, model, *frames, tmp_path / "no.png")
    assert done.returncode == 3, done.stderr
    *lines, broken = [json.loads(line) for line in done.stdout.splitlines()]
    assert broken["path"] == str(tmp_path / "no.png")
    assert "unsupported image format" in broken["error"]
    with Detector(model, engine="ort") as detector:
        for path, line in zip(frames, lines, strict=True):
            result = detector(path)
            assert line["path"] == str(path)
            assert math.isclose(line["score"], result.score, rel_tol=1e-5)
            assert line["threshold"] == result.threshold
            assert line["isAnomalous"] == result.is_anomalous
            assert math.isclose(line["percentile"], result.percentile)
    assert {Path(line["path"]).name for line in lines if line["isAnomalous"]} >= {"stained.png"}
    assert not all(line["isAnomalous"] for line in lines)


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


def test_the_page_says_what_python_says(folder, model, frames, tmp_path):
    with chromium() as browser, served(folder) as address:
        page = browser.new_page()
        troubles, asked = [], []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.set_input_files("#photo", frames[0])
        shows(page, "#verdict", "model first")
        page.set_input_files("#model", model)
        shows(page, "#verdict", "Now a photo")
        with Detector(model, engine="ort") as detector:
            for path in frames:
                if path.name == "alpha.png":
                    continue  # what a browser paints behind it is its own
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
        page.set_input_files("#photo", frames[-1])  # stained
        shows(page, "#details", "stained.png: ")
        with_heat = page.evaluate("picture.toDataURL()")
        page.locator("#heat").uncheck()
        assert page.evaluate("picture.toDataURL()") != with_heat
        (tmp_path / "no.png").write_text("no image")
        page.set_input_files("#photo", tmp_path / "no.png")
        shows(page, "#verdict", "no.png: ")
        assert all(url.startswith((address, "blob:", "data:")) for url in asked)
        assert not troubles
