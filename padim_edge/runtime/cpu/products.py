"""The products with the whitening, in the form in which ONNX Runtime's CPU kernels do them fastest.

Every product of the file, ``whitening.i.j`` [P, d, k] with z [P, k, N], is a convolution of one
pixel with a group a position, [1, P k, N, 1] to [1, P d, N, 1]. MatMul hands its matrices to the
threads one by one, which for 3136 of 18 x 18 takes longer than to read them; a convolution gives
each thread its share at once. It also adds to what is there already (FusedConv), so that the sum
over levels takes no pass of its own. Kernel and order of summation are those of MatMul: the same
bits.

A float16 block that is far too large for any cache is read at the speed of the memory, so it stays
as narrow as the file has it, and one run of positions after the other is widened into a cache and
multiplied there. (ONNX Runtime's Cast from int8 is too slow for that to pay.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from padim_edge.runtime.cpu.engine import Block, Constant, Constants, add_inputs

LARGE_BYTES = 32 << 20
"""A float16 block of more than this as float32 is widened in runs."""

RUN_BYTES = 6 << 20
"""Of a run as float32: a few positions a thread."""

CONTRIB = "com.microsoft"


def in_ort_form(proto: onnx.ModelProto, blocks: Mapping[str, Block]) -> Constants:
    """Bring a graph of `engine.lifted` into the form for ONNX Runtime, in place.

    Args:
        proto: the graph.
        blocks: the whitening that it reads, by name.

    Returns:
        What its further inputs are to be given.

    Raises:
        ModelError: the graph asks for a shape that its constants do not have.
    """
    form = _Form(blocks)
    for node in proto.graph.node:
        form.take(node)
    del proto.graph.node[:]
    proto.graph.node.extend(form.nodes)
    proto.graph.initializer.extend(form.shapes)
    proto.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    add_inputs(proto, form.constants)
    return form.constants


class _Form:
    """Takes a graph's nodes in their order, and collects those that do the same.

    Attributes:
        nodes: collected.
        shapes: their constants.
        constants: their further inputs.
    """

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self._blocks = blocks
        # A tensor [P, d, N] of the file -> what holds it as [1, P d, N, 1], and [P, d].
        self._rows: dict[str, tuple[str, list[int]]] = {}
        self._convolutions: dict[str, onnx.NodeProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.shapes: list[onnx.TensorProto] = []
        self.constants: Constants = {}

    def take(self, node: onnx.NodeProto) -> None:
        """Add a node of the file, or what takes its place."""
        name, rows = node.output[0], [self._rows.get(source) for source in node.input]
        if node.op_type == "MatMul" and node.input[0] in self._blocks:
            self._product(node.input[0], node.input[1], name)
        elif node.op_type == "Reshape" and rows[0]:
            self._rows[name] = rows[0]  # by other positions: the same rows in the same order
        elif node.op_type == "Add" and rows[0] and rows[1]:
            self._rows[name] = (self._sum(rows[0][0], rows[1][0]), rows[1][1])
        else:
            for source, found in zip(node.input, rows, strict=True):
                if found:
                    self._reshape(found[0], [*found[1], -1], source)
            self.nodes.append(node)

    def _product(self, key: str, z: str, name: str) -> None:
        """The product of a block with z."""
        block = self._blocks[key]
        positions, rows, columns = block.shape
        flat = f"{name}.flat"
        self._rows[name] = (flat, [positions, rows])
        if block.tensor.data_type == TensorProto.FLOAT16 and block.wide_bytes > LARGE_BYTES:
            product = self._in_runs(key, z, name)
            self._reshape(product, [1, positions * rows, -1, 1], flat)
        else:
            shape = (positions * rows, columns, 1, 1)
            self.constants[key] = Constant(
                np.dtype(np.float32), shape, lambda: block.widened().reshape(shape)
            )
            pixels = self._reshape(z, [1, positions * columns, -1, 1], f"{name}.pixels")
            self._add("Conv", [pixels, key], [flat], group=positions)
            self._convolutions[flat] = self.nodes[-1]

    def _in_runs(self, key: str, z: str, name: str) -> str:
        """The product of a large float16 block with z, [P, d, N]."""
        positions, rows, columns = self._blocks[key].shape
        values = functools.cache(self._blocks[key].values)  # of which each run is a view
        step = max(1, RUN_BYTES // (4 * rows * columns))
        runs = [range(start, min(start + step, positions)) for start in range(0, positions, step)]
        parts = [f"{name}.{place}" for place in range(len(runs))]
        lengths = self._constant(f"{name}.runs", [len(run) for run in runs])
        self._add("Split", [z, lengths], [f"{part}.z" for part in parts], axis=0)
        for part, run in zip(parts, runs, strict=True):
            self.constants[f"{part}.narrow"] = Constant(
                np.dtype(np.float16),
                (len(run), rows, columns),
                functools.partial(_slice, values, run),
            )
            wide = self._add("Cast", [f"{part}.narrow"], [f"{part}.wide"], to=TensorProto.FLOAT)
            self._add("MatMul", [wide, f"{part}.z"], [part])
        return self._add("Concat", parts, [f"{name}.whole"], axis=0)

    def _sum(self, one: str, other: str) -> str:
        """The sum of two tensors [1, P d, N, 1], of which the other is read by nobody else."""
        convolution = self._convolutions.pop(other, None)
        if convolution is None:
            return self._add("Add", [one, other], [f"{other}.sum"])
        convolution.op_type, convolution.domain = "FusedConv", CONTRIB
        convolution.input.extend(["", one])
        return other

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Add a node, named after its first output, and return that."""
        name = f"distances/{outputs[0]}"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def _constant(self, name: str, values: list[int]) -> str:
        self.shapes.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    def _reshape(self, tensor: str, shape: list[int], output: str) -> str:
        return self._add("Reshape", [tensor, self._constant(f"{output}.shape", shape)], [output])


def _slice(values: Callable[[], NDArray[Any]], run: range) -> NDArray[Any]:
    """The values of some positions."""
    return values()[run.start : run.stop]
