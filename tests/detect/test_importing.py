"""Imported fits: their own score maps, and nothing of their files executed."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import reference
import scipy.ndimage
from helpers import in_process, unchanged
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.errors import ModelError
from padim_edge.fit.foreign import read_arrays
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read
from padim_edge.model.threshold import threshold_for
from padim_edge.runtime.cpu.ort import Graph

torch = pytest.importorskip("torch")

SIZE = (64, 64)
LANCZOS = Preprocess.whole(SIZE, "lanczos", reduce=False)
OPTIONS = (
    *("--preprocess", "whole", "--interpolation", "lanczos", "--constants", "float32"),
    *("--sigma", 4),
)


@pytest.fixture(scope="module")
def embeddings(embedding_file):
    def of(paths):
        images = np.stack([LANCZOS(path) for path in paths])
        with Graph(embedding_file.read_bytes()) as graph:
            return graph.run({"image": images}, ["embedding"])[0].astype(np.float64)

    return of


@pytest.fixture(scope="module")
def fitted(embeddings, photos):
    """Means [P, d] and covariances [P, d, d] of the 12 good photos, as the paper has them."""
    x = embeddings(sorted((photos / "train" / "good").iterdir()))
    flat = x.reshape(*x.shape[:2], -1).transpose(2, 0, 1)
    covariances = np.stack([np.cov(one, rowvar=False) for one in flat])
    return flat.mean(axis=1), covariances + 0.01 * np.eye(flat.shape[2])


@pytest.fixture(scope="module")
def channels(embedding_file):
    return read(embedding_file, "embedding").backbone_info.channels


def expected_maps(embeddings, fitted, paths, program):
    mean, covariance = fitted
    maps = embeddings(paths)
    side = maps.shape[2:]
    z = maps.reshape(*maps.shape[:2], -1).transpose(2, 0, 1) - mean[:, None]
    squared = np.einsum("pnd,pde,pne->np", z, np.linalg.inv(covariance), z)
    distances = np.sqrt(squared).reshape(-1, *side)
    if program != "anomalib":
        return reference.score_maps(distances, SIZE)
    # PyTorch pads without repeating the border.
    large = reference.score_maps(distances, SIZE, 0)
    return scipy.ndimage.gaussian_filter(large, (0, 4, 4), mode="mirror")


# --- how each program writes them ---------------------------------------------------------------


def of_the_reference(path, mean, covariance, channels):
    """As `main.py` does: `[mean, cov]`, [d, P] and [d, d, P], float32, by pickle."""
    arrays = [mean.T.astype(np.float32), covariance.transpose(1, 2, 0).astype(np.float32)]
    path.write_bytes(pickle.dumps(arrays, protocol=pickle.HIGHEST_PROTOCOL))


class Settings:
    """Stands for the classes of Lightning and anomalib that a checkpoint is full of."""


def of_anomalib(path, mean, covariance, channels):
    """A checkpoint of Lightning, its channels in another order than the embedding's."""
    order = np.argsort(channels)
    inverse = np.linalg.inv(covariance)[:, order][:, :, order]
    torch.save(
        {
            "epoch": 1,
            "pytorch-lightning_version": "2.5",
            "hyper_parameters": {"evaluator": Settings(), "layers": ["layer1", "layer2"]},
            "state_dict": collections.OrderedDict(
                {
                    "model.idx": torch.tensor(np.array(channels)[order]),
                    "model.feature_extractor.conv1.weight": torch.zeros(4, 3, 3, 3),
                    "model.gaussian.mean": torch.tensor(mean.T[order], dtype=torch.float32),
                    "model.gaussian.inv_covariance": torch.tensor(inverse, dtype=torch.float32),
                }
            ),
        },
        path,
    )


class Mahalanobis(torch.nn.Module):
    """AnomaVision's, which its files hold as a pickled module of a class that is not here."""

    def __init__(self, mean, inverse):
        super().__init__()
        self.register_buffer("_mean_flat", mean)
        self.register_buffer("_cov_inv_flat", inverse)


def of_anomavision(path, mean, covariance, channels):
    model = torch.nn.Module()
    model.register_buffer("channel_indices", torch.tensor(channels))
    model.distance = Mahalanobis(
        torch.tensor(mean, dtype=torch.float32),
        torch.tensor(np.linalg.inv(covariance), dtype=torch.float32),
    )
    torch.save(model, path)


