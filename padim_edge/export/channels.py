"""The choice of channels: the reference's random one, one per layer, or an explicit list."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Literal

from padim_edge.errors import UsageError

Dims = tuple[int, ...] | Literal["all"] | None
"""Channels to choose: in all (one number), per layer, or every one; None for the default."""


def choose(
    available: tuple[int, ...],
    dims: Dims,
    file: Path | None,
    seed: int,
    default: int,
) -> tuple[tuple[int, ...], str]:
    """Choose channels of the concatenation of all layers.

    Args:
        available: channels per layer, in the order of the concatenation.
        dims: one number for the whole (the reference's draw), one per layer, or "all"; None:
            default.
        file: a list of indices instead of a draw.
        seed: of the draw.
        default: number of channels where neither is given.

    Returns:
        Indices in the order of the embedding, and how they were chosen.

    Raises:
        UsageError: impossible numbers, or a bad list.
    """
    total = sum(available)
    if file is not None:
        if dims is not None:
            raise UsageError("--channels and --dims exclude each other: give one of them")
        return _read(file, total), f"listed in {file.name}"
    if dims == "all":
        return tuple(range(total)), f"all {total}"
    if dims is None or len(dims) == 1:
        count = dims[0] if dims else min(default, total)
        if not 1 <= count <= total:
            raise UsageError(f"--dims {count}: the layers have {total} channels, choose 1 to that")
        # random.Random(seed).sample draws as random.seed(seed); random.sample does.
        chosen = random.Random(seed).sample(range(total), count)
        return tuple(chosen), f"{count} of {total} at random, seed {seed}"
    if len(dims) != len(available):
        raise UsageError(
            f"--dims {','.join(map(str, dims))}: give one number, or one for each of the "
            f"{len(available)} layers"
        )
    if any(not 0 <= d <= a for d, a in zip(dims, available, strict=True)) or not any(dims):
        raise UsageError(
            f"--dims {','.join(map(str, dims))}: the layers have "
            f"{','.join(map(str, available))} channels; choose at most that, and not none"
        )
    generator = random.Random(seed)
    picked: list[int] = []
    start = 0
    for count, channels in zip(dims, available, strict=True):
        picked += [start + c for c in generator.sample(range(channels), count)]
        start += channels
    split = ", ".join(f"{d} of {a}" for d, a in zip(dims, available, strict=True))
    return tuple(picked), f"{split} at random per layer, seed {seed}"


def _read(file: Path, total: int) -> tuple[int, ...]:
    """Indices from a file: a JSON list, or integers between commas, spaces and lines."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows editors put a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--channels {file}: cannot be read as text ({error})") from error
    try:
        if text.lstrip().startswith("["):
            channels = json.loads(text)
        else:
            channels = [int(word) for word in re.split(r"[,\s]+", text) if word]
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--channels {file}: integers are expected ({error})") from error
    strangers = [value for value in channels if type(value) is not int]
    if strangers:
        raise UsageError(f"--channels {file}: integers are expected, not {strangers[0]!r}")
    outside = [c for c in channels if not 0 <= c < total]
    if not channels or outside or len(set(channels)) != len(channels):
        problem = f"{outside[0]} is outside" if outside else "it is empty or names one twice"
        raise UsageError(
            f"--channels {file}: {problem}; give different indices from 0 to {total - 1}"
        )
    return tuple(channels)
