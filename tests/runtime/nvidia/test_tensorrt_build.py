"""The product's own build code on a real TensorRT parser and builder, on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alike import networks
from onnx import TensorProto, helper
from tensorrt_rtx_cpu import BINDINGS, assemble
from wheels import interpreter

from padim_edge.errors import PadimEdgeError
from padim_edge.model.file import Model, read
from padim_edge.runtime.nvidia.graphs import backbone_graph, whole_graph
from padim_edge.runtime.nvidia.plan_cache import (
    BuildSettings,
    PlanCache,
    SealedFile,
)

BACKBONES = ["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "mobilenet_v3_large"]
PRECISIONS = ["float32", "float16"]
BATCHES = BuildSettings(batch=(1, 4, 32))


# --- what runs in the interpreter that has TensorRT ---------------------------------------------


def build(
    graph: bytes,
    settings: BuildSettings = BATCHES,
    timings: SealedFile | None = None,
    stop: int = -1,
) -> tuple[bytes, list[tuple[str, int, int]]]:
    """Plan and progress; Ctrl-C comes with the report number `stop`."""
    from padim_edge.runtime.nvidia.builder import build_plan

    told: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))
        if len(told) - 1 == stop:
            raise KeyboardInterrupt

    return build_plan(graph, settings, timings, progress), told


def library() -> str:
    from padim_edge.runtime.nvidia.tensorrt import LIBRARY

    return LIBRARY


def load(plan: bytes) -> None:
    from padim_edge.runtime.nvidia.plan import Plan

    Plan(plan)


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BINDINGS)
def module(request: pytest.FixtureRequest) -> str:
    """The name under which TensorRT is imported."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def tensorrt(module: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Calls a function of this file where TensorRT can be imported."""
    with interpreter(assemble(module, tmp_path_factory.mktemp(module))) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=300)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Model]:
    """embedding.onnx of a backbone as exported by default, but for random weights; made once."""
    pytest.importorskip("torch")
    from padim_edge.export.export import export_backbone

    @functools.cache
    def make(backbone: str, precision: str) -> Model:
        options: dict[str, Any] = {} if precision == "float32" else {"precision": precision}
        path = tmp_path_factory.mktemp(backbone) / "embedding.onnx"
        export_backbone(path, backbone, weights="random", **options)
        return read(path, "embedding")

    return make


@pytest.fixture(scope="session")
def quantised(exported: Callable[[str, str], Model], photos: Path) -> Callable[[str], Model]:
    """The same in int8, made once."""
    pytest.importorskip("onnxruntime")
    from padim_edge.fit.quantised import quantise_embedding
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess

    @functools.cache
    def make(backbone: str) -> Model:
        whole, good = exported(backbone, "float32"), train_images(photos)[:4]
        return quantise_embedding(whole, good, Preprocess.whole((224, 224)), "tensorrt").model

    return make


@pytest.fixture(scope="module")
def plan_bytes(
    tensorrt: Callable[..., Any], exported: Callable[[str, str], Model]
) -> Callable[[str, str], int]:
    """The size of a backbone's plan, which is built once."""
    return functools.cache(lambda *which: len(tensorrt(build, backbone_graph(exported(*which)))[0]))


# --- tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backbone", networks(BACKBONES))
def test_backbones_build(
    plan_bytes: Callable[[str, str], int],
    exported: Callable[[str, str], Model],
    backbone: str,
    precision: str,
) -> None:
    size = plan_bytes(backbone, precision)
    assert size > 0.9 * len(backbone_graph(exported(backbone, precision)))  # the weights are in it
    if precision == "float16":  # and in the graph's precision
        single = len(backbone_graph(exported(backbone, "float32")))
        assert plan_bytes(backbone, "float32") - size > 0.4 * single


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_int8_backbones_build(
    tensorrt: Callable[..., Any],
    exported: Callable[[str, str], Model],
    quantised: Callable[[str], Model],
    backbone: str,
) -> None:
    plan, _ = tensorrt(build, backbone_graph(quantised(backbone)))
    # Its weights are int8 in the plan.
    assert len(plan) < 0.6 * len(backbone_graph(exported(backbone, "float32")))


@pytest.mark.parametrize("kind", ["whitened", "whitened-fine", "roi"])
def test_models_with_more_operators_build(
    tensorrt: Callable[..., Any], detectors: dict[str, str], kind: str
) -> None:
    """Pooling whose border is not counted, bilinear resizing, Where, and both parts of the cut."""
    model = read(detectors[kind], "padim")
    for graph in (backbone_graph(model), whole_graph(model)):
        plan, _ = tensorrt(build, graph)
        assert len(plan) > 0.9 * len(graph)


