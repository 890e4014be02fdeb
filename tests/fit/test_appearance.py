"""What a fit keeps of how its photos look."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import in_process

from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.appearance import STATISTICS, Appearance, look
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read, write

SETTINGS = Settings(Preprocess.whole((64, 64)))


def kept(path):
    return Appearance.from_field(read(path, "padim").detector_info.appearance)


def test_a_file_has_that_of_its_photos(model_file, good):
    expected = Appearance.of(np.array([look(SETTINGS.preprocess(path)) for path in good]))
    assert kept(model_file).values == expected.values


def test_an_update_has_that_of_all(embedding_file, good, model_file, tmp_path):
    moments = tmp_path / "moments.npz"
    fit_detector(embedding_file, good[:7], tmp_path / "a.onnx", SETTINGS, save_moments=moments)
    fit_detector(embedding_file, good[7:], tmp_path / "b.onnx", SETTINGS, update=moments)
    assert kept(tmp_path / "b.onnx").values == kept(model_file).values


def test_of_moments_without_it_nothing_is_known(embedding_file, good, tmp_path):
    moments = tmp_path / "moments.npz"
    fit_detector(embedding_file, good[:7], tmp_path / "a.onnx", SETTINGS, save_moments=moments)
    with np.load(moments) as arrays:
        rest = {name: arrays[name] for name in arrays if name != "looks"}
    np.savez(moments, **rest)
    fit_detector(embedding_file, good[7:], tmp_path / "b.onnx", SETTINGS, update=moments)
    assert read(tmp_path / "b.onnx", "padim").detector_info.appearance == ()
    in_process("inspect", tmp_path / "b.onnx").worked()


def test_a_file_without_it_opens(model_file, tmp_path):
    import dataclasses

    model = read(model_file, "padim")
    old = dataclasses.replace(model.detector_info, appearance=())
    with (tmp_path / "old.onnx").open("wb") as stream:
        write(stream, dataclasses.replace(model, detector_info=old))
    assert kept(tmp_path / "old.onnx") is None
    assert b"padim_edge.appearance" not in (tmp_path / "old.onnx").read_bytes()


def test_inspect_shows_it(model_file):
    text = in_process("inspect", model_file).worked().stdout
    for name in STATISTICS:
        assert f"\n{name:<18}" in text
    assert "rows" not in text


@pytest.mark.parametrize("wrong", [[["brightness", ["x"]]], [["brightness"]], "dark"])
def test_a_wrong_one_is_refused(model_file, tmp_path, wrong):
    import json

    import onnx

    proto = onnx.load(model_file)
    for entry in proto.metadata_props:
        if entry.key == "padim_edge.appearance":
            entry.value = json.dumps(wrong)
    onnx.save(proto, tmp_path / "wrong.onnx")
    in_process("inspect", tmp_path / "wrong.onnx").failed(1, "wrong 'appearance'")
