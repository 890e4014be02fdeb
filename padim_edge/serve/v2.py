"""The Open Inference Protocol (V2): tensors in a request's body, and in an answer's.

https://github.com/kserve/open-inference-protocol, with the extension for binary tensor data of
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge import __version__
from padim_edge.detect.detector import Detector, Result
from padim_edge.errors import PadimEdgeError, UsageError

LENGTH = "Inference-Header-Content-Length"
"""The header that says where JSON ends and binary data begin."""

VERSION = "1"
"""Of every model: the file that is there now."""

SERVER = {"name": "padim-edge", "version": __version__, "extensions": ["binary_tensor_data"]}

_INPUT = "image"
_OUTPUTS = ("score", "score_map")
_HEAD_BYTES = 64 << 10  # of JSON beside the data
_JSON_BYTES = 6  # of a value in JSON: three digits, a comma, blanks


@dataclass(frozen=True)
class InferRequest:
    """What a client wants.

    Attributes:
        images: uint8 [N, H, W, 3].
        outputs: names, in the order of the answer, and whether each is to be binary.
        id: the client's, to be said again; None if there is none.
    """

    images: NDArray[np.uint8]
    outputs: Mapping[str, bool]
    id: str | None


def metadata(name: str, detector: Detector) -> dict[str, Any]:
    """What a model takes and gives."""
    height, width = detector.backbone_info.image_size
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "onnx_padim_edge",
        "inputs": [{"name": _INPUT, "datatype": "UINT8", "shape": [-1, height, width, 3]}],
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "score_map", "datatype": "FP32", "shape": [-1, height, width]},
        ],
    }


def longest_body(size: tuple[int, int], max_batch: int) -> int:
    """Bytes of a request with the largest batch, however its values are written."""
    return _HEAD_BYTES + _JSON_BYTES * max_batch * size[0] * size[1] * 3


def parse(
    body: bytes, head_length: str | None, size: tuple[int, int], max_batch: int
) -> InferRequest:
    """Read a request.

    Args:
        body: of the request.
        head_length: the header `LENGTH`; None without.
        size: (H, W) of the graph.
        max_batch: images, at most.

    Raises:
        UsageError: it is none, or not of this model.
    """
    head, binary = _split(body, head_length)
    request = _object(_json(head), "the request")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise UsageError(f"'inputs' must be a list of one tensor, {_INPUT!r}")
    tensor = _object(inputs[0], "the input")
    images = _images(tensor, binary, size, max_batch)
    given = request.get("id")
    if given is not None and not isinstance(given, str):
        raise UsageError(f"'id' must be a text; {_shown(given)} was given")
    return InferRequest(images, _wanted(request), given)


def answer(
    name: str, request: InferRequest, results: Sequence[Result]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers.

    Raises:
        PadimEdgeError: JSON is asked for, and a score is no number.
    """
    tensors = {
        "score": np.array([one.score for one in results], np.float32),
        "score_map": np.stack([one.score_map for one in results]).astype(np.float32, copy=False),
    }
    outputs, data = [], []
    for wanted, binary in request.outputs.items():
        tensor = tensors[wanted]
        said: dict[str, Any] = {"name": wanted, "datatype": "FP32", "shape": list(tensor.shape)}
        if binary:
            data.append(tensor.astype("<f4", copy=False).tobytes())
            said["parameters"] = {"binary_data_size": len(data[-1])}
        elif not np.isfinite(tensor).all():
            raise PadimEdgeError(
                f"{wanted!r} is NaN or infinity, which JSON has not: ask for binary"
            )
        else:
            said["data"] = tensor.ravel().tolist()
        outputs.append(said)
    head = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if request.id is not None:
        head["id"] = request.id
    text = json.dumps(head, separators=(",", ":")).encode()
    if not data:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", LENGTH: str(len(text))}
    return b"".join((text, *data)), headers


