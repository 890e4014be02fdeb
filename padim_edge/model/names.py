"""Names in the two graphs."""

from __future__ import annotations

FEATURES = "features."


NORMALISED = "normalised"


OPSET = 18


# Readers as old as ONNX Runtime 1.14 and TensorRT 10 take this; the library's default is newer.
IR_VERSION = 8
