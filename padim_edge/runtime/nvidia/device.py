"""The GPU: the primary context, one stream, memory, kernels, events; by pycuda or cuda-bindings.

All of it belongs to a `Device`, which frees it in order. The device is used within `current()`,
from any thread; outside of it nothing of this file leaves a trace on the thread.

The context is the primary one, which TensorRT, ONNX Runtime and torch use too: addresses and the
stream's handle are theirs as well. It is retained once per process and stays, as with CUDA's own
runtime: pycuda's release of a primary context leaves it on the thread's stack of contexts.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from padim_edge.errors import PadimEdgeError
from padim_edge.runtime.nvidia.driver import driver
from padim_edge.runtime.nvidia.launch import DEFAULT_SHARED_LIMIT, Launch
from padim_edge.runtime.nvidia.recording import Recording
from padim_edge.system import available_memory

__all__ = ["Device", "Event", "Staging"]

Event = Any
"""A point in the stream's work (`driver.Event`)."""

# CU_STREAM_NON_BLOCKING, which pycuda has no name for: not to wait for the default stream, on
# which others in this process may be working.
_NON_BLOCKING = 1
_COPY_BYTES = 256 * 2**20  # far beyond every L2 cache
_COPIES = 20
_retaining = threading.Lock()
_primary: dict[int, Any] = {}


@dataclass(frozen=True)
class Staging:
    """Page-locked host memory, and where the device has its content.

    Attributes:
        host: the array; valid until its device is closed.
        address: of the same content on the device.
        mapped: the two are one memory, as on GPUs that share the host's: nothing is copied.
    """

    host: NDArray[Any]
    address: int
    mapped: bool


