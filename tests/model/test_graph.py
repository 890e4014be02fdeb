"""The scoring graph in the runtimes on the CPU against the independent float64 reference."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import reference
from onnx import TensorProto, helper, numpy_helper

from padim_edge.errors import ModelError, PadimEdgeError
from padim_edge.fit import gaussian
from padim_edge.fit.moments import moments_of
from padim_edge.model import graph
from padim_edge.model.names import FEATURES, IR_VERSION, OPSET
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.model.smoothing import Smoothing
from padim_edge.runtime.cpu import products
from padim_edge.runtime.cpu.engine import Constant, add_inputs, lifted
from padim_edge.runtime.cpu.ort import Graph as OrtGraph
from padim_edge.runtime.cpu.products import in_ort_form
from padim_edge.runtime.graphs import Graph

EPS = 0.01
SIZE = (64, 64)

SHAPES = {
    "three levels": [(5, 16, 16), (4, 8, 8), (6, 4, 4)],
    "one level": [(7, 8, 8)],
    "one channel": [(1, 4, 4)],
    "ratio 4": [(3, 16, 16), (5, 4, 4)],
    "ratios 4 and 2": [(2, 16, 32), (3, 4, 8), (4, 2, 4)],
    "equal resolutions": [(3, 8, 8), (2, 8, 8), (4, 4, 4)],
    "four levels": [(1, 16, 16), (2, 8, 8), (3, 4, 4), (2, 2, 2)],
    "one position": [(3, 2, 2), (4, 1, 1)],
}
TOLERANCES = {"float32": 1e-4, "float16": 1e-3, "int8": 1e-2}


def maps_of(shapes, count, seed):
    """Correlated layers, so that whitening has something to do."""
    rng = np.random.default_rng(seed)
    mixer = np.random.default_rng(9)
    cause = rng.standard_normal((count, 4))
    maps = []
    for shape in shapes:
        common = np.einsum("nc,cdhw->ndhw", cause, mixer.standard_normal((4, *shape)))
        maps.append((common + rng.standard_normal((count, *shape))).astype(np.float32))
    return maps


def scoring_nodes(pyramid, features, constants):
    """Nodes from selected maps to distances."""
    stats = moments_of(features)
    whitening = {
        f"{i}.{j}{suffix}": values
        for (i, j), rows in gaussian.whitening(stats, EPS).items()
        for suffix, values in graph.store(rows, constants).items()
    }
    means = [
        pyramid.from_tree(mean, index)[None].astype(np.float32)
        for index, mean in enumerate(stats.means)
    ]
    return graph.distances(pyramid, means, whitening)


def build(pyramid, layers, features, constants, size, sigma=4.0):
    """A graph that starts at the selected maps."""
    parts = [
        scoring_nodes(pyramid, features, constants),
        graph.smoothing(Smoothing.of(pyramid, size, sigma)),
    ]
    inputs = [
        helper.make_tensor_value_info(
            FEATURES + layer.name,
            TensorProto.FLOAT,
            ["N", layer.channels, layer.height, layer.width],
        )
        for layer in layers
    ]
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("score_map", TensorProto.FLOAT, ["N", *size]),
    ]
    nodes = [node for part in parts for node in part.nodes]
    tensors = [constant for part in parts for constant in part.constants]
    proto = helper.make_model(
        helper.make_graph(nodes, "scoring", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def as_file(proto: onnx.ModelProto) -> Graph:
    """In ONNX Runtime as it stands, as anybody may run the file."""
    return OrtGraph(proto.SerializeToString())


def as_ort(proto: onnx.ModelProto) -> Graph:
    """As engine `ort` opens it."""
    bare, blocks = lifted(proto, {})
    constants = in_ort_form(bare, blocks)
    return OrtGraph(bare.SerializeToString(), 0, constants)


def as_ort_large(proto: onnx.ModelProto) -> Graph:
    """The same, where all whitening is far too large for a cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LARGE_BYTES", 0)
        patch.setattr(products, "RUN_BYTES", 3000)
        return as_ort(proto)


