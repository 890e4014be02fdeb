"""An embedding in int8: what is quantised for whom, and that a fit and a bench go on from there."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest
from helpers import in_process, unchanged
from numpy.testing import assert_allclose
from onnx import helper
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.files import atomic_write
from padim_edge.fit import quantised
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.quantised import quantise_embedding
from padim_edge.fit.settings import Settings
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.bare_backbone import bare_backbone
from padim_edge.model.file import read, write
from padim_edge.model.graph import Nodes, as_model
from padim_edge.runtime.graphs import open_graph

onnxruntime = pytest.importorskip("onnxruntime")
quantise = pytest.importorskip("padim_edge.runtime.quantise")

WHOLE = Preprocess.whole((64, 64))


@pytest.fixture(scope="module", params=["cpu", "openvino", "tensorrt"])
def made(request, embedding_file, photos):
    good = sorted((photos / "train" / "good").iterdir())
    return quantise_embedding(read(embedding_file, "embedding"), good, WHOLE, request.param)


def test_the_graph_is_the_same_but_in_int8(made, embedding_file):
    whole = read(embedding_file, "embedding")
    onnx.checker.check_model(made.model.proto, full_check=True)
    for side in ("input", "output"):
        names = [[one.name for one in getattr(m.proto.graph, side)] for m in (whole, made.model)]
        assert names[0] == names[1]
    sizes = [m.proto.ByteSize() for m in (whole, made.model)]
    assert sizes[1] < 0.3 * sizes[0]
    info = made.model.backbone_info
    assert info.precision == "int8"
    assert dataclasses.replace(info, precision="float32", quantised_for="") == whole.backbone_info
    assert made.photos == 12


def test_the_maps_are_the_float_ones_to_what_is_said(made, embedding_file, photos):
    whole = read(embedding_file, "embedding")
    images = np.stack([WHOLE(path) for path in sorted((photos / "train" / "good").iterdir())[:8]])
    names = whole.feature_names()
    found = []
    for model in (whole, made.model):
        with open_graph(model.proto.SerializeToString(), "ort") as graph:
            found.append(graph.run({"image": images}, names))
    for name, theirs, ours in zip(names, *found, strict=True):
        change = np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean())
        assert change == pytest.approx(made.difference[name], rel=1e-3)
        assert 0.001 < change < 0.15


def test_what_each_target_wants(made):
    graph = made.model.proto.graph
    makers = {node.output[0]: node for node in graph.node}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kinds = Counter(node.op_type for node in graph.node)

    def made_by(name):
        return makers[name].op_type if name in makers else ""

    target = made.model.backbone_info.quantised_for
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    if target == "cpu":  # the stem stays in float, in a form that ONNX Runtime leaves as it is
        stem = convolutions.pop(0)
        readers = [n for n in graph.node if stem.output[0] in n.input]
        assert [made_by(name) for name in stem.input[:2]] == ["Sub", ""]
        assert weights[stem.input[1]].data_type == onnx.TensorProto.FLOAT
        assert [node.op_type for node in readers] == ["MaxPool"]
        assert [n.op_type for n in graph.node if readers[0].output[0] in n.input] == ["Max"]
    assert convolutions
    for node in convolutions:  # activations and weights, each a scale a channel
        assert [made_by(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
        values, scale = makers[node.input[1]].input[:2]
        assert weights[values].data_type == onnx.TensorProto.INT8
        assert list(weights[scale].dims) == [weights[values].dims[0]]
    if target != "tensorrt":
        assert not kinds["Relu"]  # a range from zero does what it did
        # Two products with activations up to 255 fit into 16 bits: not every x86 adds in 32.
        sizes = [
            np.abs(onnx.numpy_helper.to_array(weights[makers[node.input[1]].input[0]])).max()
            for node in convolutions
        ]
        assert max(sizes) == 64
        zeros = [weights[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
        assert {zero.data_type for zero in zeros} == {onnx.TensorProto.UINT8}
        return
    # NVIDIA's rules: no Q/DQ on outputs, none on biases, of a sum the identity branch alone.
    for node in convolutions:
        assert all(made_by(name) != "DequantizeLinear" for name in node.input[2:])
    quantised_outputs = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert not quantised_outputs & {node.output[0] for node in convolutions}
    for node in graph.node:
        if node.op_type == "Add":
            assert sorted(made_by(name) for name in node.input)[0] == "Conv"
            assert sum(made_by(name) == "DequantizeLinear" for name in node.input) <= 1
    assert kinds["Add"]
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            assert not np.any(onnx.numpy_helper.to_array(weights[node.input[2]]))


def test_a_stem_in_float_gives_what_it_gave(embedding_file, photos):
    whole = read(embedding_file, "embedding")
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(whole.proto)
    left = quantise._leave_stem_in_float(rewritten.graph, "every")
    onnx.checker.check_model(rewritten, full_check=True)
    kinds = {node.name: node.op_type for node in rewritten.graph.node}
    assert [kinds[name] for name in left] == ["Conv", "MaxPool"]
    images = np.stack([WHOLE(path) for path in sorted((photos / "train" / "good").iterdir())[:2]])
    found = []
    for proto in (whole.proto, rewritten):
        with open_graph(proto.SerializeToString(), "ort") as graph:
            found.append(graph.run({"image": images}, whole.feature_names()))
    for theirs, ours in zip(*found, strict=True):  # to rounding: later layers' layout is another
        assert_allclose(ours, theirs, rtol=0, atol=1e-6 * theirs.max())


EIGHT_BITS = {"depthwise": 127}
SEVEN_BITS = {"grouped": 64, "pointwise": 64}


def network(names, low, high):
    """A graph of convolutions with bounds, and images for it."""
    rng = np.random.default_rng(0)
    nodes = Nodes("made")
    nodes.add("Cast", ["image"], "pixels", to=onnx.TensorProto.FLOAT)
    source = nodes.add("Transpose", ["pixels"], "planes", perm=[0, 3, 1, 2])
    bounds = [
        nodes.constant(name, np.array(value, np.float32))
        for name, value in (("low", low), ("high", high))
    ]
    shapes = {"stem": (8, 3), "depthwise": (8, 1), "grouped": (8, 4), "pointwise": (16, 8)}
    for name in names:
        values = rng.standard_normal((*shapes[name], 3, 3)).astype(np.float32)
        kernel = nodes.constant(f"{name}.kernel", values / 64 if name == "stem" else values)
        group = {"depthwise": 8, "grouped": 2}.get(name, 1)
        nodes.add("Conv", [source, kernel], f"{name}.maps", group=group)
        source = nodes.add("Clip", [f"{name}.maps", *bounds], name)
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", 16, 16, 3])
    output = helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, ["N", None, None, None])
    proto = as_model(helper.make_graph(nodes.nodes, "made", [image], [output], nodes.constants))
    return proto, rng.integers(0, 256, (4, 16, 16, 3), np.uint8)


def change(proto, made, images):
    """Of the maps: root mean square, relative."""
    found = []
    for one in (proto, made):
        with open_graph(one.SerializeToString(), "ort") as graph:
            found.append(graph.run({"image": images})[0])
    return np.sqrt(np.square(found[1] - found[0]).mean() / np.square(found[0]).mean())


@pytest.mark.parametrize(
    ("order", "target", "largest"),
    [
        ("stem grouped depthwise pointwise", "cpu", EIGHT_BITS | SEVEN_BITS),
        ("stem grouped depthwise pointwise", "openvino", {"stem": 64} | EIGHT_BITS | SEVEN_BITS),
        ("stem depthwise grouped pointwise", "cpu", SEVEN_BITS),
        ("stem depthwise grouped pointwise", "openvino", SEVEN_BITS),
    ],
)
def test_depthwise_convolutions(order, target, largest):
    """They keep eight bits where others have seven, and those of the stem stay in float."""
    proto, images = network(order.split(), 0, 6)
    made = quantise.quantise(proto, [images], target)
    assert largest == {
        tensor.name.split(".")[0]: int(np.abs(onnx.numpy_helper.to_array(tensor)).max())
        for tensor in made.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and ".kernel_quantized" in tensor.name
    }
    assert change(proto, made, images) < 0.15


@pytest.mark.parametrize(("low", "high", "kept"), [(0, 6, 0), (-3, 3, 0), (0.5, 2, 1), (-3, -1, 1)])
def test_bounds_without_zero_are_kept(low, high, kept):
    proto, images = network(("stem",), low, high)
    made = quantise.quantise(proto, [images], "openvino")
    assert sum(node.op_type == "Clip" for node in made.graph.node) == kept
    assert change(proto, made, images) < 0.03


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_fit_goes_on_from_it(made, photos, tmp_path, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    with atomic_write(tmp_path / "embedding.onnx") as stream:
        write(stream, made.model)
    embedding = read(tmp_path / "embedding.onnx", "embedding")
    assert embedding.backbone_info == made.model.backbone_info
    good = sorted((photos / "train" / "good").iterdir())
    settings = Settings(WHOLE, false_alarm_rate=0.2)
    fit_detector(embedding, good, tmp_path / "padim.onnx", settings, engine=engine)
    with Detector(tmp_path / "padim.onnx", engine=engine) as detector:
        assert detector.backbone_info.precision == "int8"
        fine = [detector(path).score for path in sorted((photos / "test" / "good").iterdir())]
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        assert detector(noise).score > max(fine)


def test_the_bare_backbone_of_an_int8_detector(embedding_file, photos, tmp_path):
    output = tmp_path / "padim.onnx"
    in_process("fit", embedding_file, photos, "--precision", "int8", "-o", output).worked()
    model = read(output, "padim")
    bare = bare_backbone(model)
    onnx.checker.check_model(bare, full_check=True)
    session = onnxruntime.InferenceSession(bare.SerializeToString())
    maps = session.run(None, {session.get_inputs()[0].name: np.zeros((2, 3, 64, 64), np.float32)})
    shapes = [one.shape for one in maps]
    info = model.backbone_info
    assert shapes == [
        (2, channels, *shape)
        for channels, shape in zip(info.layer_channels, info.layer_shapes, strict=True)
    ]


def test_only_a_float32_embedding_is_quantised(made, good):
    with pytest.raises(UsageError, match="is in int8; int8 is made of a float32 one"):
        quantise_embedding(made.model, good, WHOLE, "cpu")


def test_an_unknown_target_is_refused_before_the_work(embedding_file):
    with pytest.raises(UsageError, match="--for gpu: choose one of cpu, openvino, tensorrt"):
        quantise_embedding(read(embedding_file, "embedding"), [], WHOLE, "gpu")


def test_photos_are_taken_evenly_and_bad_ones_left_out(embedding_file, good, tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "PHOTOS", 5)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    told: list[tuple[object, ImageError]] = []
    done = quantise_embedding(
        read(embedding_file, "embedding"),
        [bad, *good],
        WHOLE,
        "cpu",
        lambda *what: told.append(what),
    )
    assert done.photos == 4
    assert [path for path, _ in told] == [bad]
    with pytest.raises(PadimEdgeError, match="no photo to calibrate on"):
        quantise_embedding(read(embedding_file, "embedding"), [bad], WHOLE, "cpu", lambda *_: None)


def test_a_backbone_that_int8_spoils_is_refused(embedding_file, good, monkeypatch):
    monkeypatch.setattr(quantised, "TOLERANCE", 0.001)
    with pytest.raises(PadimEdgeError, match=r"int8 changes features.layer. by \d+%"):
        quantise_embedding(read(embedding_file, "embedding"), good, WHOLE, "cpu")


def test_quantize_as_it_is_typed(embedding_file, photos, tmp_path):
    output = tmp_path / "int8.onnx"
    done = in_process("quantize", embedding_file, photos, "-o", output).worked()
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{output}: ")
    assert "for cpu, calibrated on 12 images, changes features.layer" in second
    assert "14 of 15 convolutions are in int8" in second  # all but the stem
    assert done.stderr == f"images: 12 of {photos / 'train' / 'good'}\n"
    with unchanged(tmp_path):
        again = in_process("quantize", output, photos, "-o", tmp_path / "again.onnx")
        again.failed(2, "is in int8", "--precision float32")
        export = ("export", "-o", tmp_path / "e.onnx")
        in_process(*export, "--precision", "int8").failed(2, "without --calibrate")
        in_process(*export, "--calibrate", photos).failed(2, "float32 with --calibrate")
        in_process(*export, "--for", "cpu").failed(2, "give --precision int8 with it")


def test_export_in_int8_is_export_and_quantize(photos, tmp_path):
    pytest.importorskip("torch")
    small = ("export", "--weights", "random", "--image-size", 64, "-o")
    whole, at_once, after = (tmp_path / f"{name}.onnx" for name in ("whole", "at_once", "after"))
    in_process(*small, whole).worked()
    int8 = ("--precision", "int8", "--calibrate", photos, "--for", "openvino")
    done = in_process(*small, at_once, *int8).worked()
    assert "int8        for openvino, calibrated on 12 images" in done.stdout
    assert "of the largest value (in float32, before int8)\n" in done.stdout
    in_process("quantize", whole, photos, "--for", "openvino", "-o", after).worked()
    assert at_once.read_bytes() == after.read_bytes()


def test_quantize_prepares_as_it_is_told(embedding_file, photos, tmp_path):
    made = []
    for name, how in (("whole", ()), ("cut", ("--resize", 80, "--crop", 64))):
        in_process("quantize", embedding_file, photos, *how, "-o", tmp_path / name).worked()
        made.append((tmp_path / name).read_bytes())
    assert made[0] != made[1]


def test_fit_in_int8_as_it_is_typed(embedding_file, photos, tmp_path):
    output = tmp_path / "padim.onnx"
    fit = ("fit", embedding_file, photos, "-o", output)
    done = in_process(*fit, "--precision", "int8", "--for", "tensorrt").worked()
    assert "int8: for tensorrt, calibrated on 12 images" in done.stdout
    assert read(output, "padim").backbone_info.quantised_for == "tensorrt"
    shown = in_process("inspect", output).worked().stdout
    assert "int8" in shown
    assert "tensorrt" in shown
    in_process("run", output, photos / "test").worked()
    with unchanged(tmp_path):
        moments = ("--save-moments", tmp_path / "m.npz")
        in_process(*fit, "--precision", "int8", *moments).failed(2, "padim-edge quantize once")
        in_process(*fit, "--precision", "float16").failed(2, "float16 is for export")
        in_process(*fit, "--for", "tensorrt").failed(2, "give --precision int8 with it")


def test_channels_are_drawn_before_the_backbone_is_quantised(photos, tmp_path):
    pytest.importorskip("torch")
    small = ("export", "--weights", "random", "--image-size", 64, "-o")
    int8 = ("--precision", "int8")
    some, whole = tmp_path / "some.onnx", tmp_path / "whole.onnx"
    in_process(*small, some, "--dims", 20).worked()
    in_process(*small, whole, "--dims", "all").worked()
    sizes = []
    for embedding, dims in ((some, ()), (whole, ("--dims", 20))):
        output = tmp_path / f"padim-{embedding.name}"
        in_process("fit", embedding, photos, *int8, *dims, "-o", output).worked()
        sizes.append(output.stat().st_size)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.005)
    with unchanged(tmp_path):
        wrong = ("fit", whole, photos, *int8, "-o", tmp_path / "none.onnx")
        done = in_process(*wrong)
        done.failed(2, "say how many to draw")
        assert "calibration" not in done.stderr


def test_quantize_knows_the_bit_depth_too(embedding_file, photos, tmp_path):
    folder = tmp_path / "twelve"
    folder.mkdir()
    for path in sorted((photos / "train" / "good").iterdir()):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint32)
        twelve = ((grey * 4095 + 127) // 255).astype(np.uint16)
        Image.fromarray(twelve).save(folder / f"{path.stem}.png")
    output = tmp_path / "int8.onnx"
    dark = in_process("quantize", embedding_file, folder, "-o", output).worked()
    assert "--bit-depth" in dark.stderr
    told = in_process("quantize", embedding_file, folder, "--bit-depth", 12, "-o", output).worked()
    assert "--bit-depth" not in told.stderr
    fit = ("fit", embedding_file, folder, "--precision", "int8", "-o", tmp_path / "padim.onnx")
    in_process(*fit, "--bit-depth", 10).failed(1, "10 bits hold up to 1023")
