"""benchmarks/further.py: its heads are what fit and eval say, its areas what the metrics say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")
import further
from helpers import in_process

from padim_edge.images.synthetic import make_dataset


@pytest.mark.slow  # two fits
def test_presets_are_those_of_the_commands_and_results_are_kept(
    whole_embedding: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "set"
    make_dataset(folder, train=30, good=6, per_defect=2, size=64)
    common = [str(whole_embedding), str(folder), "--work", str(tmp_path / "work"), "--only"]

    def run(names: str) -> str:
        monkeypatch.setattr(sys, "argv", ["further.py", *common, names])
        further.main()
        return capsys.readouterr().out

    for name, options in (("reference", ("--dims", "100")), ("whitened-fine", ("--dims", "128"))):
        run(name)
        model, results = tmp_path / "padim.onnx", tmp_path / "eval.json"
        preset = ("--preset", name, *options, "--constants", "float32", "-o", model)
        in_process("fit", whole_embedding, folder, *preset).worked()
        in_process("eval", model, folder, "--json", results).worked()
        said = json.loads(results.read_text())
        (file,) = (tmp_path / "work").glob(f"*/{name}.npz")
        kept = np.load(file)
        # Features are kept as float16.
        figures = [said[which] for which in ("image_auroc", "pixel_auroc", "pro")]
        assert kept["exact"] == pytest.approx(figures, abs=2e-3)
        # A draw's mean is the figure, but for chance and the histograms.
        assert kept["drawn"].mean(axis=0) == pytest.approx(kept["exact"], abs=0.02)
    times = [path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/*")]
    shown = run("reference; whitened-fine")
    assert [path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/*")] == times
    assert "| reference | " in shown
    assert "| whitened-fine | " in shown
    # Other photos of the same name have a folder of their own.
    (folder / "test" / "good" / "000.png").unlink()
    further.photos_digest.cache_clear()
    run("reference")
    assert len([*(tmp_path / "work").iterdir()]) == 2


@pytest.mark.slow  # features of 24 photos
def test_near_copies_are_left_out_together_by_position(
    whole_embedding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "set", train=12, good=2, per_defect=1, size=64)
    for path in sorted((tmp_path / "set" / "train" / "good").iterdir()):
        image = Image.open(path)
        image.point(lambda value: value * 0.95).save(path.with_name(f"{path.stem}-lit.png"))
    photos = further.Photos(further.read(whole_embedding, "embedding"), tmp_path / "set", tmp_path)
    together, alone = further.Heads(photos), further.Heads(photos)
    assert len(set(together.groups)) == 12
    alone.groups = np.arange(24)
    monkeypatch.setattr(further.Heads, "scaled", lambda _, distances: distances)
    monkeypatch.setattr(further, "likeliest", lambda *_: 0.2)  # which depends on groups, too
    left_out, apart = (heads.by_position().train for heads in (together, alone))
    assert left_out.mean() > 1.5 * apart.mean()

    np.save(tmp_path / "train-0.npy", np.zeros((3, 1, 1, 1), np.float16))
    with pytest.raises(SystemExit, match=r"train-0.npy is of 3 photos, and there are 24"):
        photos("train", 0)


def test_heads_that_are_not_there_are_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["further.py", "no.onnx", "no", "--only", "whitened; white"])
    with pytest.raises(SystemExit, match="--only white: choose among reference; "):
        further.main()


def test_areas_from_histograms_are_those_of_the_pixels() -> None:
    """Of each photo once, they are what `compute_metrics` gives."""
    random = np.random.default_rng(0)
    labels = np.array([False] * 4 + [True] * 4)
    masks = np.zeros((8, 32, 32), bool)
    masks[4:, 4:12, 6:20] = True
    masks[6, 20:23, 20:23] = True
    maps = (random.normal(size=masks.shape) + 1.5 * masks).astype(np.float32)
    scores = maps.max(axis=(1, 2)).astype(float)
    exact = further.compute_metrics(labels, scores, 0.0, list(masks), maps)
    areas = further.pixel_areas(labels, masks, maps, np.ones((1, 8)))
    assert [float(area[0]) for area in areas] == pytest.approx(
        [exact.pixel_auroc, exact.pro], abs=2e-3
    )


def test_several_means_are_found() -> None:
    points = np.concatenate([np.full((5, 3), 0.0), np.full((4, 3), 10.0)])
    own = further.nearest_of(points + np.random.default_rng(0).normal(size=points.shape), 2)
    assert len(set(own[:5])) == len(set(own[5:])) == 1
    assert own[0] != own[8]
