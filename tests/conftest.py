"""Fixtures: real images and weights where they are at hand, and small models built once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from helpers import Outcome

    from padim_edge.measure.report import Report


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with `data/` (real images) and `weights/`; tests that need it skip without."""
    folder = os.environ.get("PADIM_EDGE_TEST_DATA")
    root = Path(folder) if folder else Path(__file__).parents[2] / "shared"
    if not (root / "data").is_dir():
        pytest.skip(f"no real images at {root}: set PADIM_EDGE_TEST_DATA to the folder of them")
    return root


@pytest.fixture(scope="session")
def embedding_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedding.onnx: ResNet-18 with random weights, 64 x 64, 20 channels. Read only."""
    pytest.importorskip("torch")
    from padim_edge.export.export import export_backbone

    path = tmp_path_factory.mktemp("embedding") / "embedding.onnx"
    export_backbone(path, "resnet18", dims=(20,), image_size=(64, 64), weights="random")
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 good synthetic photos to fit, 4 good and 2 of each of 3 defects to test. Read only."""
    from padim_edge.images.synthetic import make_dataset

    folder = tmp_path_factory.mktemp("photos")
    make_dataset(folder, train=12, good=4, per_defect=2, size=96)
    return folder


@pytest.fixture(scope="session")
def model_file(
    tmp_path_factory: pytest.TempPathFactory, embedding_file: Path, photos: Path
) -> Path:
    """A padim.onnx fitted on `photos` with the defaults (float16). Read only."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess

    path = tmp_path_factory.mktemp("model") / "padim.onnx"
    fit_detector(embedding_file, train_images(photos), path, Settings(Preprocess.whole((64, 64))))
    return path


@pytest.fixture(scope="session")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The CUDA kernels, compiled for the CPU."""
    import cpu_kernels

    return cpu_kernels.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the driver made for tests, `fake_gpu`."""
    import fake_gpu

    return str(fake_gpu.assemble(tmp_path_factory.mktemp("gpu")))


@pytest.fixture(scope="module")
def gpu(folder: str) -> Iterator[ProcessPoolExecutor]:
    """An interpreter with pycuda."""
    import fake_gpu
    from wheels import interpreter

    with interpreter(fake_gpu.pycuda()) as pool:
        yield pool


@pytest.fixture(scope="session")
def measured(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """`padim-edge bench` as it is typed, once: what it printed and its JSON."""
    from helpers import padim_edge
    from reports import SMALL

    file = tmp_path_factory.mktemp("bench") / "bench.json"
    done = padim_edge(
        *("bench", model_file, "--engine", "ort", *SMALL, "--batch", "1,4"),
        *("--json", file, "--roofline"),
    ).worked()
    return done, file


@pytest.fixture(scope="session")
def report(model_file: Path) -> Report:
    """The report of such a benchmark, without the roofline."""
    from padim_edge.measure.bench import run_benchmark

    return run_benchmark(model_file, ["ort"], (1, 4), 1, calls=10, frame_size=(90, 120))


@pytest.fixture
def remeasured(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark measures nothing: it gives the report that was made before."""
    monkeypatch.setattr("padim_edge.measure.bench.run_benchmark", lambda *_: report)


@pytest.fixture
def not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark must not run at all."""

    def refuse(*_: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr("padim_edge.measure.bench.run_benchmark", refuse)