@pytest.mark.parametrize("constants", ["float32", "float16", "int8"])
def test_whole_models_build(
    tensorrt: Callable[..., Any],
    embedding_file: Path,
    photos: Path,
    tmp_path: Path,
    constants: str,
) -> None:
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess

    path = tmp_path / "padim.onnx"
    settings = Settings(Preprocess.whole((64, 64)), constants=constants)
    fit_detector(embedding_file, train_images(photos), path, settings)
    model = read(path, "padim")
    assert len(model.pyramid().levels) == 3
    plan, _ = tensorrt(build, whole_graph(model))
    assert len(plan) > len(tensorrt(build, backbone_graph(model))[0])


def one_node(operator: str, shape: list[Any], name: str = "the node") -> bytes:
    """A graph from `image` to `value` with one operator."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["image"], ["value"], name=name)],
        "one node",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        # valid ONNX, but not TensorRT's
        (
            one_node("Det", ["N", 4, 4]),
            "refuses the graph: .*name: the node and operator: Det .*UNSUPPORTED_NODE",
        ),
        (b"no graph", "refuses the graph: .*Failed to parse the ONNX model"),
        (one_node("Relu", ["N", "M"]), r"refuses batches of 'image' \(-1, -1\): .*inconsistent"),
        (one_node("Relu", [2, 4]), "cannot build a plan .*image has static dimensions"),
    ],
)
def test_refusals_reach_the_user_in_tensorrts_words(
    tensorrt: Callable[..., Any], graph: bytes, words: str
) -> None:
    assert tensorrt(build, one_node("Relu", ["N", 4]))  # it is not the rest of the graph
    with pytest.raises(PadimEdgeError, match=words) as caught:
        tensorrt(build, graph)
    assert "\n" not in str(caught.value)


def test_the_workspace_is_a_limit(
    tensorrt: Callable[..., Any], exported: Callable[[str, str], Model]
) -> None:
    graph = backbone_graph(exported("resnet18", "float32"))
    with pytest.raises(PadimEdgeError, match=r"cannot build a plan .*OutOfMemory"):
        tensorrt(build, graph, BuildSettings(batch=(1, 4, 32), workspace=2**20))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_profiles_of_the_engines_build(
    tensorrt: Callable[..., Any], exported: Callable[[str, str], Model], precision: str
) -> None:
    graph = backbone_graph(exported("resnet18", precision))
    for batch in ((1, 1, 4), (5, 32, 32), (1, 32, 32)):  # trt.LIVE, trt.MANY, that of a fit
        plan, _ = tensorrt(build, graph, BuildSettings(batch=batch))
        assert len(plan) > 0.9 * len(graph)


def test_progress_rises_to_the_whole(
    tensorrt: Callable[..., Any], exported: Callable[[str, str], Model]
) -> None:
    _, told = tensorrt(build, backbone_graph(exported("resnet18", "float32")))
    done = [done for _, done, _ in told]
    assert {(stage, total) for stage, _, total in told} == {("plan", 1000)}
    assert done[0] == 0
    assert done[-1] == 1000
    assert done == sorted(set(done))
    assert len(done) > 20  # phases within phases count


@pytest.mark.parametrize("moment", [0, 10])
def test_ctrl_c_stops_the_build(
    tensorrt: Callable[..., Any], exported: Callable[[str, str], Model], moment: int
) -> None:
    graph = backbone_graph(exported("resnet18", "float32"))
    with pytest.raises(KeyboardInterrupt):
        tensorrt(build, graph, BATCHES, None, moment)
    assert tensorrt(build, graph)[0]  # and the next one is none the worse


def test_timings_are_kept(
    module: str,
    tensorrt: Callable[..., Any],
    exported: Callable[[str, str], Model],
    tmp_path: Path,
) -> None:
    timings = PlanCache(tmp_path).timings("a GPU", tensorrt(library))
    graph = backbone_graph(exported("resnet18", "float32"))
    tensorrt(build, graph, BATCHES, timings)
    # TensorRT for RTX has none: its tactics are chosen on the user's device.
    assert (timings.read() is not None) == (module == "tensorrt")
    timings.path.write_bytes(b"damaged")
    assert tensorrt(build, graph, BATCHES, timings)[0]


def test_plans_need_a_gpu(
    tensorrt: Callable[..., Any], exported: Callable[[str, str], Model]
) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    plan, _ = tensorrt(build, backbone_graph(exported("resnet18", "float32")))
    with pytest.raises(PadimEdgeError, match=r"cannot load the plan: .*CUDA driver") as caught:
        tensorrt(load, plan)
    assert "\n" not in str(caught.value)
