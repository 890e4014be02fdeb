"""The cost curves: counts against what files hold and the fit multiplies, and the script itself."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from padim_edge.fit import gaussian
from padim_edge.fit.features import Features
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.held_out import map_scores
from padim_edge.fit.moments import moments_of
from padim_edge.fit.settings import Settings
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.rates import measure_machine
from padim_edge.model.file import read
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.model.smoothing import Smoothing

FOLDER = Path(__file__).parents[2] / "benchmarks"
OVERHEAD = 0.01
"""Share of the file that nodes and metadata may take."""


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory, embedding_file):
    """Two sizes and two numbers of channels."""
    from padim_edge.export.export import export_backbone

    larger = tmp_path_factory.mktemp("curves") / "larger.onnx"
    export_backbone(larger, "resnet18", dims=(45,), image_size=(96, 96), weights="random")
    return embedding_file, larger


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("constants", ["float32", "float16", "int8"])
def test_the_file_has_the_bytes_that_were_counted(embeddings, photos, tmp_path, which, constants):
    import counts

    embedding = read(embeddings[which], "embedding")
    settings = Settings(Preprocess.whole(embedding.backbone_info.image_size), constants=constants)
    path = tmp_path / "padim.onnx"
    fit_detector(embeddings[which], find_images(photos / "train"), path, settings)
    counted, size = counts.file_bytes(embedding, constants), path.stat().st_size
    assert counted <= size <= counted / (1 - OVERHEAD)
    # The backbone is most of so small a file: what fit adds must be there to the byte.
    tensors = {t.name: t for t in read(path, "padim").proto.graph.initializer}
    added = [
        numpy_helper.to_array(tensor).nbytes
        for name, tensor in tensors.items()
        if name.startswith(("whitening.", "mean.", "smoothing."))
        and tensor.data_type != TensorProto.INT64
    ]
    assert counted - counts.backbone_bytes(embedding) == sum(added)


class Counted(np.ndarray):
    """Arrays whose products are counted, 2 operations per multiplication."""

    operations = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(each) for each in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(each) for each in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counted.operations += 2 * result.size * plain[0].shape[-1]
        return np.asarray(result).view(Counted)


def test_the_statistics_do_the_operations_that_were_counted(monkeypatch):
    import counts

    layers = [Layer("a", 3, 8, 12), Layer("b", 5, 4, 6), Layer("c", 7, 2, 3)]
    pyramid, count, size = Pyramid.coarse_to_fine(layers), 6, (32, 48)
    cubes = []

    def counting(function, cost):
        def call(matrices):
            cubes.append(cost * matrices.shape[0] * matrices.shape[-1] ** 3)
            return function(np.asarray(matrices)).view(Counted)

        return call

    monkeypatch.setattr(np.linalg, "cholesky", counting(np.linalg.cholesky, 1 / 3))
    monkeypatch.setattr(np.linalg, "inv", counting(np.linalg.inv, 8 / 3))
    Counted.operations = 0
    rng = np.random.default_rng(0)
    features = [
        rng.standard_normal((level.positions, count, level.channels)).view(Counted)
        for level in pyramid.levels
    ]
    stats = moments_of(features)
    gaussian.whitening(stats, 0.01)
    blocks = gaussian.whitening(stats, gaussian.leave_out_eps(0.01, count))
    # The squares come by einsum, which counts nothing and gives a plain array.
    squared = gaussian.squared_distances(blocks, features).view(Counted)
    map_scores(pyramid, squared, Smoothing.of(pyramid, size, 4.0))
    squares = 2 * count * sum(level.positions * level.channels for level in pyramid.levels)
    total = Counted.operations + sum(cubes) + squares
    assert counts.statistics_operations(pyramid, size, count) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("images", [60, 1000])
def test_the_statistics_hold_the_bytes_that_were_counted(images):
    import counts

    layers = [Layer("a", 14, 56, 56), Layer("b", 29, 28, 28), Layer("c", 57, 14, 14)]
    pyramid, rng = Pyramid.coarse_to_fine(layers), np.random.default_rng(0)
    run = next(Features(pyramid, [], images).chunks())
    tracemalloc.start()
    try:
        own = [
            rng.standard_normal(
                (level.positions * run.stop // pyramid.cells, images, level.channels)
            )
            for level in pyramid.levels
        ]
        stats = moments_of(own)
        blocks = gaussian.whitening(stats, 0.01)
        centred = [x - mean[:, None] for x, mean in zip(own, stats.means, strict=True)]
        gaussian.squared_distances(blocks, centred)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak == pytest.approx(counts.scratch_bytes(pyramid, images, 1), rel=0.2)


def test_counts_grow_as_they_must(embeddings):
    import counts

    embedding, pyramid = read(embeddings[1], "embedding"), read(embeddings[1], None).pyramid()
    assert counts.store_bytes(pyramid, 20) == 2 * counts.store_bytes(pyramid, 10)
    # One run of cells is one thread's work, however many there are.
    assert counts.scratch_bytes(pyramid, 10, 4) == counts.scratch_bytes(pyramid, 10, 1)
    assert counts.scratch_bytes(pyramid, 20, 1) > counts.scratch_bytes(pyramid, 10, 1)
    few, many = (
        counts.of_point(embedding, None, measure_machine(1), "float16", 10, 1, threads)
        for threads in (1, 2)
    )
    assert few["statistics"] == 2 * many["statistics"]
    assert few.keys() == {"file", "statistics", "fit_memory"}


def test_calibration_leaves_no_deviation_at_the_base_and_none_is_made_up():
    from counts import Row

    base = Row(1, {"latency": 3.0, "fit_memory": 150.0}, {"latency": 2.0, "fit_memory": 50.0})
    base.calibrate(base)
    assert base.deviation_percent == {"latency": 0, "fit_memory": 0}
    row = Row(2, {"latency": 5.0}, {"latency": 4.0, "fit_memory": 80.0, "file": 7.0})
    row.calibrate(base)
    assert row.predicted == {"latency": 6.0, "fit_memory": 180.0, "file": 7.0}
    assert row.deviation_percent == {"latency": pytest.approx(20)}
    row = Row(2, {"latency": 5.0}, {"latency": 4.0, "file": 7.0})
    row.calibrate(Row(1, failures={"fit": "killed"}))
    assert row.predicted == {"file": 7.0}


def test_a_failure_stands_in_its_row_and_the_rest_goes_on(tmp_path):
    import curves

    with pytest.raises(curves.PadimEdgeError, match=r"cannot read the model .*absent\.onnx"):
        curves.in_child("memory", path=str(tmp_path / "absent.onnx"), batch=1, threads=1)
    axis = curves.Axis("d", "dims", (10, 100000), curves.Point(size=64, dims=10, images=4))
    rows = curves.measure(axis, tmp_path, repeats=1, calls=10)
    curves.predict(axis, rows, tmp_path)
    good, bad = rows
    assert not good.failures
    assert good.measured.keys() == curves.QUANTITIES.keys()
    assert not bad.measured
    assert "export" in bad.failures
    lines = "\n".join(curves.tables(axis, rows))
    assert "| 100000 | failed |" in lines
    assert "d 100000: export failed: " in lines


@pytest.mark.fuzz  # a whole run of the script
def test_the_script_end_to_end(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "curves.json").write_text('{"image-size": "measured earlier"}')
    command = [sys.executable, FOLDER / "curves.py", "--quick", "--only", "images"]
    done = subprocess.run([*command, "--output", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    heads = [row for row in rows if row.startswith("| training images | ")]
    assert len(heads) == 2
    assert len(rows) == 2 * 3
    assert len({row.count("|") for row in rows[:3]}) == 1
    found = json.loads((tmp_path / "curves.json").read_text())
    assert found["image-size"] == "measured earlier"
    points = found["images"]["points"]
    assert [point["value"] for point in points] == [6, 12]
    assert not any(point["failures"] for point in points)
    for point, quantity in itertools.product(points, ("latency", "features", "statistics")):
        assert point["measured"][quantity] > 0
        assert point["predicted"][quantity] > 0
    assert abs(points[1]["deviation_percent"]["latency"]) < 1e-9
    picture = (tmp_path / "curves-images.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000
