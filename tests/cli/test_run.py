"""run as it is typed: its table, its JSON lines, its overlays."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import TIMEOUT, command, in_process, names, padim_edge, unchanged
from PIL import Image

from padim_edge.detect.detector import Detector

TEST_IMAGES = 10  # of `photos`: 4 good ones and 2 of each of 3 defects


def test_the_table_of_run(model_file, photos):
    done = padim_edge("run", model_file, photos / "test").worked()
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["score", "threshold", "percentile", "decision", "image"]
    assert len(rows) == TEST_IMAGES
    anomalous = 0
    with Detector(model_file) as detector:
        for row in rows:
            score, threshold, percentile, decision, path = row.split()
            result = detector(Image.open(path))
            assert float(score) == pytest.approx(result.score, abs=6e-4)
            assert float(threshold) == pytest.approx(result.threshold, abs=6e-4)
            assert float(percentile) == pytest.approx(result.percentile, abs=0.06)
            assert decision == ("ANOMALY" if result.is_anomalous else "ok")
            anomalous += result.is_anomalous
    assert [row.split()[-1] for row in rows] == sorted(
        str(path) for path in (photos / "test").rglob("*.png")
    )
    assert done.stderr == f"{TEST_IMAGES - anomalous} ok, {anomalous} anomalous, 0 unreadable\n"


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_json_lines_of_run(tmp_path, model_file, photos, batch):
    lines = tmp_path / "scores.jsonl"
    arguments = ("run", model_file, photos / "test", "--batch", batch, "--jsonl")
    done = in_process(*arguments, lines).worked()
    assert len(done.stdout.splitlines()) == 1 + TEST_IMAGES  # the table is there as well
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(records) == TEST_IMAGES
    for record in records:
        fields = {"path", "score", "threshold", "is_anomalous", "percentile", "regions"}
        assert set(record) == fields
        assert bool(record["regions"]) == record["is_anomalous"]
        assert record["is_anomalous"] is (record["score"] > record["threshold"])
        assert 0 <= record["percentile"] <= 100
    done = in_process(*arguments, "-").worked()
    assert [json.loads(line) for line in done.stdout.splitlines()] == records


def test_run_finds_the_defects(model_file, photos):
    done = in_process("run", model_file, photos / "test", "--jsonl", "-").worked()
    scores: dict[bool, list[float]] = {True: [], False: []}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        scores["good" in Path(record["path"]).parts].append(record["score"])
    assert np.median(scores[False]) > np.median(scores[True])


def test_sources_of_run(model_file, photos, monkeypatch):
    def paths(source: object) -> list[str]:
        done = in_process("run", model_file, source, "--jsonl", "-").worked()
        return [json.loads(line)["path"] for line in done.stdout.splitlines()]

    test = photos / "test"
    one = test / "stain" / "000.png"
    assert paths(one) == [str(one)]
    assert len(paths(test)) == TEST_IMAGES
    assert paths(test / "good") == [str(path) for path in sorted((test / "good").iterdir())]
    assert paths(test / "*" / "000.png") == [str(path) for path in sorted(test.glob("*/000.png"))]
    assert len(paths(test / "**" / "*.png")) == TEST_IMAGES
    monkeypatch.chdir(test)
    assert paths("stain") == ["stain/000.png", "stain/001.png"]
    assert paths("sta*/*1.png") == ["stain/001.png"]


def test_stdout_holds_results_alone_on_a_terminal(tmp_path, model_file, photos, embedding_file):
    """With a terminal on stderr there are progress bars, and none of them on stdout."""
    (tmp_path / "test").symlink_to(photos / "test")
    (tmp_path / "ground_truth").symlink_to(photos / "ground_truth")
    for arguments, lines in (
        (("fit", embedding_file, photos, "-o", tmp_path / "padim.onnx"), 5),
        (("run", model_file, tmp_path / "test", "--jsonl", "-"), TEST_IMAGES),
        (("eval", model_file, tmp_path), 9),
    ):
        main, side = pty.openpty()
        done = padim_edge(*arguments, stderr=side)
        os.close(side)
        shown = os.read(main, 100_000).decode()
        os.close(main)
        assert done.code == 0
        assert len(done.stdout.splitlines()) == lines
        assert "\x1b" not in done.stdout
        if arguments[0] != "run":
            assert "\x1b" in shown


def test_a_reader_that_goes_away(model_file, photos):
    with subprocess.Popen(
        command("run", model_file, photos / "test", "--batch", 1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.readline()
        child.stdout.close()
        err = child.stderr.read()
        child.wait(TIMEOUT)
    assert "Traceback" not in err
    assert "error" not in err


def test_names_that_are_no_text(tmp_path, model_file, good):
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)  # noqa: PTH102 - bytes
    for name in (b"\xff.png", "Stück.png".encode()):
        shutil.copy(good[0], os.path.join(folder, name))  # noqa: PTH118 - bytes
    for encoding in ("utf-8:strict", "ascii:strict"):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = padim_edge("run", model_file, tmp_path / "odd", env=env).worked()
        assert len(done.stdout.splitlines()) == 3
        done = padim_edge("run", model_file, tmp_path / "odd", "--jsonl", "-", env=env).worked()
        paths = [json.loads(line)["path"] for line in done.stdout.splitlines()]
        assert sorted(os.fsencode(path) for path in paths) == sorted(
            os.path.join(folder, name)  # noqa: PTH118 - bytes
            for name in os.listdir(folder)  # noqa: PTH208 - bytes
        )


# --- overlays -------------------------------------------------------------------------------------


def test_maps_keep_the_folders_of_their_images(tmp_path, model_file, photos):
    maps = tmp_path / "new" / "maps"
    done = in_process("run", model_file, photos / "test", "--save-maps", maps).worked()
    assert len(done.stdout.splitlines()) == 1 + TEST_IMAGES
    assert names(maps) == names(photos / "test")
    for name in names(maps):
        picture = Image.open(maps / name)
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        frame = np.asarray(Image.open(photos / "test" / name).convert("RGB"))
        assert picture.width >= frame.shape[1]
        assert not np.array_equal(np.asarray(picture), frame)


def test_maps_of_images_that_differ_in_their_suffix_alone(tmp_path, model_file, photos):
    source, maps = tmp_path / "source", tmp_path / "maps"
    (source / "sub").mkdir(parents=True)
    image = Image.open(photos / "test" / "good" / "000.png")
    files = ("a.jpg", "a.png", "a.jpg.png", "b.bmp", "c.tif", "sub/a.png", "d.e.png")
    for name in files:
        image.save(source / name)
    in_process("run", model_file, source, "--save-maps", maps).worked()
    found = names(maps)
    assert len(found) == len(files)  # none has replaced another
    assert {"a.jpg.png", "a.png.png", "b.png", "c.png", "d.e.png", "sub/a.png"} <= set(found)
    # Each overlay stands where a second run would put it again.
    before = {name: (maps / name).read_bytes() for name in found}
    in_process("run", model_file, source, "--save-maps", maps).worked()
    assert {name: (maps / name).read_bytes() for name in names(maps)} == before


def test_maps_of_a_file_and_of_a_pattern(tmp_path, model_file, photos):
    test = photos / "test"
    in_process(
        "run", model_file, test / "good" / "001.png", "--save-maps", tmp_path / "file"
    ).worked()
    assert names(tmp_path / "file") == ["001.png"]
    in_process("run", model_file, test / "*" / "000.png", "--save-maps", tmp_path / "p").worked()
    assert names(tmp_path / "p") == [
        f"{kind}/000.png" for kind in ("good", "missing_thread", "scratch", "stain")
    ]


def test_maps_of_unreadable_images_are_none(tmp_path, model_file, photos):
    source, maps = tmp_path / "source", tmp_path / "maps"
    shutil.copytree(photos / "test" / "good", source)
    (source / "000.png").write_bytes(b"")
    in_process("run", model_file, source, "--save-maps", maps).worked()
    assert names(maps) == ["001.png", "002.png", "003.png"]


# --- overlays that would harm the images ----------------------------------------------------------


def test_save_maps_inside_the_source(tmp_path, model_file, mine):
    with unchanged(tmp_path):
        in_process("run", model_file, mine, "--save-maps", mine / "maps").failed(2)
        for maps in (mine, mine / "maps", mine / "deep" / "maps", mine / ".." / "mine"):
            done = in_process("run", model_file, mine, "--save-maps", maps)
            done.failed(2, f"--save-maps {maps}", "choose a folder outside")


def test_save_maps_inside_the_source_by_a_link(tmp_path, model_file, mine):
    (tmp_path / "link").symlink_to(mine)
    with unchanged(tmp_path):
        done = in_process("run", model_file, mine, "--save-maps", tmp_path / "link" / "maps")
    done.failed(2, "choose a folder outside")


def test_save_maps_never_replaces_an_image(tmp_path, model_file, mine):
    sources = (mine / "000.png", mine / "*.png", mine / "00?.png")
    for source in sources:
        for maps in (mine, tmp_path / "elsewhere" / ".." / "mine"):
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            with unchanged(tmp_path):
                done = in_process("run", model_file, source, "--save-maps", maps)
            done.failed(2, f"--save-maps {maps}", "replace", "choose another folder")


def test_overlays_never_go_where_the_images_are(model_file, photos, tmp_path):
    folder = tmp_path / "ph"
    folder.mkdir()
    good = sorted((photos / "test" / "good").iterdir())[0]
    Image.open(good).save(folder / "a.bmp")
    Image.open(good).save(folder / "a.png")
    before = (folder / "a.png").read_bytes()
    done = in_process("run", model_file, folder / "a.bmp", "--save-maps", folder)
    assert done.code == 2
    assert "choose another folder" in done.stderr
    assert (folder / "a.png").read_bytes() == before
