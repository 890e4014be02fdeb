"""On an NVIDIA GPU: `make test-gpu`. Elsewhere every test skips and says why.

Needs what the device itself needs, with ONNX Runtime beside it to compare with; no torch.

Written on a machine without a GPU; not yet executed on one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_backbone import embedding

from padim_edge.errors import PadimEdgeError
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.model.file import Model, read
from padim_edge.runtime.engines import NVIDIA, open_engine
from padim_edge.runtime.nvidia.launch import FORMATS

pytestmark = pytest.mark.gpu

# Of the largest value. Constants are the same numbers on both sides; what differs is the order of
# sums, and in the backbone the choice of convolutions.
KERNELS, ENGINE = 1e-5, 1e-3
CYCLES = 200
GROWTH = 8 * 2**20  # of device memory over all cycles: a leak of the smallest model is far more
OF_COPY = 0.85


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skips without a usable GPU or pycuda."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        pytest.skip(f"no NVIDIA driver: {error}")
    code = driver.cuInit(0)
    if code:
        pytest.skip(f"the NVIDIA driver finds no GPU (cuInit gives {code})")
    pytest.importorskip("pycuda")


@pytest.fixture(scope="module")
def models(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A detector for every kind of constants."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess

    place = tmp_path_factory.mktemp("models")
    made = {}
    for constants in FORMATS:
        path = place / f"{constants}.onnx"
        settings = Settings(Preprocess.whole((64, 64)), constants=constants)
        fit_detector(embedding(), train_images(photos), path, settings, engine="ort")
        made[constants] = read(path, "padim")
    return made


@pytest.fixture(scope="module", params=NVIDIA)
def engine_name(request: pytest.FixtureRequest, models: dict[str, Model]) -> str:
    """Engines that open here; the others skip with their reason."""
    try:
        open_engine(request.param, models["float32"]).close()
    except PadimEdgeError as error:
        pytest.skip(str(error))
    return str(request.param)


def frames(model: Model, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, *model.backbone_info.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def device() -> Iterator[Any]:
    """A device that is current."""
    from padim_edge.runtime.nvidia.device import Device

    opened = Device()
    with opened.current():
        yield opened
    opened.close()


# --- the kernels alone ------------------------------------------------------------------------


def features(model: Model, count: int, half: bool) -> dict[str, np.ndarray]:
    """Maps as engine `ort` computes them."""
    from padim_edge.model.graph import subgraph
    from padim_edge.runtime.cpu.ort import Graph

    names = model.feature_names()
    with Graph(subgraph(model.proto, ["image"], names).SerializeToString()) as graph:
        maps = graph.run({"image": frames(model, count)}, names)
    kind = np.float16 if half else np.float32
    return {name: one.astype(kind) for name, one in zip(names, maps, strict=True)}


@pytest.mark.parametrize("half", [False, True], ids=["float32 maps", "float16 maps"])
@pytest.mark.parametrize("constants", FORMATS)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 32])
def test_kernels(device: Any, models: dict[str, Model], constants: str, half: bool, count: int):
    from padim_edge.model.graph import subgraph
    from padim_edge.runtime.cpu.ort import Graph
    from padim_edge.runtime.nvidia.scorer import Scorer

    model = models[constants]
    maps = features(model, count, half)
    outputs = ["score", "score_map"]
    with Graph(subgraph(model.proto, list(maps), outputs).SerializeToString()) as graph:
        wanted = graph.run({name: x.astype(np.float32) for name, x in maps.items()}, outputs)
    score = device.staging((32,), np.float32, mapped=False)
    score_map = device.staging((32, *model.backbone_info.image_size), np.float32, mapped=False)
    addresses = {name: device.upload(x) for name, x in maps.items()}
    scorer = Scorer(device, model, addresses, half, 32, score_map.address, score.address)
    scorer.distances(count)
    scorer.smoothing(count)
    for staging in (score, score_map):
        device.to_host(staging, count)
    device.synchronize()
    for staging, want in zip((score, score_map), wanted, strict=True):
        assert np.abs(staging.host[:count] - want).max() <= KERNELS * want.max()


# --- engines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("constants", FORMATS)
def test_parity_with_the_cpu(engine_name: str, models: dict[str, Model], constants: str) -> None:
    model = models[constants]
    reference = open_engine("ort", model)
    engine = open_engine(engine_name, model)
    for count in (1, 3, 32, 40):
        images = frames(model, count, seed=count)
        for value, want in zip(engine.infer(images), reference.infer(images), strict=True):
            assert np.abs(value - want).max() <= ENGINE * want.max()
    engine.close()
    reference.close()


@pytest.fixture
def preparing(engine_name: str, models: dict[str, Model]) -> Iterator[tuple[Any, Any]]:
    """An engine that prepares frames itself, and how the CPU does it."""
    engine: Any = open_engine(engine_name, models["float16"])
    prepare = models["float16"].detector_info.preprocess  # type: ignore[union-attr]
    if not engine.takes(Frame(np.zeros((64, 64, 3), np.uint8))):
        engine.close()
        pytest.skip(f"{engine_name} prepares no frames")
    yield engine, prepare
    engine.close()


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_frames_are_prepared_bit_for_bit(preparing: tuple[Any, Any], pixel_format: str) -> None:
    engine, prepare = preparing
    form = PIXEL_FORMATS[pixel_format]
    shots = []
    for height, width in ((1080, 1920), (34, 50), (64, 64), (200, 2), (122, 246)):
        shape = (height * 3 // 2 if form.thirds else height, width, *form.pixel[0])
        generator = np.random.default_rng(height)
        shots.append(generator.integers(0, form.white + 1, shape, dtype=form.dtype))
    frames = [Frame(shot, pixel_format) for shot in shots]
    _, maps = engine.infer_frames(frames)
    images = np.stack([prepare(frame) for frame in frames])
    np.testing.assert_array_equal(maps, engine.infer(images)[1])


def test_frames_on_the_device_stay_there(preparing: tuple[Any, Any]) -> None:
    """Of whatever library is here; CuPy and torch by DLPack, PyCUDA by the other interface."""
    engine, prepare = preparing
    shot = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    want = engine.infer(prepare(shot)[None])[1]
    import pycuda.autoprimaryctx  # noqa: F401
    from pycuda import gpuarray

    given = [gpuarray.to_gpu(shot)]
    for name in ("cupy", "torch"):
        with contextlib.suppress(ImportError):
            library = __import__(name)
            given.append(library.asarray(shot, **({"device": "cuda"} if name == "torch" else {})))
    for one in given:
        np.testing.assert_array_equal(engine.infer_frames([Frame(one)])[1], want)


@pytest.mark.parametrize("pixel_format", ["bgr", "nv12"])
def test_frames_and_bandwidth(
    preparing: tuple[Any, Any], pixel_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, _ = preparing
    shape = (1620, 1920) if pixel_format == "nv12" else (1080, 1920, 3)
    frame = Frame(np.zeros(shape, np.uint8), pixel_format)
    rows = [engine.frame_stages([frame]) for _ in range(50)]
    with capsys.disabled():
        for stage in ("upload", "prepare"):
            seconds = float(np.median([row[stage] for row in rows]))
            rate = frame.layout.nbytes / seconds / 1e9
            print(
                f"\n  {pixel_format} 1080p, {stage}: {1e6 * seconds:.0f} us, {rate:.1f} GB/s",
                end="",
            )


def test_opened_and_closed_without_growth(engine_name: str, models: dict[str, Model]) -> None:
    from padim_edge.runtime.nvidia.device import Device

    watch = Device()

    def free() -> int:
        gc.collect()
        with watch.current():
            return watch.free_memory()

    before = 0
    for cycle in range(CYCLES):
        engine = open_engine(engine_name, models["float16"])
        engine.infer(frames(models["float16"], 1))
        engine.close()
        if cycle == CYCLES // 10:  # what libraries take once, they have by now
            before = free()
    assert before - free() < GROWTH
    watch.close()


# --- the distance kernel against memory ---------------------------------------------------------


def rectangles(pyramid: Any, format_: str) -> tuple[list[np.ndarray], dict[tuple[int, int], Any]]:
    """Means and whitening of a pyramid: time does not depend on their values."""
    levels = pyramid.levels
    means = [np.zeros((x.channels, x.height, x.width), np.float32) for x in levels]
    blocks = {
        (i, j): np.full((one.positions, one.channels, other.channels), 1e-3, format_)
        for i, one in enumerate(levels)
        for j, other in enumerate(levels[: i + 1])
    }
    return means, blocks


MODELS = {
    "ResNet-18 d=100": [(18, 56, 56), (23, 28, 28), (59, 14, 14)],
    "WideResNet-50-2 d=550": [(82, 56, 56), (154, 28, 28), (314, 14, 14)],
}


@pytest.mark.parametrize("name", MODELS)
def test_bandwidth(device: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The large model keeps the goal; the small one, which fits into some caches, is shown."""
    from padim_edge.model.pyramid import Layer, Pyramid
    from padim_edge.runtime.nvidia.compiler import kernels
    from padim_edge.runtime.nvidia.plan_cache import PlanCache
    from padim_edge.runtime.nvidia.whitening import WhiteningAddresses, pack_whitening

    layers = [Layer(f"layer{i}", *shape) for i, shape in enumerate(MODELS[name], 1)]
    pyramid = Pyramid.coarse_to_fine(layers)
    whitening = pack_whitening(pyramid, *rectangles(pyramid, "float16"))
    addresses = WhiteningAddresses(
        device.upload(whitening.lines),
        device.upload(whitening.means),
        device.upload(whitening.pixels),
        [
            device.upload(np.zeros((1, x.channels, x.height, x.width), np.float32))
            for level in pyramid.levels
            for x in level.layers
        ],
        device.allocate(4 * whitening.squared_floats),
        device.allocate(4),
    )
    prepare = device.load(kernels("kernels.cu", device.architecture, PlanCache(), device.cuda))
    launch = prepare(whitening.mahalanobis(1, addresses, shared_limit=device.shared_limit))
    marks = device.events(101)
    for mark in marks:
        launch()
        device.mark(mark)
    device.synchronize()
    seconds = [device.seconds(a, b) for a, b in itertools.pairwise(marks)]
    reached = whitening.lines.nbytes / float(np.median(seconds))
    copy = device.copy_bandwidth()
    with capsys.disabled():
        print(
            f"\n  {device.name}, {name}, float16, batch 1: "
            f"{1e6 * float(np.median(seconds)):.1f} us for {whitening.lines.nbytes / 1e6:.1f} MB, "
            f"{reached / 1e9:.0f} GB/s, a copy {copy / 1e9:.0f} GB/s (read + written), "
            f"ratio {reached / copy:.2f}"
        )
    if "Wide" in name:
        assert reached >= OF_COPY * copy
