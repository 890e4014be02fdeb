"""One image by POST: what is answered is what the detector says, and bad bodies get a line."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

pytest.importorskip("jsonschema")
pytest.importorskip("urllib3")

import jsonschema
import urllib3

from padim_edge import Detector
from padim_edge.detect.overlay_folder import drawn
from padim_edge.detect.regions import regions_of
from padim_edge.errors import PadimEdgeError
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings as FitSettings
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.serve.openapi import document
from padim_edge.serve.settings import Settings

HTTP = urllib3.PoolManager(timeout=60.0, retries=False)


@pytest.fixture(scope="module")
def detector(model):
    with Detector(model, "ort") as one:
        yield one


def judge(service, body, query="", name="bottle", **headers):
    return HTTP.request(
        *("POST", f"{service.url}v1/models/{name}/judge{query}"), body=body, headers=headers
    )


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """What any detector takes for an anomaly."""
    path = tmp_path_factory.mktemp("noise") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (120, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def encoded(photo, kind, **options):
    stream = io.BytesIO()
    Image.open(photo).convert("RGB").save(stream, kind, **options)
    return stream.getvalue()


def conforms(value, name):
    """Check a value against the schema that the service itself gives."""
    given = document(Settings())
    schema = {"$ref": f"#/components/schemas/{name}", "components": given["components"]}
    jsonschema.validate(value, schema)


def test_every_photo_gets_what_the_detector_says(service, detector, photos, noise):
    decisions = set()
    for photo in (*sorted((photos / "test").rglob("*.png")), noise):
        given = judge(service, photo.read_bytes())
        assert given.status == 200, given.data
        said, result = given.json(), detector(photo)
        conforms(said, "Judgement")
        assert said == {
            "model": "bottle",
            "decision": "anomaly" if result.is_anomalous else "ok",
            "score": result.score,
            "threshold": result.threshold,
            "percentile": result.percentile,
            "regions": [region.to_json() for region in result.regions],
            "size": {"width": result.size[1], "height": result.size[0]},
        }
        decisions.add((said["decision"], bool(said["regions"])))
    assert decisions == {("ok", False), ("anomaly", True)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"])
def test_formats_are_told_by_their_content_whatever_the_header_says(
    service, detector, photos, kind
):
    body = encoded(photos / "test" / "good" / "000.png", kind)
    said = judge(service, body, **{"content-type": "text/html"}).json()
    assert said["score"] == detector(body).score


def test_a_photo_that_lies_on_its_side_is_judged_upright(service, detector, noise):
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    body = encoded(noise, "JPEG", exif=turned, quality=95)
    said = judge(service, body).json()
    assert said["score"] == detector(body).score != detector(encoded(noise, "JPEG")).score
    assert said["size"] == {"width": 120, "height": 80}


def test_the_picture_is_the_one_that_run_saves(service, detector, noise):
    photo = noise
    expected = np.asarray(drawn(detector, photo, detector(photo)))
    said = judge(service, photo.read_bytes(), "?heat_map=png").json()
    conforms(said, "Judgement")
    alone = judge(service, photo.read_bytes(), Accept="image/png")
    assert alone.headers["content-type"] == "image/png"
    for picture in (base64.b64decode(said["heat_map"]), alone.data):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), expected)


def bomb(width, height):
    """A PNG of a few bytes that says it is huge."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I4s", 9, b"IDAT")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "the body is empty"),
        (b"<html>", 415, "the body is not an image; PNG, JPEG"),
        (b"--x\r\nContent-Disposition: form-data", 415, "no form"),
        (b"\xff\xd8\xff\xe0 and no more", 422, "damaged or truncated"),
        (bomb(60_000, 60_000), 413, "60000 x 60000); at most 50,000,000"),
        (b"\x89PNG\r\n\x1a\n" * 3, 422, "damaged"),
        (b"x" * (1 << 20), 415, "not an image"),
    ],
)
def test_a_bad_body_gets_one_line(service, body, status, words):
    given = judge(service, body)
    assert given.status == status
    conforms(given.json(), "Error")
    assert words in given.json()["error"]
    assert "\n" not in given.json()["error"]


