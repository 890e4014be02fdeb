"""What `device` uses of pycuda.driver, under the same names, by NVIDIA's package cuda-bindings.

That package has wheels for aarch64, where pycuda is built from its sources for minutes. Objects
own what they stand for and free it when they are dropped, in whatever thread, as pycuda's do.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import numpy as np
from cuda.bindings import driver as cuda
from numpy.typing import DTypeLike, NDArray


class Error(Exception):
    """A call of the driver's that failed: which one, and why in CUDA's words."""


def _call(name: str, *arguments: Any) -> Any:
    """The result of a call; a tuple if it has several."""
    try:
        code, *results = getattr(cuda, name)(*arguments)
    except RuntimeError as error:  # of the package's: the driver does not have this call
        raise Error(f"{name} failed: {error}") from error
    if int(code):
        _, words = cuda.cuGetErrorString(code)
        raise Error(f"{name} failed: {words.decode() if words else f'error {int(code)}'}")
    return results[0] if len(results) == 1 else tuple(results)


try:
    # The driver is loaded by the first call, not by the import.
    _call("cuDriverGetVersion")
except Exception as error:  # of several classes, from version to version
    raise ImportError(" ".join(str(error).split())) from error


class device_attribute:  # noqa: N801
    """Properties of a device."""

    INTEGRATED = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED
    MULTIPROCESSOR_COUNT = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = (
        cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    )


class function_attribute:  # noqa: N801
    """Properties of a kernel."""

    MAX_DYNAMIC_SHARED_SIZE_BYTES = (
        cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    )


class host_alloc_flags:  # noqa: N801
    """Kinds of page-locked memory."""

    DEVICEMAP = int(cuda.CU_MEMHOSTALLOC_DEVICEMAP)


def init() -> None:
    """Start CUDA in this process."""
    _call("cuInit", 0)


def get_driver_version() -> int:
    """CUDA's version, 12060 for 12.6."""
    return int(_call("cuDriverGetVersion"))


class Device:
    """A GPU by its number."""

    def __init__(self, ordinal: int) -> None:
        self._device = _call("cuDeviceGet", ordinal)

    @staticmethod
    def count() -> int:
        """How many there are."""
        return int(_call("cuDeviceGetCount"))

    def name(self) -> str:
        """As its maker calls it."""
        name: bytes = _call("cuDeviceGetName", 256, self._device)
        return name.split(b"\0")[0].decode(errors="replace")

    def compute_capability(self) -> tuple[int, int]:
        """(8, 7) for sm_87."""
        prefix = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY"
        major, minor = (
            self.get_attribute(getattr(cuda.CUdevice_attribute, f"{prefix}_{part}"))
            for part in ("MAJOR", "MINOR")
        )
        return major, minor

    def get_attribute(self, attribute: Any) -> int:
        """One of `device_attribute`."""
        return int(_call("cuDeviceGetAttribute", attribute, self._device))

    def retain_primary_context(self) -> Context:
        """The context that this process's libraries share."""
        return Context(self._device, _call("cuDevicePrimaryCtxRetain", self._device))


class Context:
    """A primary context."""

    def __init__(self, device: Any, handle: Any) -> None:
        self._device = device
        self._handle = handle

    @staticmethod
    def get_device() -> Device:
        """That of the current context."""
        return Device(int(_call("cuCtxGetDevice")))

    @staticmethod
    def pop() -> None:
        """Take the current context from this thread."""
        _call("cuCtxPopCurrent")

    def push(self) -> None:
        """Make this one current."""
        _call("cuCtxPushCurrent", self._handle)

    def detach(self) -> None:
        """Let go of it."""
        _call("cuDevicePrimaryCtxRelease", self._device)


class _Owned:
    """A handle that is freed with this object."""

    _free = ""
    _handle: Any = None  # of one that could not be made

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._context = _call("cuCtxGetCurrent")

    def __int__(self) -> int:
        return int(self._handle)

    def free(self) -> None:
        """Free it now."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        _call("cuCtxPushCurrent", self._context)
        try:
            _call(self._free, handle)
        finally:
            _call("cuCtxPopCurrent")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the package may be half gone, at the end
            self.free()


class Stream(_Owned):
    """Work in its order."""

    _free = "cuStreamDestroy"

    def __init__(self, flags: int = 0) -> None:
        super().__init__(_call("cuStreamCreate", flags))

    @property
    def handle(self) -> int:
        """As other libraries know it."""
        return int(self)

    def synchronize(self) -> None:
        """Wait for all of its work."""
        _call("cuStreamSynchronize", self._handle)


class Event(_Owned):
    """A point in a stream's work, and its time."""

    _free = "cuEventDestroy"

    def __init__(self) -> None:
        super().__init__(_call("cuEventCreate", 0))

    def record(self, stream: Stream) -> None:
        """Be the point that a stream has reached."""
        _call("cuEventRecord", self._handle, int(stream))

    def synchronize(self) -> None:
        """Wait for it."""
        _call("cuEventSynchronize", self._handle)

    def time_since(self, earlier: Event) -> float:
        """Milliseconds since another."""
        return float(_call("cuEventElapsedTime", earlier._handle, self._handle))


