"""Addresses of sources and sinks: taken apart, and shown without passwords.

An address is a scheme, a colon and what the scheme makes of the rest: ``folder:anomalies/?max=2G``,
``mqtt://user:password@host:1883/line/3?qos=1``. Without a scheme it is a path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from padim_edge.errors import UsageError

T = TypeVar("T")

HIDDEN = "***"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
# Up to the last @ before the path: a password may hold one.
_PASSWORD = re.compile(r"(://[^/?#\s:@]*):[^/?#\s]*@")
# Of what cannot be taken apart, from the first colon to the last @ of all: / ? and # in a password,
# not written %2F..., or no slashes before the user.
_ANY_PASSWORD = re.compile(r"^((?:[A-Za-z][A-Za-z0-9+.-]*:)?/{0,2}[^/?#:]*):.*@", re.DOTALL)
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")
_SECRET = re.compile(
    r"((?:\b(?:password|passwd|pass|pwd|user-pw|secret|token|access_token|api_?key)"
    r"|(?<=[?&])(?:sig|signature|code|key)"
    r"|\b(?:password|secret)_from(?!=(?:env|file):))=)[^&#\s]+",
    re.I,
)
_OPTIONS = re.compile(r"(.*)\?([\w.-]+=[^&?]*(?:&[\w.-]+=[^&?]*)*)", re.DOTALL)
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", re.I)


def display(address: str) -> str:
    """An address, or a sentence with some in it, with ``***`` for passwords, tokens and secrets."""
    return _SECRET.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1:{HIDDEN}@", address))


def _display_unread(address: str) -> str:
    """The same of one that is no address: where its password ends, nobody knows."""
    return display(_ANY_PASSWORD.sub(rf"\1:{HIDDEN}@", address))


@dataclass(frozen=True)
class Address:
    """An address taken apart.

    Attributes:
        given: as it was given; it may hold a password: show ``str(address)``.
        scheme: in small letters; "" for a path without one.
        rest: after the colon, without the options.
        options: of ``?name=value&name=value`` at the end.
        fragment: of ``#name=value&name=value`` after a URL, which no server is ever told.
        host: of a URL (``scheme://``), without brackets; else "".
        port: of a URL; None if none is given.
        user: of a URL; else "".
        password: of a URL; None if none is given.
        path: of a URL, with its slash; of others it is ``rest``.
    """

    given: str = field(repr=False)
    scheme: str
    rest: str = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    fragment: Mapping[str, str] = field(default_factory=dict, repr=False)
    host: str = ""
    port: int | None = None
    user: str = ""
    password: str | None = field(default=None, repr=False)
    path: str = ""

    def __str__(self) -> str:
        """As it was given, without passwords."""
        given = self.given
        if self.password is not None:  # whatever it is made of
            found = _AUTHORITY.match(given)
            assert found is not None  # there would be no password
            user = found[1].partition(":")[0]
            begin, end = found.start(1), found.start(1) + found[1].rindex("@")
            given = f"{given[:begin]}{user}:{HIDDEN}{given[end:]}"
        return display(given)

    def refused(self, why: str) -> UsageError:
        """The error that says what is wrong with it, for ``raise``."""
        # Without a host it may be no more than ill-written: mqtt:me:password@host.
        return UsageError(f"{self if self.host else _display_unread(self.given)}: {why}")

    def check_options(self, allowed: Iterable[str], given: Mapping[str, str] | None = None) -> None:
        """Refuse options that are not among the allowed ones; ``given`` are ``options``, or others.

        Raises:
            UsageError: there are such.
        """
        allowed = tuple(allowed)
        given = self.options if given is None else given
        unknown = [name for name in given if name not in allowed]
        if unknown:
            many = f"allowed are {', '.join(allowed)}" if allowed else "it takes none"
            raise self.refused(f"no option {unknown[0]!r}; {many}")

    def option(
        self,
        name: str,
        read: Callable[[str], T],
        default: T,
        given: Mapping[str, str] | None = None,
    ) -> T:
        """One option, read by a function that raises ValueError with what is allowed.

        Raises:
            UsageError: it does not read so.
        """
        text = (self.options if given is None else given).get(name)
        if text is None:
            return default
        try:
            return read(text)
        except ValueError as error:
            raise self.refused(f"{name}={text}: {error}") from error


def parse(address: str, kind: str, schemes: Collection[str]) -> Address:
    """Take an address apart.

    Args:
        address: as a user gave it.
        kind: "source" or "sink", for the error.
        schemes: those that there are. A colon after anything else is part of a path, if what is
            before it does not look like a scheme.

    Raises:
        UsageError: it is empty, has a scheme that there is not, or a URL without sense.
    """
    allowed = f"allowed are {', '.join(f'{scheme}:' for scheme in schemes if scheme)}"
    if "" in schemes:
        allowed += ", or a path"
    if not address.strip() or "\0" in address:
        raise UsageError(f"an empty address of a {kind}; {allowed}")
    match = _SCHEME.match(address)
    scheme = match[1].lower() if match else ""
    if scheme not in schemes:
        # "C:" and "photos: monday" are paths.
        if scheme and ("" not in schemes or re.fullmatch(r"[\w+.-]{2,}:\S*", address)):
            raise UsageError(f"no {kind} {scheme!r}, in {_display_unread(address)}; {allowed}")
        if "" not in schemes:
            raise UsageError(f"no {kind} is called {_display_unread(address)}; {allowed}")
        scheme = ""
    if not scheme:
        if "://" in address:  # with a blank before it, say; it may hold a password
            raise UsageError(f"no {kind} is called {_display_unread(address)}; {allowed}")
        return Address(address, "", address, path=address)
    rest = address[len(scheme) + 1 :]
    if rest.startswith("//"):
        return _url(address, scheme, kind)
    options: dict[str, str] = {}
    found = _OPTIONS.fullmatch(rest)
    if found:
        rest, options = found[1], _pairs(found[2])
    return Address(address, scheme, rest, options, path=rest)


def _url(address: str, scheme: str, kind: str) -> Address:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(
            f"{_display_unread(address)} is no URL of a {kind}: like {scheme}://host:port/path it "
            "should be, and / ? # @ in a password are written %2F %3F %23 %40"
        ) from error
    found = _AUTHORITY.match(address)
    authority = found[1] if found else ""
    # Of mqtt://me:12/ss@host nobody can tell whether 12 is a port. "@host:1883" has no user, so no
    # password; what is in brackets is an address of IPv6.
    is_open = ":" in re.sub(r"\[[^\]]*\]", "", authority) and not authority.startswith("@")
    if is_open and "@" in address[len(f"{scheme}://{authority}") :]:
        raise UsageError(
            f"{_display_unread(address)}: an @ follows after a / ? or #, which ends host and port: "
            "write / ? # @ in a password as %2F %3F %23 %40; or if it is not of a password, that @ "
            f"as %40, or begin with {scheme}://@"
        )
    return Address(
        address,
        scheme,
        address[len(scheme) + 1 :],
        _pairs(parts.query),
        _pairs(parts.fragment),
        host,
        port,
        unquote(parts.username or ""),
        None if parts.password is None else unquote(parts.password),
        parts.path,
    )


def _pairs(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


def size(text: str) -> tuple[int, int]:
    """(w, h) of "1920x1080"."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("a size is width x height, like 1920x1080")
    return int(match[1]), int(match[2])


def number(least: float = 0.0) -> Callable[[str], float]:
    """Reads a number above ``least``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least < value < math.inf:
            raise ValueError(f"a number above {least:g} is needed")
        return value

    return read


def whole(least: int = 0, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Reads a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most} is needed")
        return int(text)

    return read


def one_of(*names: str) -> Callable[[str], str]:
    """Reads one of some words."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"allowed are {', '.join(names)}")
        return text

    return read


def byte_count(text: str) -> int:
    """Bytes of "500MB", "2G" or "1000"; k, M, G and T are powers of 1000."""
    match = _BYTES.fullmatch(text)
    if not match:
        raise ValueError("a size is a number with k, M, G or T after it, like 500MB")
    return int(float(match[1]) * 1000 ** " kMGT".lower().index(match[2].lower() or " "))