def test_a_half_photo_gets_one_line(service, photos):
    body = encoded(photos / "test" / "good" / "000.png", "JPEG")
    given = judge(service, body[: len(body) // 2])
    assert given.status == 422
    assert "damaged or truncated" in given.json()["error"]


def test_what_is_asked_wrongly(service):
    assert judge(service, b"x", "?heat_map=gif").status == 400
    missing = judge(service, b"x", name="cable")
    assert missing.status == 404
    assert missing.json() == {"error": "there is no model 'cable': bottle may be asked"}
    wrong = HTTP.request("GET", service.url + "v1/models/bottle/judge")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert "error" in wrong.json()


def test_too_many_bytes_are_refused_whether_or_not_their_number_is_said(serve, model):
    service = serve(model, max_bytes=4096)
    for body in (b"x" * 5000, iter([b"x" * 3000] * 2)):
        given = judge(service, body)
        assert given.status == 413, given.data
        assert "at most 4096 bytes" in given.json()["error"]
    far = judge(service, b"x" * 200_000)
    assert far.status == 413


def test_regions_are_found_in_the_pool_and_not_where_all_clients_wait(service, noise, monkeypatch):
    threads = []

    def told(*arguments):
        threads.append(threading.current_thread().name)
        return regions_of(*arguments)

    monkeypatch.setattr("padim_edge.detect.detector.regions_of", told)
    assert judge(service, noise.read_bytes()).json()["regions"]
    assert len(threads) == 1
    assert threads[0].startswith("padim-edge-serve")


def test_the_openapi_document_names_every_address_and_answers_conform(service):
    given = HTTP.request("GET", service.url + "openapi.json").json()
    assert given["openapi"] == "3.1.0"
    for schema in given["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    routes = {route.path for route in service._app._routes()}
    assert routes - set(given["paths"]) == {"/", "/serve.js", "/serve.css", "/openapi.json", "/v2/"}
    assert set(given["paths"]) <= routes
    for path, said in given["paths"].items():
        for method, operation in said.items():
            assert ("401" in operation["responses"]) == ("/health/" not in path), path
            assert {"403", "408", "421", "431"} <= set(operation["responses"]), path
            assert set(operation["responses"]["408"]["content"]) == {"text/plain"}
            content = operation["responses"]["200"]["content"]
            if method != "get" or "application/json" not in content:
                continue
            address = path.replace("{name}", "bottle").replace("{version}", "1")
            value = HTTP.request("GET", service.url[:-1] + address)
            assert value.status == 200, address
            name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
            conforms(value.json(), name)


def test_what_is_refused_everywhere_is_as_the_document_says(service):
    codes = {}
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"host": "elsewhere.example"},
        {"x-long": "x" * 17_000},
    ):
        given = HTTP.request("GET", service.url + "v1/models", headers=headers)
        conforms(given.json(), "Error")
        codes[given.status] = given.headers["content-type"]
    said = document(Settings())["paths"]["/v1/models"]["get"]["responses"]
    assert codes == dict.fromkeys((403, 421, 431), "application/json")
    assert {str(code) for code in codes} <= set(said)


def test_the_page_asks_nobody_else(service):
    for path in ("", "serve.js", "serve.css", "base.css"):
        given = HTTP.request("GET", service.url + path)
        assert given.status == 200
        assert b"http://" not in given.data
        assert b"https://" not in given.data
        assert "default-src 'self'" in given.headers["content-security-policy"]


def test_a_mistake_of_the_server_is_a_line_and_not_its_end(serve, model, noise, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret")

    service = serve(model)
    monkeypatch.setattr("padim_edge.serve.app.drawn", broken)
    given = judge(service, noise.read_bytes(), "?heat_map=png")
    assert given.status == 500
    conforms(given.json(), "Error")
    assert "secret" not in given.json()["error"]
    assert judge(service, noise.read_bytes()).status == 200
    counted = HTTP.request("GET", service.url + "metrics").data.decode()
    assert 'padim_edge_requests_total{code="500",endpoint="judge",model="bottle"} 1.0' in counted
    assert 'padim_edge_queue_images{model="bottle"} 0.0' in counted


def test_an_engine_that_fails_is_the_servers_fault(serve, model, noise, monkeypatch):
    service = serve(model)

    def fails(_):
        raise PadimEdgeError("the device is lost")

    monkeypatch.setattr(service._slots["bottle"].loaded.batches, "_run", fails)
    given = judge(service, noise.read_bytes())
    assert (given.status, given.json()) == (500, {"error": "the device is lost"})


def test_a_score_that_is_no_number_is_an_anomaly(serve, model, noise, monkeypatch):
    service = serve(model)
    batches = service._slots["bottle"].loaded.batches
    run = batches._run

    def nowhere(items):
        return [
            dataclasses.replace(one, score=float("nan"), is_anomalous=True) for one in run(items)
        ]

    monkeypatch.setattr(batches, "_run", nowhere)
    said = judge(service, noise.read_bytes(), "?heat_map=png").json()
    conforms(said, "Judgement")
    assert (said["score"], said["decision"], said["heat_map"]) == (None, "anomaly", None)
    assert said["regions"] == []
    assert judge(service, noise.read_bytes(), Accept="image/png").status == 500


def test_a_real_bottle(data, real_embedding, serve, tmp_path):
    photos = data / "data" / "mvtec-256" / "bottle"
    good = train_images(photos)[:40]
    path = tmp_path / "real.onnx"
    fit_detector(real_embedding, good, path, FitSettings(Preprocess.whole((224, 224))))
    service = serve(path, max_batch=1)
    with Detector(path, "ort") as detector:
        for photo in (
            photos / "test" / "good" / "000.png",
            photos / "test" / "broken_large" / "000.png",
        ):
            said = judge(service, photo.read_bytes(), name="real").json()
            assert said["score"] == detector(photo).score
            assert said["regions"] == json.loads(
                json.dumps([region.to_json() for region in detector(photo).regions])
            )
    assert said["decision"] == "anomaly"
