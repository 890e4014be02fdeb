"""Settings: how to fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from padim_edge.errors import UsageError
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.frame_input import check_frame_input
from padim_edge.model.metadata import CONSTANTS, COVARIANCES

DEFAULT_FALSE_ALARM_RATE = 0.01
EPS = 0.01
SIGMA = 4.0


@dataclass(frozen=True)
class Settings:
    """How to fit.

    None for ``false_alarm_rate``: 1 %, or the lowest that the images allow. With ``frame_input``
    the file's graph begins at the frame (see `padim_edge.model.frame_input`).
    """

    preprocess: Preprocess
    covariance: str = "sample"
    constants: str = "float16"
    eps: float = EPS
    sigma: float = SIGMA
    false_alarm_rate: float | None = None
    frame_input: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted.

        Raises:
            UsageError: an unknown name, a number out of range, or a preprocessing that no graph
                can do.
        """
        if self.covariance not in COVARIANCES:
            raise UsageError(f"--covariance {self.covariance}: choose {' or '.join(COVARIANCES)}")
        if self.constants not in CONSTANTS:
            raise UsageError(f"--constants {self.constants}: choose {', '.join(CONSTANTS)}")
        if not 0 <= self.eps < np.inf:
            raise UsageError(f"--eps {self.eps}: a finite number that is not negative is needed")
        if not 0 <= self.sigma <= 64:
            raise UsageError(f"--sigma {self.sigma}: choose 0 to 64 pixels")
        rate = self.false_alarm_rate
        if rate is not None and not 1e-6 <= rate < 1:
            raise UsageError(f"--false-alarm-rate {rate}: a number from 1e-6 to below 1 is needed")
        if self.frame_input:
            check_frame_input(self.preprocess)
