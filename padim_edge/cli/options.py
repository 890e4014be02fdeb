"""Options that several commands have, and what their texts mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.errors import UsageError

if TYPE_CHECKING:
    from padim_edge.images.dataset import Folders

ModelFile = Annotated[Path, typer.Argument(help="Detector made by 'padim-edge fit'.")]

EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="auto (the first of the next four that runs here), trt (TensorRT), ort-cuda (ONNX "
        "Runtime on an NVIDIA GPU), ort (on the CPU), openvino (on the CPU); never chosen by auto: "
        "openvino-bf16 (rounds to bfloat16), trt/graph (TensorRT without our kernels, to compare "
        "with).",
    ),
]

Threads = Annotated[
    int, typer.Option("--threads", min=0, max=1024, help="Threads; 0 takes all cores.")
]

NormalDirs = Annotated[
    list[str] | None,
    typer.Option("--normal-dir", help="Folder of good images, in the data set; may be repeated."),
]

AbnormalDirs = Annotated[
    list[str] | None,
    typer.Option("--abnormal-dir", help="Folder of defective images; may be repeated."),
]

MaskDirs = Annotated[
    list[str] | None,
    typer.Option("--mask-dir", help="Folder of masks of defective images; may be repeated."),
]

Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="Score above which an image is anomalous [default: the file's]."
    ),
]

ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--report",
        help="Write a page to look at, FILE.html: one file for a browser, without a network.",
    ),
]

BitDepth = Annotated[
    int | None,
    typer.Option(
        "--bit-depth",
        help="Of grey files of 16 bits: 10, 12 or 14, if the camera fills no more "
        "[default: 16, or what the file says].",
    ),
]

Resize = Annotated[
    str | None,
    typer.Option("--resize", help="Instead of a preset: shorter side N, or HxW."),
]

PreprocessName = Annotated[
    str,
    typer.Option(
        "--preprocess",
        help="whole: the entire image, resized. reference: shorter side 256, centre crop 224.",
    ),
]

Crop = Annotated[str | None, typer.Option("--crop", help="Centre crop after the resize: N or HxW.")]

Interpolation = Annotated[
    str | None,
    typer.Option(
        "--interpolation",
        help="bilinear, bicubic, lanczos or box, antialiased "
        "[default: bilinear; lanczos for reference].",
    ),
]

Reduce = Annotated[
    bool | None,
    typer.Option(
        "--reduce/--no-reduce",
        help="Average whole blocks of pixels before, and decode JPEG files smaller: several "
        "times faster from large frames [default: reduce; no-reduce for reference].",
    ),
]

Int8Target = Annotated[
    str | None,
    typer.Option(
        "--for", help="What will run an int8 backbone: cpu, openvino or tensorrt [default: cpu]."
    ),
]

Constants = Annotated[str, typer.Option("--constants", help="Storage: float16, float32 or int8.")]

FalseAlarmRate = Annotated[
    float | None,
    typer.Option(
        "--false-alarm-rate",
        help="Share of good parts that may raise an alarm "
        "[default: 0.01, or the lowest rate that the images allow].",
    ),
]

Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unreadable image.")]

OnRay = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Spread the work over a Ray cluster: the one of --ray-address or RAY_ADDRESS, else "
        "one that is started on this machine, where it is slower than without.",
    ),
]

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="HOST:PORT of a running Ray cluster, ray://HOST:PORT, or auto; implies --ray.",
    ),
]


def folders_of(
    normal: list[str] | None,
    abnormal: list[str] | None = None,
    masks: list[str] | None = None,
) -> Folders:
    """What --normal-dir, --abnormal-dir and --mask-dir name."""
    from padim_edge.images.dataset import Folders

    return Folders(*map(tuple, (normal or (), abnormal or (), masks or ())))


def names_of(text: str | None) -> tuple[str, ...] | None:
    """'layer1,layer2' as names."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def number(option: str, text: str | None) -> float | None:
    """'0.03' as a number, 'auto' as None."""
    if text in (None, "auto"):
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} {text}: auto, or a number, is needed") from None


def integers(option: str, text: str | None) -> tuple[int, ...] | None:
    """'6,28,66' as integers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: integers with commas between are needed") from None
