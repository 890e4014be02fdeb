"""Fixtures: real images and weights where they are at hand, and small models built once."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
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
    "scale/",
    "serve/test_judge.py",
    "serve/test_life.py",
    "serve/test_load.py",
    "serve/test_repository.py",
)
"""What `make check` has no time for, by the path below tests/; single tests say so themselves."""


LONGEST = (
    "scale/test_ray.py",
    "measure/test_proof.py",
    "measure/test_bench.py",
    "detect/test_real_data.py",
    "cli/test_real_folders.py",
    "runtime/nvidia/test_tensorrt_build.py",
    "export/test_export.py",
    "benchmarks/",
    "repository/test_walls.py",
    "cli/test_demo.py",
    "measure/test_bare_backbone.py",
    "cli/test_export_and_fit.py",
    "measure/test_counting.py",
    "fit/test_fit.py",
    "export/test_layers.py",
    "repository/test_wheel.py",
    "runtime/nvidia/test_races.py",
    "test_hostile.py",
    "fit/test_quantised.py",
    "runtime/test_openvino.py",
    "examples/",
    "repository/",
)
"""What takes a quarter of a minute or more begins first, the longest before the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, and begin with them: a long one at the end would run alone."""
    root = Path(__file__).parent

    def turn(item: pytest.Item) -> int:
        name = item.path.relative_to(root).as_posix()
        places = (place for place, long in enumerate(LONGEST) if name.startswith(long))
        return next(places, len(LONGEST) + (not name.startswith(SLOW)))

    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, sched: Any) -> None:
    """End a run whose worker died: pytest-xdist 3.8, if files stay whole, waits for it for ever."""
    runner = sched.config.pluginmanager.get_plugin("dsession")
    runner.shouldstop = f"the process that ran {crashitem} died; the rest was not run"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with `data/` (real images) and `weights/`; tests that need it skip without."""
    folder = os.environ.get("PADIM_EDGE_TEST_DATA")
    root = Path(folder) if folder else Path(__file__).parents[2] / "shared"
    if not (root / "data").is_dir():
        pytest.skip(f"no real images at {root}: set PADIM_EDGE_TEST_DATA to the folder of them")
    return root


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder once for all workers of a run: by its name, and what fills it. Read only."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder = root / f"once-{name}"
        with (root / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                unfinished = tmp_path_factory.mktemp(name)
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return make


def exported(once: Callable[..., Path], name: str, **options: Any) -> Path:
    """An embedding.onnx of ResNet-18; skips without torch."""
    pytest.importorskip("torch")
    from padim_edge.export.export import export_backbone

    file = "embedding.onnx"
    return once(name, lambda at: export_backbone(at / file, "resnet18", **options)) / file


SMALL: dict[str, Any] = {"image_size": (64, 64), "weights": "random"}


@pytest.fixture(scope="session")
def embedding_file(once: Callable[..., Path]) -> Path:
    """A small embedding.onnx: ResNet-18 with random weights, 64 x 64, 20 channels. Read only."""
    return exported(once, "embedding", dims=(20,), **SMALL)


@pytest.fixture(scope="session")
def whole_embedding(once: Callable[..., Path]) -> Path:
    """The same with all channels, as the whitened presets need it. Read only."""
    return exported(once, "whole", dims="all", **SMALL)


@pytest.fixture(scope="session")
def oblong_embedding(once: Callable[..., Path]) -> Path:
    """One of 64 x 96, with 20 channels. Read only."""
    return exported(once, "oblong", dims=(20,), **SMALL | {"image_size": (64, 96)})


@pytest.fixture(scope="session")
def real_weights(data: Path) -> str:
    """The file of real ResNet-18 weights."""
    return str(data / "weights" / "resnet18-imagenet1k-v1-to-layer3.pth")


@pytest.fixture(scope="session")
def real_embedding(real_weights: str, once: Callable[..., Path]) -> Path:
    """An embedding.onnx with the defaults and real weights. Read only."""
    return exported(once, "real", weights=real_weights)


@pytest.fixture(scope="session")
def whole_real_embedding(real_weights: str, once: Callable[..., Path]) -> Path:
    """The same with all channels. Read only."""
    return exported(once, "whole_real", dims="all", weights=real_weights)


@pytest.fixture(scope="session")
def photos(once: Callable[..., Path]) -> Path:
    """12 good synthetic photos to fit, 4 good and 2 of each of 3 defects to test. Read only."""
    from padim_edge.images.synthetic import make_dataset

    return once("photos", lambda at: make_dataset(at, train=12, good=4, per_defect=2, size=96))


@pytest.fixture
def good(photos: Path) -> list[Path]:
    """The 12 good photos. Read only."""
    return sorted((photos / "train" / "good").iterdir())


@pytest.fixture
def mine(tmp_path: Path, good: list[Path]) -> Path:
    """A folder of the test's own with the 12 good photos."""
    return Path(shutil.copytree(good[0].parent, tmp_path / "mine"))


@pytest.fixture(scope="session")
def model_file(once: Callable[..., Path], embedding_file: Path, photos: Path) -> Path:
    """A padim.onnx fitted on `photos` with the defaults (float16). Read only."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess

    settings, file = Settings(Preprocess.whole((64, 64))), "padim.onnx"
    images = train_images(photos)
    return (
        once("model", lambda at: fit_detector(embedding_file, images, at / file, settings)) / file
    )


@pytest.fixture(scope="session")
def detectors(
    embedding_file: Path,
    whole_embedding: Path,
    photos: Path,
    once: Callable[..., Path],
) -> dict[str, str]:
    """Detectors of every kind of constants, a dense one, of each whitened preset, of a region."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.images.roi import Roi

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

    def fit(place: Path) -> None:
        for name, settings in kinds.items():
            embedding = embedding_file if settings.preset == "reference" else whole_embedding
            fit_detector(embedding, train_images(photos), place / f"{name}.onnx", settings)

    place = once("detectors", fit)
    return {name: str(place / f"{name}.onnx") for name in kinds}


@pytest.fixture(scope="session")
def cpu(once: Callable[..., Path]) -> Any:
    """The CUDA kernels, compiled for the CPU."""
    import cpu_kernels

    return cpu_kernels.Cpu(once("shim", cpu_kernels.build) / cpu_kernels.LIBRARY)


@pytest.fixture(scope="session")
def folder(once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the driver made for tests, `fake_gpu`, and caches of this worker's own."""
    import fake_gpu

    made = once("gpu", fake_gpu.assemble)
    return str(shutil.copytree(made, tmp_path_factory.mktemp("gpu") / "driver"))


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
def measured(model_file: Path, once: Callable[..., Path]) -> tuple[Outcome, Path]:
    """`padim-edge bench` as it is typed, once: what it printed and its JSON. Read only."""
    from helpers import padim_edge
    from reports import SMALL

    def bench(at: Path) -> None:
        done = padim_edge(
            *("bench", model_file, "--engine", "ort", *SMALL, "--batch", "1,4"),
            *("--json", at / "bench.json", "--roofline"),
        ).worked()
        (at / "outcome").write_bytes(pickle.dumps(done))

    place = once("measured", bench)
    return pickle.loads((place / "outcome").read_bytes()), place / "bench.json"


@pytest.fixture(scope="session")
def report(model_file: Path, once: Callable[..., Path]) -> Report:
    """The report of such a benchmark, without the roofline."""
    from padim_edge.measure.bench import run_benchmark
    from padim_edge.measure.camera import Camera

    def bench(at: Path) -> None:
        cameras = (Camera(120, 90),)
        made = run_benchmark([model_file], ["ort"], (1, 4), 1, calls=10, cameras=cameras)
        (at / "report").write_bytes(pickle.dumps(made))

    made: Report = pickle.loads((once("report", bench) / "report").read_bytes())
    return made


@pytest.fixture
def remeasured(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark measures nothing: it gives the report that was made before."""
    monkeypatch.setattr("padim_edge.measure.bench.run_benchmark", lambda *_: report)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark starts one fresh process for each row, and makes few calls."""
    from reports import hurry

    hurry(monkeypatch)


@pytest.fixture
def not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark must not run at all."""

    def refuse(*_: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr("padim_edge.measure.bench.run_benchmark", refuse)


# JetPack's. The latest has the same tests in make fuzz, the rehearsal of doctor --gpu over it and,
# as every version, those of test_tensorrt_contract.
@pytest.fixture(
    scope="module", params=["10.3.0", pytest.param("11.4.0.106", marks=pytest.mark.fuzz)]
)
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
