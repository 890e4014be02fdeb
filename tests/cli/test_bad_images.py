"""Images that are none, too few, or nowhere: one line, the right code, no harm done."""

from __future__ import annotations

import itertools
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import OLD, in_process, link, obeying_permissions, padim_edge, unchanged
from PIL import Image

SUMMARY = ("0 ok", "1 ok", "not judged, for they are no images")


# --- where there are no images --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fit", "run", "eval"])
def test_no_such_folder(tmp_path, embedding_file, model_file, name):
    graph = embedding_file if name == "fit" else model_file
    output = ("-o", tmp_path / "padim.onnx") if name == "fit" else ()
    with unchanged(tmp_path):
        in_process(name, graph, tmp_path / "nowhere", *output).failed(1, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["fit", "run", "eval"])
def test_empty_folder(tmp_path, embedding_file, model_file, name):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    graph = embedding_file if name == "fit" else model_file
    output = ("-o", tmp_path / "padim.onnx") if name == "fit" else ()
    with unchanged(tmp_path):
        done = in_process(name, graph, tmp_path / "photos", *output)
    done.failed(1, str(tmp_path / "photos"))


@pytest.mark.parametrize("source", ["*.png", "no*/**"])
def test_a_pattern_that_matches_nothing(tmp_path, model_file, source):
    in_process("run", model_file, tmp_path / source).failed(1, source, "no image found")


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_to_fit(tmp_path, embedding_file, good, count):
    source = link(good, tmp_path / "few", count)
    with unchanged(tmp_path):
        done = in_process("fit", embedding_file, source, "-o", tmp_path / "padim.onnx")
    done.failed(1, f"{count} usable image", "at least 3")


def test_one_image_to_fit_as_a_file(tmp_path, embedding_file, good):
    with unchanged(tmp_path):
        done = in_process("fit", embedding_file, good[0], "-o", tmp_path / "padim.onnx")
    done.failed(1, "1 usable image given", "at least 3")


def test_one_image_is_enough_to_run(model_file, good):
    assert in_process("run", model_file, good[0]).worked().stdout.count("000.png") == 1


def test_a_test_set_without_defects(tmp_path, model_file, photos):
    shutil.copytree(photos / "test" / "good", tmp_path / "test" / "good")
    in_process("eval", model_file, tmp_path).failed(1, "no defective image", "test/<defect>")


def test_fit_takes_no_defective_image(tmp_path, embedding_file, photos):
    with unchanged(tmp_path):
        done = in_process("fit", embedding_file, photos / "test", "-o", tmp_path / "padim.onnx")
    done.failed(1, "stain (2)", "--normal-dir good")


# --- images of every kind -------------------------------------------------------------------------


def test_images_of_every_kind_in_one_folder(tmp_path, embedding_file, good):
    folder = tmp_path / "mixed"
    folder.mkdir()
    photos = itertools.cycle(Image.open(path).convert("RGB") for path in good)
    exif = Image.Exif()
    exif[0x0112] = 6
    next(photos).save(folder / "rgb.png")
    next(photos).resize((640, 200)).save(folder / "wide.jpg")
    next(photos).resize((33, 500)).save(folder / "tall.webp")
    next(photos).resize((1, 1)).save(folder / "dot.ppm")
    for mode, name in (
        *(("L", "grey.png"), ("LA", "grey-alpha.png"), ("RGBA", "alpha.png")),
        *(("P", "palette.gif"), ("1", "binary.bmp"), ("CMYK", "cmyk.jpg"), ("CMYK", "cmyk.tif")),
    ):
        next(photos).convert(mode).save(folder / name)
    for name in ("deep.png", "deep.tif"):
        grey16 = np.asarray(next(photos).convert("L"), np.uint16) * 257
        Image.fromarray(grey16).save(folder / name)
    next(photos).save(folder / "turned.jpg", exif=exif)
    next(photos).save(folder / "SHOUTED.PNG")
    count = len(list(folder.iterdir()))
    model = tmp_path / "padim.onnx"

    done = padim_edge(
        "fit", embedding_file, folder, "--false-alarm-rate", 0.1, "-o", model
    ).worked()
    assert f"fitted on {count} images" in done.stdout
    assert done.stderr.startswith(f"images: {count} of {folder}\n")

    done = padim_edge("run", model, folder, "--jsonl", "-").worked()
    assert len(done.stdout.splitlines()) == count
    assert done.stderr.endswith(" 0 unreadable\n")


