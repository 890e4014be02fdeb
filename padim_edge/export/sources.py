"""The table of sources: where networks come from, and what each says of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from padim_edge.errors import UsageError
from padim_edge.runtime.engines import load

if TYPE_CHECKING:
    from torch import nn

SOURCES = {"torchvision": "padim_edge.export.torchvision:Torchvision"}
"""Name -> "module:Class", in the order in which they are asked for a network."""

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Weights:
    """What is known of weights beside their values.

    Attributes:
        origin: where they come from, in words; goes into the file.
        licence: its name or address, or what is known of it in words; empty if nothing is.
    """

    origin: str
    licence: str


class Source(Protocol):
    """One collection of networks. Every ``name`` is one of `names`."""

    @property
    def defaults(self) -> Mapping[str, tuple[tuple[str, ...], int]]:
        """Layers, and the number of channels to choose from them, of networks that have them."""

    def names(self) -> Sequence[str]:
        """All its networks."""

    def build(self, name: str) -> nn.Module:
        """The whole network, untrained: float32 [N, 3, H, W] normalised -> anything.

        Its random weights come from torch's global generator alone.
        """

    def normalisation(self, name: str) -> tuple[Colour, Colour]:
        """Mean and standard deviation of RGB in 0..1 that its weights expect."""

    def weights(self, name: str) -> Weights:
        """Origin and licence of its default weights."""

    def fetch(self, name: str) -> Path:
        """The file of its default weights, from a cache or the network.

        Raises:
            PadimEdgeError: it cannot be had.
        """


def find(name: str) -> Source:
    """The first source that has a network of this name.

    Raises:
        UsageError: none has.
    """
    known = []
    for label, place in SOURCES.items():
        source: Source = load(place)()
        if name in source.names():
            return source
        known.append(f"{label} has {', '.join(source.names())}")
    raise UsageError(f"unknown backbone '{name}'; {'; '.join(known)}")
