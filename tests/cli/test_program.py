"""The program itself: version, help, examples, debug."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import COMMANDS, in_process, padim_edge, unchanged

import padim_edge as package
from padim_edge.cli.app import app
from padim_edge.runtime.engines import ENGINES


def test_version():
    done = padim_edge("--version").worked()
    assert (done.stdout, done.stderr) == (f"padim-edge {package.__version__}\n", "")


def test_the_installed_program_is_this_one():
    program = shutil.which("padim-edge", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("padim-edge is not installed beside this Python")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"padim-edge {package.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("--debug",)])
def test_help_of_the_program_names_every_command(arguments):
    done = in_process(*arguments).worked()
    words = done.stdout.split()
    assert all(name in words for name in COMMANDS)
    assert {command.name for command in app.registered_commands} == set(COMMANDS)
    assert "Start here: padim-edge demo" in " ".join(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example_that_it_takes(name):
    text = " ".join(in_process(name, "--help").worked().stdout.split())
    usage, example = text.split("Example: ")
    options = usage.replace(",", " ").split()
    words = example.split()
    assert words[:2] == ["padim-edge", name]
    for word in words:
        if word.startswith("-"):
            assert word in options
    assert in_process(name, "-h").stdout.split() == in_process(name, "--help").stdout.split()


@pytest.mark.parametrize("name", ["run", "eval"])
def test_help_names_every_engine(name):
    words = in_process(name, "--help").worked().stdout.replace(",", " ").split()
    assert {"auto", *ENGINES} <= set(words)


@pytest.mark.parametrize("name", ["fit", "run", "eval", "bench", "inspect"])
def test_the_example_parses(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = " ".join(in_process(name, "--help").stdout.split())
    words = text.split("Example: padim-edge ")[1].split()
    with unchanged(tmp_path):
        in_process(*words).failed(1)  # 2 would be wrong use


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_a_traceback_wherever_it_stands(tmp_path, place):
    arguments: list[object] = ["run", tmp_path / "no.onnx", tmp_path]
    arguments.insert(place, "--debug")
    done = padim_edge(*arguments)
    assert done.code == 1
    assert done.stderr.startswith("Traceback")
    assert "padim_edge.errors.PadimEdgeError: no image found" in done.stderr
