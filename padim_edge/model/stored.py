"""Stored: a graph read without its large constants, which stay in the file until asked for.

Protobuf's parser holds every byte of a file, in a copy, and gives its constants as copies again:
half a gigabyte of whitening is in memory two or three times before anybody has read it. Here the
message is walked as it lies in the file (https://protobuf.dev/programming-guides/encoding/), and
large values are left out of what is parsed.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from padim_edge.errors import ModelError
from padim_edge.files import file_state

LARGE_BYTES = 64 << 10
"""Values of more than this stay in the file."""

PIECE_BYTES = 4 << 20
"""Of a constant that is looked through: it is in a cache still when it is looked at again."""

# Fields of ONNX's messages (onnx.proto3) on the way to a constant's values.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_WAY = (_GRAPH, _INITIALIZER, _RAW_DATA)
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5

MAPS = Path("/proc/self/maps")
"""Which files are mapped (Linux)."""

HELD = "in the file itself"
"""What stands for the place of the values in a constant that has none; no file has that name."""


class Source:
    """A file that is open for as long as somebody may read from it.

    Another file may take its place. One that is changed in place is refused.

    Attributes:
        path: where it was, without links.
        size: in bytes.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        found = os.fstat(self._file)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        self._state = file_state(found)
        self.size = found.st_size

    def check(self) -> None:
        """Refuse a file that has changed.

        Raises:
            ModelError: it has, since it was opened.
        """
        if file_state(os.fstat(self._file)) != self._state:
            raise ModelError(f"{self.path} was changed while it was in use: open it again")

    def is_in_place(self) -> bool:
        """Whether this very file, unchanged, is what its path leads to."""
        try:
            return file_state(self.path.stat()) == self._state
        except OSError:
            return False

    def is_mapped(self) -> bool:
        """Whether this process has it mapped into memory, where changes would show (Linux)."""
        own = os.fstat(self._file)
        file = [f"{os.major(own.st_dev):02x}:{os.minor(own.st_dev):02x}", str(own.st_ino)]
        with MAPS.open(encoding="utf-8", errors="replace") as maps:
            lines = [line.rstrip("\n").split(maxsplit=5) for line in maps]
        # By its path, too: btrfs and older overlayfs give a mapping another device and inode.
        return any(line[3:5] == file or line[5:] == [str(self.path)] for line in lines)

    def sha256(self) -> str:
        """Of the whole file, in hexadecimal digits."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, PIECE_BYTES):
            digest.update(self.read(offset, min(PIECE_BYTES, self.size - offset)))
        return digest.hexdigest()

    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from a place on.

        Raises:
            ModelError: the file has changed since it was opened.
        """
        data = os.pread(self._file, count, offset)
        if len(data) < count:
            raise ModelError(f"{self.path} was changed while it was in use: open it again")
        self.check()
        return data

    def fill(self, values: NDArray[Any], offset: int) -> None:
        """Read values [...] from a place on.

        Raises:
            ModelError: the file has changed since it was opened.
        """
        rest = values.reshape(-1).view(np.uint8).data
        while rest:
            count = os.preadv(self._file, [rest], offset)
            if not count:
                break  # its size has changed
            rest, offset = rest[count:], offset + count
        self.check()


