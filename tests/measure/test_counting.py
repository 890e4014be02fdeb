"""Operations and bytes of a call: against hand-computed ones, torch's and the kernels' arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from padim_edge.errors import UsageError
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.counting import (
    BYTES,
    CPU,
    CPU_INT8,
    GPU,
    GPU_INT8,
    Storage,
    count,
    whitening_bytes,
)
from padim_edge.measure.proof_detectors import make
from padim_edge.measure.proof_line import Spec
from padim_edge.model import graph
from padim_edge.model.file import Model, read
from padim_edge.model.metadata import DetectorInfo
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.model.smoothing import Smoothing
from padim_edge.runtime import trial
from padim_edge.runtime.nvidia.whitening import pack_whitening


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """3 x 32 x 32 -> 4 x 4 kernels -> 2 x 8 x 8 -> 2 x 2 kernels -> 3 x 4 x 4, all selected."""
    return trial.write_model(tmp_path_factory.mktemp("trial") / "padim.onnx")


def detector(embedding, covariance="sample", constants="float16"):
    """A detector on an embedding.onnx whose statistics are all zero, without a fit."""
    info = embedding.backbone_info
    detector_info = DetectorInfo(
        Preprocess.whole(info.image_size), covariance, 0.01, 4.0, constants, 1, 1.0, 0.5, "", (1.0,)
    )
    model = dataclasses.replace(embedding, detector_info=detector_info)
    pyramid = model.pyramid()
    levels = pyramid.levels
    means = [np.zeros((1, x.channels, x.height, x.width), np.float32) for x in levels]
    whitening = {
        f"{i}.{j}{suffix}": values
        for i, level in enumerate(levels)
        for j in range(i + 1)
        for suffix, values in graph.store(
            np.zeros((level.positions, level.channels, levels[j].channels)), constants
        ).items()
    }
    parts = [
        graph.distances(pyramid, means, whitening),
        graph.smoothing(Smoothing.of(pyramid, info.image_size, 4.0)),
    ]
    return Model(graph.detector(embedding.proto, info, parts), info, detector_info)


def operations(work, stage=None):
    return sum(each.operations for each in work if stage in (None, each.stage))


def constants(work, stage=None):
    return sum(each.constants for each in work if stage in (None, each.stage))


# --- counts, by hand --------------------------------------------------------------------------


def test_products_of_a_small_graph_by_hand(small):
    products = {each.name: each for each in count(small) if each.operations}
    assert {name: each.operations for name, each in products.items()} == {
        "trial/features.fine": 2 * (2 * 8 * 8) * (3 * 4 * 4),
        "trial/features.coarse": 2 * (3 * 4 * 4) * (2 * 2 * 2),
        "distances/product.0.0": 2 * 16 * 3 * 3,
        "distances/product.1.0": 2 * 64 * 2 * 3,
        "distances/product.1.1": 2 * 64 * 2 * 2,
        "smoothing/tall_map": 2 * 32 * 8 * 8,
        "smoothing/score_map": 2 * 32 * 32 * 8,
    }
    stages = [each.stage for each in products.values()]
    assert stages == ["backbone"] * 2 + ["distances"] * 3 + ["smoothing"] * 2
    fine = products["trial/features.fine"]
    assert (fine.constants, fine.read, fine.written) == (
        4 * 2 * 3 * 4 * 4,
        4 * 3 * 32 * 32,
        4 * 2 * 8 * 8,
    )
    assert products["distances/product.1.0"].constants == 4 * 64 * 2 * 3


def test_elementwise_nodes_bring_only_their_constants(small):
    work = {each.name: each for each in count(small)}
    mean = work["distances/centred.1"]
    assert (mean.operations, mean.constants, mean.read, mean.written) == (0, 4 * 2 * 8 * 8, 0, 0)
    added = work["distances/sum.1.1"]  # one operand comes from the neighbour it is fused into
    assert (added.operations, added.read, added.written) == (0, 4 * 64 * 2, 0)
    assert "distances/distance_map" not in work
    assert "distances/tree.1" not in work
    assert "distances/whitening.0.0.float32" not in work


def test_image_and_results_cross_memory(small):
    first, *_, last = count(small, batch=2)
    assert (first.operator, first.read) == ("Input", 2 * 32 * 32 * 3)
    assert (last.operator, last.written) == ("Output", 2 * 4 * (32 * 32 + 1))


def test_our_kernels_by_hand(small):
    work = {each.name: each for each in count(small, storage=Storage("float16", "float16"))}
    coarse, fine, smooth = (work[name] for name in ("level 0", "level 1", "smooth"))
    assert coarse.operations == 2 * 16 * (1 + 2 + 3)
    assert fine.operations == 2 * 64 * (2 * 3 + 1 + 2)
    # Lines of 128 bytes: one per position; two (coarse, own) per four siblings and two rows.
    assert coarse.constants == 128 * 16 + 4 * 16 * 3
    assert fine.constants == 128 * 64 // 4 * 2 + 4 * 64 * 2
    assert (fine.read, fine.written) == (2 * 64 * 2, 4 * 64)
    assert fine.arithmetic == "float32"  # the kernels add in float32, whatever they read
    assert 0 < smooth.operations <= 2 * (32 * 8 * 8 + 32 * 32 * 8)
    assert work["trial/features.fine"].arithmetic == "float16"
    assert work["trial/features.fine"].constants == 2 * 2 * 3 * 4 * 4
    assert not any(name.startswith(("distances/", "smoothing/")) for name in work)


@pytest.mark.parametrize("storage", [CPU, *GPU])
def test_a_batch_multiplies_operations_and_maps_but_not_constants(small, storage):
    one, eight = count(small, 1, storage), count(small, 8, storage)
    assert operations(eight) == 8 * operations(one)
    assert constants(eight) == constants(one)
    for few, many in zip(one, eight, strict=True):
        assert (few.name, 8 * few.read, 8 * few.written) == (many.name, many.read, many.written)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    "shapes",
    [
        [(59, 4, 4), (23, 8, 8), (18, 16, 16)],
        [(7, 8, 8)],
        [(5, 4, 4), (3, 16, 16)],
        [(1, 2, 2), (9, 4, 4), (17, 8, 8), (33, 16, 16)],
        [(4, 4, 6), (16, 8, 12)],
    ],
)
def test_packed_constants_are_as_large_as_the_kernels_arrays(shapes, kind):
    pyramid = Pyramid.coarse_to_fine([Layer(str(n), *shape) for n, shape in enumerate(shapes)])
    levels = pyramid.levels
    pairs = [(i, j) for i in range(len(levels)) for j in range(i + 1)]
    blocks = {
        (i, j): np.zeros((levels[i].positions, levels[i].channels, levels[j].channels), kind)
        for i, j in pairs
    }
    scales = {pair: np.ones(block.shape[:2], np.float32) for pair, block in blocks.items()}
    means = [np.zeros((x.channels, x.height, x.width), np.float32) for x in levels]
    packed = pack_whitening(pyramid, means, blocks, scales if kind == "int8" else None)
    ours = sum(whitening_bytes(pyramid, index, kind) for index in range(len(levels)))
    assert ours == packed.lines.nbytes


# --- counts, in int8 --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["reference", "whitened"])
def both(request):
    """One detector with a float backbone and with one in int8."""
    pytest.importorskip("onnxruntime")
    return [make(Spec("tiny", request.param, of, "float16"), 64) for of in ("float32", "int8")]


def test_quantised_convolutions_by_hand(both):
    """3 x 64 x 64 -> 7 x 7 kernels -> 8 x 32 x 32 -> pooled -> 3 x 3 kernels -> 8 x 16 x 16."""
    work = {each.name: each for each in count(both[1], storage=CPU_INT8)}
    stem, first = work["backbone/stem"], work["backbone/layer1.0.1"]
    for conv, taps, taken, outputs in (
        (stem, 3 * 7 * 7, 3 * 64 * 64, 32 * 32),
        (first, 8 * 3 * 3, 8 * 16 * 16, 16 * 16),
    ):
        assert conv.arithmetic == "int8"
        assert conv.operations == 2 * 8 * outputs * taps
        assert conv.constants == 8 * taps + 4 * 8  # weights, and biases, which stay float
        assert conv.read == taken
    assert stem.written == 4 * 8 * 32 * 32  # pooled before it is quantised
    assert first.written == 8 * 16 * 16
    # Of a sum, the branch that was quantised for a convolution is read in int8.
    assert work["backbone/layer1.0.sum"].read == 8 * 16 * 16


def test_what_is_not_quantised_stays_float(both):
    whole, quantised = (
        count(model, 2, of) for model, of in zip(both, (CPU, CPU_INT8), strict=True)
    )
    assert operations(quantised) == operations(whole)
    names = {each.name: each for each in whole}
    for each in quantised:
        before = names[each.name]
        if each.operator == "Conv" and not each.name.startswith("projection"):
            assert each.arithmetic == "int8"
            assert each.constants < before.constants / 2
        else:
            assert (each.arithmetic, each.constants) == (before.arithmetic, before.constants)
        assert before.read / 4 <= each.read <= before.read
        assert before.written / 4 <= each.written <= before.written
    # Our kernels read the maps that the backbone leaves in float32.
    for storage in GPU_INT8:
        kernels = {each.name: each for each in count(both[1], 2, storage)}
        for each in count(both[0], 2, Storage("float32", storage.constants)):
            if each.stage != "backbone":
                assert kernels[each.name] == each


def test_an_int8_file_counts_as_the_float_one_in_float(both):
    for storage in (CPU, *GPU):
        whole, quantised = (count(model, 3, storage) for model in both)
        assert [dataclasses.replace(each, name="") for each in whole] == [
            dataclasses.replace(each, name="") for each in quantised
        ]


@pytest.mark.parametrize(("target", "in_float"), [("cpu", 1), ("openvino", 0)])
def test_outputs_that_are_quantised_too_are_int8(embedding_file, photos, target, in_float):
    """Every convolution's but a stem's. Those of random weights have no biases."""
    from padim_edge.fit.quantised import quantise_embedding

    whole = read(embedding_file, "embedding")
    good = sorted((photos / "train" / "good").iterdir())[:4]
    made = quantise_embedding(whole, good, Preprocess.whole((64, 64)), target).model
    before = {each.name: each for each in count(detector(whole))}
    counts = [each for each in count(detector(made), storage=CPU_INT8) if each.stage == "backbone"]
    convolutions = [each for each in counts if each.operations]
    assert len(convolutions) > 10
    for each in convolutions[:in_float]:
        assert each == before[each.name]
    for each in convolutions[in_float:]:
        was = before[each.name]
        assert each.arithmetic == "int8"
        assert (4 * each.read, 4 * each.written, 4 * each.constants) == (
            was.read,
            was.written,
            was.constants,
        )
    # A max pool behind a stem in float reads that, and writes int8 all the same.
    pool = next(each for each in counts if each.operator == "MaxPool")
    was = next(each for each in before.values() if each.operator == "MaxPool")
    assert (pool.read, 4 * pool.written) == (was.read if in_float else was.read // 4, was.written)
    # And the float form has the bytes of the float file.
    plain = [each for each in count(detector(made)) if each.stage == "backbone"]
    assert sum(each.read + each.written for each in plain) == sum(
        each.read + each.written for each in before.values() if each.stage == "backbone"
    )


# --- counts, of exported backbones ------------------------------------------------------------


# Groups of channels, and convolutions of 1 x 1, are mobilenet's; resnet18's are counted by hand.
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_large",
        *(
            pytest.param(name, marks=pytest.mark.fuzz)
            for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
        ),
    ],
)
def test_convolutions_are_those_that_torch_runs(name, tmp_path):
    torch = pytest.importorskip("torch")
    from padim_edge.export.backbones import load
    from padim_edge.export.export import export_backbone

    backbone = load(name, None, "random", (64, 96), 0)
    expected = []

    def note(module, inputs, output):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        expected.append(2 * output.numel() * module.in_channels // module.groups * kernel)

    for module in backbone.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    with torch.inference_mode():
        backbone.network(torch.zeros(1, 3, 64, 96))

    # All channels of the last layer, so that export drops nothing that torch computes.
    dims = (0, 0, backbone.channels[-1])
    export_backbone(tmp_path / "e.onnx", name, dims=dims, image_size=(64, 96), weights="random")
    work = count(detector(read(tmp_path / "e.onnx", "embedding")))
    found = [each.operations for each in work if each.operator == "Conv"]
    assert sorted(found) == sorted(expected)


def test_resnet18_to_layer3_by_hand(tmp_path):
    """At 224 x 224: 118 M multiplications in conv1, 4 x 115.6 M in a layer of stride 1, ..."""
    pytest.importorskip("torch")
    from padim_edge.export.export import export_backbone

    export_backbone(tmp_path / "e.onnx", "resnet18", dims=(18, 23, 256), weights="random")
    full = 64 * 112 * 112 * 3 * 49
    block = 64 * 56 * 56 * 64 * 9
    # A layer of stride 2: its first convolution halves, its shortcut is 1 x 1.
    stride2 = 3 * block + block // 2 + block // 18
    work = count(detector(read(tmp_path / "e.onnx", "embedding")))
    assert operations(work, "backbone") == 2 * (full + 4 * block + 2 * stride2)
    # The well-known 1,814,073,344 of the whole network, without layer4 and fc.
    assert full + 4 * block + 2 * stride2 == 1_814_073_344 - stride2 - 512 * 1000
    rectangles = 196 * 256 * 256 + 784 * 23 * (256 + 23) + 3136 * 18 * (256 + 23 + 18)
    assert operations(work, "distances") == 2 * rectangles
    assert 4 * rectangles <= constants(work, "distances") < 4.2 * rectangles


def test_counts_do_not_depend_on_the_types_in_the_file(embedding_file, tmp_path):
    from padim_edge.export.export import export_backbone

    half = tmp_path / "half.onnx"
    options = {"dims": (20,), "image_size": (64, 64), "weights": "random"}
    export_backbone(half, "resnet18", precision="float16", **options)
    whole = read(embedding_file, "embedding")
    models = [detector(whole, constants=kind) for kind in ("float32", "float16", "int8")]
    models.append(detector(read(half, "embedding")))
    for storage in (CPU, *GPU):
        first, *others = ([*count(model, 2, storage)] for model in models)
        maps = sum(each.read for each in first), sum(each.written for each in first)
        for other in others:
            assert operations(other) == operations(first)
            assert (sum(each.read for each in other), sum(each.written for each in other)) == maps
            # For float16, export divides by the standard deviations in a node of its own.
            assert constants(other) - constants(first) in (0, 3 * BYTES[storage.backbone])


def test_ledoit_wolf_is_one_dense_level(embedding_file):
    model = detector(read(embedding_file, "embedding"), covariance="ledoit-wolf")
    assert operations(count(model), "distances") == 2 * 256 * 20 * 20
    assert operations(count(model, storage=GPU[0]), "distances") == 2 * 256 * 210


def test_a_fitted_file_is_counted(model_file):
    work = count(read(model_file, "padim"), 4)
    assert {each.stage for each in work} == {"backbone", "distances", "smoothing"}
    assert all(operations(work, stage) for stage in ("backbone", "distances", "smoothing"))


def test_what_cannot_be_counted_is_refused(embedding_file, small):
    with pytest.raises(UsageError, match="padim-edge fit"):
        count(read(embedding_file, "embedding"))
    with pytest.raises(UsageError, match="a batch of 0"):
        count(small, 0)
    with pytest.raises(UsageError, match=r"a backbone in float32 .* padim-edge quantize"):
        count(small, storage=CPU_INT8)
