"""The products with the whitening, in the form in which ONNX Runtime's CPU kernels do them fastest.

Every product of the file, ``whitening.i.j`` [P, d, k] with z [P, k, N], is a convolution of one
pixel with a group a position, [1, P k, N, 1] to [1, P d, N, 1]. MatMul hands its matrices to the
threads one by one, which for 3136 of 18 x 18 takes longer than to read them; a convolution gives
each thread its share at once. It also adds to what is there already (FusedConv), so that the sum
over levels takes no pass of its own. Kernel and order of summation are those of MatMul: the same
bits.

A float16 block that is far too large for any cache is read at the speed of the memory, so it stays
as narrow as the file has it, and one run of positions after the other is widened into a cache and
multiplied there. ONNX Runtime has nothing like it for int8 that is faster than memory; a large
int8 block is multiplied as it is instead, by features of 14 bits in two digits, each of which is a
column of one integer product. The sums are exact, so what is lost is less than 1 part in 16000 of
a position's largest feature, far below what the block's own rounding has cost.

The block is the left of the two matrices: MLAS packs the right one anew in each call, where there
is AMX even for a single row. It takes signed numbers on the right alone, so that those of the
block are raised by 128, of which the product knows.
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

RAISED = 128
"""What stands for zero in an int8 block that is read as uint8."""

DIGIT, HIGHEST = 128, 64
"""What the higher of two digits counts, and how large either is at most.

Where the processor adds two products in 16 bits (x86 without VNNI), 2 x 255 x 64 still fits.
"""

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
    proto.graph.initializer.extend(form.small.values())
    proto.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    add_inputs(proto, form.constants)
    return form.constants


class _Form:
    """Takes a graph's nodes in their order, and collects those that do the same.

    Attributes:
        nodes: collected.
        small: their constants, by name.
        constants: their further inputs.
    """

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self._blocks = blocks
        # A tensor [P, d, N] of the file -> what holds it as [1, P d, N, 1], and [P, d].
        self._rows: dict[str, tuple[str, list[int]]] = {}
        self._convolutions: dict[str, onnx.NodeProto] = {}
        self._digits: dict[str, tuple[str, str]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.small: dict[str, onnx.TensorProto] = {}
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
        narrow = {"float16": self._in_runs, "int8": self._in_digits}.get(block.dtype.name)
        if narrow and block.wide_bytes > LARGE_BYTES:
            self._reshape(narrow(key, z, name), [1, positions * rows, -1, 1], flat)
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
        lengths = self._constant(f"{name}.runs", np.array([len(run) for run in runs]))
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

    def _in_digits(self, key: str, z: str, name: str) -> str:
        """The product of a large int8 block with z, [P, d, N]."""
        block = self._blocks[key]
        digits, worth = self._digits_of(z)
        self.constants[f"{name}.narrow"] = Constant(
            np.dtype(np.uint8), block.shape, lambda: _raised(block.values())
        )
        scales = (*block.shape[:2], 1)
        self.constants[f"{name}.scale"] = Constant(
            np.dtype(np.float32), scales, lambda: block.scales().reshape(scales)
        )
        one = self._constant("digits.one", np.float32(1))
        zero = self._constant("digits.raised", np.uint8(RAISED))
        factors = [f"{name}.narrow", digits, one, worth, zero]
        self._add("MatMulIntegerToFloat", factors, [f"{name}.digits"], domain=CONTRIB)
        parts = [f"{name}.high", f"{name}.low"]
        self._add("Split", [f"{name}.digits"], parts, axis=2, num_outputs=2)
        both = self._add("Add", parts, [f"{name}.both"])
        return self._add("Mul", [both, f"{name}.scale"], [f"{name}.scaled"])

    def _digits_of(self, z: str) -> tuple[str, str]:
        """Two digits of z [P, k, N], int8 [P, k, 2 N], and what each is worth, [P, 1, 2 N].

        z = step (DIGIT high + low), rounded to 14 bits at each position of each frame.
        """
        if z in self._digits:
            return self._digits[z]
        axis = self._constant("digits.axis", np.array([1]))
        most = self._constant("digits.most", np.float32(DIGIT * HIGHEST))
        least = self._constant("digits.least", np.float32(1e-30))
        digit = self._constant("digits.digit", np.float32(DIGIT))
        one = self._constant("digits.one", np.float32(1))
        zero = self._constant("digits.zero", np.int8(0))
        sizes = self._add("Abs", [z], [f"{z}.sizes"])
        size = self._add("ReduceMax", [sizes, axis], [f"{z}.size"])
        some = self._add("Max", [size, least], [f"{z}.some"])
        factor = self._add("Div", [most, some], [f"{z}.factor"])
        number = self._add("Mul", [z, factor], [f"{z}.number"])
        high = self._add("QuantizeLinear", [number, digit, zero], [f"{z}.high"])
        taken = self._add("DequantizeLinear", [high, digit, zero], [f"{z}.taken"])
        rest = self._add("Sub", [number, taken], [f"{z}.rest"])
        low = self._add("QuantizeLinear", [rest, one, zero], [f"{z}.low"])
        digits = self._add("Concat", [high, low], [f"{z}.digits"], axis=2)
        # A digit cannot be NaN, so what one is worth is, where z is anywhere.
        total = self._add("ReduceSum", [z, axis], [f"{z}.total"])
        none = self._constant("digits.none", np.float32(0))
        spoilt = self._add("Mul", [total, none], [f"{z}.spoilt"])
        step = self._add("Div", [some, most], [f"{z}.step"])
        worth = self._add("Add", [step, spoilt], [f"{z}.worth"])
        higher = self._add("Mul", [worth, digit], [f"{z}.higher"])
        self._digits[z] = digits, self._add("Concat", [higher, worth], [f"{z}.worths"], axis=2)
        return self._digits[z]

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

    def _constant(self, name: str, values: NDArray[Any] | np.generic) -> str:
        """Add a small constant, unless it is there, and return its name."""
        self.small.setdefault(name, numpy_helper.from_array(np.asarray(values), name))
        return name

    def _reshape(self, tensor: str, shape: list[int], output: str) -> str:
        return self._add(
            "Reshape", [tensor, self._constant(f"{output}.shape", np.array(shape))], [output]
        )


def _slice(values: Callable[[], NDArray[Any]], run: range) -> NDArray[Any]:
    """The values of some positions."""
    return values()[run.start : run.stop]


def _raised(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 as uint8, RAISED higher; in place where the values may be written to."""
    unsigned = np.require(values, requirements="W").view(np.uint8)
    unsigned ^= np.uint8(RAISED)
    return unsigned