def _split(body: bytes, head_length: str | None) -> tuple[bytes, memoryview]:
    """JSON, and what comes after it."""
    if head_length is None:
        return body, memoryview(b"")
    if not head_length.isascii() or not head_length.isdecimal() or len(head_length) > 12:
        raise UsageError(f"{LENGTH} must be a number of bytes; {head_length[:40]!r} was given")
    length = int(head_length)
    if length > len(body):
        raise UsageError(f"{LENGTH} is {length}, and the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    # Nested too deep is a RecursionError.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is no JSON ({error})") from error


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} must be an object of JSON; {_shown(value)} was given")
    return value


def _images(
    tensor: Mapping[str, Any], binary: memoryview, size: tuple[int, int], max_batch: int
) -> NDArray[np.uint8]:
    """The tensor of a request."""
    if tensor.get("name") != _INPUT or tensor.get("datatype") != "UINT8":
        raise UsageError(
            f"the input is {_shown(tensor.get('name'))} of {_shown(tensor.get('datatype'))}: "
            f"{_INPUT!r} of 'UINT8' is needed"
        )
    shape, needed = tensor.get("shape"), [*size, 3]
    if (
        not isinstance(shape, list)
        or len(shape) != 4
        or any(type(side) is not int for side in shape)
        or shape[1:] != needed
        or not 1 <= shape[0] <= max_batch
    ):
        raise UsageError(
            f"the input's shape is {_shown(shape)}: [N, {size[0]}, {size[1]}, 3] is needed, with N "
            f"from 1 to {max_batch}"
        )
    count = shape[0] * size[0] * size[1] * 3
    length = _object(tensor.get("parameters", {}), "'parameters'").get("binary_data_size")
    if length is None:
        if len(binary):
            raise UsageError(
                f"{len(binary)} bytes come after the JSON, and the input has no 'binary_data_size'"
            )
        values = _values(tensor.get("data"))
    elif "data" in tensor:
        raise UsageError("the input has 'data' and 'binary_data_size': one of them is needed")
    else:
        if type(length) is not int or length != len(binary):
            raise UsageError(
                f"'binary_data_size' is {_shown(length)}, and {len(binary)} bytes come after the "
                "JSON"
            )
        values = np.frombuffer(binary, np.uint8)
    if values.size != count:
        raise UsageError(f"the input has {values.size} values, and its shape {count}")
    return values.reshape(shape)


def _values(data: object) -> NDArray[np.uint8]:
    """Values in JSON, flat or nested."""
    if not isinstance(data, list):
        raise UsageError(f"the input's 'data' must be a list; {_shown(data)} was given")
    if data and type(data[0]) is int:
        # Of a flat list, in a quarter of the time that an array of 8-byte integers takes.
        with contextlib.suppress(TypeError, ValueError):
            return np.frombuffer(bytes(data), np.uint8)
    try:
        values = np.array(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise UsageError("the input's 'data' is no array: its lists differ in length") from error
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise UsageError("the input's 'data' must be integers from 0 to 255")
    return values.astype(np.uint8).ravel()


def _wanted(request: Mapping[str, Any]) -> dict[str, bool]:
    """Names of the outputs, and whether each is to be binary."""
    parameters = _object(request.get("parameters", {}), "'parameters'")
    binary = _flag(parameters, "binary_data_output", False)
    listed = request.get("outputs")
    if listed is None or listed == []:
        return dict.fromkeys(_OUTPUTS, binary)
    if not isinstance(listed, list):
        raise UsageError(f"'outputs' must be a list; {_shown(listed)} was given")
    wanted = {}
    for one in listed:
        output = _object(one, "an output")
        name = output.get("name")
        if name not in _OUTPUTS:
            raise UsageError(f"there is no output {_shown(name)}: {' and '.join(_OUTPUTS)} are")
        own = _object(output.get("parameters", {}), "'parameters'")
        if own.get("classification"):
            raise UsageError("no output has classes: leave 'classification' out")
        wanted[name] = _flag(own, "binary_data", binary)
    return wanted


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{name!r} must be true or false; {_shown(value)} was given")
    return value


def _shown(value: object) -> str:
    """A client's value in an error: not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
