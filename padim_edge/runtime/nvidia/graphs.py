"""What a GPU's backbone runtime is given of a model: the graph as far as the maps, or all of it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from padim_edge.errors import PadimEdgeError
from padim_edge.model.file import MAX_BYTES, Model
from padim_edge.model.stored import put_back


def backbone_graph(model: Model) -> bytes:
    """The part of a model from image to selected maps, as ONNX.

    It depends on the backbone and the chosen channels alone, not on the fit: a device that is
    fitted again keeps its plan. (The projection of a whitened detector is part of it, and changes
    with a new fit, but not with an update.)
    """
    return _bare(model.part(["image"], model.feature_names()))


def whole_graph(model: Model) -> bytes:
    """All of a model, scoring included, as ONNX.

    TensorRT takes int8 constants before DequantizeLinear alone, which has no scale per row of a
    batch of matrices. So int8 whitening is widened to float32 here, where the graph does it.

    Raises:
        PadimEdgeError: it is larger than an ONNX graph can be.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    put_back(proto, model.stored)
    cast = {node.input[0] for node in proto.graph.node if node.op_type == "Cast"}
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and tensor.name in cast:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return _bare(proto)


def _bare(proto: onnx.ModelProto) -> bytes:
    """A graph without the metadata that changes from file to file and that no builder reads."""
    bare = onnx.ModelProto(
        ir_version=proto.ir_version, opset_import=proto.opset_import, graph=proto.graph
    )
    if bare.ByteSize() > MAX_BYTES:
        raise PadimEdgeError(
            f"the graph for TensorRT has {bare.ByteSize() / 2**30:.1f} GiB and may have 2: leave "
            "the scoring to the CUDA kernels, which read the constants as they are stored"
        )
    return bytes(bare.SerializeToString(deterministic=True))
