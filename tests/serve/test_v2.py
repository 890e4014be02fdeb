"""The Open Inference Protocol, as NVIDIA's client speaks it, and as no client should."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tritonclient.http", reason="needs pip install 'tritonclient[http]'")
pytest.importorskip("urllib3")

import tritonclient.http as triton
import urllib3
from live_events import until
from tritonclient.utils import InferenceServerException

from padim_edge import Detector
from padim_edge.errors import UsageError
from padim_edge.serve import v2

HTTP = urllib3.PoolManager(timeout=60.0, retries=False)


@pytest.fixture(scope="module")
def client(service):
    one = triton.InferenceServerClient(service.url.removeprefix("http://").rstrip("/"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def tensor(images, binary=True):
    given = triton.InferInput("image", list(images.shape), "UINT8")
    given.set_data_from_numpy(images, binary_data=binary)
    return given


def test_the_client_finds_what_there_is(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bottle")
    assert client.is_model_ready("bottle", "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for version in ("", "1"):
        assert client.get_model_metadata("bottle", version) == {
            "name": "bottle",
            "versions": ["1"],
            "platform": "onnx_padim_edge",
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}],
            "outputs": [
                {"name": "score", "datatype": "FP32", "shape": [-1]},
                {"name": "score_map", "datatype": "FP32", "shape": [-1, 64, 64]},
            ],
        }
    assert client.get_model_repository_index() == [
        {"name": "bottle", "version": "1", "state": "READY", "reason": ""}
    ]


def test_names_and_types_are_those_of_the_file(client, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    said = client.get_model_metadata("bottle")
    types = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
    for ours, its in (
        (said["inputs"], session.get_inputs()),
        (said["outputs"], session.get_outputs()),
    ):
        by_name = {one["name"]: one for one in ours}
        for one in its:
            assert by_name[one.name]["datatype"] == types[one.type]
            assert by_name[one.name]["shape"][1:] == one.shape[1:]
        assert len(ours) == len(its)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tensors_are_those_of_the_detector_exactly(client, model, images, binary_in, binary_out):
    outputs = None
    if binary_out is not None:
        outputs = [
            triton.InferRequestedOutput(name, binary_data=binary_out)
            for name in ("score_map", "score")
        ]
    with Detector(model, "ort") as detector:
        for image in images:
            answer = client.infer("bottle", [tensor(image[None], binary_in)], "1", outputs, "seven")
            (expected,) = detector.judge(image[None])
            assert answer.as_numpy("score").tolist() == [expected.score]
            assert answer.as_numpy("score_map").dtype == np.float32
            assert np.array_equal(answer.as_numpy("score_map")[0], expected.score_map)
            assert answer.get_response()["id"] == "seven"


def test_only_what_is_asked_for_is_sent(client, images):
    wanted = [triton.InferRequestedOutput("score")]
    answer = client.infer("bottle", [tensor(images[:1])], outputs=wanted)
    assert [one["name"] for one in answer.get_response()["outputs"]] == ["score"]


def test_a_batch_goes_through_the_engine_at_once(serve, model, images, tmp_path):
    service = serve(model, max_batch=8)
    client = triton.InferenceServerClient(service.url.removeprefix("http://").rstrip("/"))
    answer = client.infer("bottle", [tensor(images)])
    with Detector(model, "ort") as detector:
        expected = detector.judge(images)
    assert answer.as_numpy("score").tolist() == [one.score for one in expected]
    assert np.array_equal(answer.as_numpy("score_map"), [one.score_map for one in expected])
    counted = HTTP.request("GET", service.url + "metrics").data.decode()
    assert 'padim_edge_batch_images_sum{model="bottle"} 3.0' in counted
    assert 'padim_edge_batch_images_count{model="bottle"} 1.0' in counted
    with pytest.raises(InferenceServerException, match="with N from 1 to 8"):
        client.infer("bottle", [tensor(np.repeat(images, 3, axis=0))])


def test_several_models_and_two_of_one_name(serve, model, tmp_path):
    other = tmp_path / "cable 2.onnx"
    shutil.copy(model, other)
    service = serve(model, other)
    client = triton.InferenceServerClient(service.url.removeprefix("http://").rstrip("/"))
    assert [one["name"] for one in client.get_model_repository_index()] == ["bottle", "cable 2"]
    assert client.is_model_ready("cable 2")


GOOD = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3]}
ZEROS = [0] * (64 * 64 * 3)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ([], "does not fit the model (Expected `object`, got `array`)"),
        ({}, "missing required field `inputs`"),
        ({"inputs": [GOOD, GOOD]}, "Expected `array` of length 1"),
        ({"inputs": []}, "Expected `array` of length 1"),
        ({"inputs": [3]}, "Expected `object`, got `int` - at `$.inputs[0]`"),
        ({"inputs": [{**GOOD, "name": "x"}]}, "the input is 'x' of 'UINT8'"),
        ({"inputs": [{**GOOD, "datatype": "FP32"}]}, "of 'FP32'"),
        ({"inputs": [{**GOOD, "shape": [1, 3, 64, 64]}]}, "[N, 64, 64, 3] is needed"),
        (
            {"inputs": [{**GOOD, "shape": [64, 64, 3]}]},
            "of length 4 - at `$.inputs[0].shape`",
        ),
        ({"inputs": [{**GOOD, "shape": [1] * 90}]}, "of length 4"),
        ({"inputs": [{**GOOD, "shape": [2, 64, 64, 3]}]}, "with N from 1 to 1"),
        ({"inputs": [{**GOOD, "shape": [True, 64, 64, 3]}]}, "Expected `int`, got `bool`"),
        ({"inputs": [{**GOOD, "shape": [0, 64, 64, 3]}]}, "[N, 64, 64, 3] is needed"),
        ({"inputs": [GOOD]}, "'data' must be a list; nothing was given"),
        ({"inputs": [{**GOOD, "data": ZEROS[1:]}]}, "has 12287 values, and its shape 12288"),
        ({"inputs": [{**GOOD, "data": [256, *ZEROS[1:]]}]}, "integers from 0 to 255"),
        ({"inputs": [{**GOOD, "data": [-1, *ZEROS[1:]]}]}, "integers from 0 to 255"),
        ({"inputs": [{**GOOD, "data": [0.5, *ZEROS[1:]]}]}, "integers from 0 to 255"),
        ({"inputs": [{**GOOD, "data": [10**400, *ZEROS[1:]]}]}, "integers from 0 to 255"),
        ({"inputs": [{**GOOD, "data": ["0"]}]}, "integers from 0 to 255"),
        ({"inputs": [{**GOOD, "data": [2**64, *ZEROS[1:]]}]}, "integers from 0 to 255"),
        ({"inputs": [{**GOOD, "data": [None, *ZEROS[1:]]}]}, "integers from 0 to 255"),
        ({"inputs": [{**GOOD, "data": {"a\nb": 1}}]}, "must be a list; {"),
        ({"inputs": [{**GOOD, "data": [[0], ZEROS[1:]]}]}, "are neither flat nor [1, 64, 64, 3]"),
        ({"inputs": [{**GOOD, "data": [ZEROS]}]}, "are neither flat nor [1, 64, 64, 3]"),
        ({"inputs": [{**GOOD, "data": [[]]}]}, "has 0 values, and its shape 12288"),
        ({"inputs": [{**GOOD, "data": []}]}, "has 0 values, and its shape 12288"),
        (
            {"inputs": [{**GOOD, "data": ZEROS}], "outputs": [{"name": "x"}]},
            "Invalid enum value 'x' - at `$.outputs[0].name`): its metadata say what does",
        ),
        (
            {
                "inputs": [{**GOOD, "data": ZEROS}],
                "outputs": [{"name": "score", "parameters": {"classification": 3}}],
            },
            "no output has classes",
        ),
        (
            {"inputs": [{**GOOD, "data": ZEROS}], "parameters": {"binary_data_output": 1}},
            "Expected `bool | null`, got `int` - at `$.parameters.binary_data_output`",
        ),
        (
            {"inputs": [{**GOOD, "data": ZEROS}], "id": 7},
            "Expected `str | null`, got `int` - at `$.id`",
        ),
        (
            {"inputs": [{**GOOD, "parameters": {"binary_data_size": 12288}}]},
            "is 12288, and 0 bytes come after",
        ),
    ],
)
def test_a_request_that_is_none_gets_one_line(service, request_, words):
    body = json.dumps(request_).encode()
    given = HTTP.request("POST", service.url + "v2/models/bottle/infer", body=body)
    assert given.status == 400, given.data
    assert words in given.json()["error"]
    assert len(given.json()["error"]) < 300
    assert "\n" not in given.json()["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", {}, 400, "the body is no JSON"),
        (b"{", {}, 400, "the body is no JSON"),
        (b"\xff\xfe", {}, 400, "the body is no JSON"),
        (b'{"x":' + b"[" * 60_000, {}, 400, "the body is no JSON"),
        (b"{}", {v2.LENGTH: "x"}, 400, "must be a number of bytes; 'x'"),
        (b"{}", {v2.LENGTH: "3"}, 400, "is 3, and the body has 2 bytes"),
        (b"{}", {v2.LENGTH: "-1"}, 400, "must be a number of bytes"),
        (b"{}", {"content-encoding": "gzip"}, 415, "compressed bodies are not read"),
        (b" " * 500_000, {}, 413, "at most 139264 bytes"),
    ],
)
def test_bodies_that_lie(service, body, headers, status, words):
    given = HTTP.request("POST", service.url + "v2/models/bottle/infer", body=body, headers=headers)
    assert given.status == status, given.data
    assert words in given.json()["error"]


def test_binary_data_that_are_not_what_they_say(service):
    def asked(said, sent, **more):
        head = json.dumps(
            {"inputs": [{**GOOD, **more, "parameters": {"binary_data_size": said}}]}
        ).encode()
        return HTTP.request(
            *("POST", service.url + "v2/models/bottle/infer"),
            body=head + b"\0" * sent,
            headers={v2.LENGTH: str(len(head))},
        )

    assert asked(12288, 12288).status == 200
    for said, sent in ((12288, 12287), (12287, 12287), (12288, 12289), (-1, 12288), (True, 1)):
        assert asked(said, sent).status == 400
    assert "one of them" in asked(12288, 12288, data=ZEROS).json()["error"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), ("\r\n ,\t", " :\n")])
def test_values_in_json_are_the_same_however_they_are_written(images, nested, separators):
    data = images.tolist() if nested else images.ravel().tolist()
    tensor = {"name": "image", "datatype": "UINT8", "shape": [3, 64, 64, 3], "data": data}
    text = json.dumps({"data": [7], "inputs": [tensor], "x": {"data": 1}}, separators=separators)
    assert np.array_equal(v2.parse(text.encode(), None, (64, 64), 3).images, images)


@pytest.mark.parametrize(
    "text",
    [
        "[01,{rest}]",
        "[1,,{rest}]",
        "[,1{rest}]",
        "[1 2,{rest}]",
        "[{rest},1,]",
        "[+1,{rest}]",
        "[{rest}",
    ],
)
def test_numbers_that_are_no_json(text):
    text = text.format(rest="0," * 12286 + "0")
    tensor = json.dumps({**GOOD, "data": None}).replace("null", text)
    with pytest.raises(UsageError, match="the body is no JSON"):
        v2.parse(f'{{"inputs": [{tensor}]}}'.encode(), None, (64, 64), 3)


def test_json_takes_a_few_times_its_bytes_whatever_is_in_it():
    """In a process of its own, whose largest size is that of one request after the other."""
    code = """