PROGRAMS = {
    "the reference implementation": of_the_reference,
    "anomalib": of_anomalib,
    "AnomaVision": of_anomavision,
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("form", ["coarse to fine", "dense"])
def test_its_score_maps_are_those_of_the_source(
    embedding_file, photos, embeddings, fitted, channels, tmp_path, program, form
):
    mean, covariance = fitted
    if form == "dense":  # as by a program that interpolates coarse layers
        wobble = np.random.default_rng(0).uniform(0.9, 1.1, (len(mean), 1, 1))
        covariance = covariance * wobble
    source, output = tmp_path / "source", tmp_path / "padim.onnx"
    PROGRAMS[program](source, mean, covariance, channels)
    good = photos / "test" / "good"
    done = in_process("import", source, embedding_file, good, "-o", output, *OPTIONS).worked()
    assert f"of {program}, {form}" in done.stdout
    paths = sorted((photos / "test").rglob("*.png"))
    expected = expected_maps(embeddings, (mean, covariance), paths, program)
    with Detector(output, "ort") as detector:
        for path, want in zip(paths, expected, strict=True):
            np.testing.assert_allclose(detector(path).score_map, want, rtol=1e-3)
    info = read(output, "padim").detector_info
    good_maps = expected_maps(embeddings, (mean, covariance), sorted(good.iterdir()), program)
    scores = good_maps.max(axis=(1, 2))
    np.testing.assert_allclose(info.good_scores, np.sort(scores), rtol=1e-3)
    assert info.threshold == pytest.approx(threshold_for(scores, 0.2), rel=1e-3)
    assert "4 photos that are taken not to be in the fit" in info.calibration
    assert info.images == 0
    in_process("inspect", output).worked()
    in_process("calibrate", output, "--false-alarm-rate", 0.5, "--in-place").worked()


def test_an_embedding_that_is_not_of_the_fit_is_noticed(
    embedding_file, photos, fitted, channels, tmp_path
):
    """The same channels in another order: nothing in the reference's file tells."""
    good = photos / "test" / "good"
    turned = np.roll(np.arange(len(channels)), 7)
    for order, noticed in ((np.sort(turned), False), (turned, True)):
        mean, covariance = fitted
        mean, covariance = mean[:, order], covariance[:, order][:, :, order]
        of_the_reference(tmp_path / "a", mean, covariance, channels)
        output = tmp_path / "p.onnx"
        done = in_process(
            "import", tmp_path / "a", embedding_file, good, "-o", output, *OPTIONS
        ).worked()
        found = [line for line in done.warnings() if "hardly that of the fit" in line]
        assert len(found) == noticed
    with Detector(output, "ort") as detector:
        means = [detector(path).score_map.mean() for path in sorted(good.iterdir())]
    said = float(found[0].split("typically ")[1].split(" times")[0])
    assert said == pytest.approx(np.median(means) ** 2 / len(channels), rel=6e-3)


# --- what does not fit --------------------------------------------------------------------------


def attempt(source, embedding_file, photos, tmp_path, *options):
    output = tmp_path / "out.onnx"
    with unchanged(tmp_path):
        return in_process(
            "import", source, embedding_file, photos / "test" / "good", "-o", output, *options
        )


def test_other_channels(embedding_file, photos, fitted, channels, tmp_path):
    others = (*channels[1:], next(one for one in range(448) if one not in channels))
    of_anomalib(tmp_path / "a", *fitted, others)
    done = attempt(tmp_path / "a", embedding_file, photos, tmp_path)
    done.failed(2, "20 channels", "20 others", "--channels")


def test_another_number_of_channels(embedding_file, photos, fitted, channels, tmp_path):
    mean, covariance = fitted
    of_the_reference(tmp_path / "a", mean[:, 1:], covariance[:, 1:, 1:], channels)
    done = attempt(tmp_path / "a", embedding_file, photos, tmp_path)
    done.failed(2, "of 19 channels", "has 20")


def test_other_positions(embedding_file, photos, fitted, channels, tmp_path):
    mean, covariance = fitted
    of_the_reference(tmp_path / "a", mean[:64], covariance[:64], channels)
    attempt(tmp_path / "a", embedding_file, photos, tmp_path).failed(2, "64 positions", "16 x 16")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mean, cov: (mean, -cov), ["positive definite", "fit there again"]),
        (lambda mean, cov: (mean * np.nan, cov), ["NaN or infinity"]),
        (lambda mean, cov: (mean, cov[:, :-1]), ["do not fit together"]),
    ],
)
def test_what_are_no_gaussians(embedding_file, photos, fitted, channels, tmp_path, change, words):
    of_the_reference(tmp_path / "a", *change(*fitted), channels)
    attempt(tmp_path / "a", embedding_file, photos, tmp_path).failed(1, *words)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nothing",
        pickle.dumps({"a": 1}),
        pickle.dumps([np.zeros(3)]),
        b"PK\x05\x06" + bytes(18),
    ],
    ids=["empty", "text", "no arrays", "another array", "an empty archive"],
)
def test_what_is_no_such_file(embedding_file, photos, tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    attempt(tmp_path / "a", embedding_file, photos, tmp_path).failed(1, str(tmp_path / "a"))


def test_every_truncated_file(tmp_path, fitted, channels):
    of_anomalib(tmp_path / "a", *fitted, channels)
    whole = (tmp_path / "a").read_bytes()
    for end in range(0, len(whole), len(whole) // 50):
        (tmp_path / "b").write_bytes(whole[:end])
        with pytest.raises(ModelError):
            read_arrays(tmp_path / "b")


# --- nothing is executed ------------------------------------------------------------------------


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_pickle_is_executed(embedding_file, photos, tmp_path):
    mark = tmp_path / "was-here"
    (tmp_path / "a").write_bytes(pickle.dumps([Malicious(mark), np.zeros((2, 2))]))
    torch.save({"state_dict": {"x": torch.zeros(2), "y": Malicious(mark)}}, tmp_path / "b")
    for name in "ab":
        attempt(tmp_path / name, embedding_file, photos, tmp_path).failed(1, "holds no Gaussians")
    assert not mark.exists()
    assert list(read_arrays(tmp_path / "b")) == ["state_dict.x"]


@pytest.mark.parametrize(
    "program",
    [
        b'cbuiltins\neval\n(S\'__import__("os").mkdir("hit")\'\ntR.',
        b"cos\nmkdir\n(S'hit'\ntR.",
        b"ios\nmkdir\n(S'hit'\n.",
        b"cnumpy\nload\n(S'hit'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'/etc/passwd'\ntR.",
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x05mkdir\x93\x8c\x03hit\x85R.",
        b"Pstorage\n.",
    ],
)
def test_programs_by_hand(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(program)
    with contextlib.suppress(ModelError):
        assert read_arrays(tmp_path / "a") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_arrays_of_objects_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(pickle.dumps([np.array([{}, []], dtype=object)]))
    with pytest.raises(ModelError, match="arrays of objects"):
        read_arrays(tmp_path / "a")


class Storage:
    """A pickle may give any array that it can build as a tensor's storage."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def rebuild(storage, *arguments):
    """`_rebuild_tensor_v2` of a pickled array, which torch's own would refuse to pickle."""
    return pickle.dumps([Storage(storage, *arguments)])


@pytest.mark.parametrize(
    "program",
    [
        rebuild(np.zeros((1000, 0)), 0, (1000,), (1,)),
        rebuild(np.zeros(3), 0, (10**8,), (1,)),
        rebuild([1, 2], 0, (2,), (1,)),
        b"ctorch._utils\n_rebuild_tensor_v2\n(cnumpy\nndarray\n((I100000000\nI0\nttRI0\n"
        b"(I100000000\nt(I1\ntI00\nNtR.",
    ],
    ids=["no bytes", "too few", "a list", "an array by hand"],
)
def test_a_tensor_of_something_else(tmp_path, program):
    (tmp_path / "a").write_bytes(program)
    with contextlib.suppress(ModelError):
        assert read_arrays(tmp_path / "a") == {}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", "<f2", ">i4", "u1", "?"])
def test_arrays_of_every_order(tmp_path, protocol, dtype):
    one = np.arange(24).reshape(2, 3, 4).astype(dtype)
    arrays = [one, one.T, np.asfortranarray(one), one[:, ::2], one.transpose(1, 2, 0), one[0, 0, 0]]
    (tmp_path / "a").write_bytes(pickle.dumps(arrays, protocol=protocol))
    found = read_arrays(tmp_path / "a")
    for place, array in enumerate(arrays[:5]):
        np.testing.assert_array_equal(found[str(place)], array)


def test_what_numpy_has_not_is_left_out(tmp_path):
    torch.save(
        {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.ones(1).expand(5)}, tmp_path / "a"
    )
    found = read_arrays(tmp_path / "a")
    assert list(found) == ["b"]
    assert found["b"].tolist() == [1] * 5


def test_lists_of_lists_are_looked_into_once(tmp_path):
    nested = [np.ones(2)]
    for _ in range(200):
        nested = [nested, nested]
    (tmp_path / "a").write_bytes(pickle.dumps(nested))
    assert len(read_arrays(tmp_path / "a")) == 1


def test_a_tensor_beyond_its_bytes(tmp_path):
    torch.save({"x": torch.arange(4.0)}, tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as old, zipfile.ZipFile(tmp_path / "b", "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(entry, data[:8] if "/data/" in entry else data)
    with pytest.raises(ModelError, match="bytes are missing"):
        read_arrays(tmp_path / "b")


def test_views_and_kinds_of_tensors(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "view": base[1:, ::2], "turned": base.T, "half": base.half(), "whole": torch.arange(5),
        "yes": torch.tensor([True, False]), "none": torch.zeros(0, 3), "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(base), "module": torch.nn.Linear(3, 2),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "a")
    found = read_arrays(tmp_path / "a")
    for name in ("view", "turned", "half", "whole", "yes", "none", "scalar", "parameter"):
        np.testing.assert_array_equal(found[name], tensors[name].detach().numpy())
    np.testing.assert_array_equal(found["module.weight"], tensors["module"].weight.detach().numpy())


def test_a_photo_that_was_there_twice_counts_once(
    embedding_file, photos, fitted, channels, tmp_path
):
    of_the_reference(tmp_path / "a", *fitted, channels)
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((photos / "test" / "good").iterdir()):
        Image.open(path).save(folder / path.name)
        Image.open(path).save(folder / f"{path.stem}.bmp")
    done = in_process(
        "import", tmp_path / "a", embedding_file, folder, "-o", tmp_path / "p.onnx"
    ).worked()
    assert "4 images are there twice" in done.warnings()[0]
