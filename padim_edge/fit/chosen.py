"""Chosen channels of an embedding that has all of them: the draw of `export`, made when fitting."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import UsageError
from padim_edge.export.channels import choose
from padim_edge.export.select import select_channels
from padim_edge.fit.settings import Settings
from padim_edge.model import graph
from padim_edge.model.file import Model
from padim_edge.model.names import FEATURES

SEED = 1024
"""Of the draw, as in the reference."""


def check_whole(embedding: Model, dims: int | None) -> None:
    """Refuse to draw where channels lack, and not to draw where all are there in their order.

    Raises:
        UsageError: either.
    """
    info = embedding.backbone_info
    total = sum(info.layer_channels)
    if dims is None and info.channels == tuple(range(total)):
        raise UsageError(
            f"this embedding has all {total} channels of its layers: say how many to draw, as in "
            "the paper (--dims 100 for resnet18, 550 for wide_resnet50_2), or choose another "
            "--preset"
        )
    if dims is not None and len(info.channels) < total:
        raise UsageError(
            f"--dims {dims}: channels are drawn from all {total}, and this embedding has "
            f"{len(info.channels)}: leave --dims out to take those, or make one with padim-edge "
            "export --dims all"
        )


def drawn(embedding: Model, settings: Settings) -> tuple[Model, Settings]:
    """The embedding that a fit with these settings is of, and settings for it.

    To be called before it is made int8: no channel is left out of an int8 backbone.

    Raises:
        UsageError: see `check_whole`, and there are fewer channels than are to be drawn.
    """
    if settings.preset != "reference" or settings.dims is None:
        return embedding, settings
    check_whole(embedding, settings.dims)
    return with_chosen(embedding, settings.dims), dataclasses.replace(settings, dims=None)


def with_chosen(embedding: Model, dims: int) -> Model:
    """An embedding with as many channels as if it had been exported so.

    Args:
        embedding: with all channels of all layers.
        dims: how many to draw; see `check_whole`.

    Raises:
        UsageError: there are fewer.
    """
    info = embedding.backbone_info
    chosen, selection = choose(info.layer_channels, (dims,), None, SEED, dims)
    own = dataclasses.replace(info, channels=chosen, selection=selection)
    names = [FEATURES + name for name in info.layers]
    proto = graph.subgraph(embedding.proto, ["image"], names)
    whole = {name: f"whole.{name}" for name in names}
    for node in proto.graph.node:
        node.input[:] = [whole.get(name, name) for name in node.input]
        node.output[:] = [whole.get(name, name) for name in node.output]
    wanted: list[tuple[str, NDArray[np.int64] | None, str]] = []
    for name, have, want in zip(names, info.selected(), own.selected(), strict=True):
        places = np.argsort(have)[list(want)].astype(np.int64)  # all are there, in any order
        if want:
            wanted.append((whole[name], places, name))
    select_channels(proto.graph, wanted)
    tail = graph.embedding(own)
    proto.graph.node.extend(tail.nodes)
    proto.graph.initializer.extend(tail.constants)
    del proto.graph.output[:], proto.graph.value_info[:]
    proto.graph.output.extend(graph.embedding_outputs(own))
    outputs = [value.name for value in proto.graph.output]
    return dataclasses.replace(
        embedding, proto=graph.subgraph(proto, ["image"], outputs), backbone_info=own
    )
