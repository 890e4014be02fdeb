"""State of `tune`: what is known of each finished candidate, a line of JSON each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.files import atomic_write
from padim_edge.measure.tune_separation import METRICS, Separation

FILE = "tune.jsonl"
SCHEMA = 1


@dataclass(frozen=True)
class Finished:
    """A candidate that was fitted and measured, or why not.

    Attributes:
        key: the candidate's.
        file: of its detector, in the work folder; empty if it failed.
        sha256: of that file.
        size: in bytes.
        separation: None if it failed.
        error: why it failed, in one line; empty if it did not.
    """

    key: str
    file: str = ""
    sha256: str = ""
    size: int = 0
    separation: Separation | None = None
    error: str = ""


@dataclass
class State:
    """All of them, in a file that is written anew with each: it is whole, however tune ends.

    Attributes:
        path: the file.
        conditions: under which results can be put beside one another, by name.
        finished: by the candidate's key.
    """

    path: Path
    conditions: dict[str, str]
    finished: dict[str, Finished] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Path, conditions: dict[str, str], resume: bool) -> State:
        """A new one, or that in the folder.

        Raises:
            UsageError: there is one and it is not to be gone on with, or it was made under other
                conditions.
            PadimEdgeError: the file is none of these, or the folder cannot be made.
        """
        state = cls(work / FILE, conditions)
        if state.path.exists():
            known = _load(state.path)
            if not resume:
                raise UsageError(
                    f"{work} has {len(known.finished)} finished candidate(s): go on with --resume, "
                    "or name another folder with --work"
                )
            others = [
                f"{name} was {known.conditions.get(name)}, now {value}"
                for name, value in conditions.items()
                if known.conditions.get(name) != value
            ]
            if others:
                raise UsageError(
                    f"--resume: {work} was made under other conditions ({'; '.join(others)}): name "
                    "another folder with --work"
                )
            state.finished = known.finished
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PadimEdgeError(f"cannot make the folder {work}: {error.strerror}") from error
        state.write()  # and a folder that cannot be written to is told of before the work
        return state

    def keep(self, one: Finished) -> None:
        """Take one in, and write the file."""
        self.finished[one.key] = one
        self.write()

    def write(self) -> None:
        """Write the file."""
        with atomic_write(self.path) as stream:
            for value in (
                {"schema": SCHEMA, "conditions": self.conditions},
                *(asdict(one) for one in self.finished.values()),
            ):
                stream.write((json.dumps(value) + "\n").encode())


def _load(path: Path) -> State:
    try:
        head, *lines = map(json.loads, path.read_bytes().splitlines())
        if head["schema"] != SCHEMA:
            raise ValueError(head["schema"])
        state = State(path, dict(head["conditions"]))
        for line in lines:
            one = _finished(line)
            state.finished[one.key] = one
    except OSError as error:
        raise PadimEdgeError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PadimEdgeError(
            f"{path} is no file of padim-edge tune, or of another version: name another folder "
            "with --work, or remove it"
        ) from error
    return state


def _finished(line: dict[str, Any]) -> Finished:
    """One of a line; any error means that it is none."""
    separation = line.pop("separation")
    one = Finished(**line)
    if not all(isinstance(text, str) for text in (one.key, one.file, one.sha256, one.error)):
        raise TypeError
    if separation is None:
        return Finished(one.key, error=one.error or "unknown")
    metrics = {name: separation["metrics"][name] for name in METRICS}
    for value in metrics.values():
        if not isinstance(value, float | None):
            raise TypeError(value)
    draws = {name: [float(x) for x in of] for name, of in separation["draws"].items()}
    if any(value is not None and name not in draws for name, value in metrics.items()):
        raise ValueError
    return Finished(one.key, one.file, one.sha256, int(one.size), Separation(metrics, draws))