@dataclass(frozen=True)
class Stored:
    """A constant in a file."""

    source: Source
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self) -> NDArray[Any]:
        """The values, the caller's own.

        Raises:
            ModelError: the file has changed since it was opened.
        """
        values = np.empty(self.shape, self.dtype)
        self.source.fill(values, self.offset)
        return values

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return self.dtype.itemsize * math.prod(self.shape)

    def pieces(self) -> Iterator[NDArray[Any]]:
        """The values in order, flat, in pieces that are overwritten by the next."""
        count, offset = math.prod(self.shape), self.offset
        room = np.empty(min(count, PIECE_BYTES // self.dtype.itemsize), self.dtype)
        while count:
            piece = room[:count]
            self.source.fill(piece, offset)
            yield piece
            count, offset = count - piece.size, offset + piece.nbytes


def parse(source: Source) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    """A model without its large constants' values.

    Returns:
        The model, in which such a constant names `HELD` as the place of its values; and these
        constants by name.

    Raises:
        ValueError: it is no ONNX file.
    """
    walk = _Walk(source)
    data = walk.message(0, source.size, _WAY)
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, TypeError) as error:
        raise ValueError(str(error)) from error
    if any(is_held(tensor) for tensor in proto.graph.initializer):
        raise ValueError("a constant claims to have been left out")
    stored: dict[str, Stored] = {}
    for place, (offset, length) in walk.found.items():
        tensor = proto.graph.initializer[place]
        one = _as_stored(tensor, source, offset, length)
        if one is None or tensor.name in stored:
            # Whoever reads it says what is wrong with it.
            tensor.raw_data = source.read(offset, length)
        else:
            stored[tensor.name] = one
            hold(tensor)
    return proto, stored


def hold(tensor: TensorProto) -> None:
    """Mark a constant as one whose values are elsewhere; it loses its own."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=HELD)


def is_held(tensor: TensorProto) -> bool:
    """Whether a constant was marked by `hold`."""
    return tensor.data_location == TensorProto.EXTERNAL and any(
        entry.key == "location" and entry.value == HELD for entry in tensor.external_data
    )


def values_of(tensor: TensorProto, stored: Mapping[str, Stored]) -> NDArray[Any]:
    """The values of a constant, wherever they are.

    Raises:
        ModelError: the file that has them has changed since it was opened.
    """
    return stored[tensor.name].read() if is_held(tensor) else numpy_helper.to_array(tensor)


def put_back(proto: onnx.ModelProto, stored: Mapping[str, Stored]) -> None:
    """Give constants their values back, in place.

    Raises:
        ModelError: the file that has them has changed since it was opened.
    """
    for tensor in proto.graph.initializer:
        if is_held(tensor):
            one = stored[tensor.name]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = one.source.read(one.offset, one.nbytes)


def refer(proto: onnx.ModelProto, stored: Mapping[str, Stored]) -> Path:
    """Name the file as the place of these constants' values, in place, as ONNX's external data.

    Returns:
        The folder that the names are relative to.
    """
    folder = Path()
    for tensor in proto.graph.initializer:
        if tensor.name in stored:
            one = stored[tensor.name]
            folder = one.source.path.parent
            place = {"location": one.source.path.name, "offset": one.offset, "length": one.nbytes}
            del tensor.external_data[:]
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
    return folder


def _as_stored(tensor: TensorProto, source: Source, offset: int, length: int) -> Stored | None:
    """A constant in its file; None if these are not just its values."""
    if tensor.raw_data or tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError):
        return None
    shape = tuple(tensor.dims)
    one = Stored(source, offset, dtype, shape)
    return one if min(shape, default=0) > 0 and one.nbytes == length else None


class _Walk:
    """Through a message as it lies in the file.

    Attributes:
        found: what was left out: the constant's place among all -> offset and length of its values.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._constants = -1
        self._start, self._window = 0, b""
        self.found: dict[int, tuple[int, int]] = {}

    def message(self, start: int, end: int, way: tuple[int, ...]) -> bytes:
        """A message without what lies at the end of the way.

        Args:
            start: its place in the file.
            end: where it ends.
            way: numbers of fields, from this message on.
        """
        kept = []
        place = start
        while place < end:
            tag, body = self._varint(place, end)
            field, kind = tag >> 3, tag & 7
            length = 0
            if kind == _VARINT:
                _, after = self._varint(body, end)
            elif kind == _COUNTED:
                length, body = self._varint(body, end)
                after = body + length
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                after = body + (8 if kind == _EIGHT_BYTES else 4)
            else:
                raise ValueError(f"no field of ONNX is encoded as {kind}")
            if after > end:
                raise ValueError("it ends too early")
            if kind != _COUNTED or field != way[0] or (len(way) == 1 and length <= LARGE_BYTES):
                kept.append(self._bytes(place, after))
            elif len(way) == 1:
                self.found[self._constants] = body, length
            else:
                self._constants += field == _INITIALIZER
                inner = self.message(body, after, way[1:])
                kept += [_encoded(tag), _encoded(len(inner)), inner]
            place = after
        return b"".join(kept)

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        """A number of seven bits a byte, the lowest first; and the place after it."""
        value = 0
        for index, byte in enumerate(self._bytes(place, min(place + 10, end))):
            value |= (byte & 127) << 7 * index
            if byte < 128:
                return value, place + index + 1
        raise ValueError("a number does not end")

    def _bytes(self, start: int, end: int) -> bytes:
        """Bytes of the file, some more of which are read ahead."""
        if not self._start <= start <= end <= self._start + len(self._window):
            self._start = start
            ahead = min(start + LARGE_BYTES, self._source.size)
            self._window = self._source.read(start, max(end, ahead) - start)
        return self._window[start - self._start : end - self._start]


def _encoded(value: int) -> bytes:
    """A number as `_Walk` reads it."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)
