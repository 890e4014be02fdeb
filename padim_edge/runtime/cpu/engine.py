"""What the engines on the CPU have in common: the whole of padim.onnx as one graph.

The whitening does not stay in the graph. ONNX Runtime and OpenVINO compute with float32 alone,
and each would hold the constants several times over while it widens them; half a gigabyte of file
costs 2 to 3 of memory then. Here they become inputs, and the runtime reads them where they are:
widened once, or by whoever opens the graph.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from padim_edge.errors import ModelError, PadimEdgeError, first_line
from padim_edge.model.file import Model
from padim_edge.model.graph import subgraph
from padim_edge.model.stored import Stored, values_of
from padim_edge.progress import Progress
from padim_edge.runtime.engines import STAGES, DeviceFigures
from padim_edge.runtime.graphs import Graph

REST_SECONDS = 0.02
WARM_SECONDS = 0.05


@dataclass(frozen=True)
class Constant:
    """An input that is the same in every run.

    Attributes:
        dtype: of its values.
        shape: theirs.
        values: makes them. That is left to whoever opens the graph, who may need all the memory
            there is before.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    values: Callable[[], NDArray[Any]]


Constants = dict[str, Constant]


class CpuEngine(ABC):
    """The whole of padim.onnx on the CPU; a runtime adds how a graph is opened, and its words.

    Args:
        model: a detector, kept for `stages`: read lazily, it is small.
        threads: threads within an operator; 0 lets the runtime take every core.
        progress: not used: nothing takes long.

    Raises:
        PadimEdgeError: the runtime does not start here, or refuses the model.
    """

    name: str

    def __init__(
        self,
        model: Model,
        threads: int = 0,
        progress: Progress | None = None,  # noqa: ARG002  # as for every engine
    ) -> None:
        self._threads = threads
        self._model: Model | None = model
        self._parts: list[tuple[str, Graph, list[str]]] = []
        self._graph = self._open(*lifted(model.proto, model.stored), model.stored)

    @abstractmethod
    def _open(
        self, proto: onnx.ModelProto, blocks: Mapping[str, Block], stored: Mapping[str, Stored]
    ) -> Graph:
        """Open a graph that reads these blocks of whitening; see `lifted`.

        Of its other constants, these are in the file still.
        """

    def describe(self) -> str:
        """What runs where, in one line."""
        return self._graph.describe()

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch; see `padim_edge.runtime.engines.Engine`."""
        scores, maps = self._graph.run({"image": images}, ["score", "score_map"])
        # The largest of NaN and numbers is a number to both runtimes, of NaN alone to OpenVINO;
        # a sum is none where any of its terms is none.
        scores[~np.isfinite(maps.sum(axis=(1, 2)))] = np.nan
        return scores, maps

    def stages(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Run the graph in three pieces, cut at its fixed names, and time each.

        The pieces are opened on first use. Run over and over, each finds its constants in a
        cache, so that together they can take less time than the whole.
        """
        if not self._parts:
            self._parts = self._cut()
        tensors: dict[str, Any] = {"image": images}
        inputs = ["image"]
        seconds = {}
        for stage, graph, outputs in self._parts:
            feed = {name: tensors[name] for name in inputs}
            # The piece before goes on spinning for a while, and this one starts cold: its threads
            # need several short runs until each has a core of its own.
            time.sleep(REST_SECONDS)
            warm = time.perf_counter() + WARM_SECONDS
            graph.run(feed, outputs)
            while time.perf_counter() < warm:
                graph.run(feed, outputs)
            start = time.perf_counter()
            results = graph.run(feed, outputs)
            seconds[stage] = time.perf_counter() - start
            tensors.update(zip(outputs, results, strict=True))
            inputs = outputs
        return seconds

    def _cut(self) -> list[tuple[str, Graph, list[str]]]:
        model = self._model
        if model is None:
            raise PadimEdgeError("the engine is closed")
        names = [["image"], model.feature_names(), ["distance_map"], ["score", "score_map"]]
        parts = []
        for stage, (inputs, outputs) in zip(STAGES, itertools.pairwise(names), strict=True):
            piece = subgraph(model.proto, inputs, outputs)
            graph = self._open(*lifted(piece, model.stored), model.stored)
            parts.append((stage, graph, outputs))
        return parts

    def figures(self) -> DeviceFigures | None:
        """None: there is no device beside the host."""
        return None

    def close(self) -> None:
        """Free all graphs. Closing twice is harmless."""
        self._graph.close()
        for _, graph, _ in self._parts:
            graph.close()
        self._parts, self._model = [], None


