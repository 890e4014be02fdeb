"""Errors that a user can act on: what was given, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(things: Sequence[object], most: int = 3) -> str:
    """Some of many, in one line: "a, b, c and 60 more"."""
    named = ", ".join(map(str, things[:most]))
    return named if len(things) <= most else f"{named} and {len(things) - most} more"


class PadimEdgeError(Exception):
    """The work could not be done. The command line prints the message and exits 1."""

    exit_code = 1


class UsageError(PadimEdgeError):
    """The request itself makes no sense. The command line prints the message and exits 2."""

    exit_code = 2


class MissingDependencyError(PadimEdgeError):
    """An optional dependency is not installed.

    Args:
        feature: what was asked for, as the user knows it.
        package: the importable name that is missing.
        extra: the extra of padim-edge that brings it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed: "
            f"run  pip install 'padim-edge[{extra}]'"
        )


class ProcessorError(PadimEdgeError):
    """This processor cannot do what was asked for; nothing is broken, and nothing fixes it."""


class ImageError(PadimEdgeError):
    """One image cannot be used; others may still be."""


class ModelError(PadimEdgeError):
    """A file is not an embedding or a model that this version can read."""
