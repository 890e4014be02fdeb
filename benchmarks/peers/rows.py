"""Who is compared: one row each."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
        images: what it is given: a file in the work folder.
    """

    name: str
    environment: str
    place: str
    arguments: tuple[str, ...]
    device: tuple[str, ...]
    files: tuple[str, ...]
    export: str = ""
    smoothed: bool = True
    images: str = "images.npy"


MAKERS = {"ours": "ours", "anomalib": "anomalib_peer", "anomavision": "anomavision_peer"}
"""Environment -> module with `fit` and `export`."""

OURS = "padim-edge, ort"
BARE = "bare backbone in ONNX Runtime"
ONNX, OPENVINO = ("onnxruntime", "pillow"), ("openvino", "pillow")


def _ours(name: str, engine: str, extra: str, file: str = "padim.onnx", export: str = "") -> Row:
    device = (f"padim-edge[{extra}]",)
    return Row(f"padim-edge, {name}", "ours", "ours:PadimEdge", (file, engine), device, (file,),
               export)  # fmt: skip


def _onnx(name: str, environment: str, file: str, takes: str, export: str = "") -> Row:
    return Row(f"{name} in ONNX Runtime", environment, "runtimes:Onnx", (file, takes), ONNX,
               (f"{file}*",), export, smoothed=environment != "anomavision")  # fmt: skip


def _openvino(
    name: str, environment: str, file: str, takes: str, precision: str, export: str = ""
) -> Row:
    computes = {"f32": "float32", "default": "its default precision"}[precision]
    files = (file.replace(".xml", ".*"),)
    return Row(f"{name} in OpenVINO, {computes}", environment, "runtimes:OpenVino",
               (file, takes, precision), OPENVINO, files, export,
               smoothed=environment != "anomavision")  # fmt: skip


def _anomalib(kind: str, name: str, precision: str) -> Row:
    file = f"anomalib-{kind}/weights/openvino/model.xml"
    return _openvino(f"anomalib, {name}", "anomalib", file, "plain", precision, kind)


ROWS = [
    _ours("ort", "ort", "cpu"),
    _ours("ort, int8 constants", "ort", "cpu", "padim-int8.onnx", "int8"),
    _ours("ort, float16 backbone", "ort", "cpu", "padim-fp16.onnx", "fp16"),
    _ours("openvino", "openvino", "openvino"),
    _ours("openvino-bf16", "openvino-bf16", "openvino"),
    _onnx("padim-edge's file", "ours", "padim.onnx", "uint8"),
    _openvino("padim-edge's file", "ours", "padim.onnx", "uint8", "f32"),
    Row("anomalib, torch", "anomalib", "anomalib_peer:Torch", (), ("anomalib",), ("anomalib.pt",)),
    _onnx("anomalib, ONNX", "anomalib", "anomalib-onnx/weights/onnx/model.onnx", "plain", "onnx"),
    _anomalib("openvino", "float32 file", "f32"),
    _anomalib("openvino", "float32 file", "default"),
    _anomalib("openvino-fp16", "fp16 file", "default"),
    _anomalib("openvino-int8", "int8 weights", "default"),
    _anomalib("openvino-int8-ptq", "int8 by PTQ", "default"),
    Row(
        "AnomaVision, torch",
        "anomavision",
        "anomavision_peer:Torch",
        (),
        ("anomavision[cpu]",),
        ("anomavision.pt",),
    ),
    _onnx("AnomaVision, ONNX", "anomavision", "anomavision.onnx", "normalised", "onnx"),
    _onnx("AnomaVision, ONNX traced with 2", "anomavision", "anomavision-2.onnx", "normalised",
          "onnx2"),
    _openvino("AnomaVision, traced with 2", "anomavision",
              "anomavision-openvino/anomavision-openvino.xml", "normalised", "f32", "openvino"),
    _onnx("bare backbone", "ours", "bare.onnx", "normalised"),
    _openvino("bare backbone", "ours", "bare.onnx", "normalised", "f32"),
]  # fmt: skip


def _camera(name: str, environment: str, place: str, *arguments: str, export: str = "") -> Row:
    return Row(name, environment, place, arguments, (), (), export)


def _shipped(name: str, kind: str, *precision: str) -> Row:
    """A file of anomalib's, made for frames of one size, behind the inferencer that it ships."""
    onnx = kind == "onnx"
    file = "onnx/model.onnx" if onnx else "openvino/model.xml"
    place = "anomalib_peer:CameraOnnx" if onnx else "anomalib_peer:CameraOpenVino"
    export = f"{kind}@{{frame}}"
    arguments = f"anomalib-{export}/weights/{file}", *precision
    return _camera(f"anomalib, {name}", "anomalib", place, *arguments, export=export)


CAMERA_ROWS = [
    _camera(OURS, "ours", "ours:Camera", "padim.onnx", "ort"),
    _camera("padim-edge, openvino", "ours", "ours:Camera", "padim.onnx", "openvino"),
    _camera("padim-edge, openvino-bf16", "ours", "ours:Camera", "padim.onnx", "openvino-bf16"),
    _camera("OpenCV (INTER_AREA, cvtColor) and padim-edge's file in ONNX Runtime", "ours",
            "runtimes:OpenCv", "padim.onnx"),
    _camera("anomalib, torch", "anomalib", "anomalib_peer:CameraTorch"),
    _shipped("ONNX in ONNX Runtime", "onnx"),
    _shipped("float32 file in OpenVINO, float32", "openvino", "f32"),
    _shipped("float32 file in OpenVINO, its default precision", "openvino", "default"),
    _shipped("int8 weights in OpenVINO, its default precision", "openvino-int8", "default"),
    _shipped("int8 by PTQ in OpenVINO, its default precision", "openvino-int8-ptq", "default"),
    _camera("AnomaVision, torch", "anomavision", "anomavision_peer:Camera", "anomavision.pt"),
    _camera("AnomaVision, ONNX in ONNX Runtime", "anomavision", "anomavision_peer:Camera",
            "anomavision.onnx", export="onnx"),
    _camera("AnomaVision, OpenVINO, its default precision", "anomavision",
            "anomavision_peer:Camera", "anomavision-openvino/anomavision-openvino.xml",
            export="openvino"),
    next(row for row in ROWS if row.name == BARE),
]  # fmt: skip
"""From a camera's pixels to the decision; the bare backbone, beside them, has its input ready."""


def at(row: Row, frame: str) -> Row:
    """A row of `CAMERA_ROWS` for frames of "1920x1080", width x height."""
    if row.name == BARE:
        return row
    arguments = tuple(argument.format(frame=frame) for argument in row.arguments)
    export = row.export.format(frame=frame)
    return replace(row, arguments=arguments, export=export, images=f"frames-{frame}.npy")
