"""Bare graphs run in any engine: what fit asks of the backbone."""

from __future__ import annotations

import numpy as np
import pytest

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read
from padim_edge.runtime import graphs
from padim_edge.runtime.graphs import GRAPHS, check_installed, open_graph

CPU = ("ort", "openvino")


@pytest.mark.parametrize("engine", CPU)
def test_a_graph_gives_its_outputs_by_name(embedding_file, engine):
    model = read(embedding_file, "embedding")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    names = model.feature_names()
    with open_graph(model.proto.SerializeToString(), engine) as graph:
        maps = graph.run({"image": images}, names[::-1])[::-1]
        every = graph.run({"image": images})
        assert "on the CPU" in graph.describe()
    with open_graph(model.proto.SerializeToString(), "ort") as graph:
        expected = graph.run({"image": images}, names)
    assert len(every) == len(model.proto.graph.output)
    for ours, theirs in zip(maps, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_a_fit_in_openvino_is_that_in_onnx_runtime(embedding_file, photos, tmp_path):
    settings = Settings(Preprocess.whole((64, 64)), constants="float32")
    fitted = {}
    for engine in CPU:
        path = tmp_path / f"{engine}.onnx"
        done = fit_detector(embedding_file, train_images(photos), path, settings, engine=engine)
        fitted[engine] = done.model.detector_info
        assert {"ort": "ONNX Runtime", "openvino": "OpenVINO"}[engine] in done.engine
    assert fitted["openvino"].threshold == pytest.approx(fitted["ort"].threshold, rel=1e-3)
    np.testing.assert_allclose(fitted["openvino"].good_scores, fitted["ort"].good_scores, rtol=1e-3)


def without(*missing):
    """What opens graphs, where some engines are not installed."""

    def load(place):
        for name in missing:
            if GRAPHS[name] == place:
                raise MissingDependencyError("running a graph", name, name)
        return load.real(place)

    load.real = graphs.load
    return load


def test_auto_goes_on_to_the_next_that_is_installed_and_says_why(embedding_file, monkeypatch):
    data = read(embedding_file, "embedding").proto.SerializeToString()
    monkeypatch.setattr(graphs, "load", without("ort"))
    said = []
    with open_graph(data, skipped=lambda *reason: said.append(reason)) as graph:
        assert "OpenVINO" in graph.describe()
    assert [name for name, _ in said] == ["ort"]


def test_where_none_is_installed_the_first_is_named(monkeypatch):
    monkeypatch.setattr(graphs, "load", without("ort"))
    check_installed()
    monkeypatch.setattr(graphs, "load", without(*CPU))
    monkeypatch.setattr(graphs, "has_driver", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"padim-edge\[ort\]"):
        open_graph(b"")
    with pytest.raises(MissingDependencyError, match=r"padim-edge\[ort\]"):
        check_installed()


def test_auto_does_not_hide_a_graph_that_is_refused():
    with pytest.raises(PadimEdgeError, match="ONNX Runtime cannot load the graph"):
        open_graph(b"no graph")


def test_an_engine_that_runs_no_bare_graph_is_refused_by_name():
    with pytest.raises(UsageError, match="choose auto, ort, openvino, trt, ort-cuda"):
        open_graph(b"", "openvino-bf16")
