"""A backbone in float16, written in its graph: types are what a strongly typed runtime goes by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from padim_edge.errors import PadimEdgeError
from padim_edge.model.names import NORMALISED


def halve(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Make a backbone float16 between float32 ``normalised`` and float32 outputs.

    Args:
        graph: from ``normalised`` on; changed in place.
        outputs: names of its outputs.

    Raises:
        PadimEdgeError: a weight is too large for float16.
    """
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(tensor).astype(np.float16)
            if not np.isfinite(values).all():
                raise PadimEdgeError(
                    f"the weight '{tensor.name}' does not fit into float16: export with "
                    "--precision float32"
                )
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    half = {name: f"{name}.float16" for name in (NORMALISED, *outputs)}
    for node in graph.node:
        node.input[:] = [half.get(name, name) for name in node.input]
        node.output[:] = [half.get(name, name) for name in node.output]
    first, *rest = (
        helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)
        for source, target, kind in (
            (NORMALISED, half[NORMALISED], TensorProto.FLOAT16),
            *((half[name], name, TensorProto.FLOAT) for name in outputs),
        )
    )
    nodes = [first, *graph.node, *rest]
    del graph.node[:]
    graph.node.extend(nodes)
