"""PaDiM anomaly detection, from a folder of good photos to an edge device.

from padim_edge import Detector

detector = Detector("padim.onnx")
result = detector(frame)          # H x W x 3 uint8, RGB, any size
print(result.score, result.threshold, result.is_anomalous)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from padim_edge.detect.detector import Detector, Result
    from padim_edge.errors import PadimEdgeError

__version__ = "0.1.0"
__all__ = ["Detector", "PadimEdgeError", "Result", "__version__"]

_HOME = {
    "Detector": "padim_edge.detect.detector",
    "Result": "padim_edge.detect.detector",
    "PadimEdgeError": "padim_edge.errors",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `import padim_edge` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'padim_edge' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
