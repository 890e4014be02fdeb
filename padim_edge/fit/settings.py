"""Settings: how to fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from padim_edge.errors import UsageError
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.roi import Roi
from padim_edge.model.frame_input import check_frame_input
from padim_edge.model.metadata import CONSTANTS, ESTIMATORS, PRESETS
from padim_edge.model.pooling import WHITENED
from padim_edge.model.pyramid import Layer

DEFAULT_FALSE_ALARM_RATE = 0.01
EPS = 0.01
SIGMA = 4.0
HEADS = {"whitened": (16, 100), "whitened-fine": (8, 128)}
"""Preset -> pixels of the image by position of the grid, and number of directions."""

SHRINKAGE = (1e-6, 0.999999)
"""Of --shrinkage, least and most. The pooled covariance is the identity in its basis, so alpha
lets no direction vary by less than sqrt(alpha): below a thousandth, float16 and the engines' own
rounding would be what is judged. And scores are as sqrt(1 - alpha): beyond, they tend to 0, and
what is a position's own in its covariance is less than float32 and float16 hold."""


def check_rate(false_alarm_rate: float | None) -> None:
    """Refuse what is no false-alarm rate.

    Raises:
        UsageError: it is none.
    """
    if false_alarm_rate is not None and not 1e-6 <= false_alarm_rate < 1:
        raise UsageError(
            f"--false-alarm-rate {false_alarm_rate}: a number from 1e-6 to below 1 is needed"
        )


@dataclass(frozen=True)
class Settings:
    """How to fit.

    None for ``false_alarm_rate``: 1 %, or the lowest that the images allow. With ``frame_input``
    the file's graph begins at the frame (see `padim_edge.model.frame_input`). With a ``roi``, it
    alone is judged.

    Of a whitened ``preset`` (see `padim_edge.fit.basis`) ``dims`` is the number of directions and
    ``grid`` the (h, w) of positions, None for those of the preset, ``shrinkage`` the weight of the
    pooled covariance, None for the likeliest. Its ``eps`` plays no part. Of ``reference``, ``dims``
    is the number of channels to draw from an embedding that has all; None takes what it has.
    """

    preprocess: Preprocess
    covariance: str = "sample"
    constants: str = "float16"
    eps: float = EPS
    sigma: float = SIGMA
    false_alarm_rate: float | None = None
    frame_input: bool = False
    preset: str = "reference"
    dims: int | None = None
    grid: tuple[int, int] | None = None
    shrinkage: float | None = None
    roi: Roi | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted.

        Raises:
            UsageError: an unknown name, a number out of range, or a preprocessing that no graph
                can do.
        """
        if self.covariance not in ESTIMATORS:
            raise UsageError(f"--covariance {self.covariance}: choose {' or '.join(ESTIMATORS)}")
        if self.constants not in CONSTANTS:
            raise UsageError(f"--constants {self.constants}: choose {', '.join(CONSTANTS)}")
        if not 0 <= self.eps < np.inf:
            raise UsageError(f"--eps {self.eps}: a finite number that is not negative is needed")
        if not 0 <= self.sigma <= 64:
            raise UsageError(f"--sigma {self.sigma}: choose 0 to 64 pixels")
        check_rate(self.false_alarm_rate)
        if self.frame_input:
            check_frame_input(self.preprocess)
        self._check_preset()

    def _check_preset(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"--preset {self.preset}: choose {', '.join(PRESETS)}")
        if self.dims is not None and self.dims < 1:
            raise UsageError(f"--dims {self.dims}: at least 1 is needed")
        if self.shrinkage is not None and not SHRINKAGE[0] <= self.shrinkage <= SHRINKAGE[1]:
            raise UsageError(
                f"--shrinkage {self.shrinkage}: auto, or a number from {SHRINKAGE[0]} to "
                f"{SHRINKAGE[1]}, is needed"
            )
        if self.preset == "reference":
            for option, value in (("--grid", self.grid), ("--shrinkage", self.shrinkage)):
                if value is not None:
                    raise UsageError(f"{option}: goes with --preset {' or '.join(HEADS)}")
        elif self.covariance != "sample":
            raise UsageError(
                f"--covariance {self.covariance}: a whitened preset shrinks towards the pooled "
                "covariance (--shrinkage); leave --covariance out"
            )

    def head(self) -> Layer | None:
        """The only layer of a whitened detector, with what the preset has not been told; or None.

        Its sides are those of the grid, its channels the directions.
        """
        if self.preset == "reference":
            return None
        stride, dims = HEADS[self.preset]
        height, width = self.grid or tuple(side // stride for side in self.preprocess.size)
        return Layer(WHITENED, self.dims or dims, height, width)