import json, sys
from pathlib import Path
from padim_edge.errors import UsageError
from padim_edge.serve import v2

def most():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

v2.parse(b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,1,1,3],"data":[1,2,3]}]}',
         None, (1, 1), 1)
for begin, piece, end, size in json.loads(sys.argv[1]):
    begin, piece, end = (text.encode() for text in (begin, piece, end))
    body = begin + piece * (6_000_000 // len(piece) - 1) + end
    Path("/proc/self/clear_refs").write_text("5")
    before = most()
    try:
        v2.parse(body, None, tuple(size), 8)
        done = True
    except UsageError:
        done = False
    print(json.dumps([(most() - before) / len(body), done]))
"""
    tensor = '{"inputs":[{"name":"image","datatype":"UINT8",'
    flat, square = tensor + '"shape":[4,500,500,3],"data":[', [500, 500]
    cases = [
        (flat, "0,", "0]}]}", square),
        (tensor + '"shape":[1,600000,1,3],"data":[[', "[[0,0,0]],", "[[0,0,0]]]]}]}", [600_000, 1]),
        (flat, "[],", "0]}]}", square),
        (flat, "{},", "0]}]}", square),
        (flat, "[[[257]]],", "0]}]}", square),
        (flat, '"é",', "0]}]}", square),
        ('{"inputs":[{"name":"', "é", '"}]}', square),
        ('{"inputs":[{"shape":[', "257,", "0]}]}", square),
        ('{"inputs":[{"parameters":{', '"a":[],', '"b":1}}]}', square),
        ('{"outputs":[', '{"name":"score"},', '{"name":"score"}]}', square),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(cases)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"},  # what is freed is given back
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [was_read for _, was_read in found] == [True, True, *[False] * 8]
    assert all(factor < 6 for factor, _ in found), found
    assert found[0][0] > 1, found  # or it would not be measured


def test_an_answer_takes_what_is_held_for_it():
    """Of a binary request whose maps are wanted as JSON; in a process of its own, as above."""
    code = """
import json
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from padim_edge.serve import v2

def most():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

for count, binary in ((1, False), (8, False), (8, True)):
    images = np.zeros((count, 224, 224, 3), np.uint8)
    maps = np.random.default_rng(0).random((count, 224, 224), np.float32)
    results = [SimpleNamespace(score=0.5, score_map=one) for one in maps]
    request = v2.InferRequest(images, {"score": False, "score_map": binary}, None)
    v2.answer("x", v2.InferRequest(images, {"score": False}, None), results)
    Path("/proc/self/clear_refs").write_text("5")
    before = most()
    body, _ = v2.answer("x", request, results)
    longest = v2.longest_answer("x", request, results)
    print(json.dumps([most() - before, len(body), longest, images.nbytes]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"},  # what is freed is given back
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for peak, length, longest, asked in map(json.loads, done.stdout.splitlines()):
        assert 0.9 * length < peak < longest + (2 << 20), done.stdout
        assert length <= longest < 6 * asked


def test_every_float32_comes_back_from_json():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    edges = np.array([0, -0.0, 1e-45, 0.1, 16777217, np.finfo(np.float32).max], np.float32)
    maps = np.concatenate((edges, -edges, values))[None, None]
    results = [SimpleNamespace(score=0.1, score_map=one) for one in maps]
    request = v2.InferRequest(np.zeros(0), {"score_map": False, "score": False}, 'é"\n\1')
    body, _ = v2.answer("ä", request, results)
    assert len(body) <= v2.longest_answer("ä", request, results)
    said = json.loads(body)
    assert (said["id"], said["model_name"], said["model_version"]) == ('é"\n\1', "ä", "1")
    assert [one["shape"] for one in said["outputs"]] == [list(maps.shape), [1]]
    found = np.array(said["outputs"][0]["data"], np.float32)
    np.testing.assert_array_equal(found, maps.ravel())


def test_an_answer_that_has_no_room_is_not_built(serve, model, images, monkeypatch):
    service = serve(model, max_bytes=1 << 20)
    built = []
    monkeypatch.setattr(v2, "answer", lambda *_: built.append(1))
    service._app._held = (8 << 20) - images.nbytes - 10_000
    body = json.dumps({"inputs": [{**GOOD, "parameters": {"binary_data_size": 12288}}]}).encode()
    given = HTTP.request(
        *("POST", service.url + "v2/models/bottle/infer"),
        body=body + bytes(12288),
        headers={v2.LENGTH: str(len(body))},
    )
    assert given.status == 429, given.data
    assert not built
    until(lambda: service._app._held == (8 << 20) - images.nbytes - 10_000)


def test_parameters_that_are_null_are_none():
    body = (
        b'{"parameters":null,"outputs":[{"name":"score","parameters":null}],"inputs":[{"name":'
        b'"image","datatype":"UINT8","shape":[1,1,1,3],"parameters":null,"data":[1,2,3]}]}'
    )
    request = v2.parse(body, None, (1, 1), 1)
    assert request.images.tolist() == [[[[1, 2, 3]]]]
    assert request.outputs == {"score": False}


def test_versions_and_models_that_are_not_there(client):
    for name, version in (("cable", ""), ("bottle", "2")):
        assert not client.is_model_ready(name, version)
        with pytest.raises(InferenceServerException, match=r"there is no|has version 1"):
            client.get_model_metadata(name, version)
