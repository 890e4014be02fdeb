"""The NVIDIA runtime proved on the machine at hand: what `padim-edge doctor --gpu` does.

`CHECKS` is the table. A check is a function that is given the sizes, a folder of its own and its
case, and yields lines; it runs in a child process, where it may crash or hang: that is a line too.
All plans and kernels go to a cache that is made for the proof and removed with it, so that what is
timed is what a first start costs. Whoever adds a check writes the function and a line here.

The standard library alone, as in `doctor`: this has to work where little else does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

from padim_edge import __version__
from padim_edge.errors import PadimEdgeError
from padim_edge.measure.doctor_device import is_jetson
from padim_edge.measure.finding import ask
from padim_edge.measure.proof_line import (
    DISK,
    ENGINES,
    MEMORY,
    PRESETS,
    STATUSES,
    Line,
    Sizes,
)
from padim_edge.processes import run_child
from padim_edge.system import ROOT, available_memory, processor

SCHEMA = 1
HOUR = 3600.0

Case = tuple[str, ...]
Function = Callable[..., Iterable[Line]]
"""Called with the sizes, a folder, and the parts of a case."""


@dataclass(frozen=True)
class Check:
    """A line of the table.

    Attributes:
        area: part of the proof, as printed.
        place: "module:function", below padim_edge.measure.
        cases: what it is run for, each in a process of its own; no parts for a single run.
        limit: seconds for a case. Generous: a small device builds a plan in minutes.
    """

    area: str
    place: str
    cases: Callable[[Sizes], Iterable[Case]]
    limit: float = HOUR


def _once(_: Sizes) -> Iterable[Case]:
    return [()]


def _detectors(sizes: Sizes) -> Iterable[Case]:
    return itertools.product(sizes.networks, PRESETS)


def _engines(_: Sizes) -> Iterable[Case]:
    return [(engine,) for engine in ENGINES]


def _networks(sizes: Sizes) -> Iterable[Case]:
    return itertools.product(ENGINES, sizes.networks)


CHECKS = (
    # The first is the gate: if it does not pass, nothing else can.
    Check("device", "proof_device:gpu", _once),
    Check("device", "proof_device:machine", _once),
    Check("kernels", "proof_kernels:scoring", _detectors),
    Check("kernels", "proof_kernels:preparing", _once),
    Check("parity", "proof_engines:parity", _networks, 8 * HOUR),
    Check("speed", "proof_engines:speed", _networks, 2 * HOUR),
    Check("endurance", "proof_endurance:opened_and_closed", _engines),
    Check("endurance", "proof_endurance:two_processes", _engines),
    Check("endurance", "proof_endurance:terminated", _engines),
    Check("endurance", "proof_endurance:under_load", _engines),
)


@dataclass(frozen=True)
class Proof:
    """What was proved; `to_json` is the stable form.

    Attributes:
        date: when it began; ISO 8601, UTC.
        device: the GPU, as its driver calls it.
        machine: the board or the processor.
        sizes: how large it was.
        seconds: that it took.
        lines: what was found.
        interrupted: it was stopped; what was still to come is "not run".
    """

    date: str
    device: str
    machine: str
    sizes: Sizes
    seconds: float
    lines: tuple[Line, ...]
    interrupted: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Lines by status, of `STATUSES`."""
        found = [one.status for one in self.lines]
        return {status: found.count(status) for status in STATUSES}

    @property
    def holds(self) -> bool:
        """Whether nothing failed and nothing could not be run."""
        return not self.counts["fail"] and not self.counts["not run"]

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the version of the schema."""
        return {
            "schema": SCHEMA,
            "date": self.date,
            "padim_edge": __version__,
            "device": self.device,
            "machine": self.machine,
            "full": self.sizes == Sizes(),
            "sizes": asdict(self.sizes),
            "seconds": round(self.seconds, 1),
            "holds": self.holds,
            "counts": self.counts,
            "lines": [_plain(one) for one in self.lines],
        }

    def to_text(self) -> str:
        """The JSON, a line of text for each of the proof's."""
        values = self.to_json()
        lines = ",\n".join(_compact(one) for one in values.pop("lines"))
        head = "".join(f"{_compact(key)}: {_compact(value)},\n" for key, value in values.items())
        return f'{{\n{head}"lines": [\n{lines}\n]\n}}\n'


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _plain(one: Line) -> dict[str, Any]:
    """Without a detail that passed, if its figures say the same: a report is to be pasted."""
    values = asdict(one)
    if one.status == "pass" and one.figures:
        del values["detail"]
    return {"area": values.pop("area"), **values}


