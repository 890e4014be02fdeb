"""Build and execution code against the real bindings of every supported TensorRT version.

Each `check_*` runs in an interpreter of its own version, where every call that the product makes
is held against the version's real signatures (see `tensorrt_stubs`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tensorrt_script import ADDRESSES, SCRATCH, SETTINGS, SHAPES, STREAM, answers, says
from tensorrt_stubs import BINDINGS, World, assemble, enter
from wheels import interpreter

from padim_edge.errors import PadimEdgeError
from padim_edge.runtime.nvidia.plan_cache import (
    BuildSettings,
    PlanCache,
    PlanError,
    PlanKey,
    SealedFile,
)

# --- building -------------------------------------------------------------------------------------


def check_build() -> None:
    """All that a build asks for, once and in the right order."""
    world = enter(answers())
    from padim_edge.runtime.nvidia.builder import build_plan

    assert build_plan(b"graph", SETTINGS) == b"a plan"
    flags = world.real.NetworkDefinitionCreationFlag.__members__
    wanted = [flags[name] for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in flags]
    assert world.named("Builder.create_network") == [{"flags": sum(1 << int(f) for f in wanted)}]
    assert world.named("OnnxParser.parse") == [{"model": b"graph"}]
    limit = {"pool": world.real.MemoryPoolType.WORKSPACE, "pool_size": 2**28}
    assert world.named("IBuilderConfig.set_memory_pool_limit") == [limit]
    assert world.named("IBuilderConfig.clear_flag") == [{"flag": world.real.BuilderFlag.TF32}]
    sides = SHAPES["image"][1:]
    shapes = {"input": "image", "min": (1, *sides), "opt": (4, *sides), "max": (32, *sides)}
    assert world.named("IOptimizationProfile.set_shape") == [shapes]
    order = [call.name for call in world.calls]
    assert order.index("IBuilderConfig.add_optimization_profile") < order.index(
        "Builder.build_serialized_network"
    )
    assert order.index("Builder.build_serialized_network") < order.index("~Builder")


def check_tf32_is_left_on_for_who_wants_it() -> None:
    world = enter(answers())
    from padim_edge.runtime.nvidia.builder import build_plan

    build_plan(b"graph", BuildSettings(tf32=True))
    assert world.named("IBuilderConfig.clear_flag") == []


def check_timings_go_from_build_to_build() -> None:
    world = enter(answers())
    from padim_edge.runtime.nvidia.builder import build_plan

    with tempfile.TemporaryDirectory() as folder:
        timings = SealedFile(Path(folder) / "timings", bytes(32))
        build_plan(b"graph", SETTINGS, timings)
        assert world.named("IBuilderConfig.create_timing_cache") == [
            {"serialized_timing_cache": b""}
        ]
        assert timings.read() == b"timings"
        build_plan(b"graph", SETTINGS, timings)
        created = world.named("IBuilderConfig.create_timing_cache")
        assert {"serialized_timing_cache": b"timings"} in created[1:]
        attached = world.named("IBuilderConfig.set_timing_cache")
        assert [one["ignore_mismatch"] for one in attached] == [False, False]
        assert len(world.named("ITimingCache.combine")) == 1


def check_refused_timings_do_not_stop_a_build() -> None:
    enter(answers({"IBuilderConfig.set_timing_cache": False}))
    from padim_edge.runtime.nvidia.builder import build_plan

    with tempfile.TemporaryDirectory() as folder:
        timings = SealedFile(Path(folder) / "timings", bytes(32))
        assert build_plan(b"graph", SETTINGS, timings) == b"a plan"
        assert timings.read() is None


def check_failures_are_told_in_tensorrts_words() -> None:
    nothing = TypeError("factory function returned nullptr")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"Builder": nothing}, "does not start: it gives no reason"),
        (
            {"OnnxParser.parse": False, "OnnxParser.num_errors": 1,
             "ParserError.__str__": "In node 3:\n unsupported"},
            "refuses the graph: In node 3: unsupported",
        ),
        ({"OnnxParser.parse": says("bad file", False)}, "refuses the graph: bad file"),
        (
            {"IOptimizationProfile.set_shape": ValueError("inconsistent")},
            "refuses batches of 'image' (-1, 64, 96, 3): inconsistent",
        ),
        ({"IBuilderConfig.add_optimization_profile": -1}, "refuses the batches (1, 4, 32)"),
        (
            {"Builder.build_serialized_network": says("no room\nleft", None)},
            "cannot build a plan from the graph: no room left",
        ),
    ]  # fmt: skip
    for script, words in cases:
        enter(answers(script))
        from padim_edge.runtime.nvidia.builder import build_plan

        with pytest.raises(PadimEdgeError) as caught:
            build_plan(b"graph", SETTINGS)
        assert words in str(caught.value), caught.value
        assert "nobody" not in str(caught.value)


def check_nested_phases_become_one_fraction() -> None:
    monitors: list[Any] = []

    def phases(network: Any, config: Any) -> bytes:
        monitor = config.progress_monitor
        monitors.append(monitor)
        monitor.phase_start("Building", None, 2)
        monitor.phase_start("Timing", "Building", 4)
        answers = [monitor.step_complete("Timing", step) for step in range(4)]
        monitor.phase_finish("Timing")
        monitor.phase_start("Another root", None, 1)
        monitor.phase_finish("Another root")
        answers.append(monitor.step_complete("Building", 0))
        monitor.phase_start("Timing", "Building", 0)  # again, and without steps
        monitor.phase_finish("Timing")
        monitor.phase_finish("Building")
        return b"a plan" if all(answers) else b"stopped"

    world = enter(answers({"Builder.build_serialized_network": phases}))
    from padim_edge.runtime.nvidia.builder import build_plan

    told: list[int] = []
    assert build_plan(b"", SETTINGS, None, lambda *what: told.append(what[1])) == b"a plan"
    assert told == [0, 125, 250, 375, 500, 1000]
    assert isinstance(monitors[0], world.real.IProgressMonitor)

    def stop(stage: str, done: int, total: int) -> None:
        if done == 250:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(b"", SETTINGS, None, stop)


# --- execution ------------------------------------------------------------------------------------


def _run(load: Any) -> None:
    """A plan from loading to closing."""
    with load(b"a plan") as plan, plan.execution(SCRATCH) as execution:
        assert plan.scratch_bytes >= 0
        execution.bind(2, ADDRESSES)
        execution.enqueue(STREAM)


def check_execution() -> None:
    """A plan is loaded, bound, run on a stream, and freed from the inside out."""
    world = enter(answers())
    import numpy as np

    from padim_edge.runtime.nvidia.plan import Plan

    with Plan(b"a plan") as plan:
        assert world.named("Runtime.deserialize_cuda_engine") == [{"serialized_engine": b"a plan"}]
        kinds = {tensor.name: (tensor.dtype, tensor.is_input) for tensor in plan.tensors.values()}
        assert kinds == {
            "image": (np.dtype(np.uint8), True),
            "features.layer3": (np.dtype(np.float16), False),
            "features.layer1": (np.dtype(np.float32), False),
        }
        assert plan.batch == (1, 4, 32)
        assert plan.scratch_bytes == 3 * 2**20
        assert plan.tensors["features.layer3"].nbytes(8) == 8 * 66 * 4 * 6 * 2

        execution = plan.execution(SCRATCH)
        (made,) = world.named("ICudaEngine.create_execution_context")
        managed = world.real.ExecutionContextAllocationStrategy.USER_MANAGED
        assert made == {"strategy": managed}  # or it would take memory of its own
        given = world.named("IExecutionContext.set_device_memory")
        assert given == [{"memory": SCRATCH, "size": plan.scratch_bytes}]
        execution.bind(8, ADDRESSES)
        execution.enqueue(STREAM)
        execution.enqueue(STREAM)
        shapes = world.named("IExecutionContext.set_input_shape")
        assert shapes == [{"name": "image", "shape": (8, 64, 96, 3)}]
        bound = world.named("IExecutionContext.set_tensor_address")
        assert {one["name"]: one["memory"] for one in bound} == ADDRESSES
        assert world.named("IExecutionContext.execute_async_v3") == [{"stream_handle": STREAM}] * 2
        calls = [call.name for call in world.calls]
        assert calls[-2:] == ["IExecutionContext.execute_async_v3"] * 2  # nothing else per frame
        freed = [name for name in calls if name in ("~IExecutionContext", "~ICudaEngine")]
        assert freed == []

        other = plan.execution(SCRATCH)
        plan.drop(other)
        assert [call.name for call in world.calls][-1] == "~IExecutionContext"
        world.calls.clear()
    order = [call.name for call in world.calls if call.name.startswith("~")]
    assert order == ["~IExecutionContext", "~ICudaEngine", "~Runtime"]
    plan.close()
    execution.close()


def check_executions_fail_aloud() -> None:
    nothing = TypeError("factory function returned nullptr")
    steps: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"Runtime": nothing}, PadimEdgeError, "does not start"),
        (
            {"Runtime.deserialize_cuda_engine": says("version tag does not match", None)},
            PlanError,
            "cannot load the plan: version tag does not match",
        ),
        (
            {"ICudaEngine.create_execution_context": says("out of memory", None)},
            PadimEdgeError,
            "cannot make an execution of the plan for batches of 1 to 32 frames: out of memory",
        ),
        ({"IExecutionContext.set_input_shape": False}, PadimEdgeError, "refuses tensor 'image'"),
        ({"IExecutionContext.set_tensor_address": False}, PadimEdgeError, "refuses tensor"),
        (
            {"IExecutionContext.get_tensor_shape": (9, 9)},
            PadimEdgeError,
            "has shape (9, 9) for a batch of 2",
        ),
        (
            {"IExecutionContext.execute_async_v3": says("illegal address", False)},
            PadimEdgeError,
            "cannot run the plan: illegal address",
        ),
    ]
    for script, kind, words in steps:
        enter(answers(script))
        from padim_edge.runtime.nvidia.plan import Plan

        with pytest.raises(kind) as caught:
            _run(Plan)
        assert words in str(caught.value), caught.value


def check_bind_refuses_what_would_write_past_memory() -> None:
    world = enter(answers())
    from padim_edge.runtime.nvidia.plan import Plan

    with Plan(b"a plan") as plan, plan.execution(SCRATCH) as execution:
        for batch in (0, 33):
            with pytest.raises(PadimEdgeError, match=f"batch of {batch} .* takes 1 to 32"):
                execution.bind(batch, ADDRESSES)
        with pytest.raises(ValueError, match=r"no address for features\.layer1, features\.layer3"):
            execution.bind(1, {"image": 1})
        assert world.named("IExecutionContext.set_tensor_address") == []


def check_open_plan_builds_only_what_is_not_there() -> None:
    def load(serialized_engine: bytes) -> Any:
        refused = serialized_engine == b"an old plan"
        return None if refused else world.answer("", "ICudaEngine", {})

    world = enter(answers({"Runtime.deserialize_cuda_engine": load}))
    from padim_edge.runtime.nvidia.plan import open_plan
    from padim_edge.runtime.nvidia.tensorrt import LIBRARY

    assert f"tensorrt {world.__version__}" == LIBRARY
    with tempfile.TemporaryDirectory() as folder:
        cache = PlanCache(Path(folder))
        builds = []
        for gpu in ("Orin, 8.7", "Orin, 8.7", "Thor, 11.0"):
            open_plan(b"graph", gpu, SETTINGS, cache).close()
            builds.append(len(world.named("Builder.build_serialized_network")))
        assert builds == [1, 1, 2]

        # The file is sound, but TensorRT does not like it: built again, once.
        key = PlanKey.of(b"graph", SETTINGS, "Orin, 8.7", LIBRARY)
        cache.build(key, lambda: b"an old plan", refused=b"a plan")
        open_plan(b"graph", "Orin, 8.7", SETTINGS, cache).close()
        assert cache.load(key) == b"a plan"
        assert len(world.named("Builder.build_serialized_network")) == 3

        world.answers["Builder.build_serialized_network"] = b"an old plan"
        with pytest.raises(PlanError):
            open_plan(b"other graph", "Orin, 8.7", SETTINGS, cache)
        assert len(world.named("Builder.build_serialized_network")) == 4


def check_old_versions_are_refused() -> None:
    class Old(World):
        def __init__(self, answers: dict[str, Any]) -> None:
            super().__init__(answers)
            self.__version__ = "8.6.2"

    with pytest.raises(PadimEdgeError, match=r"TensorRT 8\.6\.2 is installed, and 10\.3 or newer"):
        enter({}, world=Old)


# --- the contract itself --------------------------------------------------------------------------

# What earlier TensorRT had, and slips of the pen. Where it is right in some versions, those.
SABOTAGE = [
    ("plan", "execute_async_v3(stream)", "execute_async_v2([], stream)", ()),
    ("plan", "execute_async_v3(stream)", "execute_async_v3(stream=stream)", ()),
    ("plan", "execute_async_v3(stream)", "execute_async_v3(str(stream))", ()),
    ("plan", "execute_async_v3(stream)", "execute_async_v3()", ()),
    ("plan", "int(addresses[name])", "memoryview(bytes(8))", ()),
    ("plan", "num_io_tensors", "num_bindings", ()),
    ("plan", "device_memory_size_v2", "device_memory_size", ("10",)),
    (
        "plan",
        "create_execution_context(managed)",
        "create_execution_context_without_device_memory()",
        ("10",),
    ),
    ("plan", "set_device_memory(scratch, self.scratch_bytes)", "set_device_memory(scratch)", ()),
    ("plan", "Strategy.USER_MANAGED", "Strategy.MANUAL", ()),
    (
        "builder",
        "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)",
        "config.max_workspace_size = settings.workspace",
        (),
    ),
    ("builder", "config.progress_monitor = monitor", "config.progress_monitor = progress", ()),
    ("builder", "config.progress_monitor = monitor", "config.num_optimization_profiles = 1", ()),
    ("builder", "builder.build_serialized_network", "builder.build_engine", ()),
    ("builder", "builder.create_network(_network_flags())", "builder.create_network([])", ()),
    ("builder", "trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16", ("10",)),
    ("builder", "trt.MemoryPoolType.WORKSPACE", "trt.MemoryPoolType.WORKSPACES", ()),
    ("builder", "cache.combine(other, False)", "cache.combine(other, strict=True)", ()),
    (
        "builder",
        "builder.create_network(_network_flags())",
        "builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))",
        ("10",),
    ),
]


def check_mistakes_fail() -> None:
    """Put into the product, each misuse of the interface makes the checks above fail."""
    for file, old, new, fine in SABOTAGE:
        world = enter(answers(), (file, old, new))
        from padim_edge.runtime.nvidia.builder import build_plan
        from padim_edge.runtime.nvidia.plan import Plan

        with tempfile.TemporaryDirectory() as folder:
            timings = SealedFile(Path(folder) / "timings", bytes(32))
            timings.write(b"earlier")
            mistake: Exception | None = None
            try:
                build_plan(b"graph", SETTINGS, timings)
                _run(Plan)
            except (AttributeError, TypeError) as error:
                mistake = error
        expected = world.__version__.split(".")[0] not in fine
        assert (mistake is not None) == expected, f"{new} in {world.__version__}: {mistake}"


CHECKS = [value for name, value in globals().items() if name.startswith("check_")]


@pytest.fixture(scope="module", params=BINDINGS)
def tensorrt(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessPoolExecutor]:
    """An interpreter with the bindings of one version."""
    folder = assemble(request.param, tmp_path_factory.mktemp("tensorrt"))
    with interpreter(folder) as pool:
        yield pool


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(tensorrt: ProcessPoolExecutor, check: Callable[[], None]) -> None:
    tensorrt.submit(check).result(timeout=120)
