"""A region of interest: what lies outside never decides, in any engine, nor in the threshold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import reference
from helpers import in_process, unchanged
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.errors import ImageError, UsageError
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.roi import Roi, load_roi
from padim_edge.model.file import read
from padim_edge.model.metadata import PREFIX
from padim_edge.runtime.cpu.ort import Graph

SIZE = (64, 64)
WHOLE = Preprocess.whole(SIZE)


@pytest.fixture(scope="module")
def judged():
    mask = np.zeros(SIZE, bool)
    mask[8:40, 16:60] = True
    mask[20:24, 30:34] = False
    return mask


@pytest.fixture(scope="module")
def embeddings(embedding_file):
    def of(paths):
        images = np.stack([WHOLE(path) for path in paths])
        with Graph(embedding_file.read_bytes()) as graph:
            return graph.run({"image": images}, ["embedding"])[0].astype(np.float64)

    return of


@pytest.fixture(scope="module")
def masked(embedding_file, photos, judged, tmp_path_factory):
    """A detector that was fitted with the region."""
    path = tmp_path_factory.mktemp("roi") / "padim.onnx"
    settings = Settings(WHOLE, constants="float32", false_alarm_rate=0.2, roi=Roi(judged))
    fit_detector(embedding_file, sorted((photos / "train" / "good").iterdir()), path, settings)
    return path


def test_maps_and_scores_are_the_reference_s_within_the_region(
    masked, embeddings, good, photos, judged
):
    test = sorted((photos / "test" / "scratch").iterdir())
    maps = reference.score_maps(
        reference.distances(embeddings(test), *reference.fit(embeddings(good))), SIZE
    )
    expected = np.where(judged, maps, 0)
    with Detector(masked, "ort") as detector:
        for path, want in zip(test, expected, strict=True):
            result = detector(path)
            np.testing.assert_allclose(result.score_map, want, rtol=1e-4)
            assert (result.score_map[~judged] == 0).all()
            assert result.score == pytest.approx(want.max(), rel=1e-4)
            assert not result.mask[~judged].any()


def test_the_threshold_is_set_within_the_region(masked, embeddings, good, judged):
    every = embeddings(good)
    scores = []
    for image in range(len(good)):
        rest = np.delete(every, image, axis=0)
        maps = reference.distances(every[image : image + 1], *reference.fit(rest))
        scores.append(np.where(judged, reference.score_maps(maps, SIZE), 0).max())
    info = read(masked, "padim").detector_info
    np.testing.assert_allclose(info.good_scores, np.sort(scores), rtol=1e-9)
    assert info.judged == judged.mean()


def test_openvino_obeys_it(masked, photos):
    pytest.importorskip("openvino")
    images = [Image.open(path) for path in sorted((photos / "test" / "stain").iterdir())]
    with Detector(masked, "ort") as one, Detector(masked, "openvino") as other:
        for a, b in zip(one.batch(images), other.batch(images), strict=True):
            np.testing.assert_allclose(a.score_map, b.score_map, rtol=1e-3, atol=1e-3)
            assert a.score == pytest.approx(b.score, rel=1e-3)


def test_older_versions_refuse_the_file(masked, model_file):
    """Their kernels know nothing of a region."""

    def format_of(path):
        props = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        return json.loads(props[PREFIX + "format"])

    assert format_of(masked) == 2
    assert format_of(model_file) == 1


def test_a_file_whose_region_is_gone_is_refused(masked, tmp_path):
    proto = onnx.load(masked)
    for tensor in proto.graph.initializer:
        if tensor.name == "roi":
            tensor.name = "roi.moved"
    for node in proto.graph.node:
        node.input[:] = ["roi.moved" if name == "roi" else name for name in node.input]
    onnx.save(proto, tmp_path / "moved.onnx")
    in_process("inspect", tmp_path / "moved.onnx").failed(1, "'roi' is missing")


# --- from the command line ----------------------------------------------------------------------


def draw(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> Path:
    image = Image.new("L", size)
    image.paste(255, box)
    image.save(path)
    return path


def test_a_mask_of_the_photos_size(embedding_file, good, photos, tmp_path):
    """96 x 96 photos; the region is the right half."""
    mask = draw(tmp_path / "roi.png", (96, 96), (48, 0, 96, 96))
    output = tmp_path / "p.onnx"
    done = in_process("fit", embedding_file, *good, "--roi", mask, "-o", output).worked()
    assert "judged      50%" in done.stdout
    roi = read(output, "padim").constant("roi")
    assert not roi[:, :32].any()
    assert roi[:, 32:].all()
    in_process("inspect", output).worked()
    in_process("run", output, photos / "test" / "good").worked()
    done = in_process("eval", output, photos).worked()
    assert "50% of what the graph sees is judged" in done.stderr
    in_process("calibrate", output, "--false-alarm-rate", 0.3, "--in-place").worked()
    assert read(output, "padim").detector_info.judged == 0.5


def test_a_border(embedding_file, good, tmp_path):
    output = tmp_path / "p.onnx"
    in_process("fit", embedding_file, *good, "--ignore-border", 5, "-o", output).worked()
    roi = read(output, "padim").constant("roi")
    expected = np.zeros(SIZE, bool)
    expected[5:-5, 5:-5] = True
    np.testing.assert_array_equal(roi, expected)


def test_moments_of_another_region_are_refused(embedding_file, good, tmp_path):
    moments, output = tmp_path / "m.npz", tmp_path / "p.onnx"
    border = ("--ignore-border", 5)
    fit = ("fit", embedding_file, "-o", output)
    in_process(*fit, *good[:6], *border, "--save-moments", moments).worked()
    in_process(*fit, *good[6:], "--update", moments).failed(2, "another roi")
    in_process(*fit, *good[6:], *border, "--update", moments).worked()


@pytest.mark.parametrize(
    ("mask", "arguments", "words"),
    [
        (((96, 96), (0, 0, 0, 0)), (), ["region of interest is empty"]),
        (((96, 48), (0, 0, 96, 48)), (), ["aspect ratio"]),
        (None, ("--ignore-border", 32), ["region of interest is empty"]),
        (None, ("--roi", "nowhere.png"), ["nowhere.png", "cannot be read"]),
    ],
)
def test_what_is_no_region_is_refused(embedding_file, good, tmp_path, mask, arguments, words):
    options = [*arguments]
    if mask:
        options += ["--roi", draw(tmp_path / "roi.png", *mask)]
    with unchanged(tmp_path):
        done = in_process("fit", embedding_file, *good, *options, "-o", tmp_path / "p.onnx")
    assert done.code in (1, 2)
    done.failed(done.code, *words)


def test_the_mask_goes_the_way_of_the_photos(tmp_path, good):
    """Through the centre crop, too."""
    crop = Preprocess.reference((64, 64))
    photo = tmp_path / "photo.png"
    Image.new("RGB", (146, 73)).save(photo)  # the shorter side becomes 73
    mask = draw(tmp_path / "roi.png", (146, 73), (0, 0, 73, 73))
    roi = load_roi(mask, 0, crop, photo)
    assert roi is not None
    assert roi.mask[:, :32].all()
    assert not roi.mask[:, 32:].any()
    everything = draw(tmp_path / "all.png", (146, 73), (0, 0, 146, 73))
    assert load_roi(everything, 0, crop, photo) is None
    with pytest.raises(UsageError, match="is empty"):
        load_roi(mask, 40, crop, photo)
    with pytest.raises(ImageError, match="aspect ratio"):
        load_roi(draw(tmp_path / "b.png", (73, 73), (0, 0, 9, 9)), 0, crop, photo)


def test_the_pixel_threshold_is_of_what_is_judged(embedding_file, photos, embeddings, tmp_path):
    """Half a per cent of a small region, and not of the whole map, which is 0 elsewhere."""
    judged = np.zeros(SIZE, bool)
    judged[20:30, 20:40] = True
    good = sorted((photos / "train" / "good").iterdir())
    path = tmp_path / "p.onnx"
    fit_detector(embedding_file, good, path, Settings(WHOLE, roi=Roi(judged)))
    every = embeddings(good)
    pixels = []
    for image in range(len(good)):
        rest = np.delete(every, image, axis=0)
        maps = reference.distances(every[image : image + 1], *reference.fit(rest))
        inside = np.sort(reference.score_maps(maps, SIZE)[0][judged])[::-1]
        pixels.append(inside[int(0.005 * inside.size)])
    info = read(path, "padim").detector_info
    np.testing.assert_allclose(info.good_pixel_scores, np.sort(pixels), rtol=1e-9)
    more = tmp_path / "more.onnx"
    in_process("calibrate", path, "--good", photos / "test" / "good", "-o", more).worked()
    with Detector(path, "ort") as detector:
        for photo in sorted((photos / "test" / "good").iterdir()):
            inside = np.sort(detector(photo).score_map[judged])[::-1]
            pixels.append(inside[int(0.005 * inside.size)])
    np.testing.assert_allclose(
        read(more, "padim").detector_info.good_pixel_scores, np.sort(pixels), rtol=1e-4
    )
