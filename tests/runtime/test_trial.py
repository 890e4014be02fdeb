"""The trial model: its answer is known, and an engine with another one does not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from padim_edge.errors import PadimEdgeError
from padim_edge.model import graph
from padim_edge.model.smoothing import Smoothing
from padim_edge.runtime import trial
from padim_edge.runtime.engines import open_engine


class Altered:
    """An engine whose results are altered on the way out."""

    def __init__(self, engine: Any, alter: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        self._engine, self._alter = engine, alter

    def infer(self, images: Any) -> tuple[Any, Any]:
        return self._alter(*self._engine.infer(images))


@pytest.fixture(scope="module")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("onnxruntime")
    model = trial.write_model(tmp_path_factory.mktemp("trial") / "padim.onnx")
    engine = open_engine("ort", model, 1)
    yield engine
    engine.close()


def test_the_trial_model_is_answered_as_numpy_answers_it(tiny_engine):
    trial.check(tiny_engine)
    images = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = trial.answer(images)
    scores, maps = tiny_engine.infer(images)
    np.testing.assert_allclose(maps, expected, rtol=1e-4)
    np.testing.assert_allclose(scores, expected.max(axis=(1, 2)), rtol=1e-4)
    assert expected.std() > 0.1 * expected.mean()  # a flat map would hide misplaced positions


@pytest.mark.parametrize("judged", ["everywhere", "in a region"])
@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_a_map_with_nan_has_no_score(tmp_path, name, judged):
    """Neither runtime's largest value says so: it is 0 beside zeros, or the lowest number."""
    pytest.importorskip({"ort": "onnxruntime"}.get(name, name))
    model = trial.write_model(tmp_path / "padim.onnx")
    mask = np.ones((32, 32), np.bool_)
    if judged == "in a region":
        mask[:20] = False
        last = graph.smoothing(Smoothing.of(model.pyramid(), (32, 32), trial.SIGMA, mask))
        nodes, constants = model.proto.graph.node, model.proto.graph.initializer
        kept = [node for node in nodes if not node.name.startswith("smoothing/")]
        others = [one for one in constants if not one.name.startswith(("smoothing.", "score."))]
        del nodes[:], constants[:]
        nodes.extend(kept + last.nodes)
        constants.extend(others + last.constants)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    engine = open_engine(name, model, 1)
    scores, maps = engine.infer(images)
    np.testing.assert_allclose(scores, (trial.answer(images) * mask).max(axis=(1, 2)), rtol=1e-4)
    assert np.array_equal(scores, maps.max(axis=(1, 2)))
    engine.close()
    (mean,) = (one for one in model.proto.graph.initializer if one.name == "mean.1")
    values = numpy_helper.to_array(mean).copy()
    values[0, 0, 1, 1] = np.nan
    mean.CopyFrom(numpy_helper.from_array(values, mean.name))
    engine = open_engine(name, model, 1)
    scores, maps = engine.infer(images)
    assert np.isnan(scores).all()
    assert np.isnan(maps).any(axis=(1, 2)).all()
    engine.close()


@pytest.mark.parametrize(
    "alter",
    [
        lambda scores, maps: (scores * 1.02, maps),
        lambda scores, maps: (scores, maps[:, ::-1]),
        lambda scores, maps: (scores, maps.transpose(0, 2, 1)),
        lambda scores, maps: (scores[::-1], maps[::-1]),
        lambda scores, maps: (scores, np.where(maps == maps.min(), np.nan, maps)),
        lambda scores, maps: (scores[:, None], maps),
    ],
    ids=["scaled", "upside down", "transposed", "frames mixed up", "one NaN", "misshapen"],
)
def test_an_engine_with_wrong_scores_does_not_count(tiny_engine, alter):
    with pytest.raises(PadimEdgeError, match=r"WRONG SCORES|scores \(1, 1\)"):
        trial.check(Altered(tiny_engine, alter))


def test_an_engine_that_repeats_its_last_scores_does_not_count(tiny_engine):
    """As a recording that does nothing does: the first run of a batch size is right."""
    first: dict[int, tuple[Any, Any]] = {}

    def alter(scores: Any, maps: Any) -> tuple[Any, Any]:
        return first.setdefault(len(scores), (scores, maps))

    with pytest.raises(PadimEdgeError, match="WRONG SCORES"):
        trial.check(Altered(tiny_engine, alter))
