"""What a report says, as plain values; `page.py` makes a page of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PICTURES = 200
"""Images of a report that are shown; the rest is named."""

NAMED = 5000
"""Images beyond them that are named; the rest is counted."""


class Kind(str, Enum):
    """What a report is about."""

    EVAL = "eval"
    RUN = "run"
    FIT = "fit"


class Role(str, Enum):
    """What is known of the images of a group."""

    GOOD = "good"
    DEFECTIVE = "defective"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Group:
    """Images of one kind, all of them, shown or not.

    Attributes:
        name: for people.
        role: what is known of them.
        scores: those that are numbers, sorted.
        auroc: of a kind of defect, against the good images.
    """

    name: str
    role: Role
    scores: tuple[float, ...]
    auroc: float | None = None


@dataclass(frozen=True)
class Image:
    """An image that is named.

    Attributes:
        name: path, for people.
        group: its place among the groups.
        score: None if it is no number.
    """

    name: str
    group: int
    score: float | None


@dataclass(frozen=True)
class Layers:
    """Pictures of one image as data URIs, all of one shape, to be laid over one another.

    Attributes:
        width: of the photo in pixels.
        height: of the photo in pixels.
        photo: a JPEG.
        heat: the score map, a PNG with alpha; None where there is no map.
        mask: the regions that are anomalous, likewise.
        truth: what is known to be defective; None where that is not known.
    """

    width: int
    height: int
    photo: str
    heat: str | None = None
    mask: str | None = None
    truth: str | None = None


@dataclass(frozen=True)
class Shown(Image):
    """An image that is shown.

    Attributes:
        layers: its pictures.
        remark: what else is known of it, in a word or two; a fit's alone has one.
    """

    layers: Layers
    remark: str = ""


@dataclass(frozen=True)
class Metric:
    """A figure and how far it can be trusted.

    Attributes:
        name: for people.
        value: None if it cannot be had.
        low: lower end of its 95 % interval.
        high: upper end.
        at_threshold: whether it is of the threshold; otherwise it is of all thresholds.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    at_threshold: bool


@dataclass(frozen=True)
class Curve:
    """A line through points.

    Attributes:
        name: for people.
        x: name of the axis, and the values.
        y: likewise.
    """

    name: str
    x: tuple[str, tuple[float, ...]]
    y: tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes:
        kind: what it is about.
        title: what was judged.
        facts: what was used, and how, as (name, value).
        threshold: that the images were judged by.
        own_threshold: the file's.
        scale: scores at which the colours of heat maps begin and end.
        groups: all images by kind.
        shown: the first `PICTURES`, the most wrong or the highest score first.
        named: some of the rest, in the same order.
        unnamed: how many there are beyond.
        unreadable: (name, why) of files that could not be judged.
        metrics: of an evaluation.
        curves: of an evaluation.
        reference: a group to compare with that has no images here.
        notes: how the figures were made, a sentence or two each.
    """

    kind: Kind
    title: str
    facts: tuple[tuple[str, str], ...]
    threshold: float
    own_threshold: float
    scale: tuple[float, float]
    groups: tuple[Group, ...]
    shown: tuple[Shown, ...]
    named: tuple[Image, ...]
    unnamed: int = 0
    unreadable: tuple[tuple[str, str], ...] = ()
    metrics: tuple[Metric, ...] = ()
    curves: tuple[Curve, ...] = ()
    reference: Group | None = None
    notes: tuple[str, ...] = ()
