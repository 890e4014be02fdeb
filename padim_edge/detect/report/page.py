"""The page: a report as one HTML file that needs nothing else, and asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from padim_edge.detect.overlay import colour_table
from padim_edge.detect.report.contents import Report
from padim_edge.errors import UsageError

SUFFIXES = (".html", ".htm")


def check_place(path: Path | None) -> None:
    """Refuse a name that no browser takes for a page, among them those of photos and models.

    Raises:
        UsageError: it is one.
    """
    if path and path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--report {path}: a report is a page for a browser: name a file that ends in .html"
        )


def page(report: Report) -> bytes:
    """A report as an HTML file.

    What is inserted of a user's (names of files, of folders) is in the JSON alone, in which no
    character stands that HTML knows, and becomes text by ``textContent``. A browser is told to
    run and to show what is in the file, by its hash, and to load nothing (Content Security Policy).
    """
    style, script, template = map(_text, ("report.css", "report.js", "template.html"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; "
        f"script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    )
    values = asdict(report) | {"colours": np.rint(colour_table()[::15]).astype(int).tolist()}
    parts = {"policy": policy, "style": style, "script": script, "data": _json(values)}
    return Template(template).substitute(parts).encode()


def _json(values: object) -> str:
    """JSON in ASCII without a character that ends an element or begins an entity."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _source(text: str) -> str:
    """What allows an inline element by its contents."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    """A file beside this one."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")