class Device:
    """A GPU with a stream of ours, and all that we have on it.

    Attributes:
        name: as its maker calls it.
        architecture: as compilers call it, sm_87.
        integrated: whether it shares the host's memory.
        processors: how many multiprocessors it has, in the power mode that it is in.
        cuda: CUDA major version of its driver.
        shared_limit: bytes of shared memory that a block can have.
        stream: handle of the stream, which is not the default one.

    Raises:
        PadimEdgeError: there is no usable GPU.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._context = _retained(ordinal)
        self._memory: dict[int, Callable[[], None]] = {}  # address -> what frees it
        self._modules: list[Any] = []
        self._stream: Any = None
        with self.current():
            device = driver.Context.get_device()
            attribute = driver.device_attribute
            self.name = str(device.name())
            self.architecture = "sm_{}{}".format(*device.compute_capability())
            self.integrated = bool(device.get_attribute(attribute.INTEGRATED))
            self.processors = int(device.get_attribute(attribute.MULTIPROCESSOR_COUNT))
            self.cuda = int(driver.get_driver_version()) // 1000
            self.shared_limit = max(
                DEFAULT_SHARED_LIMIT,
                int(device.get_attribute(attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)),
            )
            self._free_before = self.free_memory()
            self._stream = driver.Stream(_NON_BLOCKING)
            self.stream = int(self._stream.handle)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's; afterwards the thread has what it had before.

        Raises:
            PadimEdgeError: in place of CUDA's errors, in their words.
        """
        try:
            self._context.push()
            try:
                yield
            finally:
                driver.Context.pop()
        except driver.Error as error:
            raise PadimEdgeError(f"the GPU fails: {' '.join(str(error).split())}") from error

    # Everything below wants `current()`, and the device open.

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory, which stays until it is freed or the device closed."""
        allocation = driver.mem_alloc(max(nbytes, 1))
        self._memory[int(allocation)] = allocation.free
        return int(allocation)

    def upload(self, values: NDArray[Any]) -> int:
        """Address of a copy of an array, which stays until it is freed or the device closed."""
        address = self.allocate(values.nbytes)
        whole = np.ascontiguousarray(values)  # alive until the copy is done
        driver.memcpy_htod_async(address, whole, self._stream)
        self.synchronize()
        return address

    def staging(
        self, shape: tuple[int, ...], dtype: DTypeLike, mapped: bool | None = None
    ) -> Staging:
        """Memory for what goes between host and device with every batch.

        Args:
            shape: of the array; batches are its first rows.
            dtype: of its elements.
            mapped: one memory for both; None where the device shares the host's.
        """
        mapped = self.integrated if mapped is None else mapped
        flags = driver.host_alloc_flags.DEVICEMAP if mapped else 0
        host = driver.pagelocked_empty(shape, dtype, mem_flags=flags)
        # The array does not own the memory: it must be gone before `free` is called.
        self._memory[host.ctypes.data] = host.base.free
        if mapped:
            return Staging(host, int(host.base.get_device_pointer()), True)
        return Staging(host, self.allocate(host.nbytes), False)

    def free(self, memory: int | Staging) -> None:
        """Let go of memory before the device is closed, once all that uses it is done.

        Args:
            memory: from `allocate`, `upload` or `staging`.
        """
        if isinstance(memory, int):
            self._memory.pop(memory)()
            return
        if not memory.mapped:
            self.free(memory.address)
        self.free(memory.host.ctypes.data)

    def to_device(self, staging: Staging, count: int) -> None:
        """Bring the first ``count`` rows to the device, in the stream's order."""
        if not staging.mapped:
            driver.memcpy_htod_async(staging.address, staging.host[:count], self._stream)

    def to_host(self, staging: Staging, count: int) -> None:
        """Bring the first ``count`` rows to the host, in the stream's order."""
        if not staging.mapped:
            driver.memcpy_dtoh_async(staging.host[:count], staging.address, self._stream)

    def load(self, code: bytes) -> Callable[[Launch], Callable[[], None]]:
        """Load kernels.

        Args:
            code: machine code for this device.

        Returns:
            What makes a launch into a function that enqueues it.
        """
        module = driver.module_from_buffer(code)
        self._modules.append(module)
        functions: dict[str, Any] = {}
        limits: dict[str, int] = {}

        def prepared(launch: Launch) -> Callable[[], None]:
            name = launch.function
            if name not in functions:
                functions[name] = module.get_function(name)
                functions[name].prepare([np.dtype(("V", len(launch.argument)))])
            function = functions[name]
            if launch.shared_bytes > limits.get(name, DEFAULT_SHARED_LIMIT):
                limit = driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
                function.set_attribute(limit, launch.shared_bytes)
                limits[name] = launch.shared_bytes
            return lambda: function.prepared_async_call(
                launch.grid,
                launch.block,
                self._stream,
                launch.argument,
                shared_size=launch.shared_bytes,
            )

        return prepared

    def record(self, work: Callable[[], None]) -> Recording:
        """What some work enqueues, to be enqueued in one call; it does not run now.

        Raises:
            PadimEdgeError: CUDA refuses, or the work fails.
        """
        try:
            return Recording(self.stream, work)
        except driver.Error as error:
            raise PadimEdgeError(" ".join(str(error).split())) from error

    def synchronize(self) -> None:
        """Wait for all that was enqueued; on a closed device there is nothing."""
        if self._stream is not None:
            self._stream.synchronize()

    def events(self, count: int) -> list[Event]:
        """New events. They are freed when they are dropped, which wants `current()` too."""
        return [driver.Event() for _ in range(count)]

    def mark(self, event: Event) -> None:
        """Let an event take the time at which the stream gets here."""
        event.record(self._stream)

    def wait(self, event: Event) -> None:
        """Wait until the stream has passed a mark, or return at once if there is none."""
        event.synchronize()

    def wait_for_stream(self, stream: int) -> None:
        """Wait for all that was enqueued on a stream of another library.

        Args:
            stream: its handle in this context; 1 and 2 are the default ones.
        """
        # pycuda has no name for a stream that it did not make.
        code = ctypes.CDLL("libcuda.so.1").cuStreamSynchronize(ctypes.c_void_p(stream))
        if code:
            raise PadimEdgeError(
                f"the stream that a frame comes from cannot be waited for (CUDA error {code})"
            )

    def seconds(self, earlier: Event, later: Event) -> float:
        """Time between two marks that the stream has passed."""
        return float(later.time_since(earlier)) / 1e3

    def free_memory(self) -> int:
        """Bytes of device memory that can be had.

        On integrated GPUs what the system calls MemAvailable: there the driver's own figure is
        MemFree, which lacks the page cache and swings by gigabytes as files are read.
        """
        return available_memory() if self.integrated else int(driver.mem_get_info()[0])

    def taken_memory(self) -> int:
        """Bytes of `free_memory` gone since this device was opened, by us and by anybody else."""
        return max(self._free_before - self.free_memory(), 0)

    def copy_bandwidth(self) -> float:
        """What a copy within the device's memory reaches, in bytes read plus bytes written per s.

        The median of 20 copies of 256 MiB, or of an eighth of the free memory if that is less.
        """
        nbytes = min(_COPY_BYTES, self.free_memory() // 8)
        source, target = driver.mem_alloc(nbytes), driver.mem_alloc(nbytes)
        try:
            driver.memset_d8(source, 0, nbytes)
            marks = self.events(_COPIES + 2)
            for mark in marks:
                # The first copy is not counted.
                driver.memcpy_dtod_async(target, source, nbytes, self._stream)
                self.mark(mark)
            self.synchronize()
            seconds = [self.seconds(*pair) for pair in itertools.pairwise(marks)]
            return 2 * nbytes / float(np.median(seconds))
        finally:
            target.free()
            source.free()

    def close(self) -> None:
        """Wait for the stream, then free everything. Closing twice is harmless."""
        if self._stream is None:
            return
        with self.current():
            try:
                self.synchronize()
            finally:  # after a fault nothing works any more, and is still to be let go
                self._modules.clear()
                while self._memory:
                    self._memory.popitem()[1]()
                self._stream = None


def _retained(ordinal: int) -> Any:
    """The primary context of a device, the same object in every thread."""
    with _retaining:
        if ordinal not in _primary:
            try:
                driver.init()
                count = driver.Device.count()
                if ordinal >= count:
                    raise PadimEdgeError(f"there is no GPU {ordinal}: CUDA sees {count} here")
                context = driver.Device(ordinal).retain_primary_context()
            except driver.Error as error:
                reason = " ".join(str(error).split())
                raise PadimEdgeError(f"CUDA does not start here: {reason}") from error
            # Its destructor would detach it as a context of another kind, and complain.
            atexit.register(context.detach)
            _primary[ordinal] = context
        return _primary[ordinal]
