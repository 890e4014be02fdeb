"""Arrays in the memory of a GPU, as other libraries hand them over. Nothing here touches a GPU.

By DLPack (`__dlpack__`, `__dlpack_device__`: torch, CuPy, JAX) or, where that is not offered, the
CUDA array interface (`__cuda_array_interface__`: Numba, PyCUDA, CV-CUDA).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from padim_edge.errors import UsageError

# Of DLPack: devices, and types of numbers. Managed memory is as good as the device's own.
_CUDA, _CUDA_MANAGED = 2, 13
_KINDS = {0: "i", 1: "u", 2: "f"}
_NO_STREAM = -1
# Of the CUDA array interface: the default stream, which waits for all that wait for it.
_DEFAULT_STREAM = 1


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """An array in the memory of a GPU.

    Attributes:
        address: of its first element.
        layout: an array of the same type, shape and strides, with no memory behind it: its
            elements must not be touched.
        owner: the other library's array, which keeps the memory.
    """

    address: int
    layout: NDArray[Any]
    owner: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""
        return self.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""
        return self.layout.dtype

    def announce(self, stream: int) -> int | None:
        """Say that what is now enqueued on a stream reads the array.

        Args:
            stream: its handle.

        Returns:
            The handle of a stream to be waited for first, unless the owner has seen to it.
        """
        if _offers_dlpack(self.owner):
            self.owner.__dlpack__(stream=stream)  # which lets this stream wait for the owner's
            return None
        interface = self.owner.__cuda_array_interface__
        # Before version 3 there was no word on streams.
        other = interface.get("stream", _DEFAULT_STREAM)
        return None if other is None else int(other)


def device_array(given: Any) -> DeviceArray | None:
    """What lies in the memory of a GPU; None for anything else.

    Raises:
        UsageError: it is on another GPU than the engines, or of a form that they do not take.
    """
    if _offers_dlpack(given):
        kind, ordinal = given.__dlpack_device__()
        if int(kind) not in (_CUDA, _CUDA_MANAGED):
            return None
        if ordinal:
            raise UsageError(
                f"a frame lies in the memory of GPU {ordinal}, and engines run on GPU 0: bring it "
                "there, or start with CUDA_VISIBLE_DEVICES set to that GPU"
            )
        return DeviceArray(*_from_dlpack(given.__dlpack__(stream=_NO_STREAM)), given)
    interface = getattr(given, "__cuda_array_interface__", None)
    if interface is None:
        return None
    return DeviceArray(*_from_interface(interface), given)


def _offers_dlpack(given: Any) -> bool:
    return hasattr(given, "__dlpack__") and hasattr(given, "__dlpack_device__")


def _from_interface(interface: Mapping[str, Any]) -> tuple[int, NDArray[Any]]:
    if interface.get("mask") is not None:
        raise UsageError("a frame in the memory of a GPU has a mask: give it without")
    layout = _layout(interface["typestr"], interface["shape"], interface.get("strides"))
    return int(interface["data"][0]), layout


class _DLTensor(ctypes.Structure):
    """The struct of dlpack.h that a capsule named "dltensor" begins with."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(capsule: object) -> tuple[int, NDArray[Any]]:
    """Read a capsule, which stays its maker's: it frees itself as nobody takes it over."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    if tensor.code not in _KINDS or tensor.lanes != 1:
        raise UsageError(
            f"a frame in the memory of a GPU has numbers of DLPack's type {tensor.code} with "
            f"{tensor.lanes} lanes: uint8 or uint16 is needed"
        )
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = None
    if tensor.strides:
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides[: tensor.ndim])
    return (tensor.data or 0) + tensor.byte_offset, _layout(dtype, shape, strides)


def _layout(
    dtype: DTypeLike, shape: tuple[int, ...], strides: tuple[int, ...] | None
) -> NDArray[Any]:
    one = np.empty(1, dtype)
    if strides is None:  # without gaps
        strides = tuple(
            int(np.prod(shape[axis + 1 :])) * one.itemsize for axis in range(len(shape))
        )
    return as_strided(one, shape, strides, writeable=False)
