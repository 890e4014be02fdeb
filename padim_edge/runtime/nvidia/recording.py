"""CUDA graphs: work of a stream, recorded once and then enqueued in one call.

By ctypes, because pycuda has no names for it. The context must be current.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

from padim_edge.errors import PadimEdgeError

# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do with the driver meanwhile is their own.
_THREAD_LOCAL = 1


class Recording:
    """A CUDA graph that can be enqueued.

    Addresses, launches and their arguments stay as they were; the content of the memory does not.

    Args:
        stream: handle of the stream, on which nothing must be waited for while it is recorded.
        work: enqueues what is recorded, and does not run now.

    Raises:
        PadimEdgeError: CUDA refuses.
    """

    def __init__(self, stream: int, work: Callable[[], None]) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._stream = ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        # Somebody's memory that is freed by chance, in this thread and now, would spoil it.
        collects = gc.isenabled()
        gc.disable()
        try:
            self._capture(work, graph)
        finally:
            if collects:
                gc.enable()
        try:
            flags = ctypes.c_ulonglong(0)
            executable = ctypes.byref(self._executable)
            self._call("cuGraphInstantiateWithFlags", executable, graph, flags)
        finally:
            self._drop(graph)

    def _capture(self, work: Callable[[], None], graph: ctypes.c_void_p) -> None:
        self._call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # In any case, or the stream would go on recording.
            self._driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
            self._drop(graph)
            raise
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))

    def enqueue(self) -> None:
        """Enqueue all of it, in the stream's order."""
        self._call("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Free it, once it is not running. Closing twice is harmless."""
        executable, self._executable = self._executable, ctypes.c_void_p()
        if executable:
            self._call("cuGraphExecDestroy", executable)

    def _drop(self, graph: ctypes.c_void_p) -> None:
        if graph:
            self._driver.cuGraphDestroy(graph)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            words = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(words))
            text = (words.value or b"unknown error").decode(errors="replace")
            raise PadimEdgeError(f"{name.removesuffix('_v2')} failed: {text}")
