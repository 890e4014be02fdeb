"""Fixtures: real images and weights where they are at hand, and small models built once."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from require_gpu import pytest_addoption, pytest_configure  # noqa: F401  # hooks of pytest's

if TYPE_CHECKING:
    from helpers import Outcome

    from padim_edge.measure.report import Report


SLOW = (
    "benchmarks/",
    "cli/",
    "detect/test_false_alarms.py",
    "detect/test_real_data.py",
    "export/",
    "fit/test_fit.py",
    "measure/",
    "runtime/nvidia/test_bare_graphs.py",
    "runtime/nvidia/test_engine.py",
    "runtime/nvidia/test_engine_mistakes.py",
    "runtime/nvidia/test_frames.py",
    "runtime/nvidia/test_gpu_bench.py",
    "runtime/nvidia/test_kernels_compile.py",
    "runtime/nvidia/test_ort_cuda.py",
    "runtime/nvidia/test_races.py",
    "runtime/nvidia/test_tensorrt",
    "runtime/nvidia/test_trt.py",
    "runtime/test_float16.py",
    "runtime/test_openvino.py",
    "serve/test_judge.py",
    "serve/test_life.py",
    "serve/test_load.py",
    "serve/test_repository.py",
)
"""What `make check` has no time for, by the path below tests/; single tests say so themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with `data/` (real images) and `weights/`; tests that need it skip without."""
    folder = os.environ.get("PADIM_EDGE_TEST_DATA")
    root = Path(folder) if folder else Path(__file__).parents[2] / "shared"
    if not (root / "data").is_dir():
        pytest.skip(f"no real images at {root}: set PADIM_EDGE_TEST_DATA to the folder of them")
    return root


def exported(path: Path, **options: Any) -> Path:
    """An embedding.onnx of ResNet-18; skips without torch."""
    pytest.importorskip("torch")
    from padim_edge.export.export import export_backbone

    export_backbone(path / "embedding.onnx", "resnet18", **options)
    return path / "embedding.onnx"


SMALL: dict[str, Any] = {"image_size": (64, 64), "weights": "random"}


@pytest.fixture(scope="session")
def embedding_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedding.onnx: ResNet-18 with random weights, 64 x 64, 20 channels. Read only."""
    return exported(tmp_path_factory.mktemp("embedding"), dims=(20,), **SMALL)


@pytest.fixture(scope="session")
def whole_embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all channels, as the whitened presets need it. Read only."""
    return exported(tmp_path_factory.mktemp("whole"), dims="all", **SMALL)


@pytest.fixture(scope="session")
def real_weights(data: Path) -> str:
    """The file of real ResNet-18 weights."""
    return str(data / "weights" / "resnet18-imagenet1k-v1-to-layer3.pth")


@pytest.fixture(scope="session")
def real_embedding(real_weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding.onnx with the defaults and real weights. Read only."""
    return exported(tmp_path_factory.mktemp("real"), weights=real_weights)


@pytest.fixture(scope="session")
def whole_real_embedding(real_weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all channels. Read only."""
    return exported(tmp_path_factory.mktemp("whole_real"), dims="all", weights=real_weights)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 good synthetic photos to fit, 4 good and 2 of each of 3 defects to test. Read only."""
    from padim_edge.images.synthetic import make_dataset

    folder = tmp_path_factory.mktemp("photos")
    make_dataset(folder, train=12, good=4, per_defect=2, size=96)
    return folder


@pytest.fixture
def good(photos: Path) -> list[Path]:
    """The 12 good photos. Read only."""
    return sorted((photos / "train" / "good").iterdir())


@pytest.fixture
def mine(tmp_path: Path, good: list[Path]) -> Path:
    """A folder of the test's own with the 12 good photos."""
    return Path(shutil.copytree(good[0].parent, tmp_path / "mine"))


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
def detectors(
    embedding_file: Path,
    whole_embedding: Path,
    photos: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Detectors of every kind of constants, a dense one, of each whitened preset, of a region."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.images.roi import Roi

    place = tmp_path_factory.mktemp("detectors")
    whole = Preprocess.whole((64, 64))
    kinds = {
        constants: Settings(whole, constants=constants)
        for constants in ("float32", "float16", "int8")
    }
    if importlib.util.find_spec("sklearn"):
        kinds["dense"] = Settings(whole, covariance="ledoit-wolf")
    kinds |= {name: Settings(whole, preset=name) for name in ("whitened", "whitened-fine")}
    judged = np.zeros((64, 64), bool)
    judged[10:50, 5:61] = True
    judged[20:23, 30:40] = False
    kinds["roi"] = Settings(whole, roi=Roi(judged))
    files = {}
    for name, settings in kinds.items():
        files[name] = str(place / f"{name}.onnx")
        embedding = embedding_file if settings.preset == "reference" else whole_embedding
        fit_detector(embedding, train_images(photos), Path(files[name]), settings)
    return files


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The engines' contract over both packages that call the driver; the rest over one."""
    if "gpu" in metafunc.fixturenames:
        both = metafunc.module.__name__.endswith("test_engine")
        packages = ["pycuda", "cuda-bindings"] if both else ["pycuda"]
        metafunc.parametrize("gpu", packages, indirect=True, scope="module")


@pytest.fixture(scope="module")
def gpu(request: pytest.FixtureRequest, folder: str) -> Iterator[ProcessPoolExecutor]:
    """An interpreter with a package that calls the driver."""
    import fake_gpu
    from wheels import interpreter

    with interpreter(*fake_gpu.package(request.param)) as pool:
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
    from padim_edge.measure.camera import Camera

    return run_benchmark(model_file, ["ort"], (1, 4), 1, calls=10, cameras=(Camera(120, 90),))


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


@pytest.fixture(scope="module", params=["10.3.0", "11.4.0.106"])
def trt(
    request: pytest.FixtureRequest, folder: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessPoolExecutor]:
    """An interpreter with pycuda and the TensorRT bindings of a version."""
    import fake_gpu
    from tensorrt_stubs import assemble
    from wheels import interpreter

    bindings = assemble(request.param, tmp_path_factory.mktemp("tensorrt"))
    with interpreter(fake_gpu.pycuda(), bindings) as pool:
        yield pool
