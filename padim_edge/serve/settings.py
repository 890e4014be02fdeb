"""How a service works: engine, batches, and how much it takes upon itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from padim_edge.errors import UsageError
from padim_edge.images.decode import MAX_PIXELS


@dataclass(frozen=True)
class Settings:
    """Of every model that is served.

    Attributes:
        engine: a name from `padim_edge.runtime.engines.ENGINES`, or "auto".
        threads: of the engine; 0 for all cores.
        max_batch: images in a run of the engine, and in a request of V2, at most.
        max_delay: seconds that an image waits for others while the engine rests, at most.
        queue: images of a model that are being decoded, wait, or are judged, at most; who brings
            more is told to come back (429).
        max_bytes: of a request's body.
        max_pixels: of an image; a million takes up to 18 MB while it is decoded or drawn, in each
            of at most four threads.

    Raises:
        UsageError: a number makes no sense.
    """

    engine: str = "auto"
    threads: int = 0
    max_batch: int = 8
    max_delay: float = 0.0
    queue: int = 64
    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 1024:
            raise UsageError(f"a batch of {self.max_batch} makes no sense: 1 to 1024 do")
        if not (0 <= self.max_delay <= 10 and math.isfinite(self.max_delay)):
            raise UsageError(
                f"a delay of {self.max_delay * 1000:g} ms makes no sense: 0 to 10000 ms do"
            )
        if self.queue < self.max_batch:
            raise UsageError(
                f"a queue of {self.queue} holds no batch of {self.max_batch}: make it longer, or "
                "the batch smaller"
            )
        if self.max_bytes < 1 << 10:
            raise UsageError(f"bodies of {self.max_bytes} bytes hold no image: 1024 or more do")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise UsageError(
                f"images of {self.max_pixels:,} pixels at most make no sense: 1 to {MAX_PIXELS:,} "
                "do"
            )

    @property
    def bodies_bytes(self) -> int:
        """Of all bodies and answers that are in memory at once."""
        return 8 * self.max_bytes
