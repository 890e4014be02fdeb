"""Saved moments that are damaged, foreign or of other settings."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers import OLD, Evil, in_process, unchanged


@pytest.fixture(scope="module")
def moments(
    tmp_path_factory: pytest.TempPathFactory, embedding_file: Path, photos: Path
) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("moments")
    in_process(
        *("fit", embedding_file, photos, "-o", folder / "padim.onnx"),
        *("--save-moments", folder / "moments.npz"),
    ).worked()
    with np.load(folder / "moments.npz") as arrays:
        return dict(arrays)


def header(arrays: dict[str, np.ndarray], **changes: object) -> np.ndarray:
    """The header of saved moments, changed."""
    text = json.dumps(json.loads(bytes(arrays["header"])) | changes)
    return np.frombuffer(text.encode(), dtype=np.uint8)


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = np.nan
    return array


def update_refused(
    tmp_path: Path,
    embedding: Path,
    photos: Path,
    code: int,
    *words: str,
    options: tuple[object, ...] = (),
) -> None:
    target = tmp_path / "padim.onnx"
    target.write_bytes(OLD)
    file = tmp_path / "moments.npz"
    with unchanged(tmp_path):
        done = in_process("fit", embedding, photos, "--update", file, "-o", target, *options)
    done.failed(code, str(file), *words)


def test_moments_that_are_sound_are_taken(tmp_path, embedding_file, photos, moments):
    np.savez(tmp_path / "moments.npz", **moments)
    done = in_process(
        *("fit", embedding_file, photos / "test" / "good", "--update", tmp_path / "moments.npz"),
        *("-o", tmp_path / "padim.onnx"),
    ).worked()
    assert "fitted on 16 images" in done.stdout


def test_moments_that_cannot_be_read(tmp_path, embedding_file, photos):
    update_refused(tmp_path, embedding_file, photos, 1, "No such file")
    (tmp_path / "moments.npz").mkdir()
    update_refused(tmp_path, embedding_file, photos, 1, "directory")


@pytest.mark.parametrize("part", [0, 10, 0.3, 0.7, -1, -30])
def test_truncated_moments(tmp_path, embedding_file, photos, moments, part):
    file = tmp_path / "moments.npz"
    np.savez(file, **moments)
    data = file.read_bytes()
    file.write_bytes(data[: int(part * len(data)) if isinstance(part, float) else part])
    update_refused(tmp_path, embedding_file, photos, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {"weights": a["scores"]},
        lambda a: {k: v for k, v in a.items() if k != "mean.1"},
        lambda a: {k: v for k, v in a.items() if k != "header"},
        lambda a: a | {"header": np.frombuffer(b"{", dtype=np.uint8)},
        lambda a: a | {"header": np.frombuffer(b"[1]", dtype=np.uint8)},
        lambda a: a | {"header": header(a, count="12")},
        lambda a: a | {"header": header(a, count=-1)},
        lambda a: a | {"header": header(a, count=1.5)},
        lambda a: a | {"header": header(a, count=13)},
        lambda a: a | {"mean.0": with_nan(a["mean.0"])},
        lambda a: a | {"scatter.1.0": with_nan(a["scatter.1.0"])},
        lambda a: a | {"scores": with_nan(a["scores"])},
        lambda a: a | {"mean.0": a["mean.0"][:-1]},
        lambda a: a | {"scatter.2.1": a["scatter.2.1"][..., :-1]},
        lambda a: a | {"scores": a["scores"][:, None]},
        lambda a: a | {"scores": a["scores"][:0]},
        lambda a: a | {"scores": np.append(a["scores"], 1.0)},
        lambda a: a | {"digests": a["digests"][1:]},
        lambda a: a | {"digests": a["digests"].astype(np.int64)},
        lambda a: {k: v for k, v in a.items() if k != "digests"} | {"scores": a["scores"][1:]},
        lambda a: a | {"mean.0": a["mean.0"].astype("U3")},
    ],
)
def test_foreign_or_damaged_moments(tmp_path, embedding_file, photos, moments, change):
    np.savez(tmp_path / "moments.npz", **change(dict(moments)))
    update_refused(tmp_path, embedding_file, photos, 1)


def test_moments_that_are_a_pickle(tmp_path, embedding_file, photos, moments):
    evil = np.array([Evil(tmp_path / "run by a pickle")], dtype=object)
    np.savez(tmp_path / "moments.npz", **(moments | {"scores": evil}))
    update_refused(tmp_path, embedding_file, photos, 1)
    (tmp_path / "moments.npz").write_bytes(pickle.dumps(evil))
    update_refused(tmp_path, embedding_file, photos, 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--eps", 0.1), "eps"),
        (("--sigma", 2), "sigma"),
        (("--preprocess", "reference"), "preprocess"),
    ],
)
def test_moments_of_other_settings(tmp_path, embedding_file, photos, moments, options, word):
    np.savez(tmp_path / "moments.npz", **moments)
    update_refused(tmp_path, embedding_file, photos, 2, f"another {word}", options=options)


def test_moments_of_another_embedding(tmp_path, embedding_file, photos, moments):
    other = header(moments, embedding="0" * 64)
    np.savez(tmp_path / "moments.npz", **(moments | {"header": other}))
    update_refused(tmp_path, embedding_file, photos, 2, "another embedding")
