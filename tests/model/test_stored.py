"""Large constants that stay in the file, against onnx's own reading of all of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from padim_edge.errors import ModelError
from padim_edge.model import stored
from padim_edge.model.file import read
from padim_edge.runtime.cpu.ort import OrtEngine
from padim_edge.runtime.engines import open_engine


@pytest.fixture
def small(monkeypatch):
    """Values of a hundred bytes are large; looked through in pieces, ahead of each a little."""
    monkeypatch.setattr(stored, "LARGE_BYTES", 100)
    monkeypatch.setattr(stored, "PIECE_BYTES", 1000)


def named(proto):
    return {tensor.name: tensor for tensor in proto.graph.initializer}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["float16", "int8", "whitened", "dense"])
def test_what_is_left_in_the_file_is_what_onnx_reads(detectors, kind):
    path = detectors[kind]
    expected = onnx.load(path)
    lazily = read(path, "padim", lazily=True)
    assert lazily.stored
    assert lazily.proto.ByteSize() < expected.ByteSize() / 4
    for name, tensor in named(lazily.proto).items():
        whole = numpy_helper.to_array(named(expected)[name])
        assert stored.is_held(tensor) == (whole.nbytes > 100) == (name in lazily.stored)
        values = lazily.constant(name)
        assert (values.dtype, values.shape) == (whole.dtype, whole.shape)
        np.testing.assert_array_equal(values, whole)
        if name in lazily.stored:
            pieces = [piece.copy() for piece in lazily.stored[name].pieces()]
            assert max(piece.nbytes for piece in pieces) <= 1000
            np.testing.assert_array_equal(np.concatenate(pieces), whole.ravel())
    stored.put_back(lazily.proto, lazily.stored)
    for own in (lazily.proto, read(path, "padim").proto):
        assert own.SerializeToString(deterministic=True) == expected.SerializeToString(
            deterministic=True
        )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "whitened", "dense"])
def test_engines_say_the_same_of_a_model_that_is_in_its_file(detectors, kind, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    path = detectors[kind]
    whole, lazily = read(path, "padim"), read(path, "padim", lazily=True)
    image = np.random.default_rng(0).integers(
        0, 255, (2, *whole.backbone_info.image_size, 3), dtype=np.uint8
    )
    results = []
    for model in (whole, lazily):
        opened = open_engine(engine, model)
        results.append(opened.infer(image))
        assert set(opened.stages(image)) == {"backbone", "distances", "smoothing"}
        opened.close()
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not stored.MAPS.exists(), reason="needs /proc/self/maps")
@pytest.mark.usefixtures("small")
def test_onnx_runtime_takes_weights_from_the_file_and_keeps_no_view_of_it(
    model_file, tmp_path, monkeypatch
):
    path = tmp_path / "padim.onnx"
    path.write_bytes(model_file.read_bytes())
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    taken = []
    original = OrtEngine._from_file
    monkeypatch.setattr(
        OrtEngine,
        "_from_file",
        lambda *arguments: taken.append(original(*arguments)) or taken[-1],
    )
    model = read(path, "padim", lazily=True)
    engine = OrtEngine(model)
    assert taken != [None]
    assert not next(iter(model.stored.values())).source.is_mapped()
    expected = engine.infer(image)
    # Written over in place, as cp does it: the engine has what it needs, and what it has not is
    # refused.
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))
        stream.truncate(1000)
    for one, other in zip(engine.infer(image), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ModelError, match="was changed while it was in use"):
        engine.stages(image)
    engine.close()


@pytest.mark.usefixtures("small")
def test_weights_are_handed_over_where_a_view_would_stay(model_file, monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    expected = OrtEngine(read(model_file, "padim")).infer(image)
    monkeypatch.setattr(stored.Source, "is_mapped", lambda _: True)
    engine = OrtEngine(read(model_file, "padim", lazily=True))
    for one, other in zip(engine.infer(image), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("small")
def test_weights_are_handed_over_where_the_file_cannot_be_mapped(model_file, tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    expected = OrtEngine(read(model_file, "padim")).infer(image)
    asked = []

    def elsewhere(*arguments):  # there ONNX Runtime finds no such file, and refuses the graph
        asked.append(stored.refer(*arguments))
        return tmp_path

    monkeypatch.setattr("padim_edge.runtime.cpu.ort.refer", elsewhere)
    engine = OrtEngine(read(model_file, "padim", lazily=True))
    assert asked
    for one, other in zip(engine.infer(image), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mapping_with_another_inode_is_seen_by_its_path(model_file, tmp_path, monkeypatch):
    """As on btrfs, and on overlayfs of older kernels."""
    path = tmp_path / "a model.onnx"
    path.write_bytes(model_file.read_bytes())
    maps = tmp_path / "maps"
    monkeypatch.setattr(stored, "MAPS", maps)
    source = stored.Source(path)
    line = "7f0000000000-7f0000001000 r--p 00000000 00:2a 1                          {}\n"
    anonymous = "7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n"
    maps.write_text(anonymous + line.format(source.path))
    assert source.is_mapped()
    maps.write_text(anonymous + line.format(f"{source.path}.old"))
    assert not source.is_mapped()


def test_a_mapped_file_is_seen(model_file):
    source = stored.Source(model_file)
    assert not source.is_mapped()
    view = np.memmap(model_file, dtype=np.uint8, mode="r")
    assert source.is_mapped()
    del view
    assert not source.is_mapped()


@pytest.mark.usefixtures("small")
def test_a_file_that_another_one_replaced_can_be_read_on(model_file, tmp_path):
    path = tmp_path / "padim.onnx"
    path.write_bytes(model_file.read_bytes())
    model = read(path, "padim", lazily=True)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another")
    other.replace(path)
    image = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    expected = OrtEngine(read(model_file, "padim")).infer(image)
    engine = OrtEngine(model)
    for one, other_one in zip(engine.infer(image), expected, strict=True):
        np.testing.assert_array_equal(one, other_one)
    assert engine.stages(image)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("values", [np.ones(64, np.float32), np.ones(64, np.int8)])
def test_a_constant_that_claims_to_have_been_left_out_is_refused(model_file, tmp_path, values):
    proto = onnx.load(model_file)
    tensor = numpy_helper.from_array(values, "extra")
    stored.hold(tensor)
    proto.graph.initializer.append(tensor)
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="not an ONNX file"):
        read(path, "padim")


@pytest.mark.usefixtures("small")
def test_values_that_are_too_few_or_too_many_are_refused(model_file, tmp_path):
    for change in (-4, 4):
        proto = onnx.load(model_file)
        tensor = named(proto)["mean.0"]
        data = bytes(tensor.raw_data)
        tensor.raw_data = data[:change] if change < 0 else data + bytes(change)
        path = tmp_path / "bad.onnx"
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match=r"'mean\.0' is damaged"):
            read(path, "padim", lazily=True)


@pytest.mark.usefixtures("small")
def test_fields_may_come_in_any_order_and_encoding(tmp_path):
    """Values before name and type, numbers with needless bytes, a graph in two pieces."""
    values = np.arange(100, dtype=np.float32)

    def field(number, data):
        length = len(data)
        return (
            bytes([number << 3 | 2, length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
            + data
        )

    tensor = field(9, values.tobytes()) + field(8, b"name") + bytes([1 << 3, 100, 2 << 3, 1])
    rest = helper.make_tensor("second", TensorProto.FLOAT, [100], values.tobytes(), raw=True)
    data = field(7, field(5, tensor)) + field(7, field(5, rest.SerializeToString()))
    path = tmp_path / "odd.onnx"
    path.write_bytes(data)
    proto, found = stored.parse(stored.Source(path))
    assert list(found) == ["name", "second"]
    for one in found.values():
        np.testing.assert_array_equal(one.read(), values)
    stored.put_back(proto, found)
    assert proto == onnx.load_model_from_string(data)


def test_every_truncation_is_refused_as_onnx_refuses_it(model_file, tmp_path):
    data = model_file.read_bytes()
    path = tmp_path / "cut.onnx"
    rng = np.random.default_rng(0)
    for length in rng.integers(1, len(data), 100):
        path.write_bytes(data[:length])
        with pytest.raises((ValueError, ModelError)):
            stored.parse(stored.Source(path))


def test_what_is_no_regular_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no regular file"):
        read("/dev/zero", "padim")
    with pytest.raises(ModelError, match="is a folder"):
        read(tmp_path, "padim")
