"""The way from a frame to ``image`` as ONNX nodes, for programs that have an ONNX runtime alone.

A file fitted with ``--frame-input`` begins at ``frame``, uint8 [N, h, w, 3] RGB of any size, and
its first nodes carry out the file's own `Preprocess`. Per direction, with L pixels in the frame and
R to resize to:

    f = max(1, L // R), B = ceil(L / f)       blocks of f pixels, B of them (f is 1 without reduce)
    centre_i = (i + 1/2) L / (f R)            of pixel i of the result, counted in blocks
    scale = max(1, L / (f R))
    W_ij = filter((j + 1/2 - centre_i) / scale), rows divided by their sums, rounded to 22 bits
    image = round(W_rows round(means W_columns^T))

which is Pillow's arithmetic in its order, across first. In double precision every product and every
sum of them is exact, so where a runtime has double precision the prepared image is that of
`Preprocess`, bit for bit; where it takes float32 instead (OpenVINO) a sum that ends near a half may
be rounded the other way, by one grey level.

ONNX's own Resize with ``antialias`` is not used: it knows two of the four filters, it cannot be
told exactly of a last block that is not whole, and OpenVINO ignores the attribute without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper

from padim_edge.errors import UsageError
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.graph import Nodes, image_input

FRAME = "frame"

ONE = 2.0**22
"""A weight of 1 as Pillow has it, in whole numbers."""


def check_frame_input(preprocess: Preprocess) -> None:
    """Refuse what a graph cannot do: to refuse a frame.

    Raises:
        UsageError: some frames would not cover the crop.
    """
    side, (height, width) = preprocess.resize, preprocess.size
    if isinstance(side, int) and side < max(height, width):
        raise UsageError(
            f"--frame-input with --resize {side}: a frame whose longer side does not become "
            f"{max(height, width)} cannot give {height}x{width}, and a graph cannot say so: give "
            f"--resize as height x width or at least {max(height, width)}, or leave --frame-input "
            "out"
        )


def with_frame_input(proto: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    """A copy of a graph from ``image`` that begins at ``frame`` instead.

    Raises:
        UsageError: as :func:`check_frame_input`.
    """
    nodes = frame_nodes(preprocess)
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    graph = whole.graph
    following = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes.nodes, *following])
    graph.initializer.extend(nodes.constants)
    shape: list[str | int | None] = ["N", "frame_height", "frame_width", 3]
    graph.input.append(helper.make_tensor_value_info(FRAME, TensorProto.UINT8, shape))
    graph.value_info.append(image_input(preprocess.size))  # what can be cut at must be declared
    return whole


def has_frame_input(proto: onnx.ModelProto) -> bool:
    """Whether a graph begins at ``frame`` and makes ``image`` of it."""
    inputs = [value.name for value in proto.graph.input]
    return inputs == [FRAME] and any("image" in node.output for node in proto.graph.node)


def drop_frame_input(proto: onnx.ModelProto, image_size: tuple[int, int]) -> None:
    """Make of a graph from ``frame`` that from ``image``: undo `with_frame_input`, in place."""
    graph = proto.graph
    before = {"image"}  # and whatever it is made of
    kept = []
    for node in reversed(graph.node):
        if before.isdisjoint(node.output):
            kept.append(node)
        else:
            before.update(node.input)
    used = {name for node in kept for name in node.input}
    for values in (graph.initializer, graph.value_info):
        for index in reversed(range(len(values))):
            if values[index].name in before and values[index].name not in used - {"image"}:
                del values[index]
    nodes = kept[::-1]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(image_input(image_size))


class _Expressions(Nodes):
    """Nodes written as nested calls: what is no name becomes a constant, ints as int64."""

    def __call__(
        self, operator: str, *inputs: str | ArrayLike, output: str = "", **attributes: Any
    ) -> str:
        """Add a node and return the name of its output."""
        names = [value if isinstance(value, str) else self.number(value) for value in inputs]
        return self.add(operator, names, output or f"{FRAME}.{len(self.nodes)}", **attributes)

    def number(self, value: ArrayLike) -> str:
        """Add a constant and return its name."""
        return self.constant(f"{FRAME}.constant.{len(self.constants)}", np.asarray(value))


@dataclass(frozen=True)
class _Axis:
    """Rows or columns: tensors of int64 [1], but for ``first``.

    Attributes:
        length: of the frame.
        target: to resize to.
        size: of the result, what the crop keeps of the target.
        first: of those, in the target; float64 [1].
        block: pixels that are averaged.
        blocks: how many blocks there are, the last perhaps of fewer pixels.
    """

    length: str
    target: str
    size: int
    first: str
    block: str
    blocks: str


def frame_nodes(preprocess: Preprocess) -> Nodes:
    """Nodes from ``frame``, uint8 [N, h, w, 3], to ``image``, uint8 [N, H, W, 3].

    Raises:
        UsageError: as :func:`check_frame_input`.
    """
    check_frame_input(preprocess)
    node = _Expressions("frame_input")
    shape = node("Shape", FRAME)
    down, across = _axes(node, shape, preprocess)
    if preprocess.reduce:
        planes = _block_means(node, shape, down, across)
    else:
        turned = node("Transpose", FRAME, perm=[0, 3, 1, 2])
        planes = node("Cast", turned, to=TensorProto.DOUBLE)
    columns = _weights(node, across, preprocess.interpolation, taps=0)
    planes = _levels(node, node("MatMul", planes, columns))
    rows = _weights(node, down, preprocess.interpolation, taps=1)
    planes = _levels(node, node("MatMul", rows, planes))
    planes = node("Cast", planes, to=TensorProto.UINT8)
    node("Transpose", planes, perm=[0, 2, 3, 1], output="image")
    return node


def _axes(node: _Expressions, shape: str, preprocess: Preprocess) -> list[_Axis]:
    """Rows and columns, by the geometry of `Preprocess`."""
    # At least 1: a division by zero would end the process in some runtimes. Of an empty frame the
    # shapes now contradict each other further on, and the run fails.
    lengths = [node("Max", node("Gather", shape, [index]), [1]) for index in (1, 2)]
    axes = []
    for index, length in enumerate(lengths):
        size = preprocess.size[index]
        if isinstance(preprocess.resize, int):
            scaled = node("Mul", length, [preprocess.resize])
            target = node("Div", scaled, node("Min", *lengths))
        else:
            target = node.number([preprocess.resize[index]])
        margin = node("Cast", node("Sub", target, [size]), to=TensorProto.DOUBLE)
        first = node("Round", node("Div", margin, 2.0))  # halves to even, as Python's
        if preprocess.reduce:
            block = node("Max", node("Div", length, target), [1])
        else:
            block = node.number([1])
        blocks = node("Div", node("Sub", node("Add", length, block), [1]), block)
        axes.append(_Axis(length, target, size, first, block, blocks))
    return axes


def _block_means(node: _Expressions, shape: str, down: _Axis, across: _Axis) -> str:
    """Means of blocks, rounded, as float64 [N, 3, blocks down, blocks across].

    The frame is filled up with zeros to whole blocks. Rows of blocks are added by a product of
    integers with ones, which is the one way to add bytes that does not widen the frame first.
    """
    sizes = []
    missing = []
    for axis in (down, across):
        full = node("Mul", axis.blocks, axis.block)
        missing.append(node("Sub", full, axis.length))
        start = node("Mul", _range(node, axis.blocks), axis.block)
        held = node("Min", node("Sub", axis.length, start), axis.block)
        sizes.append(node("Cast", held, to=TensorProto.DOUBLE))
    # At the beginning of each of the four axes, then at the end.
    pads = node("Concat", [0, 0, 0, 0, 0], *missing, [0], axis=0)
    row = node("Mul", node("Mul", across.blocks, across.block), [3])
    by_rows = node("Concat", [-1], down.block, row, axis=0)
    rows = node("Reshape", node("Pad", FRAME, pads), by_rows)
    one = helper.make_tensor("one", TensorProto.UINT8, [1], [1])
    ones = node("ConstantOfShape", node("Concat", [1], down.block, axis=0), value=one)
    sums = node("MatMulInteger", ones, rows)
    sums = node("Reshape", sums, node("Concat", [-1], across.block, [3], axis=0))
    sums = node("ReduceSum", sums, [1], keepdims=0)
    count = node("Gather", shape, [0])
    blocks = node("Concat", count, down.blocks, across.blocks, [3], axis=0)
    planes = node("Transpose", node("Reshape", sums, blocks), perm=[0, 3, 1, 2])
    planes = node("Cast", planes, to=TensorProto.DOUBLE)
    held = node("Mul", node("Unsqueeze", sizes[0], [1]), sizes[1])
    halves_up = node("Add", planes, node("Mul", held, 0.5))
    return node("Floor", node("Div", halves_up, held))


def _weights(node: _Expressions, axis: _Axis, interpolation: str, taps: int) -> str:
    """The filter as a matrix of whole numbers of 2^-22, float64.

    Blocks are along the axis ``taps`` of it, pixels of the result along the other.

    Operation by operation Pillow's precompute_coeffs and normalize_coeffs_8bpc, whose box is
    float32 and whose weights are double.
    """
    length = node("Cast", axis.length, to=TensorProto.DOUBLE)
    box = node("Div", length, node("Cast", axis.block, to=TensorProto.DOUBLE))
    box = node("Cast", node("Cast", box, to=TensorProto.FLOAT), to=TensorProto.DOUBLE)
    step = node("Div", box, node("Cast", axis.target, to=TensorProto.DOUBLE))
    scale = node("Max", step, 1.0)
    pixel = node("Add", np.expand_dims(np.arange(axis.size) + 0.5, taps), axis.first)
    centre = node("Mul", pixel, step)
    tap = node("Cast", _range(node, axis.blocks), to=TensorProto.DOUBLE)
    tap = node("Unsqueeze", tap, [1 - taps])
    offset = node("Sub", node("Add", tap, 0.5), centre)
    weights = _FILTERS[interpolation](node, node("Mul", offset, node("Div", 1.0, scale)))
    if interpolation == "box":
        # Pillow's first and last tap, which may lie just within the filter or without.
        half = node("Mul", scale, 0.5)
        start = node("Floor", node("Add", node("Sub", centre, half), 0.5))
        stop = node("Floor", node("Add", node("Add", centre, half), 0.5))
        taken = node("And", node("GreaterOrEqual", tap, start), node("Less", tap, stop))
        weights = node("Where", taken, weights, 0.0)
    unit = node("Mul", node("ReduceSum", weights, [taps]), 1 / ONE)
    return node("Round", node("Div", weights, unit))


def _box(node: _Expressions, x: str) -> str:
    inside = node("And", node("Greater", x, -0.5), node("LessOrEqual", x, 0.5))
    return node("Cast", inside, to=TensorProto.DOUBLE)


def _bilinear(node: _Expressions, x: str) -> str:
    return node("Max", node("Sub", 1.0, node("Abs", x)), 0.0)


def _bicubic(node: _Expressions, x: str) -> str:
    """Keys' filter with a = -1/2."""
    x = node("Abs", x)
    near = node("Mul", node("Sub", node("Mul", x, 1.5), 2.5), node("Mul", x, x))
    near = node("Add", near, 1.0)
    far = node("Sub", node("Mul", node("Add", node("Mul", node("Sub", x, 5.0), x), 8.0), x), 4.0)
    far = node("Where", node("Less", x, 2.0), node("Mul", far, -0.5), 0.0)
    return node("Where", node("Less", x, 1.0), near, far)


def _lanczos(node: _Expressions, x: str) -> str:
    x = node("Abs", x)
    product = node("Mul", _sinc(node, x), _sinc(node, node("Div", x, 3.0)))
    return node("Where", node("Less", x, 3.0), product, 0.0)


def _sinc(node: _Expressions, x: str) -> str:
    """sin(pi x) / (pi x) for x of 0 and more; at 0 as near it, where it is 1."""
    angle = node("Mul", node("Max", x, 1e-9), np.pi)
    return node("Div", node("Sin", angle), angle)


_FILTERS = {"box": _box, "bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos}


def _range(node: _Expressions, length: str) -> str:
    """0, 1, ... below a length."""
    return node("Range", 0, node("Squeeze", length), 1)


def _levels(node: _Expressions, sums: str) -> str:
    """Sums weighted in 2^-22 as grey levels, halves up."""
    halves_up = node("Add", sums, ONE / 2)
    return node("Clip", node("Floor", node("Mul", halves_up, 1 / ONE)), 0.0, 255.0)
