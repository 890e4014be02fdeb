"""Arrays that say they are in the memory of a GPU, around arrays of NumPy's."""

from __future__ import annotations

import ctypes

import numpy as np

CUDA = (2, 0)
CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class WithInterface:
    """With `__cuda_array_interface__`, of which ``more`` are further words."""

    def __init__(self, array, strides=True, **more):
        self.array, self.strides, self.more = array, strides, more

    @property
    def __cuda_array_interface__(self):
        return {
            "version": 3 if "stream" in self.more else 2,
            "typestr": self.array.dtype.str,
            "shape": self.array.shape,
            "strides": self.array.strides if self.strides else None,
            "data": (self.array.ctypes.data, True),
            **self.more,
        }


class WithDlpack:
    """With `__dlpack__`. Structs are laid out by hand: the product's are not their judge.

    Attributes:
        streams: those that were asked for.
        freed: how many capsules have been.
    """

    def __init__(self, array, strides=True, device=CUDA, **more):
        self.array, self.strides, self.device, self.more = array, strides, device, more
        self.streams, self.freed, self.kept = [], 0, []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        array = self.array
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        items = [stride // array.itemsize for stride in array.strides]
        strides = (ctypes.c_int64 * array.ndim)(*items)
        # data 0, device 8 and 12, ndim 16, dtype 20 to 23, shape 24, strides 32, byte_offset 40;
        # behind them a managed tensor has its context and its deleter.
        offset = 16  # the address is what both together give
        tensor = np.zeros(64, np.uint8)
        tensor[0:8].view(np.int64)[0] = array.ctypes.data - offset
        tensor[8:16].view(np.int32)[:] = self.device
        tensor[16:20].view(np.int32)[0] = array.ndim
        tensor[20:22] = CODES[array.dtype.kind], 8 * array.itemsize
        tensor[22:24].view(np.uint16)[0] = 1
        tensor[24:32].view(np.int64)[0] = ctypes.addressof(shape)
        tensor[32:40].view(np.int64)[0] = ctypes.addressof(strides) if self.strides else 0
        tensor[40:48].view(np.int64)[0] = offset
        name = ctypes.create_string_buffer(b"dltensor")
        destructor = DESTRUCTOR(self._free)
        self.kept += [shape, strides, tensor, name, destructor]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, DESTRUCTOR)
        return new(tensor.ctypes.data, name, destructor)

    def _free(self, _capsule):
        self.freed += 1