def as_openvino(proto: onnx.ModelProto) -> Graph:
    """As engine `openvino` opens it."""
    pytest.importorskip("openvino")
    from padim_edge.runtime.cpu.openvino import Graph as OpenVinoGraph

    bare, blocks = lifted(proto, {})
    constants = {
        name: Constant(np.dtype(np.float32), block.shape, block.widened)
        for name, block in blocks.items()
    }
    add_inputs(bare, constants)
    return OpenVinoGraph(bare.SerializeToString(), 0, constants)


def tree(pyramid, by_name):
    features = []
    for index, level in enumerate(pyramid.levels):
        own = np.concatenate([by_name[layer.name] for layer in level.layers], axis=1)
        flat = pyramid.to_tree(index, own).reshape(len(own), level.positions, level.channels)
        features.append(flat.transpose(1, 0, 2).astype(np.float64))
    return features


@pytest.mark.parametrize("opened", [as_file, as_ort, as_ort_large, as_openvino])
@pytest.mark.parametrize("constants", TOLERANCES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_score_maps_equal_the_reference(shapes, constants, opened):
    layers = [Layer(f"layer{i}", *shape) for i, shape in enumerate(shapes)]
    names = [layer.name for layer in layers]
    pyramid = Pyramid.coarse_to_fine(layers)
    good = maps_of(shapes, 25, seed=0)
    new = maps_of(shapes, 5, seed=1)
    size = (SIZE[0], SIZE[0] * shapes[0][2] // shapes[0][1])
    features = tree(pyramid, dict(zip(names, good, strict=True)))
    scorer = opened(build(pyramid, layers, features, constants, size))
    embedding = reference.embed(good)
    distances = reference.distances(reference.embed(new), *reference.fit(embedding, EPS))
    expected = reference.score_maps(distances, size)

    for batch in (5, 1):
        feed = {FEATURES + n: m[:batch] for n, m in zip(names, new, strict=True)}
        score, score_map = scorer.run(feed, ["score", "score_map"])
        assert score.shape == (batch,)
        rtol = TOLERANCES[constants]
        np.testing.assert_allclose(score_map, expected[:batch], rtol=rtol)
        np.testing.assert_allclose(score, expected[:batch].max(axis=(1, 2)), rtol=rtol)


@pytest.mark.parametrize("opened", [as_ort, as_ort_large])
def test_a_frame_equal_to_the_mean_scores_zero_and_not_nan(opened):
    """x^T Sigma^-1 x can round to less than zero; a sum of squares cannot."""
    shapes = SHAPES["three levels"]
    layers = [Layer(f"layer{i}", *shape) for i, shape in enumerate(shapes)]
    pyramid = Pyramid.coarse_to_fine(layers)
    good = maps_of(shapes, 10, seed=0)
    by_name = dict(zip([layer.name for layer in layers], good, strict=True))
    scorer = opened(build(pyramid, layers, tree(pyramid, by_name), "int8", SIZE))
    feed = {FEATURES + n: m.mean(axis=0, keepdims=True) for n, m in by_name.items()}
    score, score_map = scorer.run(feed, ["score", "score_map"])
    assert np.isfinite(score_map).all()
    assert score[0] < 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("constants", ["float16", "int8"])
@pytest.mark.parametrize("opened", [as_ort, as_ort_large])
def test_nan_in_one_frame_stays_in_that_frame(opened, constants, value):
    shapes = SHAPES["three levels"]
    layers = [Layer(f"layer{i}", *shape) for i, shape in enumerate(shapes)]
    pyramid = Pyramid.coarse_to_fine(layers)
    by_name = dict(zip([layer.name for layer in layers], maps_of(shapes, 10, 0), strict=True))
    scorer = opened(build(pyramid, layers, tree(pyramid, by_name), constants, SIZE))
    feed = {FEATURES + n: m[:3].copy() for n, m in by_name.items()}
    clean = scorer.run(feed, ["score"])[0]
    feed["features.layer2"][1, 0, 0, 0] = value
    score = scorer.run(feed, ["score"])[0]
    assert not np.isfinite(score[1])
    assert np.array_equal(score[[0, 2]], clean[[0, 2]])


def three_levels(constants):
    """A graph of three levels, and three frames' features for it."""
    layers = [Layer(f"layer{i}", *s) for i, s in enumerate(SHAPES["three levels"])]
    pyramid = Pyramid.coarse_to_fine(layers)
    by_name = dict(
        zip([layer.name for layer in layers], maps_of(SHAPES["three levels"], 20, 0), strict=True)
    )
    proto = build(pyramid, layers, tree(pyramid, by_name), constants, SIZE)
    return proto, {FEATURES + name: maps[:3] for name, maps in by_name.items()}


@pytest.mark.parametrize("constants", TOLERANCES)
def test_lifted_whitening_is_that_of_the_graph_bit_by_bit(constants):
    """Each constant is there once, in float32, and scores are those of the file as it stands."""
    proto, feed = three_levels(constants)
    bare, blocks = lifted(proto, {})
    lifts = in_ort_form(bare, blocks)
    left = bare.graph
    assert len(lifts) == 6
    assert all(values.dtype == np.float32 for values in lifts.values())
    assert not [t.name for t in left.initializer if t.name.startswith("whitening")]
    assert not [n.name for n in left.node if n.output[0].startswith("whitening")]
    assert {value.name for value in left.input} == feed.keys() | lifts.keys()
    # Each product is one node, the first of a level starts the sum and the others add to it.
    operators = [node.op_type for node in left.node]
    assert (operators.count("Conv"), operators.count("FusedConv")) == (3, 3)
    assert not {"MatMul", "Add"} & {n.op_type for n in left.node if "product" in n.name}
    for ours, theirs in zip(as_ort(proto).run(feed), as_file(proto).run(feed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_large_whitening_stays_float16_and_is_widened_in_runs_of_positions(monkeypatch):
    proto, feed = three_levels("float16")
    expected = as_file(proto).run(feed)
    monkeypatch.setattr(products, "LARGE_BYTES", 0)
    monkeypatch.setattr(products, "RUN_BYTES", 3000)
    bare, blocks = lifted(proto, {})
    lifts = in_ort_form(bare, blocks)
    assert {values.dtype for values in lifts.values()} == {np.dtype(np.float16)}
    sizes = [math.prod(one.shape) for one in lifts.values()]
    assert max(sizes) * 4 <= 3000
    assert sum(sizes) == sum(
        numpy_helper.to_array(t).size
        for t in proto.graph.initializer
        if t.data_type == TensorProto.FLOAT16
    )
    for ours, theirs in zip(as_ort(proto).run(feed), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_large_whitening_in_float32_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(products, "LARGE_BYTES", 0)
    lifts = in_ort_form(*lifted(three_levels("float32")[0], {}))
    assert [values.dtype for values in lifts.values()] == [np.dtype(np.float32)] * 6


def test_large_whitening_in_int8_is_multiplied_as_it_is(monkeypatch):
    """Features have 14 bits then: far less is lost than int8 has cost."""
    proto, feed = three_levels("int8")
    score, score_map = as_file(proto).run(feed)
    monkeypatch.setattr(products, "LARGE_BYTES", 0)
    bare, blocks = lifted(proto, {})
    lifts = in_ort_form(bare, blocks)
    integers = [one for one in lifts.values() if one.dtype == np.uint8]
    assert sum(math.prod(one.shape) for one in integers) == sum(
        math.prod(block.shape) for block in blocks.values()
    )
    rest = [math.prod(one.shape) for one in lifts.values() if one.dtype != np.uint8]
    assert sum(rest) == sum(math.prod(block.shape[:2]) for block in blocks.values())
    # MLAS packs the right matrix anew in each call: that must be the small one.
    products_of = [n for n in bare.graph.node if n.op_type == "MatMulIntegerToFloat"]
    assert {n.input[0] for n in products_of} == {
        name for name, one in lifts.items() if one.dtype == np.uint8
    }
    for own, expected in zip(as_ort(proto).run(feed), (score, score_map), strict=True):
        np.testing.assert_allclose(own, expected, rtol=2e-4)


def test_digits_cannot_overflow_sixteen_bits():
    """What x86 without VNNI adds up two products in, and would clip without a word."""
    shape = [2, 3, 2]  # positions, features, frames
    form = products._Form({})
    form._digits_of("z")
    graph = helper.make_graph(
        form.nodes,
        "digits",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("z.digits", TensorProto.INT8, None),
            helper.make_tensor_value_info("z.worths", TensorProto.FLOAT, None),
        ],
        list(form.small.values()),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    rng = np.random.default_rng(0)
    with OrtGraph(proto.SerializeToString()) as opened:
        for size in (1e-3, 1, 1e4):
            for z in (*(size * rng.standard_normal([200, *shape])), size * np.ones(shape)):
                z = z.astype(np.float32)
                digits, worths = opened.run({"z": z})
                assert 2 * 255 * np.abs(digits.astype(int)).max() <= 2**15 - 1
                most = np.abs(z).max(axis=1, keepdims=True)
                both = (worths.astype(np.float64) * digits).reshape(2, 3, 2, -1).sum(axis=2)
                assert (np.abs(both - z) <= most / 16000).all()


def test_int8_is_raised_exactly_and_what_cannot_be_written_to_stays():
    values = np.arange(-128, 128).astype(np.int8).reshape(2, 8, 16)
    values.flags.writeable = False
    raised = products._raised(values)
    np.testing.assert_array_equal(raised.astype(int) - products.RAISED, values)
    assert values[0, 0, 0] == -128


def test_a_graph_that_does_not_fit_its_constants_is_refused():
    layers = [Layer("a", 3, 16, 16), Layer("b", 2, 4, 4)]
    pyramid = Pyramid.coarse_to_fine(layers)
    by_name = dict(zip("ab", maps_of([(3, 16, 16), (2, 4, 4)], 9, 0), strict=True))
    proto = build(pyramid, layers, tree(pyramid, by_name), "float16", SIZE)
    shape = next(t for t in proto.graph.initializer if t.name == "whitening.1.0.grouped.shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([7, -1, 2]), shape.name))
    with pytest.raises(ModelError, match="its whitening is misshapen"):
        lifted(proto, {})


def test_whitening_that_float16_cannot_hold_is_refused():
    rows = np.full((1, 1, 1), 1e5)
    with pytest.raises(PadimEdgeError, match="does not fit into float16"):
        graph.store(rows, "float16")
    assert graph.store(rows, "float32")[""] == 1e5
    small = np.array([[[1.0, 0.0], [-1e-7, 6e-5]]])
    with pytest.raises(PadimEdgeError, match=r"does not fit into float16: .* --constants float32"):
        graph.check_rows(small, "float16")
    graph.check_rows(small, "int8")  # whose rows have a scale each
    graph.check_rows(small.clip(6.2e-5), "float16")


def test_quantised_rows_are_within_half_a_step():
    rows = np.random.default_rng(0).standard_normal((7, 5, 9)) * np.logspace(-6, 2, 5)[:, None]
    rows[3, 2] = 0
    values, scale = graph.quantise(rows)
    assert values.dtype == np.int8
    assert np.abs(values).max() == 127
    assert (np.abs(values * scale.astype(np.float64) - rows) <= scale * 0.5 * (1 + 1e-6)).all()


def test_operators_are_those_of_plain_onnx():
    """No custom domain, and no operator that TensorRT's parser lacks."""
    layers = [Layer("a", 3, 16, 16), Layer("b", 2, 4, 4)]
    pyramid = Pyramid.coarse_to_fine(layers)
    by_name = dict(zip("ab", maps_of([(3, 16, 16), (2, 4, 4)], 9, 0), strict=True))
    nodes = scoring_nodes(pyramid, tree(pyramid, by_name), "float32").nodes
    assert {node.domain for node in nodes} == {""}
    assert {node.op_type for node in nodes} <= {
        "Sub", "SpaceToDepth", "DepthToSpace", "Reshape", "Transpose", "MatMul", "Add",
        "ReduceSumSquare", "Sqrt",
    }  # fmt: skip
