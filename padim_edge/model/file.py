"""The two files, embedding.onnx and padim.onnx: reading, checking, writing.

Both are plain ONNX. `padim_edge.model.names` lists what can be found in the graphs,
`padim_edge.model.metadata` what stands beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from padim_edge import __version__
from padim_edge.errors import ModelError, PadimEdgeError, first_line
from padim_edge.model.checksum import add, begin, checksum
from padim_edge.model.frame_input import drop_frame_input, has_frame_input, with_frame_input
from padim_edge.model.graph import subgraph
from padim_edge.model.metadata import COMMANDS, DENSE, BackboneInfo, DetectorInfo, Metadata
from padim_edge.model.names import FEATURES, ROI
from padim_edge.model.pyramid import Pyramid
from padim_edge.model.stored import Source, Stored, is_held, parse, put_back, values_of

MAX_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Model:
    """One of the two files in memory.

    Attributes:
        proto: the graph with its constants, from ``image``.
        backbone_info: what both kinds know.
        detector_info: None for embedding.onnx.
        extra: metadata that this version does not know, key -> text; kept by `write`.
        path: of the file; None before it is written.
        sha256: of the file's bytes; empty before it is written.
        size: of the file in bytes; 0 before it is written.
        checksum: of the constants, which was found to be right; empty in files from before it, and
            before the file is written.
        frame_input: whether the file's graph begins at ``frame`` instead, and prepares it.
        stored: large constants by name, whose values the graph lacks: they are in the file still.
    """

    proto: onnx.ModelProto
    backbone_info: BackboneInfo
    detector_info: DetectorInfo | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    sha256: str = ""
    size: int = 0
    checksum: str = ""
    frame_input: bool = False
    stored: Mapping[str, Stored] = field(default_factory=dict)

    def pyramid(self) -> Pyramid:
        """Levels as they are stored: one dense level for Ledoit-Wolf, else coarse to fine."""
        layers = self.backbone_info.pyramid_layers()
        dense = self.detector_info is not None and self.detector_info.covariance in DENSE
        return Pyramid.dense(layers) if dense else Pyramid.coarse_to_fine(layers)

    def constant(self, name: str) -> NDArray[Any]:
        """A constant of the graph by name.

        Raises:
            ModelError: there is none.
        """
        for tensor in self.proto.graph.initializer:
            if tensor.name == name:
                return values_of(tensor, self.stored)
        raise ModelError(f"the model has no constant '{name}': it was altered; fit it again")

    def part(self, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
        """The part of the graph between named tensors, with all that it needs."""
        proto = subgraph(self.proto, inputs, outputs)
        put_back(proto, self.stored)
        return proto

    def feature_names(self) -> list[str]:
        """Names of the selected maps, coarse to fine as the pyramid has them."""
        return [FEATURES + layer.name for level in self.pyramid().levels for layer in level.layers]


def write(stream: BinaryIO, model: Model) -> int:
    """Check a model and write it to an open file. Returns the number of bytes.

    The temporary file of `padim_edge.files.atomic_write` is what this is meant for.

    Raises:
        PadimEdgeError: the file would exceed the 2 GiB that a single ONNX file can have.
    """
    proto = model.proto
    constants = checksum(proto.graph.initializer)
    if model.frame_input and model.detector_info:
        proto = with_frame_input(proto, model.detector_info.preprocess)
    proto.producer_name, proto.producer_version = "padim-edge", __version__
    del proto.metadata_props[:]
    metadata = Metadata(model.backbone_info, model.detector_info, model.extra, constants)
    for key, text in metadata.to_props().items():
        proto.metadata_props.add(key=key, value=text)
    size = int(proto.ByteSize())
    if size > MAX_BYTES:
        raise PadimEdgeError(
            f"the model would have {size / 2**30:.1f} GiB and one ONNX file can have 2: "
            "choose smaller constants (--constants float16 or int8), fewer channels (--dims) "
            "or a smaller image (--image-size)"
        )
    onnx.checker.check_model(proto, full_check=True)
    stream.write(proto.SerializeToString())
    return size


def read(path: str | Path, kind: str | None, *, lazily: bool = False) -> Model:
    """Read and check one of our files.

    Args:
        path: the file.
        kind: "embedding" or "padim": what is expected; None takes either.
        lazily: leave large constants in the file (`Model.stored`) after they were checked, and
            do not compute its SHA-256, which takes longer than all the rest.

    Raises:
        ModelError: missing, not ONNX, truncated, not ours, another format, the other kind, or
            with constants that are not finite.
    """
    path = Path(path)
    try:
        source = Source(path)
    except IsADirectoryError as error:
        raise ModelError(
            f"the model {path} is a folder: give a file in it, or {path / '*.onnx'} where several "
            "models are taken"
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    if lazily:
        return _checked(path, source, kind)
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(source.sha256)
        model = _checked(path, source, kind)
        put_back(model.proto, model.stored)
    return dataclasses.replace(model, sha256=digest.result(), stored={})


def _checked(path: Path, source: Source, kind: str | None) -> Model:
    if not source.size:
        raise ModelError(f"{path} is empty: copy it again, or make it again")
    try:
        proto, stored = parse(source)
    except ValueError as error:
        raise ModelError(
            f"{path} is not an ONNX file, or it is truncated: write it again with "
            f"padim-edge {COMMANDS.get(str(kind), 'export or fit')}"
        ) from error
    try:
        props = {entry.key: entry.value for entry in proto.metadata_props}
        found = Metadata.of(props, kind)
        frame_input = found.detector_info is not None and has_frame_input(proto)
        if frame_input:
            drop_frame_input(proto, found.backbone_info.image_size)
        model = Model(
            proto,
            found.backbone_info,
            found.detector_info,
            found.extra,
            path,
            size=source.size,
            frame_input=frame_input,
            checksum=found.checksum,
            stored=stored,
        )
        _check_graph(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__
    return model


def _check_graph(model: Model) -> None:
    """Refuse a graph whose borders or constants are not what the metadata promises."""
    graph = model.proto.graph
    outputs = {value.name for value in graph.output}
    inputs = {value.name for value in graph.input}
    detector_info = model.detector_info
    wanted = {"score", "score_map"} if detector_info else {"embedding", *model.feature_names()}
    shape = graph.input[0].type.tensor_type.shape.dim[1:] if graph.input else []
    size = [*model.backbone_info.image_size, 3]
    if inputs != {"image"} or [d.dim_value for d in shape] != size or not wanted <= outputs:
        raise ModelError(
            f"its inputs {sorted(inputs)} and outputs {sorted(outputs)} are not those of such a "
            "file: it was altered; make it again"
        )
    found: dict[str, tuple[int, ...]] = {}
    value = 0
    for tensor in graph.initializer:
        value = begin(value, tensor)
        for piece in _pieces(tensor, model.stored):
            if piece.dtype.kind == "f" and not _is_finite(piece):
                raise ModelError(
                    f"its constant '{tensor.name}' holds NaN or infinity: make the file again"
                )
            value = add(value, tensor, piece)
        found[tensor.name] = tuple(tensor.dims)
    if detector_info:
        _check_shapes(model, detector_info, found)
    # A file from before there were checksums has none, and is taken at its word.
    if model.checksum and model.checksum != f"{value:08x}":
        raise ModelError(
            "its constants are not those that were written (the checksum differs): the file was "
            "damaged or altered; copy it again, or make it again"
        )


def _check_shapes(
    model: Model, detector_info: DetectorInfo, found: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a detector that lacks a constant, or has one of another shape."""
    pyramid = model.pyramid()
    height, width = model.backbone_info.image_size
    shapes: dict[str, tuple[int, ...]] = {
        "smoothing.rows": (height, pyramid.height),
        "smoothing.columns": (pyramid.width, width),
    }
    if detector_info.judged < 1:
        shapes[ROI] = (height, width)
    for index, level in enumerate(pyramid.levels):
        shapes[f"mean.{index}"] = (1, level.channels, level.height, level.width)
        for other, coarse in enumerate(pyramid.levels[: index + 1]):
            name = f"whitening.{index}.{other}"
            shapes[name] = (level.positions, level.channels, coarse.channels)
            if detector_info.constants == "int8":
                shapes[name + ".scale"] = (level.positions, level.channels, 1)
    for name, wanted_shape in shapes.items():
        if found.get(name) != wanted_shape:
            raise ModelError(f"its constant '{name}' is missing or misshapen: fit it again")


def _pieces(tensor: onnx.TensorProto, stored: Mapping[str, Stored]) -> Iterable[NDArray[Any]]:
    """The values of a constant, which must be in the file itself; in one or more pieces."""
    if is_held(tensor):
        return stored[tensor.name].pieces()
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(f"its constant '{tensor.name}' is kept in another file: that is not ours")
    try:
        return [numpy_helper.to_array(tensor)]
    except Exception as error:  # on damaged data onnx raises whatever it stumbles over
        raise ModelError(
            f"its constant '{tensor.name}' is damaged ({first_line(error)}): make the file again"
        ) from error


def _is_finite(array: NDArray[Any]) -> bool:
    """Whether floating point values are all finite, looked up in their bits.

    Above infinity's pattern there is only NaN: among signed integers for a clear sign bit, among
    unsigned ones for a set one. This is 5 times as fast as np.isfinite, and makes no mask.
    """
    if not array.size:
        return True
    size = array.dtype.itemsize
    infinity = np.array([np.inf, -np.inf], dtype=array.dtype)
    return bool(
        array.view(f"i{size}").max() < infinity.view(f"i{size}")[0]
        and array.view(f"u{size}").max() < infinity.view(f"u{size}")[1]
    )