class _DeviceAllocation(_Owned):
    _free = "cuMemFree"


class _HostAllocation(_Owned):
    """Page-locked memory, which NumPy takes for an array and keeps as its ``base``."""

    _free = "cuMemFreeHost"

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], flags: int) -> None:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        super().__init__(_call("cuMemHostAlloc", nbytes, flags))
        self.__array_interface__ = {
            "data": (int(self), False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def get_device_pointer(self) -> int:
        """Where the device has it."""
        return int(_call("cuMemHostGetDevicePointer", self._handle, 0))


def mem_alloc(nbytes: int) -> _DeviceAllocation:
    """New memory of the device."""
    return _DeviceAllocation(_call("cuMemAlloc", nbytes))


def mem_get_info() -> tuple[int, int]:
    """Bytes that are free, and all."""
    free, total = _call("cuMemGetInfo")
    return int(free), int(total)


def pagelocked_empty(
    shape: tuple[int, ...], dtype: DTypeLike, *, mem_flags: int = 0
) -> NDArray[Any]:
    """New page-locked memory, as an array whose ``base`` owns it."""
    return np.asarray(_HostAllocation(shape, np.dtype(dtype), mem_flags))


def _contiguous(array: NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous")
    return int(array.ctypes.data)


def memcpy_htod_async(target: int, source: NDArray[Any], stream: Stream) -> None:
    """Copy an array to the device, in a stream's order."""
    _call("cuMemcpyHtoDAsync", target, _contiguous(source), source.nbytes, int(stream))


def memcpy_dtoh_async(target: NDArray[Any], source: int, stream: Stream) -> None:
    """Copy from the device to an array, in a stream's order."""
    _call("cuMemcpyDtoHAsync", _contiguous(target), source, target.nbytes, int(stream))


def memcpy_dtod_async(
    target: _DeviceAllocation, source: _DeviceAllocation, nbytes: int, stream: Stream
) -> None:
    """Copy within the device, in a stream's order."""
    _call("cuMemcpyDtoDAsync", int(target), int(source), nbytes, int(stream))


def memset_d8(target: _DeviceAllocation, value: int, nbytes: int) -> None:
    """Fill memory of the device with a byte."""
    _call("cuMemsetD8", int(target), value, nbytes)


class _Module(_Owned):
    _free = "cuModuleUnload"

    def get_function(self, name: str) -> _Function:
        """One of its kernels."""
        return _Function(_call("cuModuleGetFunction", self._handle, name.encode()))


class _Function:
    """A kernel whose only parameter is a struct by value."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._nbytes = 0

    def prepare(self, parameters: list[np.dtype[Any]]) -> None:
        """Say of what type the parameter is."""
        (parameter,) = parameters
        self._nbytes = parameter.itemsize

    def set_attribute(self, attribute: Any, value: int) -> None:
        """One of `function_attribute`."""
        _call("cuFuncSetAttribute", self._handle, attribute, value)

    def prepared_async_call(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        stream: Stream,
        argument: bytes,
        *,
        shared_size: int = 0,
    ) -> None:
        """Launch it in a stream; the driver has copied the argument when this returns."""
        if len(argument) != self._nbytes:
            raise ValueError(f"the parameters have {len(argument)} bytes, not {self._nbytes}")
        content = ctypes.create_string_buffer(argument, len(argument))
        nbytes = ctypes.c_size_t(len(argument))
        # CU_LAUNCH_PARAM_BUFFER_POINTER is 1, CU_LAUNCH_PARAM_BUFFER_SIZE 2.
        extra = (ctypes.c_void_p * 5)(
            1, ctypes.addressof(content), 2, ctypes.addressof(nbytes), None
        )
        _call(
            "cuLaunchKernel",
            self._handle,
            *grid,
            *block,
            shared_size,
            int(stream),
            0,
            ctypes.addressof(extra),
        )


def module_from_buffer(code: bytes) -> _Module:
    """Load machine code."""
    return _Module(_call("cuModuleLoadData", code))
