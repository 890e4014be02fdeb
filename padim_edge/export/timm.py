"""timm's networks: any that gives feature maps [N, C, h, w], with weights from the hub it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.export.sources import Colour, Source, Weights
from padim_edge.export.torchvision import download

FILE = "model.safetensors"
# Of the image's size, the layers that a pyramid is made of.
REDUCTIONS = (4, 8, 16)
# The paper's numbers of channels, of the 448 of ResNet-18 and of the 1792 of WideResNet-50-2; a
# network is taken for the kin of whichever it is nearer to.
FEW, MANY, BORDER = 100, 550, 1000


class Timm(Source):
    """See `Source`. A name may have a tag, which chooses among weights: resnet18.tv_in1k."""

    @property
    def tracing(self) -> Mapping[str, Any]:
        """Padding that depends on the size of the image, and other modules with branches."""
        return {
            "leaf_modules": get_notrace_modules(),
            "autowrap_functions": get_notrace_functions(),
        }

    def names(self) -> Sequence[str]:
        """All its networks, without and with the tags of their weights."""
        return [*timm.list_models(), *timm.list_pretrained()]

    def build(self, name: str) -> nn.Module:
        """As timm initialises it."""
        network: nn.Module = timm.create_model(name, pretrained=False)
        form = getattr(network, "output_fmt", "NCHW")
        if str(getattr(form, "value", form)) != "NCHW":
            raise UsageError(
                f"{name} gives no feature maps [N, C, h, w] (its outputs are {form}): choose "
                "another --backbone"
            )
        return network

    def defaults(self, name: str, network: nn.Module) -> tuple[tuple[str, ...], int] | None:  # noqa: ARG002
        """The layers at 1/4, 1/8 and 1/16 of the image, as timm itself lists them."""
        listed: Any = getattr(network, "feature_info", [])
        found = {entry["reduction"]: entry for entry in getattr(listed, "info", listed)}
        if not set(REDUCTIONS) <= set(found):
            return None
        chosen = [found[reduction] for reduction in REDUCTIONS]
        channels = sum(entry["num_chs"] for entry in chosen)
        return tuple(entry["module"] for entry in chosen), FEW if channels < BORDER else MANY

    def normalisation(self, name: str) -> tuple[Colour, Colour]:
        """Of the weights with this tag; without one, of the default ones."""
        record = _record(name)
        return tuple(record.mean), tuple(record.std)

    def weights(self, name: str) -> Weights:
        """As timm records them."""
        record = _record(name)
        return Weights(f"timm {name.split('.')[0]}.{record.tag}", record.license or "")

    def fetch(self, name: str) -> Path:
        """From the cache of the hub that timm uses; else from torch's, or into it."""
        record = _record(name)
        if record.hf_hub_id:
            file = record.hf_hub_filename or FILE
            cached = try_to_load_from_cache(record.hf_hub_id, file)
            if isinstance(cached, str):
                return Path(cached)
            # The hub's own way down would ask six times and say so each time.
            kept = record.hf_hub_id.replace("/", "--") + Path(file).suffix
            return download(hf_hub_url(record.hf_hub_id, file), name, kept)
        if isinstance(record.url, str) and record.url:
            return download(record.url, name)
        raise PadimEdgeError(
            f"timm has no weights for {name}: give a file with --weights FILE, or choose another "
            "--backbone"
        )


def _record(name: str) -> Any:
    """What timm keeps of the weights of a name: where they are, their licence, statistics."""
    record = timm.get_pretrained_cfg(name)
    if record is None:
        raise PadimEdgeError(f"timm knows nothing of the weights of {name}: choose another one")
    return record