def prove(
    sizes: Sizes | None = None,
    tell: Callable[[Line], None] = lambda _: None,
    begin: Callable[[str, int, int], None] = lambda *_: None,
    checks: tuple[Check, ...] = CHECKS,
) -> Proof:
    """Run all checks, which takes an hour or more on a small device.

    Args:
        sizes: how large; None for the command's own.
        tell: given each line as it is found.
        begin: told of each case before it: what, its number from 1, how many there are.
        checks: the table.

    Returns:
        What was proved; when it is interrupted (KeyboardInterrupt), as far as it came.

    Raises:
        PadimEdgeError: there is no GPU here, or it cannot be used, or the temporary folder has no
            room for the plans: one line says what is missing.
    """
    sizes = sizes or Sizes()
    driver = ask("driver")
    if driver["status"] != "ok":
        fix = f": run  {driver['fix']}" if driver["fix"] else ""
        raise PadimEdgeError(f"doctor --gpu needs an NVIDIA GPU: {driver['detail']}{fix}")
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    start = time.perf_counter()
    lines: list[Line] = []

    def add(found: Iterable[Line]) -> None:
        for one in found:
            lines.append(one)
            tell(one)

    missing = dict(_impossible(sizes))
    every = [(check, case) for check in checks for case in check.cases(sizes)]
    there = [one for one in every if not set(one[1]) & missing.keys()]
    interrupted = False
    _check_disk(set(sizes.networks) - missing.keys())
    with tempfile.TemporaryDirectory(prefix="padim-edge-proof-") as folder:
        for number, (check, case) in enumerate(there, 1):
            begin(_name(check, case), number, len(there))
            try:
                add(_in_a_child(check, sizes, Path(folder), case))
            except KeyboardInterrupt:
                if not lines:
                    raise
                left, interrupted = there[number - 1 :], True
                add(Line(_name(*one), "not run", "interrupted", area=one[0].area) for one in left)
                break
            if number == 1 and lines[0].status != "pass":
                raise PadimEdgeError(f"doctor --gpu cannot use the GPU: {lines[0].detail}")
    add(Line(name, "absent", why, area="device") for name, why in missing.items())
    device = str(lines[0].figures.get("device", ""))
    seconds = time.perf_counter() - start
    return Proof(date, device, processor(), sizes, seconds, tuple(lines), interrupted)


def _impossible(sizes: Sizes) -> Iterator[tuple[str, str]]:
    """Engines and networks that this machine cannot have, and why."""
    listed = ask("onnxruntime")["items"]
    if (
        platform.machine() == "aarch64"
        and is_jetson(ROOT)
        and "CUDAExecutionProvider" not in listed
    ):
        yield "ort-cuda", "PyPI has no ONNX Runtime with CUDA for a Jetson: trt is its engine"
    free = available_memory()
    for network in sizes.networks:
        if MEMORY.get(network, 0) > free:
            needed = f"its detectors need {MEMORY[network] / 2**30:.0f} GiB"
            yield network, f"{needed}, and {free / 2**30:.1f} GiB of memory are free"


def _check_disk(networks: Iterable[str]) -> None:
    needed, place = sum(DISK.get(name, 0) for name in networks), tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if free < needed:
        raise PadimEdgeError(
            f"doctor --gpu needs {needed / 1e9:.1f} GB for its plans, and {place} has "
            f"{free / 1e9:.1f} GB free: make room, or set TMPDIR to a folder with more"
        )


def _name(check: Check, case: Case) -> str:
    """Of what could not say more: the check's function and its case."""
    return " ".join([check.place.split(":")[1].replace("_", " "), *case])


def _in_a_child(check: Check, sizes: Sizes, folder: Path, case: Case) -> list[Line]:
    """The lines of a case, whatever becomes of its process."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from padim_edge.measure.proof import child; child(*sys.argv[1:])"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    with tempfile.TemporaryDirectory(dir=folder) as own:
        arguments = [check.place, json.dumps(asdict(sizes)), own, _name(check, case), *case]
        done = run_child([sys.executable, "-c", code, *arguments], check.limit, environment)
        written = ""
        with contextlib.suppress(OSError):
            written = (Path(own) / _LINES).read_text()
    found = [Line(**json.loads(text)) for text in written.splitlines()]
    if done.code != 0 or not found:
        found.append(Line(_name(check, case), "fail", done.trouble))
    return [dataclasses.replace(one, area=check.area) for one in found]


_LINES = "lines.jsonl"


def child(place: str, sizes: str, folder: str, name: str, *case: str) -> None:
    """Run one case and write its lines as they come: what `prove` starts."""
    # Here: it brings numpy, and whatever fails with it fails alone.
    from padim_edge.runtime.probe import Answer, tried

    module, function = place.split(":")
    with (Path(folder) / _LINES).open("w") as stream:

        def write(one: Line) -> None:
            print(json.dumps(asdict(one)), file=stream, flush=True)

        def run() -> Answer:
            check: Function = getattr(import_module(f"padim_edge.measure.{module}"), function)
            for one in check(Sizes.of(json.loads(sizes)), Path(folder), *case):
                write(one)
            return Answer("ok", "")

        answer = tried(run)
        if answer.status != "ok":
            status = {"missing": "not run", "absent": "absent"}.get(answer.status, "fail")
            write(Line(name, status, answer.detail))
