"""Results of run that nothing loses: lines as they come, runs that go on, exit codes, lists."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import OLD, command, in_process, link, names, padim_edge, unchanged
from PIL import Image

from padim_edge.detect.line_file import LineFile

# Stops after 32 images, as Ctrl-C or a service manager would.
STOPPING = """
import os, signal
import padim_edge.detect.line_file as module
write = module.LineFile.write
count = 0
def counted(self, record):
    global count
    write(self, record)
    count += 1
    if count == 32:
        os.kill(os.getpid(), signal.{name})
module.LineFile.write = counted
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


@pytest.fixture
def many(tmp_path: Path, photos: Path) -> Path:
    """A folder of 209 links to the 10 photos of the test set."""
    return link(sorted((photos / "test").rglob("*.png")), tmp_path / "many", 209)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- lines are kept ----------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_run_that_is_stopped_goes_on(tmp_path, model_file, many, name):
    lines, part = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.part"
    lines.write_bytes(OLD)
    run = ("run", model_file, many, "--jsonl", lines)
    done = padim_edge(*run, prelude=STOPPING.format(name=name))
    assert done.code == (-signal.SIGKILL if name == "SIGKILL" else 130)
    if name != "SIGKILL":
        assert f"not complete: 32 lines are in {part}; go on with --resume" in done.stderr
    assert len(records(part)) == 32
    assert lines.read_bytes() == OLD

    with unchanged(tmp_path):
        in_process(*run).failed(2, f"{part} holds 32 lines", "--resume")
    done = in_process(*run, "--resume").worked()
    assert "going on: 32 images were judged before" in done.stderr
    assert len(done.stdout.splitlines()) == 1 + 209 - 32
    assert not part.exists()
    assert [record["path"] for record in records(lines)] == [str(p) for p in sorted(many.iterdir())]
    anomalous = sum(record["is_anomalous"] for record in records(lines))
    assert f"{209 - anomalous} ok, {anomalous} anomalous, 0 unreadable" in done.stderr
    in_process(*run, "--resume").worked()  # nothing to go on with: from the beginning


def test_a_full_disk_leaves_whole_lines(tmp_path, model_file, photos):
    lines, part = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.part"
    run = ("run", model_file, photos / "test", "--jsonl", lines)
    size = 500
    done = padim_edge(
        *run, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    )
    done.failed(1, f"cannot write {lines}", os.strerror(errno.EFBIG), said=("not complete: ",))
    kept = records(part)
    assert 1 <= len(kept) < 10
    assert part.read_bytes().endswith(b"\n")
    in_process(*run, "--resume").worked()
    assert [r["path"] for r in records(lines)] == sorted(map(str, (photos / "test").rglob("*.png")))


