"""A real TensorRT parser and builder on a machine without a GPU.

The wheel of an execution provider for ONNX Runtime carries TensorRT for RTX: the same interface
as TensorRT 11, and able to build plans without a GPU. It is driven in two ways, by its own Python
bindings, and by those of TensorRT 11 over a few lines of C that pass its calls on. Both find
their libraries beside themselves ($ORIGIN in their run path).
"""

from __future__ import annotations

from pathlib import Path

from wheels import compile_c, facade, unpacked

LIBRARIES = "onnxruntime-ep-nv-tensorrt-rtx-cu12==0.5.0"
BINDINGS = {
    "tensorrt": "tensorrt-cu13-bindings==11.4.0.106",
    "tensorrt_rtx": "tensorrt-rtx-cu12-bindings==1.7.1.116",
}


def assemble(module: str, folder: Path) -> Path:
    """Make `import tensorrt` or `import tensorrt_rtx` work from a folder."""
    bindings = facade(module, unpacked(BINDINGS[module]), folder)
    carrier = unpacked(LIBRARIES) / "onnxruntime_ep_nv_tensorrt_rtx"
    links = {
        "libtensorrt_rtx.so.1": "libtensorrt_rtx.so.1.*",
        "libtensorrt_onnxparser_rtx.so.1": "libtensorrt_onnxparser_rtx.so.1.*",
        "libcudart.so.12": "libcudart.so.12.*",
    }
    if module == "tensorrt":
        links["libnvonnxparser.so.11"] = links["libtensorrt_onnxparser_rtx.so.1"]
        compile_c("nvinfer_forward.c", bindings / "libnvinfer.so.11")
        compile_c("nvinfer_plugin_stub.c", bindings / "libnvinfer_plugin.so.11")
    for link, pattern in links.items():
        (bindings / link).symlink_to(next(carrier.glob(pattern)))
    return folder
