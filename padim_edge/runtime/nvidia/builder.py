"""Building a plan: from an ONNX graph to what TensorRT runs on the GPU of this machine.

One code path for all versions. Networks are strongly typed: the graph's own types are the plan's
precision, so a float16 plan comes from a float16 graph and no flag changes it behind our back.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from padim_edge.errors import PadimEdgeError
from padim_edge.progress import Progress
from padim_edge.runtime.nvidia.plan_cache import BuildSettings, SealedFile
from padim_edge.runtime.nvidia.tensorrt import IS_RTX, create, last_errors, log, one_line, trt

_STEPS = 1000
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())  # a library stays silent unless it is asked


def build_plan(
    graph: bytes,
    settings: BuildSettings,
    timings: SealedFile | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Build a plan.

    Args:
        graph: an ONNX file's bytes; the first axis of each input is the batch.
        settings: batches, workspace, precision of float32 convolutions.
        timings: earlier timings of tactics, used and added to.
        progress: called as work goes on; what it raises ends the build and comes out here.

    Raises:
        PadimEdgeError: TensorRT refuses the graph or cannot build it, in TensorRT's words.
    """
    log().take()  # what went wrong earlier is not about this build
    builder = create(trt.Builder)
    network = builder.create_network(_network_flags())
    _parse(network, graph)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if config.add_optimization_profile(_profile(builder, network, settings)) < 0:
        raise PadimEdgeError(f"TensorRT refuses the batches {settings.batch}: {last_errors()}")
    # TensorRT for RTX chooses no tactics before the plan is on the user's device.
    cache = _attach(config, timings) if timings and not IS_RTX else None
    monitor = _Monitor(progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    monitor.reraise()
    if plan is None:
        raise PadimEdgeError(f"TensorRT cannot build a plan from the graph: {last_errors()}")
    if timings and cache is not None:
        _keep(timings, config, cache)
    return bytes(plan)


def _network_flags() -> int:
    """The flags as bits. Their values moved between versions, and 11 lost EXPLICIT_BATCH."""
    known = trt.NetworkDefinitionCreationFlag.__members__
    names = ("EXPLICIT_BATCH", "STRONGLY_TYPED")
    return sum(1 << int(known[name]) for name in names if name in known)


def _parse(network: Any, graph: bytes) -> None:
    parser = trt.OnnxParser(network, log())
    if parser.parse(graph):
        return
    # An error's text names the node and its operator; its description alone may just be "false".
    errors = [one_line(str(parser.get_error(index))) for index in range(parser.num_errors)]
    raise PadimEdgeError(f"TensorRT refuses the graph: {'; '.join(errors) or last_errors()}")


def _profile(builder: Any, network: Any, settings: BuildSettings) -> Any:
    """Every input with the batches of the settings and its own other sides."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sides = tuple(tensor.shape)[1:]
        try:
            profile.set_shape(tensor.name, *((batch, *sides) for batch in settings.batch))
        except (RuntimeError, ValueError) as error:
            raise PadimEdgeError(
                f"TensorRT refuses batches of '{tensor.name}' {tuple(tensor.shape)}: {error}"
            ) from error
    return profile


def _attach(config: Any, timings: SealedFile) -> Any:
    """Let the build use earlier timings and add to them; None if it has to go on without."""
    cache = config.create_timing_cache(timings.read() or b"")
    # False: timings of another device are refused, not trusted.
    if cache is None or not config.set_timing_cache(cache, False):
        _logger.warning("timings are not kept: %s", last_errors())
        return None
    return cache


def _keep(timings: SealedFile, config: Any, cache: Any) -> None:
    """Write the timings back, together with what another process may have written meanwhile."""
    newer = timings.read()
    other = config.create_timing_cache(newer) if newer else None
    if other is not None:
        cache.combine(other, False)
    try:
        timings.write(bytes(cache.serialize()))
    except PadimEdgeError as error:
        _logger.warning("timings are not kept: %s", error)


@dataclass
class _Phase:
    """A phase's share of the whole: where it starts, how much it is, its steps."""

    start: float
    size: float
    steps: int
    done: int = 0

    def current(self) -> tuple[float, float]:
        """Start and size of the step that is being taken."""
        step = self.size / self.steps
        return self.start + step * min(self.done, self.steps), step


class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # its base has no types
    """The library's nested phases as one fraction of the whole, in `_STEPS`.

    Nothing is raised into the library, which is calling: what goes wrong here (Ctrl-C too) is
    kept, the build is asked to stop, and `reraise` raises it when the library has returned.
    """

    def __init__(self, progress: Progress | None) -> None:
        trt.IProgressMonitor.__init__(self)  # not super(): pybind11 wants its own one called
        self._progress = progress
        self._error: BaseException | None = None
        self._phases: dict[str, _Phase] = {}
        self._told = -1

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins, within the current step of its parent; the first is the whole."""
        parent = self._phases.get(parent_phase or "")
        if parent is None and self._phases:
            return
        start, size = parent.current() if parent else (0.0, 1.0)
        self._phases[phase_name] = _Phase(start, size, max(num_steps, 1))
        self._tell(start)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step is done. The answer False asks the library to stop."""
        phase = self._phases.get(phase_name)
        if phase:
            phase.done = step + 1
            self._tell(phase.current()[0])
        return self._error is None

    def phase_finish(self, phase_name: str) -> None:
        """A phase is over, whether or not it took all of its steps."""
        phase = self._phases.get(phase_name)
        if phase:
            self._tell(phase.start + phase.size)

    def _tell(self, fraction: float) -> None:
        done = min(int(fraction * _STEPS), _STEPS)
        if self._progress is None or self._error or done <= self._told:
            return
        self._told = done
        try:
            self._progress("plan", done, _STEPS)
        except BaseException as error:
            self._error = error

    def reraise(self) -> None:
        """Raise what the callback raised."""
        if self._error:
            raise self._error
