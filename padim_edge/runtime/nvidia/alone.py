"""A GPU and the kernels on it, without an engine: for whoever judges them, `measure.proof`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import Model
from padim_edge.runtime.nvidia.compiler import kernels
from padim_edge.runtime.nvidia.device import Device
from padim_edge.runtime.nvidia.plan_cache import PlanCache
from padim_edge.runtime.nvidia.preparer import Preparer
from padim_edge.runtime.nvidia.scorer import Scorer


class Gpu:
    """A device of our own, to be closed.

    Raises:
        PadimEdgeError: there is no usable GPU.
    """

    def __init__(self) -> None:
        self._device = Device()
        self.name = f"{self._device.name} ({self._device.architecture})"
        self.integrated = self._device.integrated

    def free_memory(self) -> int:
        """Bytes of device memory that can be had; see `Device.free_memory`."""
        with self._device.current():
            return self._device.free_memory()

    def copy_bandwidth(self) -> float:
        """Bytes read plus bytes written per second of a copy on the device."""
        with self._device.current():
            return self._device.copy_bandwidth()

    def compile(self) -> dict[str, int]:
        """Bytes of machine code for this device, by the name of the kernels' file."""
        device, cache = self._device, PlanCache()
        return {
            file: len(kernels(file, device.architecture, cache, device.cuda))
            for file in ("kernels.cu", "prepare.cu")
        }

    def score(
        self, model: Model, maps: Mapping[str, NDArray[Any]], counts: Sequence[int], repeats: int
    ) -> tuple[list[tuple[NDArray[Any], NDArray[Any]]], dict[int, tuple[float, float]], int]:
        """Run the distance and the smoothing kernel.

        Args:
            model: whose constants.
            maps: feature maps [N, d, h, w] by name, all float32 or all float16.
            counts: batch sizes, at most N; a batch is the first maps.
            repeats: launches for a median.

        Returns:
            Of each count scores [n] and score maps [n, H, W]; of each count median seconds of the
            two kernels; and the bytes of constants that a pass reads.
        """
        device, most = self._device, max(counts)
        half = next(iter(maps.values())).dtype == np.float16
        results, seconds = [], {}
        with device.current():
            scores = device.staging((most,), np.float32, mapped=False)
            images = (most, *model.backbone_info.image_size)
            score_maps = device.staging(images, np.float32, mapped=False)
            addresses = {name: device.upload(values) for name, values in maps.items()}
            scorer = Scorer(
                device, model, addresses, half, most, score_maps.address, scores.address
            )
            for count in counts:
                scorer.distances(count)
                scorer.smoothing(count)
                for staging in (scores, score_maps):
                    device.to_host(staging, count)
                device.synchronize()
                results.append((scores.host[:count].copy(), score_maps.host[:count].copy()))
                steps = (scorer.distances, scorer.smoothing)
                seconds[count] = tuple(self._median(step, count, repeats) for step in steps)
        return results, seconds, scorer.constants_bytes  # type: ignore[return-value]

    def prepare(
        self, preprocess: Preprocess, frames: Sequence[Frame], repeats: int
    ) -> tuple[NDArray[np.uint8], list[float]]:
        """Run the preparing kernel, frame by frame.

        Args:
            preprocess: what is to be done.
            frames: in host memory.
            repeats: launches for a median.

        Returns:
            The images uint8 [N, H, W, 3], and the kernel's median seconds for each.
        """
        device = self._device
        with device.current():
            image = device.staging((1, *preprocess.size, 3), np.uint8, mapped=False)
            preparer = Preparer(device, preprocess, image.address)
            images, seconds = [], []
            for frame in frames:
                times = []
                for _ in range(repeats):
                    marks = device.events(3)
                    preparer.bring([frame], iter(marks))
                    device.synchronize()
                    times.append(device.seconds(*marks[1:]))
                device.to_host(image, 1)
                device.synchronize()
                images.append(image.host[0].copy())
                seconds.append(float(np.median(times)))
                marks = []  # events are freed while the context is there
        return np.stack(images), seconds

    def _median(self, step: Callable[[int], None], count: int, repeats: int) -> float:
        marks = self._device.events(repeats + 1)
        for mark in marks:
            # The first launch is not counted.
            step(count)
            self._device.mark(mark)
        self._device.synchronize()
        pairs = itertools.pairwise(marks)
        return float(np.median([self._device.seconds(*pair) for pair in pairs]))

    def close(self) -> None:
        """Free everything. Closing twice is harmless."""
        self._device.close()

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
