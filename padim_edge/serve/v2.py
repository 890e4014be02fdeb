"""The Open Inference Protocol (V2): tensors in a request's body, and in an answer's.

https://github.com/kserve/open-inference-protocol, with the extension for binary tensor data of
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from padim_edge import __version__
from padim_edge.detect.detector import Detector, Result
from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError

try:
    import msgspec
except ImportError as error:
    raise MissingDependencyError("serving", "msgspec", "serve") from error

LENGTH = "Inference-Header-Content-Length"
"""The header that says where JSON ends and binary data begin."""

VERSION = "1"
"""Of every model: the file that is there now."""

SERVER = {"name": "padim-edge", "version": __version__, "extensions": ["binary_tensor_data"]}

_INPUT = "image"
_HEAD_BYTES = 64 << 10  # of JSON beside the data
_JSON_BYTES = 6  # of a value in JSON: three digits, a comma, blanks
_BLOCK = 1 << 16  # bytes of JSON whose values are 8-byte integers at a time
_NUMBER_BYTES = 16  # of a float32 in JSON: -1.23456789e-38 and a comma
_AROUND_BYTES = 1024  # of JSON around the data in an answer
_NUMBERS = 1 << 12  # that are Python's floats at a time


class _Parameters(msgspec.Struct, frozen=True):
    """What clients say beside a tensor, or of all. What is not named here is skipped."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    binary_data_output: bool | None = None
    classification: int = 0


class _Input(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, int, int, int]
    parameters: _Parameters | None = None  # which clients may write, too
    data: msgspec.Raw = msgspec.Raw()
    """JSON as it came: as Python's objects it would be up to 30 times as large."""


class _Output(msgspec.Struct, frozen=True):
    name: Literal["score", "score_map"]
    parameters: _Parameters | None = None  # which clients may write, too


class _Request(msgspec.Struct, frozen=True):
    """Of types that hold little however long the JSON is, and end with the first that is wrong."""

    inputs: tuple[_Input]
    outputs: list[_Output] | None = None
    parameters: _Parameters | None = None  # which clients may write, too
    id: str | None = None


_REQUEST = msgspec.json.Decoder(_Request)


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
    """Bytes of a request with the largest batch: binary, or JSON with two blanks a value."""
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
    try:
        request = _REQUEST.decode(head)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"the request does not fit the model ({_shown(error)}): its metadata say what does"
        ) from error
    # Nested too deep is a RecursionError.
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"the body is no JSON ({error})") from error
    images = _images(request.inputs[0], binary, size, max_batch)
    return InferRequest(images, _wanted(request), request.id)


def longest_answer(name: str, request: InferRequest, results: Sequence[Result]) -> int:
    """Bytes that `answer` takes at most, before it is built."""
    sizes = {"score": len(results), "score_map": sum(one.score_map.size for one in results)}
    data = sum(
        sizes[wanted] * (4 if binary else _NUMBER_BYTES)
        for wanted, binary in request.outputs.items()
    )
    # A character in JSON is six bytes at most.
    return data + 6 * (len(name) + len(request.id or "")) + _AROUND_BYTES