@dataclass(frozen=True)
class Block:
    """A block of the whitening, in the shape in which a product reads it.

    Attributes:
        tensor: the values as the file stores them, or what stands for them.
        shape: [P, rows, columns].
        scale: of int8: what the rows are multiplied by, P x rows of them; else None.
        stored: constants that are in the file still.
    """

    tensor: TensorProto
    shape: tuple[int, ...]
    scale: TensorProto | None
    stored: Mapping[str, Stored]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values as they are stored."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.tensor.data_type))

    @property
    def wide_bytes(self) -> int:
        """Of the block as float32."""
        return 4 * math.prod(self.shape)

    def values(self) -> NDArray[Any]:
        """The values as they are stored: float32, float16 or int8."""
        return values_of(self.tensor, self.stored).reshape(self.shape)

    def widened(self) -> NDArray[np.float32]:
        """The whitening as float32, bit for bit what the file's own nodes would make of it."""
        wide: NDArray[np.float32] = self.values().astype(np.float32, copy=False)
        if self.scale is not None:
            wide *= self.scales()[..., None]  # of its own since it was int8
        return wide

    def scales(self) -> NDArray[np.float32]:
        """Of int8, [P, rows]: what the rows are multiplied by."""
        if self.scale is None:
            raise ValueError(f"{self.tensor.name} has no scale")
        return values_of(self.scale, self.stored).reshape(self.shape[:2])


def lifted(
    proto: onnx.ModelProto, stored: Mapping[str, Stored]
) -> tuple[onnx.ModelProto, dict[str, Block]]:
    """A graph without its whitening, which its products read by name.

    What the graph does with whitening alone (widen, scale, reshape) is left to `Block`.

    Args:
        proto: the graph.
        stored: its constants that are in the file still.

    Returns:
        The graph, in which the blocks are neither constants nor inputs yet; and the blocks.

    Raises:
        ModelError: the graph asks for a shape that its constants do not have.
    """
    graph = proto.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    # What a constant is called after the nodes that were taken out -> itself and those nodes.
    recipes: dict[str, tuple[TensorProto, list[onnx.NodeProto]]] = {
        name: (tensor, [])
        for name, tensor in tensors.items()
        if re.fullmatch(r"whitening\.\d+\.\d+", name)
    }
    nodes = []
    for node in graph.node:
        if node.input and node.input[0] in recipes and _is_known(node, tensors):
            tensor, steps = recipes.pop(node.input[0])
            recipes[node.output[0]] = (tensor, [*steps, node])
        else:
            nodes.append(node)
    try:
        blocks = {name: _block(*recipe, tensors, stored) for name, recipe in recipes.items()}
    except ValueError as error:
        raise ModelError(f"its whitening is misshapen ({first_line(error)})") from error

    bare = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    bare.graph.name = graph.name
    bare.graph.node.extend(nodes)
    bare.graph.output.extend(graph.output)
    bare.graph.input.extend(graph.input)
    used = {name for node in nodes for name in node.input} - blocks.keys()
    bare.graph.initializer.extend(tensor for name, tensor in tensors.items() if name in used)
    return bare, blocks


def add_inputs(proto: onnx.ModelProto, constants: Constants) -> None:
    """Give a graph further inputs, in place."""
    for name, one in constants.items():
        kind = helper.np_dtype_to_tensor_dtype(one.dtype)
        proto.graph.input.append(helper.make_tensor_value_info(name, kind, one.shape))


def _is_known(node: onnx.NodeProto, tensors: Mapping[str, TensorProto]) -> bool:
    """Whether a node on a constant is one that a `Block` stands for."""
    if node.op_type == "Cast":
        return bool(node.attribute[0].i == TensorProto.FLOAT)
    return node.op_type in ("Mul", "Reshape") and node.input[1] in tensors


def _block(
    tensor: TensorProto,
    steps: list[onnx.NodeProto],
    tensors: Mapping[str, TensorProto],
    stored: Mapping[str, Stored],
) -> Block:
    shape, scale = tuple(tensor.dims), None
    for node in steps:
        if node.op_type == "Mul":
            scale = tensors[node.input[1]]
        elif node.op_type == "Reshape":
            wanted = tuple(int(size) for size in numpy_helper.to_array(tensors[node.input[1]]))
            if math.prod(wanted) != math.prod(shape):
                raise ValueError(f"{list(shape)} as {list(wanted)}")
            shape = wanted
    if scale is not None and math.prod(scale.dims) != math.prod(shape[:2]):
        raise ValueError(f"{list(scale.dims)} scales of {list(shape[:2])} rows")
    return Block(tensor, shape, scale, stored)