def test_a_turned_image_scores_as_the_upright_one(tmp_path, model_file, good):
    image = Image.open(good[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    image.save(tmp_path / "upright.png")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    done = in_process("run", model_file, tmp_path, "--jsonl", "-").worked()
    turned, upright = (json.loads(line)["score"] for line in done.stdout.splitlines())
    assert turned == upright


# --- images that are none -------------------------------------------------------------------------


def spoil(folder: Path, good: list[Path]) -> int:
    """Put files that are no images between the good ones; returns how many."""
    photo = good[0].read_bytes()
    jpeg = folder / "whole.jpg"
    Image.open(good[0]).save(jpeg)
    (folder / "000-empty.png").write_bytes(b"")
    (folder / "001-truncated.png").write_bytes(photo[: len(photo) // 2])
    (folder / "003-truncated.jpg").write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    (folder / "005-head-only.png").write_bytes(photo[:40])
    (folder / "007-text.jpg").write_text("not an image at all")
    (folder / "zzz-archive.tif").write_bytes(b"PK\3\4" + bytes(100))
    jpeg.unlink()
    (folder / "notes.txt").write_text("does not count")
    return 6


def test_fit_leaves_out_and_counts_what_is_no_image(tmp_path, embedding_file, mine, good):
    clean, model = tmp_path / "clean.onnx", tmp_path / "padim.onnx"
    padim_edge("fit", embedding_file, mine, "-o", clean).worked()
    bad = spoil(mine, good)
    done = padim_edge("fit", embedding_file, mine, "-o", model).worked()
    said = done.warnings()
    assert sum("left out: " in line for line in said) == bad
    assert f"warning: {bad} unreadable image(s) were left out" in said
    for name in ("000-empty.png", "001-truncated.png", "007-text.jpg", "zzz-archive.tif"):
        assert sum(name in line for line in said) == 1
    assert "fitted on 12 images" in done.stdout
    assert model.read_bytes() == clean.read_bytes()


def test_strict_fit_stops_at_what_is_no_image(tmp_path, embedding_file, mine, good):
    spoil(mine, good)
    with unchanged(tmp_path):
        done = in_process("fit", embedding_file, mine, "--strict", "-o", tmp_path / "padim.onnx")
    done.failed(1, "000-empty.png")
    assert not done.stdout


def test_nothing_but_bad_images(tmp_path, embedding_file, model_file, good):
    folder = tmp_path / "bad"
    folder.mkdir()
    bad = spoil(folder, good)
    with unchanged(tmp_path):
        done = in_process("fit", embedding_file, folder, "-o", tmp_path / "padim.onnx")
        done.failed(1, "0 usable images")
        assert len(done.warnings()) >= bad
        done = in_process("run", model_file, folder)
        done.failed(1, f"none of the {bad} image(s) could be read", said=SUMMARY)


def test_run_reports_bad_images_and_goes_on(tmp_path, model_file, mine, good):
    bad = spoil(mine, good)
    lines = tmp_path / "scores.jsonl"
    done = padim_edge("run", model_file, mine, "--jsonl", lines, "--batch", 3).worked()
    assert f"warning: {bad} unreadable image(s) were left out" in done.stderr
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [Path(record["path"]).name for record in records] == sorted(
        path.name for path in mine.iterdir() if path.suffix != ".txt"
    )
    assert sum("error" in record for record in records) == bad
    assert sum("score" in record for record in records) == 12


def test_strict_run_stops_and_keeps_the_old_lines(tmp_path, model_file, mine, good):
    spoil(mine, good)
    lines = tmp_path / "scores.jsonl"
    lines.write_bytes(OLD)
    with unchanged(tmp_path):
        done = in_process("run", model_file, mine, "--strict", "--jsonl", lines)
    done.failed(1, "000-empty.png")


def test_eval_leaves_out_bad_images_and_bad_masks(tmp_path, model_file, photos):
    dataset = Path(shutil.copytree(photos, tmp_path / "set"))
    (dataset / "test" / "good" / "000.png").write_bytes(b"")
    mask = dataset / "ground_truth" / "stain" / "000_mask.png"
    mask.write_bytes(mask.read_bytes()[:60])
    done = in_process("eval", model_file, dataset).worked()
    assert "warning: 2 unreadable image(s) were left out" in done.stderr
    assert "3 good, 5 defective" in done.stdout
    done = in_process("eval", model_file, dataset, "--strict", "--json", tmp_path / "e.json")
    done.failed(1, "000.png")
    assert not (tmp_path / "e.json").exists()


def huge_png(path: Path, side: int = 20_000) -> None:
    """A sound PNG of side x side black pixels, 1 bit each: 50 MB decoded, 50 kB on the disk."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + check

    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(side * (1 + side // 8)), 1)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_20000_x_20000_image_among_good_ones(tmp_path, embedding_file, model_file, mine):
    clean, model = tmp_path / "clean.onnx", tmp_path / "padim.onnx"
    in_process("fit", embedding_file, mine, "-o", clean).worked()
    huge_png(mine / "005-huge.png")
    done = in_process("fit", embedding_file, mine, "-o", model).worked()
    assert any("005-huge.png" in line and "178,956,970" in line for line in done.warnings())
    assert "warning: 1 unreadable image(s) were left out" in done.stderr
    assert model.read_bytes() == clean.read_bytes()
    done = in_process("run", model_file, mine / "005-huge.png")
    done.failed(1, "none of the 1 image(s)", said=SUMMARY)


def test_an_image_that_may_not_be_read(tmp_path, embedding_file, mine):
    (mine / "003.png").chmod(0)
    model = tmp_path / "padim.onnx"
    done = padim_edge(
        "fit", embedding_file, mine, "-o", model, preexec_fn=obeying_permissions()
    ).worked()
    assert any("003.png" in line and "Permission denied" in line for line in done.warnings())
    assert "fitted on 11 images" in done.stdout


def test_a_folder_that_may_not_be_read(tmp_path, model_file, mine):
    (mine / "locked").mkdir()
    (mine / "locked").chmod(0)
    done = padim_edge("run", model_file, mine, preexec_fn=obeying_permissions())
    done.failed(1, "locked", "Permission denied")
