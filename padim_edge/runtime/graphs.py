"""The table of what runs a bare graph: the backbone, for export and fit.

An engine runs a whole detector and keeps what it can on its device; a graph takes arrays of the
host by name, and gives such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.progress import Progress
from padim_edge.runtime.engines import NVIDIA, has_driver, load

GRAPHS = {
    "ort": "padim_edge.runtime.cpu.ort:Graph",
    "openvino": "padim_edge.runtime.cpu.openvino:Graph",
    "trt": "padim_edge.runtime.nvidia.trt_graph:TrtGraph",
    "ort-cuda": "padim_edge.runtime.nvidia.ort_cuda_graph:OrtCudaGraph",
}
"""Engine's name -> "module:Class", in the order in which `auto` tries them: a fit is over in
seconds on a CPU, while a plan takes minutes to build on a small device."""


class Graph(Protocol):
    """A graph that a runtime has opened; a context manager, too."""

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> list[Any]:
        """Run it for some outputs, or all; the returned arrays belong to the caller."""
        ...

    def describe(self) -> str:
        """What runs where, in one line."""
        ...

    def close(self) -> None:
        """Free it. Closing twice is harmless."""
        ...

    def __enter__(self) -> Graph: ...

    def __exit__(self, *_: object) -> None: ...


def check_graph_engine(name: str) -> None:
    """Refuse a name that `open_graph` would refuse, before any work.

    Raises:
        UsageError: it is none of `GRAPHS`, nor "auto".
    """
    if name not in ("auto", *GRAPHS):
        raise UsageError(f"no engine '{name}' runs a bare graph: choose auto, {', '.join(GRAPHS)}")


def check_installed() -> None:
    """Refuse where `open_graph` with "auto" would find nothing installed, before any work.

    Raises:
        MissingDependencyError: of the engine to install.
    """
    missing: list[MissingDependencyError] = []
    for name in GRAPHS:
        if name in NVIDIA and not has_driver():
            continue
        try:
            load(GRAPHS[name])
        except MissingDependencyError as error:
            missing.append(error)
        else:
            return
    raise missing[0]


def open_graph(
    data: bytes,
    engine: str = "auto",
    threads: int = 0,
    *,
    progress: Progress | None = None,
    skipped: Callable[[str, PadimEdgeError], None] | None = None,
) -> Graph:
    """Open an ONNX graph in an engine.

    Args:
        data: the graph's bytes.
        engine: of `GRAPHS`, or "auto": the first whose libraries are installed here.
        threads: of engines on the CPU; 0 for all cores.
        progress: called while a plan is built.
        skipped: told by "auto" of each engine that is not installed, with the reason, if another
            one is. Those that need an NVIDIA GPU are not tried without its driver.

    Raises:
        UsageError: no engine has this name.
        PadimEdgeError: the engine does not run here, or refuses the graph.
    """
    check_graph_engine(engine)
    if engine != "auto":
        graph: Graph = load(GRAPHS[engine])(data, threads, progress=progress)
        return graph
    missing: list[tuple[str, MissingDependencyError]] = []
    for name in GRAPHS:
        if name in NVIDIA and not has_driver():
            continue
        try:
            graph = open_graph(data, name, threads, progress=progress)
        except MissingDependencyError as error:
            missing.append((name, error))
            continue
        for one in missing:
            if skipped is not None:
                skipped(*one)
        return graph
    # The first is the one to install.
    raise missing[0][1]
