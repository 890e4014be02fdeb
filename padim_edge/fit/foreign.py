"""Foreign files: arrays out of pickles and torch's checkpoints, without running what is in them.

A pickle is a program: it names functions and calls them. Here only those that build arrays are
known; any other name stands for `Inert`, which does nothing and keeps what it is given, so that a
checkpoint full of classes that are not installed can be searched for its arrays all the same. torch
is not needed: its checkpoints are ZIP archives of a pickle and of the arrays' bytes.
"""

from __future__ import annotations

import codecs
import collections
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import ModelError

Arrays = dict[str, NDArray[Any]]

MOST_BYTES = 16 * 2**30
"""Of the arrays in a file: more is no fit, but a bomb."""

_DTYPES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip


def read_arrays(path: Path) -> Arrays:
    """All numeric arrays in a file, by the names under which they are found in it.

    Members of lists are called by their place, those of objects by their attribute; what torch puts
    between a module and its tensors (``_modules``, ``_buffers``, ``_parameters``) is left out.

    Args:
        path: a pickle of arrays, or a checkpoint of torch.

    Raises:
        ModelError: it cannot be read, or is neither.
    """
    try:
        with path.open("rb") as stream:
            if zipfile.is_zipfile(stream):
                with zipfile.ZipFile(stream) as archive:
                    return dict(_found(_torch(archive)))
            if stream.seek(0, 2) > MOST_BYTES:
                raise ModelError(f"it holds more than {MOST_BYTES >> 30} GiB")
            stream.seek(0)
            return dict(_found(_Unpickler(stream).load()))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # damaged bytes lead an unpickler to any exception there is
        raise ModelError(
            f"{path} is neither a pickle of arrays nor a checkpoint of torch, or it is damaged: "
            "give the file that the other program wrote"
        ) from error


class Inert:
    """In place of whatever a pickle names: made, called and filled without any effect."""

    state: Any
    items: dict[Any, Any]

    def __new__(cls, *_: object, **__: object) -> Inert:  # noqa: D102
        made = super().__new__(cls)
        # Not in __init__, which an unpickler need not call.
        made.state, made.items = None, {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> Inert:  # noqa: D102
        return Inert()

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items[repr(key)] = value

    def append(self, value: object) -> None:
        """As a list's."""
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        """As a list's."""
        for value in values:
            self.append(value)

    def add(self, value: object) -> None:
        """As a set's."""
        self.append(value)


class _Dtype:
    """In place of NumPy's dtype: a number's kind, and of its state the byte order."""

    def __init__(self, name: Any, *_: object) -> None:
        self.made: np.dtype[Any] = np.dtype(name)
        if self.made.hasobject:
            raise ModelError("it holds arrays of objects, and numbers alone are read")

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.made = self.made.newbyteorder(state[1])


class _Array:
    """In place of NumPy's array: what is in it is known once its state is."""

    def __init__(self, *_: object) -> None:
        self.made: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        self.made = np.frombuffer(data, dtype.made).reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: str, axes: Any = None) -> _Array:
    """As NumPy's own, of whatever version."""
    array = _Array()
    flat: NDArray[Any] = np.frombuffer(data, dtype.made)
    if axes is not None:
        array.made = flat.reshape(shape).transpose(axes)
    else:
        array.made = flat.reshape(shape, order="F" if order == "F" else "C")
    return array


_NUMPY: dict[str, Any] = {
    "_reconstruct": _Array,
    "_frombuffer": _from_buffer,
    "dtype": _Dtype,
    "scalar": lambda dtype, data: np.frombuffer(data, dtype.made)[0],
}
"""What builds arrays, wherever the writer's NumPy had it; nothing of NumPy's own is called."""


class _Unpickler(pickle.Unpickler):
    """Knows what builds arrays, and takes everything else for `Inert`."""

    def __init__(
        self, stream: BinaryIO, storage: Callable[[str, str, int], NDArray[Any]] | None = None
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """The few names that are known."""
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):  # bytes, in the protocols of Python 2
            return lambda text, _="latin1": codecs.encode(text, "latin1")
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _DTYPES:
            return name
        # A class of its own each time, for NEWOBJ makes only instances of classes.
        return type(name, (Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        """The bytes of a tensor, of which the pickle has only the name."""
        kind, storage, key, _, count = pid
        if kind != "storage" or self._storage is None:
            raise ModelError("it refers to something outside of the file")
        # Of a kind that NumPy has not, as bfloat16: not read, and its tensors neither.
        known = isinstance(storage, str) and storage in _DTYPES
        return self._storage(_DTYPES[storage], str(key), int(count)) if known else Inert()


def _tensor(
    storage: Any, start: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> NDArray[Any] | Inert:
    """A tensor as torch describes it: elements of a storage, from ``start`` in steps."""
    if isinstance(storage, Inert):
        return Inert()
    # A storage is what was read for one; a pickle could name anything here.
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise ModelError("it describes a tensor of something else")
    count = math.prod(shape)
    if min((start, *shape, *strides), default=0) < 0 or count * storage.itemsize > MOST_BYTES:
        raise ModelError("it describes a tensor that makes no sense")
    if not count:
        return np.empty(shape, storage.dtype)
    last = start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= len(storage):
        raise ModelError("it describes a tensor beyond its own bytes")
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[start:], shape, steps)


def _torch(archive: zipfile.ZipFile) -> Any:
    """What is in a checkpoint; each storage is read once."""
    names = archive.namelist()
    program = next((name for name in names if name.rsplit("/", 1)[-1] == "data.pkl"), None)
    if program is None:
        raise ModelError("it is a ZIP archive without data.pkl, and so no checkpoint of torch")
    if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
        raise ModelError(f"it holds more than {MOST_BYTES >> 30} GiB")
    folder = program[: -len("data.pkl")]
    read: dict[str, NDArray[Any]] = {}

    def storage(dtype: str, key: str, count: int) -> NDArray[Any]:
        if key not in read:
            read[key] = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
        if len(read[key]) < count:
            raise ModelError("a tensor's bytes are missing")
        return read[key]

    with archive.open(program) as stream:
        return _Unpickler(stream, storage).load()  # type: ignore[arg-type]  # it reads, and no more


_BETWEEN = ("_modules", "_buffers", "_parameters")


def _found(value: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Arrays of numbers below a value, by their names; each list or object is looked into once."""
    seen: set[int] = set()
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        name, one = left.pop()
        if isinstance(one, _Array):
            one = one.made
        if isinstance(one, np.ndarray):
            if one.dtype.kind in "fiub":
                yield name, one
            continue
        members: list[tuple[Any, Any]] = []
        if isinstance(one, dict):
            members = list(one.items())
        elif isinstance(one, (list, tuple)):
            members = list(enumerate(one))
        elif isinstance(one, Inert):
            members = [("", one.state), *one.items.items()]
        if not members or id(one) in seen:
            continue
        seen.add(id(one))
        for key, member in reversed(members):
            step = "" if key in _BETWEEN else str(key)
            left.append((f"{name}.{step}".strip(".") if step else name, member))
