"""The package through which the driver is called: pycuda, or else NVIDIA's cuda-bindings."""

from __future__ import annotations

import platform
from typing import Any

from padim_edge.errors import MissingDependencyError, PadimEdgeError
from padim_edge.runtime.engines import has_driver

__all__ = ["PACKAGE", "driver"]

driver: Any
"""`pycuda.driver`, or `cuda_bindings` with the same names."""
PACKAGE = ""
"""Which one it is, with its version."""

_unloaded = ""  # why pycuda is installed and does not load, though there is a driver
try:
    try:
        import pycuda
        import pycuda.driver

        driver = pycuda.driver
        PACKAGE = f"pycuda {pycuda.VERSION_TEXT}"
    except ImportError as missing:
        if not isinstance(missing, ModuleNotFoundError):
            if not has_driver():
                raise
            _unloaded = " ".join(str(missing).split())
        elif missing.name != "pycuda":
            raise
        import cuda.bindings

        PACKAGE = f"cuda-bindings {cuda.bindings.__version__}"
        from padim_edge.runtime.nvidia import cuda_bindings

        driver = cuda_bindings
except ModuleNotFoundError as missing:
    if _unloaded:  # it was built against another CUDA, as after an upgrade of JetPack
        raise PadimEdgeError(
            f"pycuda is installed but does not load ({_unloaded}): run  pip install "
            "--force-reinstall --no-cache-dir pycuda  or take padim-edge[cuda], without it"
        ) from None  # what is missing is not the matter
    if platform.machine() == "x86_64":
        raise MissingDependencyError("running on an NVIDIA GPU", "pycuda", "gpu") from missing
    # pycuda would be built here, from its sources; NVIDIA's has wheels.
    raise MissingDependencyError(
        "running on an NVIDIA GPU", "pycuda or cuda-bindings", "cuda"
    ) from missing
except ImportError as broken:
    what = str(broken) if has_driver() else "libcuda.so.1 is not found"
    raise PadimEdgeError(
        f"running on an NVIDIA GPU needs its driver, and {(PACKAGE or 'pycuda').split()[0]} cannot "
        f"load it ({what}): install the driver; in a container start with  "
        "docker run --runtime nvidia"
    ) from broken
