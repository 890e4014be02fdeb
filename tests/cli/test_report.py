"""--report as it is typed: bad places, bad company, and what is left when the work fails."""

from __future__ import annotations

import os

import pytest
from helpers import OLD, in_process, unchanged


@pytest.fixture
def commands(tmp_path_factory, embedding_file, model_file, photos):
    """A command for each --report; its path comes last."""
    out = tmp_path_factory.mktemp("out")
    return {
        "eval": ("eval", model_file, photos, "--report"),
        "run": ("run", model_file, photos / "test", "--report"),
        "fit": ("fit", embedding_file, photos, "-o", out / "padim.onnx", "--report"),
    }


NAMES = ("eval", "run", "fit")


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_cannot_be(tmp_path, commands, name):
    pytest.importorskip("sklearn")
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder.html").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    cases = {
        tmp_path / "missing" / "r.html": "No such file or directory",
        tmp_path / "file" / "r.html": "Not a directory",
        tmp_path / "folder.html": "it is a folder",
        tmp_path / "pipe.html": "it is a device or a pipe",
        tmp_path / f"{'x' * 300}.html": "File name too long",
    }
    with unchanged(tmp_path):
        for path, reason in cases.items():
            in_process(*commands[name], path).failed(1, f"cannot write {path}", reason)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_pages(tmp_path, commands, name, photos):
    photo = next((photos / "test").rglob("*.png"))
    with unchanged(tmp_path, photos):
        for path in (photo, tmp_path / "report", tmp_path / "-"):
            in_process(*commands[name], path).failed(2, f"--report {path}", "ends in .html")


def test_no_file_is_two_things(tmp_path, commands):
    file = tmp_path / "both.html"
    in_process(*commands["eval"], file, "--json", file).failed(2, "different files")
    in_process(*commands["run"], file, "--jsonl", file).failed(2, "different files")


def test_a_run_that_goes_on_has_no_report(tmp_path, commands):
    lines = tmp_path / "s.jsonl"
    done = in_process(*commands["run"], tmp_path / "r.html", "--resume", "--jsonl", lines)
    done.failed(2, "--report", "--resume")


def test_what_was_there_stays_when_the_work_fails(tmp_path, commands):
    file = tmp_path / "r.html"
    file.write_bytes(OLD)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(b"no image")
    command, model, *_ = commands["run"]
    with unchanged(tmp_path):
        done = in_process(command, model, tmp_path / "new", "--strict", "--report", file)
        done.failed(1, "a.png", "not an image")


def test_a_report_replaces_the_one_before(tmp_path, commands):
    file = tmp_path / "r.html"
    file.write_bytes(OLD)
    in_process(*commands["run"], file, "--fail-on-anomaly")
    assert file.read_bytes().startswith(b"<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