def test_a_line_that_a_crash_cut_off_is_made_again(tmp_path, model_file, photos):
    lines, part = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.part"
    run = ("run", model_file, photos / "test", "--jsonl", lines)
    in_process(*run).worked()
    whole = lines.read_bytes()
    for kept in (whole[:-1], whole[: len(whole) // 2], b"", whole):
        part.write_bytes(kept)
        in_process(*run, "--resume").worked()
        assert lines.read_bytes() == whole
        assert not part.exists()


def test_a_part_of_another_detector_is_refused(tmp_path, model_file, embedding_file, photos):
    """Its threshold is the same, because it was given; its scores are not."""
    other = tmp_path / "other.onnx"
    in_process("fit", embedding_file, photos, "--sigma", 1, "-o", other).worked()
    lines, part = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.part"
    run = (photos / "test", "--jsonl", lines, "--threshold", 5)
    in_process("run", other, *run).worked()
    lines.rename(part)
    with unchanged(tmp_path):
        done = in_process("run", model_file, *run, "--resume")
    done.failed(2, f"{part} was written by another detector", said=("going on", "not complete"))
    in_process("run", other, *run, "--resume").worked()


def test_lines_of_other_images_are_said(tmp_path, model_file, photos):
    lines, part = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.part"
    run = ("run", model_file, photos / "test", "--jsonl", lines)
    in_process(*run).worked()
    text = lines.read_text()
    part.write_text(text + text.splitlines()[-1].replace(str(photos), "gone") + "\n")
    done = in_process(*run, "--resume").worked()
    assert "going on: 11 images were judged before\n" in done.stderr
    assert "1 of the lines of the earlier run are of images not given now" in done.stderr


def test_what_could_not_be_read_is_tried_again(tmp_path, model_file, mine):
    lines, part = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.part"
    run = ("run", model_file, mine, "--jsonl", lines)
    sound = (mine / "003.png").read_bytes()
    for name in ("003.png", "007.png"):
        (mine / name).write_bytes(b"on a camera's card that was pulled")
    in_process(*run).worked()
    for mended, left in ((True, 10), (False, 11)):
        lines.rename(part)
        if mended:
            (mine / "003.png").write_bytes(sound)
        done = in_process(*run, "--resume").worked()
        again = f"{12 - left} could not be read, and are tried again"
        assert f"going on: {left} images were judged before; {again}\n" in done.stderr
        assert "anomalous, 1 unreadable" in done.stderr
        found = records(lines)
        assert sorted(record["path"] for record in found) == sorted(map(str, mine.iterdir()))
        assert [record["path"] for record in found if "error" in record] == [str(mine / "007.png")]


def test_two_runs_do_not_write_one_file(tmp_path, model_file, photos):
    lines = tmp_path / "scores.jsonl"
    with LineFile(lines) as other:
        other.write({"path": "a.png"})
        for resume in ((), ("--resume",)):
            with unchanged(tmp_path):
                in_process("run", model_file, photos / "test", "--jsonl", lines, *resume).failed(
                    2, f"another run writes {tmp_path / 'scores.jsonl.part'} now"
                )
    assert records(lines) == [{"path": "a.png"}]


def test_nothing_is_written_over_the_model(tmp_path, model_file, embedding_file, photos):
    model, embedding = tmp_path / "m.onnx", tmp_path / "e.onnx"
    shutil.copy(model_file, model)
    shutil.copy(embedding_file, embedding)
    with unchanged(tmp_path):
        for arguments in (
            ("run", model, photos / "test", "--jsonl", model),
            ("eval", model, photos, "--json", model),
            ("fit", embedding, photos, "-o", embedding),
            ("fit", embedding, photos, "--precision", "int8", "-o", embedding),
            ("quantize", embedding, photos, "-o", embedding),
        ):
            in_process(*arguments).failed(2, "must be different files")


def test_a_list_beside_a_folder_with_overlays(tmp_path, model_file, photos):
    listed = tmp_path / "list"
    listed.write_text(str(sorted((photos / "train" / "good").iterdir())[0]) + "\n")
    maps = tmp_path / "maps"
    in_process(
        *("run", model_file, photos / "test", "--files-from", listed, "--save-maps", maps)
    ).worked()
    assert len(list(maps.rglob("*.png"))) == 11


def test_a_part_that_is_none(tmp_path, model_file, photos):
    part = tmp_path / "scores.jsonl.part"
    for text in (
        b"hello\n",
        b"[1]\n",
        b"{}\n",
        b"\xff\n",
        b'{"path": "a.png"}\n{\n',
        b'{"path": 5}\n',
        b'{"path": "a", "score": 1, "threshold": 1, "percentile": 1, "is_anomalous": "no"}\n',
    ):
        part.write_bytes(text)
        with unchanged(tmp_path):
            done = in_process(
                "run", model_file, photos / "test", "--jsonl", tmp_path / "scores.jsonl", "--resume"
            )
        done.failed(1, str(part), "remove the file", said=("going on", "not complete"))


def test_a_part_of_another_detector(tmp_path, model_file, photos):
    part = tmp_path / "scores.jsonl.part"
    record = {"path": "a.png", "score": 1, "threshold": 1.5, "percentile": 9, "is_anomalous": False}
    part.write_text(json.dumps(record) + "\n")
    run = ("run", model_file, photos / "test", "--jsonl", tmp_path / "scores.jsonl", "--resume")
    with unchanged(tmp_path):
        done = in_process(*run)
    done.failed(2, "threshold 1.5", "this one has", said=("going on", "not complete"))


def test_strict_keeps_the_lines_before(tmp_path, model_file, mine):
    (mine / "011.png").write_bytes(b"")
    done = in_process(
        *("run", model_file, mine, "--strict", "--batch", 1, "--jsonl", tmp_path / "s.jsonl")
    )
    done.failed(1, "011.png", said=("not complete: ",))
    assert len(records(tmp_path / "s.jsonl.part")) == 11


# --- names ----------


@pytest.mark.parametrize("letter", ["x", "ü"], ids=["ascii", "two bytes"])
def test_names_as_long_as_a_name_can_be(tmp_path, model_file, good, letter):
    source, maps = tmp_path / "source", tmp_path / "maps"
    source.mkdir()
    for length in (*range(244, 256), 100):
        stem = letter * ((length - 4) // len(letter.encode()))
        shutil.copy(good[0], source / f"{stem}.png")
        shutil.copy(good[0], source / f"{stem}.bmp")
    count = len(list(source.iterdir()))
    done = in_process(
        *("run", model_file, source, "--save-maps", maps, "--jsonl", tmp_path / "s.jsonl")
    ).worked()
    assert "anomalous, 0 unreadable" in done.stderr
    assert len(records(tmp_path / "s.jsonl")) == count
    assert len(names(maps)) == count
    for path in maps.iterdir():
        assert path.suffix == ".png"
        Image.open(path).load()


def test_names_that_move_the_cursor_stay_in_one_line(tmp_path, model_file, good):
    odd = [b"new\nline.png", b"\x1b[31mred.png", b"\xff\xfe.png", "\u202egnp.png".encode()]
    for name in odd:
        shutil.copy(good[0], os.fsencode(tmp_path) + b"/" + name)
    (tmp_path / "not\nan image.png").touch()
    lines = tmp_path / "s.jsonl"
    done = in_process("run", model_file, tmp_path, "--jsonl", lines).worked()
    assert len(done.stdout.splitlines()) == 1 + len(odd)
    assert all(line.isprintable() for line in (done.stdout + done.stderr).split("\n"))
    assert "new\\nline.png" in done.stdout
    assert "warning: left out: " in done.stderr
    assert {record["path"] for record in records(lines)} >= {
        os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in odd
    }


# --- everything is counted ----------


# After a photo was judged, and before it is drawn.
VANISHING = """
import os
from padim_edge.detect.overlay_folder import OverlayFolder
save = OverlayFolder.save
def late(self, verdict):
    if verdict.name.name == "001.png":
        os.unlink(verdict.name)
    save(self, verdict)
OverlayFolder.save = late
"""


def test_a_photo_that_goes_before_it_is_drawn(tmp_path, model_file, mine):
    lines, maps = tmp_path / "s.jsonl", tmp_path / "maps"
    run = ("run", model_file, mine, "--jsonl", lines, "--save-maps", maps)
    done = padim_edge(*run, prelude=VANISHING).worked()
    (said,) = done.warnings()
    assert said.startswith(f"warning: judged, but there is no overlay: {mine / '001.png'}: cannot")
    assert len(records(lines)) == 12
    assert len(names(maps)) == 11
    (mine / "001.png").write_bytes((mine / "000.png").read_bytes())
    padim_edge(*run, "--strict", prelude=VANISHING).failed(1, "001.png", said=("not complete: ",))


def test_links_that_lead_nowhere_are_unreadable(tmp_path, model_file, good):
    for number in range(5):
        shutil.copy(good[number], tmp_path / f"{number}.png")
        (tmp_path / f"gone{number}.png").symlink_to(tmp_path / "nowhere" / f"{number}.png")
    done = in_process("run", model_file, tmp_path).worked()
    assert "5 unreadable" in done.stderr
    assert "gone0.png: cannot be read (No such file or directory)" in done.stderr


def test_files_of_other_kinds_are_named_by_kind(tmp_path, model_file, good):
    shutil.copy(good[0], tmp_path)
    for name in ("a.heic", "b.heic", "c.tga", "d.avif", "e.jp2", "notes.txt", "README"):
        (tmp_path / name).touch()
    done = in_process("run", model_file, tmp_path).worked()
    assert (
        "not judged, for they are no images: 1 .avif, 2 .heic, 1 .jp2, 1 .tga, 1 .txt, 1 without "
        "a suffix\n"
    ) in done.stderr


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_further_frames_are_told_of(tmp_path, model_file, good, suffix):
    first, *others = (Image.open(path).convert("RGB") for path in good[:4])
    first.save(tmp_path / f"many.{suffix}", save_all=True, append_images=others)
    first.save(tmp_path / f"one.{suffix}")
    done = in_process("run", model_file, tmp_path).worked()
    assert (
        "warning: 1 file(s) hold 3 further picture(s), of which none was looked at" in done.stderr
    )


def test_another_aspect_ratio_is_told_of_once(tmp_path, model_file, photos, good):
    done = in_process("run", model_file, photos / "test").worked()
    assert not done.warnings()
    for number in range(4):
        Image.open(good[number]).resize((96, 64)).save(tmp_path / f"{number}.png")
    Image.open(good[5]).resize((960, 950)).save(tmp_path / "nearly.png")
    done = in_process("run", model_file, tmp_path).worked()
    first, rest = done.warnings()
    assert "0.png is 96 x 64, width / height 1.5, and the photos of the fit have 1:" in first
    assert "4 images have another shape than those of the fit" in rest


# --- exit codes and sources ----------


def test_fail_on_anomaly(tmp_path, model_file, photos, good):
    # In the fit, so certainly below a threshold from leave-one-out scores.
    run = ("run", model_file, "--fail-on-anomaly")
    assert in_process(*run, *good[:3]).worked().stderr == "3 ok, 0 anomalous, 0 unreadable\n"
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    done = in_process(*run, good[0], tmp_path / "noise.png", tmp_path / "bad.png")
    assert done.code == 3
    assert done.stderr.endswith("1 ok, 1 anomalous, 1 unreadable\n")
    assert in_process("run", model_file, tmp_path / "noise.png").code == 0
    in_process(*run, good[0], tmp_path / "bad.png").failed(
        1, "1 image(s) could not be judged", said=("1 ok",)
    )


def test_several_sources_and_lists(tmp_path, model_file, photos, good):
    def paths(*arguments: object, **options: object) -> list[str]:
        done = padim_edge("run", model_file, *arguments, "--jsonl", "-", **options).worked()
        return [json.loads(line)["path"] for line in done.stdout.splitlines()]

    stain = sorted((photos / "test" / "stain").iterdir())
    wanted = [*map(str, good[2:4]), *map(str, stain)]
    assert paths(*good[2:4], photos / "test" / "stain", good[2]) == wanted
    listing = tmp_path / "list.txt"
    for text in ("\n".join(wanted), "\r\n".join(wanted) + "\r\n", "\0".join(wanted) + "\0"):
        listing.write_bytes(text.encode())
        assert paths("--files-from", listing) == wanted
    listing.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(wanted).encode())
    assert paths(good[0], "--files-from", listing) == [str(good[0]), *wanted]
    assert paths("--files-from", "-", input="\n".join(wanted)) == wanted
    listing.write_text(f"{tmp_path / 'gone.png'}\n{good[0]}\n")
    done = in_process("run", model_file, "--files-from", listing).worked()
    assert "1 ok, 0 anomalous, 1 unreadable" in done.stderr
    listing.write_text("\n")
    in_process("run", model_file, "--files-from", listing).failed(1, "names no image")
    in_process("run", model_file, "--files-from", tmp_path).failed(1, "cannot read the list")


def test_overlays_of_several_sources(tmp_path, model_file, photos):
    test = photos / "test"
    maps = tmp_path / "maps"
    in_process("run", model_file, test / "good", test / "stain", "--save-maps", maps).worked()
    assert names(maps) == [
        f"{kind}/{name}" for kind in ("good", "stain") for name in names(test / kind)
    ]
    for folder in (test / "good", test / "stain" / "maps"):
        with unchanged(photos):
            in_process(
                "run", model_file, test / "good", test / "stain", "--save-maps", folder
            ).failed(2, "choose a folder outside")


def test_a_list_from_find(tmp_path, model_file, photos):
    """As it is typed: find ... -print0 | padim-edge run MODEL --files-from -."""
    find = subprocess.run(
        ["find", photos / "test" / "stain", "-name", "*.png", "-print0"],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        command("run", model_file, "--files-from", "-", "--jsonl", "-"),
        input=find.stdout,
        check=True,
        capture_output=True,
    )
    assert len(done.stdout.splitlines()) == 2


# --- a threshold of one's own ---------------------------------------------------------------------


def test_a_threshold_of_ones_own(tmp_path, model_file, photos):
    own = ("--threshold", 0.5)
    done = in_process("run", model_file, photos / "test", *own, "--save-maps", tmp_path / "maps")
    assert "0 ok, 10 anomalous, 0 unreadable" in done.worked().stderr
    pytest.importorskip("sklearn")
    in_process("eval", model_file, photos, *own, "--json", tmp_path / "e.json").worked()
    metrics = json.loads((tmp_path / "e.json").read_text())
    assert [metrics[name] for name in ("threshold", "recall", "false_alarm_rate")] == [0.5, 1, 1]
    for wrong in ("0", "-1", "nan"):
        in_process("run", model_file, photos / "test", "--threshold", wrong).failed(
            2, f"a threshold of {float(wrong)}", "a positive number"
        )