def answer(
    name: str, request: InferRequest, results: Sequence[Result]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers.

    Numbers in JSON have nine significant digits, which are enough for any float32 to come back.

    Raises:
        PadimEdgeError: JSON is asked for, and a score is no number.
    """
    tensors = {
        "score": ([np.array([one.score for one in results], np.float32)], [len(results)]),
        "score_map": (
            [one.score_map for one in results],
            [len(results), *results[0].score_map.shape],
        ),
    }
    head = {"model_name": name, "model_version": VERSION}
    if request.id is not None:
        head["id"] = request.id
    # Written piece by piece: as Python's floats all of it would be many times as large.
    text, comma = io.BytesIO(), b""
    text.write(msgspec.json.encode(head)[:-1] + b',"outputs":[')
    for wanted, binary in request.outputs.items():
        parts, shape = tensors[wanted]
        said: dict[str, Any] = {"name": wanted, "datatype": "FP32", "shape": shape}
        if binary:
            size = 4 * sum(part.size for part in parts)
            said["parameters"] = {"binary_data_size": size}
        text.write(comma + msgspec.json.encode(said))
        comma = b","
        if not binary:
            text.seek(-1, io.SEEK_CUR)  # over the last bracket
            text.write(b',"data":[')
            _write_numbers(text, wanted, parts)
            text.write(b"]}")
    text.write(b"]}")
    length = text.tell()
    if not any(request.outputs.values()):
        return text.getvalue(), {"content-type": "application/json"}
    for wanted, binary in request.outputs.items():
        if binary:
            for part in tensors[wanted][0]:
                text.write(part.astype("<f4", copy=False).tobytes())
    return text.getvalue(), {"content-type": "application/octet-stream", LENGTH: str(length)}


def _write_numbers(text: io.BytesIO, name: str, parts: Sequence[NDArray[np.float32]]) -> None:
    """Write numbers with commas between them."""
    comma = b""
    for part in parts:
        if not np.isfinite(part).all():
            raise PadimEdgeError(f"{name!r} is NaN or infinity, which JSON has not: ask for binary")
        values = part.reshape(-1)
        for begin in range(0, values.size, _NUMBERS):
            some = tuple(values[begin : begin + _NUMBERS].tolist())
            text.write(comma + (("%.9g," * len(some))[:-1] % some).encode())
            comma = b","


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


def _images(
    tensor: _Input, binary: memoryview, size: tuple[int, int], max_batch: int
) -> NDArray[np.uint8]:
    """The tensor of a request."""
    if (tensor.name, tensor.datatype) != (_INPUT, "UINT8"):
        raise UsageError(
            f"the input is {_shown(tensor.name)!r} of {_shown(tensor.datatype)!r}: {_INPUT!r} of "
            "'UINT8' is needed"
        )
    shape = tensor.shape
    if shape[1:] != (*size, 3) or not 1 <= shape[0] <= max_batch:
        raise UsageError(
            f"the input's shape is {list(shape)}: [N, {size[0]}, {size[1]}, 3] is needed, with N "
            f"from 1 to {max_batch}"
        )
    text, length = bytes(tensor.data), (tensor.parameters or _Parameters()).binary_data_size
    if length is None:
        if len(binary):
            raise UsageError(
                f"{len(binary)} bytes come after the JSON, and the input has no 'binary_data_size'"
            )
        return _values(text, shape).reshape(shape)
    if text:
        raise UsageError("the input has 'data' and 'binary_data_size': one of them is needed")
    if length != len(binary):
        raise UsageError(
            f"'binary_data_size' is {length}, and {len(binary)} bytes come after the JSON"
        )
    _check_count(length, shape)
    return np.frombuffer(binary, np.uint8).reshape(shape)


_TO_NUMBERS = bytes(
    one if one in b"0123456789, \t\r\n" else ord(" ") if one in b"[]" else ord("x")
    for one in range(256)
)
"""Brackets become blanks, and what is in no list of integers becomes an x."""


def _values(text: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Values of a list in JSON, flat or nested as the shape is.

    Args:
        text: valid JSON, or nothing.
        shape: of the tensor.
    """
    if not text.startswith(b"["):
        given = _shown(text[:200].decode("utf-8", "replace")) or "nothing"
        raise UsageError(f"the input's 'data' must be a list; {given} was given")
    numbers = text.translate(_TO_NUMBERS)
    if b"x" in numbers:
        raise UsageError("the input's 'data' must be integers from 0 to 255")
    _check_count(numbers.count(b",") + bool(numbers.strip()), shape)
    if text.count(b"[") > 1 and text.translate(None, b"0123456789 \t\r\n") != _brackets(shape):
        raise UsageError(f"the lists of the input's 'data' are neither flat nor {list(shape)}")
    values, filled = np.empty(math.prod(shape), np.uint8), 0
    begin = 0
    while begin < len(numbers):
        end = numbers.find(b",", begin + _BLOCK)
        end = len(numbers) if end < 0 else end
        # Which saturates, so that no large number becomes a small one.
        block = np.fromstring(numbers[begin:end], np.int64, sep=" , ")
        if block.max() > 255:
            raise UsageError("the input's 'data' must be integers from 0 to 255")
        values[filled : filled + block.size] = block
        begin, filled = end + 1, filled + block.size
    return values


def _check_count(count: int, shape: Sequence[int]) -> None:
    if count != math.prod(shape):
        raise UsageError(f"the input has {count} values, and its shape {math.prod(shape)}")


def _brackets(shape: Sequence[int]) -> bytes:
    """JSON of a nested list of this shape, without its numbers."""
    text = b"," * (shape[-1] - 1)
    for side in reversed(shape[:-1]):
        text = ((b"[" + text + b"],") * side)[:-1]
    return b"[" + text + b"]"


def _wanted(request: _Request) -> dict[str, bool]:
    """Names of the outputs, and whether each is to be binary."""
    binary = (request.parameters or _Parameters()).binary_data_output or False
    wanted: dict[str, bool] = {}
    for output in request.outputs or (_Output("score"), _Output("score_map")):
        said = output.parameters or _Parameters()
        if said.classification:
            raise UsageError("no output has classes: leave 'classification' out")
        own = said.binary_data
        wanted[output.name] = binary if own is None else own
    return wanted


def _shown(value: object) -> str:
    """A client's value in an error: not longer than a line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
