"""The table of sources: where networks come from, and what each says of a network."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from padim_edge.errors import MissingDependencyError, UsageError
from padim_edge.runtime.engines import load

if TYPE_CHECKING:
    from torch import Tensor, nn

SOURCES = {
    "torchvision": "padim_edge.export.torchvision:Torchvision",
    "pypi": "padim_edge.export.pypi:PyPI",
    "timm": "padim_edge.export.timm:Timm",
}
"""Name -> "module:Class", in the order in which they are asked for a network."""

# Names that fit in one line; of more, those that are like the one asked for.
LISTED = 20

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
    def tracing(self) -> Mapping[str, Any]:
        """Arguments for torch.fx's tracer: what it must not look into."""
        return {}

    def names(self) -> Sequence[str]:
        """All its networks."""

    def build(self, name: str) -> nn.Module:
        """The whole network, untrained: float32 [N, 3, H, W] normalised -> anything.

        Its random weights come from torch's global generator alone.
        """

    def defaults(self, name: str, network: nn.Module) -> tuple[tuple[str, ...], int] | None:
        """Layers, fine to coarse, and the number of channels to choose from them; None for none.

        Args:
            name: of the network.
            network: what `build` gave.
        """

    def normalisation(self, name: str) -> tuple[Colour, Colour]:
        """Mean and standard deviation of RGB in 0..1 that its weights expect."""

    def weights(self, name: str) -> Weights:
        """Origin and licence of its default weights."""

    def fetch(self, name: str) -> Path:
        """The file of its default weights, from a package, a cache or the network.

        Raises:
            PadimEdgeError: it cannot be had.
        """

    def renamed(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:  # noqa: ARG002
        """Tensors of a file under the names that the network has for them."""
        return state


def find(name: str, only: str | None = None) -> Source:
    """The first source that has a network of this name.

    Args:
        name: of a network.
        only: the one of `SOURCES` to ask; None for all.

    Raises:
        UsageError: none has.
        MissingDependencyError: the source that was named is not installed.
    """
    if only is not None and only not in SOURCES:
        raise UsageError(f"--source {only}: choose one of {', '.join(SOURCES)}")
    known = []
    for label, place in SOURCES.items():
        if only not in (None, label):
            continue
        try:
            source: Source = load(place)()
        except ModuleNotFoundError as error:
            if error.name != label:
                raise
            if only:
                raise MissingDependencyError(f"--source {label}", label, label) from error
            known.append(f"{label} is not installed (pip install 'padim-edge[{label}]')")
            continue
        names = source.names()
        if name in names:
            return source
        if len(names) <= LISTED:
            known.append(f"{label} has {', '.join(names)}")
        else:
            alike = difflib.get_close_matches(name, names, cutoff=0.4)
            known.append(f"{label} has {', '.join([*alike, f'{len(names)} in all'])}")
    raise UsageError(f"unknown backbone '{name}'; {'; '.join(known)}")
