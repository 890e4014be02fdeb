"""Who is compared: one row each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A contender.

    Attributes:
        name: in the tables.
        environment: of `environments.REQUIREMENTS`.
        place: its class, as `worker.py` takes it.
        arguments: of the class: a file in the work folder, what it takes, a precision.
        device: requirements that must be on a device for this row, as few as can be.
        files: patterns of the files that must be on a device.
        export: of `makers`, whose failure is this row's failure; "" for none.
        smoothed: whether its maps are smoothed.
    """

    name: str
    environment: str
    place: str
    arguments: tuple[str, ...]
    device: tuple[str, ...]
    files: tuple[str, ...]
    export: str = ""
    smoothed: bool = True


MAKERS = {"ours": "ours", "anomalib": "anomalib_peer", "anomavision": "anomavision_peer"}
"""Environment -> module with `fit` and `export`."""

OURS = "padim-edge, ort"
BARE = "bare backbone, ONNX Runtime"
ONNX, OPENVINO = ("onnxruntime", "pillow"), ("openvino", "pillow")
IR = "weights/openvino/model"
ANOMALIB_ONNX = "anomalib-onnx/weights/onnx/model.onnx"


def _ours(engine: str, file: str = "padim.onnx", extra: str = "openvino", note: str = "") -> Row:
    return Row(
        f"padim-edge, {engine}{note}",
        "ours",
        "ours:PadimEdge",
        (file, engine),
        (f"padim-edge[{extra}]",),
        (file,),
    )


def _anomalib_ir(kind: str, precision: str, note: str) -> Row:
    folder = f"anomalib-{kind}/{IR}"
    return Row(
        f"anomalib, OpenVINO {note}",
        "anomalib",
        "runtimes:OpenVino",
        (f"{folder}.xml", "plain", precision),
        OPENVINO,
        (f"{folder}.*",),
        kind,
    )


ROWS = [
    _ours("ort", extra="cpu"),
    _ours("ort", "padim-int8.onnx", "cpu", ", int8 constants"),
    _ours("openvino"),
    _ours("openvino-bf16"),
    Row(
        "anomalib, torch",
        "anomalib",
        "anomalib_peer:Torch",
        (),
        ("anomalib",),
        ("anomalib.pt",),
    ),
    Row(
        "anomalib, ONNX in ONNX Runtime",
        "anomalib",
        "runtimes:Onnx",
        (ANOMALIB_ONNX, "plain"),
        ONNX,
        (f"{ANOMALIB_ONNX}*",),
        "onnx",
    ),
    _anomalib_ir("openvino", "f32", "float32"),
    _anomalib_ir("openvino", "default", "float32 file, default precision"),
    _anomalib_ir("openvino-fp16", "f32", "fp16 file"),
    _anomalib_ir("openvino-int8", "f32", "int8 file"),
    Row(
        "AnomaVision, torch",
        "anomavision",
        "anomavision_peer:Torch",
        (),
        ("anomavision[cpu]",),
        ("anomavision.pt",),
    ),
    Row(
        "AnomaVision, ONNX in ONNX Runtime",
        "anomavision",
        "runtimes:Onnx",
        ("anomavision.onnx", "normalised"),
        ONNX,
        ("anomavision.onnx*",),
        "onnx",
        smoothed=False,
    ),
    Row(
        "AnomaVision, OpenVINO float32",
        "anomavision",
        "runtimes:OpenVino",
        ("anomavision-openvino/anomavision-openvino.xml", "normalised", "f32"),
        OPENVINO,
        ("anomavision-openvino/*",),
        "openvino",
        smoothed=False,
    ),
    Row(BARE, "ours", "runtimes:Onnx", ("bare.onnx", "normalised"), ONNX, ("bare.onnx",)),
    Row(
        "bare backbone, OpenVINO float32",
        "ours",
        "runtimes:OpenVino",
        ("bare.onnx", "normalised", "f32"),
        OPENVINO,
        ("bare.onnx",),
    ),
]
