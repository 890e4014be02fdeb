"""Scoring on the GPU by our kernels: from the layers' maps to score maps and scores.

What the constants look like on the device, and how a launch is made of them, is the business of
`whitening` and `smoothing`. Here they are uploaded once, and launches are prepared once per batch
size: a frame costs two launches and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from padim_edge.model.file import Model
from padim_edge.model.names import FEATURES, ROI
from padim_edge.runtime.nvidia.compiler import kernels
from padim_edge.runtime.nvidia.device import Device
from padim_edge.runtime.nvidia.plan_cache import PlanCache
from padim_edge.runtime.nvidia.smoothing import Smoothing, SmoothingAddresses, pack_smoothing
from padim_edge.runtime.nvidia.whitening import Whitening, WhiteningAddresses, pack_whitening


def pack(model: Model) -> tuple[Whitening, Smoothing]:
    """The constants of a model in the order in which the kernels read them.

    Raises:
        PadimEdgeError: more levels or layers than the kernels take.
    """
    pyramid = model.pyramid()
    count = len(pyramid.levels)
    pairs = [(level, other) for level in range(count) for other in range(level + 1)]
    scales = None
    if model.detector_info is not None and model.detector_info.constants == "int8":
        scales = {
            (i, j): model.constant(f"whitening.{i}.{j}.scale").squeeze(axis=2) for i, j in pairs
        }
    whitening = pack_whitening(
        pyramid,
        [model.constant(f"mean.{level}").squeeze(axis=0) for level in range(count)],
        {(i, j): model.constant(f"whitening.{i}.{j}") for i, j in pairs},
        scales,
    )
    rows = model.constant("smoothing.rows")
    columns = model.constant("smoothing.columns").T
    return whitening, pack_smoothing(pyramid, whitening, rows, columns)


class Scorer:
    """The kernels of one model on a device, which must be current, and which frees everything.

    Args:
        device: where.
        model: whose constants.
        features: addresses of the layers' maps, by name as in `Model.feature_names`.
        half: whether those maps are float16, not float32.
        most: frames of the largest batch.
        maps: address for the score maps, float32 [most, H, W].
        scores: address for the scores, float32 [most].

    Attributes:
        constants_bytes: what one pass of the distance kernel reads of the whitening.
    """

    def __init__(
        self,
        device: Device,
        model: Model,
        features: Mapping[str, int],
        half: bool,
        most: int,
        maps: int,
        scores: int,
    ) -> None:
        self._device = device
        self._half = half
        self._whitening, self._smoothing = pack(model)
        self.constants_bytes = self._whitening.lines.nbytes
        # Refuses here, not at the first batch, what does not fit into a block.
        self._whitening.frames_per_pass(most, device.shared_limit)
        squared = device.allocate(4 * most * self._whitening.squared_floats)
        pyramid = model.pyramid()
        self._from = WhiteningAddresses(
            device.upload(self._whitening.lines),
            device.upload(self._whitening.means),
            device.upload(self._whitening.pixels),
            [features[FEATURES + layer.name] for level in pyramid.levels for layer in level.layers],
            squared,
            scores,
        )
        taps = self._smoothing
        info = model.detector_info
        has_roi = info is not None and info.judged < 1
        self._to = SmoothingAddresses(
            device.upload(taps.row_taps),
            device.upload(taps.row_first),
            device.upload(taps.column_taps),
            device.upload(taps.column_first),
            squared,
            maps,
            scores,
            device.upload(model.constant(ROI).astype(np.uint8)) if has_roi else 0,
        )
        # The host's copies have done their duty, and a large model's are hundreds of megabytes.
        nothing = self._whitening.lines[:0].copy()
        self._whitening = replace(self._whitening, lines=nothing)
        self._prepare = device.load(
            kernels("kernels.cu", device.architecture, PlanCache(), device.cuda)
        )
        self._launches: dict[tuple[str, int], Callable[[], None]] = {}
        self.distances(1)
        self.smoothing(1)
        device.synchronize()

    def distances(self, count: int) -> None:
        """Enqueue the squared distances of every level, for a batch of ``count`` frames."""
        if ("distances", count) not in self._launches:
            launch = self._whitening.mahalanobis(
                count,
                self._from,
                half_maps=self._half,
                shared_limit=self._device.shared_limit,
            )
            self._launches["distances", count] = self._prepare(launch)
        self._launches["distances", count]()

    def smoothing(self, count: int) -> None:
        """Enqueue levels added, root, score maps and scores."""
        if ("smoothing", count) not in self._launches:
            launch = self._smoothing.smooth(count, self._to, shared_limit=self._device.shared_limit)
            self._launches["smoothing", count] = self._prepare(launch)
        self._launches["smoothing", count]()
