"""Selecting channels in a traced graph as early as nothing else needs the others."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from padim_edge.model.graph import group

# Operators that treat every channel alike, so a selection may pass through them.
CHANNELWISE = {
    *("Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Elu", "Gelu"),
    "Cast",  # out of a backbone in float16
}


def select_channels(
    graph: onnx.GraphProto, wanted: list[tuple[str, NDArray[np.int64] | None, str]]
) -> None:
    """Make channels of tensors available under names of their own, and compute no others.

    A selection moves up through channel-wise operators and additions into the rows of the
    convolution that makes the channels, as long as it is the only reader; otherwise it stays a
    Gather. The outcome is exact: the remaining channels are computed as before.

    Args:
        graph: changed in place; weights of which nothing is used any more stay in it.
        wanted: (tensor [N, C, h, w], its channels, name of the result) of each; None for all
            channels in their order.
    """
    selector = _Selector(graph)
    selector.readers.update(tensor for tensor, _, _ in wanted)
    for tensor, channels, name in wanted:
        if channels is None:
            selector.rename(tensor, name)
        else:
            made = selector.select(tensor, channels, name)
            selector.makers[made].output[0] = name
    nodes = _sorted(list(graph.node))
    del graph.node[:]
    graph.node.extend(nodes)


class _Selector:
    """A traced graph with the makers, readers and weights of its tensors at hand."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.readers = Counter(name for node in graph.node for name in node.input)

    def rename(self, tensor: str, name: str) -> None:
        """Give a tensor another name, for all its readers."""
        self.makers[name] = self.makers.pop(tensor)
        self.makers[name].output[0] = name
        self.readers[name] = self.readers.pop(tensor)
        for node in self.graph.node:
            node.input[:] = [name if source == tensor else source for source in node.input]

    def select(self, tensor: str, channels: NDArray[np.int64], reader: str) -> str:
        """The channels of a tensor that ``reader`` wants; returns the name that holds them."""
        node = self.makers.get(tensor)
        if node is not None and self.readers[tensor] == 1:
            if node.op_type == "Conv" and group(node) == 1 and self._has_weights(node):
                for place in range(1, len(node.input)):
                    rows = f"{tensor}.rows.{place}"  # weights may be shared, their rows are not
                    node.input[place] = self._rows(node.input[place], channels, rows)
                return tensor
            if node.op_type in CHANNELWISE:
                node.input[0] = self.select(node.input[0], channels, reader)
                return tensor
            if node.op_type == "Add" and all(name in self.makers for name in node.input):
                for place in range(2):
                    node.input[place] = self.select(node.input[place], channels, reader)
                return tensor
        name = f"{tensor}.for.{reader}"
        if name in self.makers:
            return name
        index = numpy_helper.from_array(channels, f"{name}.channels")
        self.graph.initializer.append(index)
        gather = helper.make_node(
            "Gather", [tensor, index.name], [name], name=f"{name}/Gather", axis=1
        )
        self.graph.node.append(gather)
        self.makers[name] = self.graph.node[-1]  # append copies
        return name

    def _has_weights(self, node: onnx.NodeProto) -> bool:
        """Whether all weights are constants: those of an int8 convolution are made of others."""
        return all(name in self.weights for name in node.input[1:])

    def _rows(self, weight: str, channels: NDArray[np.int64], name: str) -> str:
        """A weight or bias reduced to the output channels that are used, as a new constant."""
        rows = np.ascontiguousarray(numpy_helper.to_array(self.weights[weight])[channels])
        self.graph.initializer.append(numpy_helper.from_array(rows, name))
        return name


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes in an order in which every tensor is made before it is used."""
    waiting_for = {name for node in nodes for name in node.output}
    ordered: list[onnx.NodeProto] = []
    waiting = nodes
    while waiting:
        ready = [node for node in waiting if waiting_for.isdisjoint(node.input)]
        waiting = [node for node in waiting if not waiting_for.isdisjoint(node.input)]
        waiting_for.difference_update(name for node in ready for name in node.output)
        ordered += ready
    return ordered
