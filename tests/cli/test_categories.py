"""eval over a folder of categories: a detector each, one table, and none that stops the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import OLD, in_process, names, unchanged

pytest.importorskip("sklearn")

FIGURES = ("image_auroc", "pixel_auroc", "pro")


@pytest.fixture
def three(tmp_path: Path, photos: Path, model_file: Path) -> tuple[Path, Path]:
    """A folder of detectors, as both names allow, and one of data sets; that of bad has no test."""
    detectors, datasets = tmp_path / "detectors", tmp_path / "data"
    for name in ("bolt", "cap", "bad"):
        shutil.copytree(photos, datasets / name)
    (datasets / ".hidden").mkdir()
    (datasets / "readme.txt").touch()
    shutil.rmtree(datasets / "bad" / "test")
    shutil.rmtree(datasets / "cap" / "ground_truth")
    (detectors / "cap").mkdir(parents=True)
    shutil.copy(model_file, detectors / "bolt.onnx")
    shutil.copy(model_file, detectors / "bad.onnx")
    shutil.copy(model_file, detectors / "cap" / "padim.onnx")
    return detectors, datasets


def test_a_table_of_all_that_worked(tmp_path, three, model_file, photos):
    file = tmp_path / "all.json"
    done = in_process("eval", *three, "--json", file)
    assert done.code == 1
    assert done.stderr.endswith("error: 1 of 3 categories failed, see above\n")
    assert "warning: bad is left out: " in done.stderr
    in_process("eval", model_file, photos, "--json", tmp_path / "one.json").worked()
    one = json.loads((tmp_path / "one.json").read_text())
    found = json.loads(file.read_text())
    assert found["complete"]
    assert list(found["categories"]) == ["bad", "bolt", "cap"]
    assert "no folder test" in found["categories"]["bad"]["error"]
    assert {**found["categories"]["bolt"], **one} == found["categories"]["bolt"]
    assert found["categories"]["cap"]["image_auroc"] == one["image_auroc"]
    assert found["categories"]["cap"]["pro"] is None
    assert found["mean"] == {name: one[name] for name in FIGURES}
    table = [line.split() for line in done.stdout.splitlines() if line]
    row = [f"{one[name]:.4f}" for name in FIGURES]
    assert table[1:] == [["bad", "-", "-", "-"], ["bolt", *row], ["cap", row[0], "-", "-"],
                         ["mean", *row]]  # fmt: skip


def test_it_goes_on_where_it_stopped(tmp_path, three):
    detectors, datasets = three
    file = tmp_path / "all.json"
    evaluation = ("eval", *three, "--json", file, "--resume")
    assert in_process(*evaluation).code == 1  # there is none yet: from the beginning
    shutil.copytree(datasets / "bolt" / "test", datasets / "bad" / "test")
    done = in_process(*evaluation).worked()
    assert done.stderr.count("as in the earlier run") == 2
    first = json.loads(file.read_text())
    assert "error" not in first["categories"]["bad"]
    # Another detector is measured anew; what is no category any more goes.
    done = in_process(*evaluation).worked()
    assert done.stderr.count("as in the earlier run") == 3
    assert json.loads(file.read_text()) == first
    (detectors / "bolt.onnx").write_bytes(OLD)
    shutil.rmtree(datasets / "cap")
    done = in_process(*evaluation)
    assert done.code == 1
    assert done.stderr.count("as in the earlier run") == 1
    assert list(json.loads(file.read_text())["categories"]) == ["bad", "bolt"]


def test_an_interrupted_one_keeps_what_there_was(tmp_path, three, monkeypatch):
    file = tmp_path / "all.json"
    in_process("eval", *three, "--json", file)
    (three[0] / "cap" / "padim.onnx").write_bytes(OLD)  # of which nothing is known then
    before = json.loads(file.read_text())["categories"]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("padim_edge.cli.eval._measured", stop)
    assert in_process("eval", *three, "--json", file, "--resume").code == 130
    after = json.loads(file.read_text())
    assert not after["complete"]
    assert after["categories"]["bolt"] == before["bolt"]


def test_detectors_that_are_not_there_are_fitted(tmp_path, photos, embedding_file):
    datasets, detectors = tmp_path / "data", tmp_path / "detectors"
    for name in ("bolt", "cap"):
        shutil.copytree(photos, datasets / name)
    fit = ("eval", detectors, datasets, "--fit-from", embedding_file)
    done = in_process(*fit).worked()
    assert done.stderr.count("  fitted: ") == 2
    assert names(detectors) == ["bolt.onnx", "cap.onnx"]
    with unchanged(detectors):
        assert "fitted" not in in_process(*fit).worked().stderr
    in_process("fit", embedding_file, photos, "-o", tmp_path / "own.onnx").worked()
    own = in_process("inspect", tmp_path / "own.onnx").stdout.splitlines()
    theirs = in_process("inspect", detectors / "bolt.onnx").stdout.splitlines()
    told = ("file ", "sha256 ")
    assert [x for x in own if not x.startswith(told)] == [
        x for x in theirs if not x.startswith(told)
    ]


def test_what_does_not_go_together(tmp_path, three, model_file, photos):
    detectors, datasets = three
    in_process("eval", detectors, datasets, "--threshold", 1).failed(2, "of one category")
    in_process("eval", detectors, datasets, "--resume").failed(2, "name it with --json")
    in_process("eval", model_file, photos, "--resume").failed(2, "of several categories")
    in_process("eval", detectors, tmp_path / "none").failed(1, "holds no category")
    for text in (b"", b"[]", b'{"categories": [1]}', b'{"categories": {"a": {"pro": "high"}}}'):
        (tmp_path / "all.json").write_bytes(text)
        in_process("eval", *three, "--json", tmp_path / "all.json", "--resume").failed(
            1, "is no file of 'eval' over categories"
        )
    (detectors / "bolt.onnx").unlink()
    done = in_process("eval", *three)
    assert done.code == 1
    assert f"there is no {detectors / 'bolt.onnx'}" in done.stderr
    assert "2 of 3 categories failed" in done.stderr
