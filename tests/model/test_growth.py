"""The file grows: files of format 1 as they were first written stay readable, and lose nothing.

The files in format_1/ were written by the first version of that format (commit ecfa281): a
truncated MobileNet with random weights, 32 x 32, fitted on 12 synthetic photos. They are never
written again. scores.json holds what that version said of three random frames.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from padim_edge.detect.detector import Detector
from padim_edge.errors import ModelError
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.model import metadata
from padim_edge.model.file import read, write
from padim_edge.model.metadata import PREFIX, DetectorInfo

FOLDER = Path(__file__).parent / "format_1"
FILES = sorted(FOLDER.glob("*.onnx"))
DETECTORS = ("float16", "int8", "ledoit-wolf", "backbone-float16")


def props(proto):
    return {entry.key: entry.value for entry in proto.metadata_props}


def rewritten(path):
    stream = io.BytesIO()
    write(stream, read(path, None))
    return stream.getvalue()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_file_without_a_checksum_is_taken_at_its_word(path, tmp_path):
    assert read(path, None).checksum == ""
    (tmp_path / "new.onnx").write_bytes(rewritten(path))
    assert len(read(tmp_path / "new.onnx", None).checksum) == 8


def test_a_checksum_of_an_embedding_that_an_old_version_handed_on_to_a_detector(tmp_path):
    proto = onnx.load(FOLDER / "float16.onnx")
    proto.metadata_props.add(key=PREFIX + "checksum", value=json.dumps("embedding:" + "0" * 8))
    onnx.save(proto, tmp_path / "mixed.onnx")
    assert read(tmp_path / "mixed.onnx", "padim").checksum == ""


def test_every_kind_of_file_is_among_them():
    assert {path.stem for path in FILES} == {*DETECTORS, "embedding", "embedding-float16"}


@pytest.mark.parametrize("name", DETECTORS)
def test_an_old_file_says_what_it_said(name):
    frames = np.random.default_rng(7).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with Detector(FOLDER / f"{name}.onnx", "ort") as detector:
        scores = [result.score for result in detector.judge(frames)]
    expected = json.loads((FOLDER / "scores.json").read_text())[name]
    # The sums of another processor or another ONNX Runtime may be rounded elsewhere.
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_file_is_rewritten_without_loss(path):
    old = onnx.load(path)
    new = onnx.load_from_string(rewritten(path))
    before, after = props(old), props(new)
    version = PREFIX + "tool_version"
    # Fields that came later are added, and change nothing.
    after = {key: text for key, text in after.items() if key in before}
    assert sorted(after) == sorted(before)
    key = PREFIX + "preprocess"
    if key in before:  # the same of its fields
        known, now = json.loads(before.pop(key)), json.loads(after.pop(key))
        assert {name: now[name] for name in known} == known
    assert before | {version: after[version]} == after
    for proto in (old, new):
        del proto.metadata_props[:]
        proto.producer_version = ""
    assert new.SerializeToString(deterministic=True) == old.SerializeToString(deterministic=True)


def test_what_this_version_does_not_know_is_kept(tmp_path):
    proto = onnx.load(FOLDER / "float16.onnx")
    unknown = {PREFIX + "drift": "[1, 2.5]", "another.tool": "not JSON at all {"}
    for key, value in unknown.items():
        proto.metadata_props.add(key=key, value=value)
    path = tmp_path / "newer.onnx"
    onnx.save(proto, path)
    model = read(path, "padim")
    assert model.extra == unknown
    (tmp_path / "again.onnx").write_bytes(rewritten(path))
    assert read(tmp_path / "again.onnx", "padim").extra == unknown


def test_a_field_that_came_later_has_the_default_that_is_true_of_old_files(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Grown(DetectorInfo):
        drift: float = 0.5

    monkeypatch.setattr(metadata, "DetectorInfo", Grown)
    info = read(FOLDER / "float16.onnx", "padim").detector_info
    assert isinstance(info, Grown)
    assert info.drift == 0.5


def test_a_field_without_a_default_must_be_there(tmp_path):
    proto = onnx.load(FOLDER / "float16.onnx")
    kept = [entry for entry in proto.metadata_props if entry.key != PREFIX + "threshold"]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    onnx.save(proto, tmp_path / "lacking.onnx")
    with pytest.raises(ModelError, match="lacks 'threshold'"):
        read(tmp_path / "lacking.onnx", "padim")


def test_another_format_is_refused_by_name(tmp_path):
    proto = onnx.load(FOLDER / "float16.onnx")
    next(e for e in proto.metadata_props if e.key == PREFIX + "format").value = "3"
    onnx.save(proto, tmp_path / "newer.onnx")
    with pytest.raises(ModelError, match=r"format is version 3.*reads versions 1 and 2"):
        read(tmp_path / "newer.onnx", "padim")


def test_preprocessing_may_lack_what_has_a_default_and_hold_nothing_unknown():
    old = read(FOLDER / "float16.onnx", "padim").detector_info.preprocess
    value = old.to_json()
    for name in sorted(value.keys() - {"size", "resize", "crop"}):
        del value[name]
        assert Preprocess.from_json(value) == old
    with pytest.raises(ModelError, match="install the padim-edge that the model was made with"):
        Preprocess.from_json(value | {"white": 4095})
    del value["resize"]
    with pytest.raises(ModelError, match="its fields must be"):
        Preprocess.from_json(value)


def test_a_fit_goes_on_from_old_moments_and_keeps_what_an_embedding_says(tmp_path, photos):
    proto = onnx.load(FOLDER / "embedding.onnx")
    images = find_images(photos / "test" / "good")
    settings = Settings(read(FOLDER / "float16.onnx", "padim").detector_info.preprocess)
    old = FOLDER / "embedding.onnx"
    fitted = fit_detector(old, images, tmp_path / "a.onnx", settings, update=FOLDER / "moments.npz")
    assert fitted.model.detector_info.images == 12 + len(images)
    proto.metadata_props.add(key="licence", value="BSD-3-Clause")
    onnx.save(proto, tmp_path / "embedding.onnx")
    fit_detector(tmp_path / "embedding.onnx", images, tmp_path / "b.onnx", settings)
    assert read(tmp_path / "b.onnx", "padim").extra == {"licence": "BSD-3-Clause"}
