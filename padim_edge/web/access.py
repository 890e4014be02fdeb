"""Who may come in: by a token, in a header or as a cookie that a login sets."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from padim_edge.errors import UsageError

SHORTEST = 16
"""Characters of a token."""

TRIES = 10
"""Wrong tokens from one address in `PAUSE` seconds, at most; then it is told to wait."""

PAUSE = 60.0
"""Seconds."""

REMEMBERED = 1024
"""Addresses whose wrong tries are counted."""

STAYS = 30 * 24 * 3600
"""Seconds for which a browser stays logged in."""


def make_token() -> str:
    """A token that nobody guesses: 192 bits."""
    return secrets.token_urlsafe(24)


class Access:
    """A token, and how often it was tried in vain.

    Args:
        token: what must be shown.
        clock: seconds, never backwards.

    Raises:
        UsageError: it is shorter than `SHORTEST`, or has characters that no header carries.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        if len(token) < SHORTEST or not all("!" <= one <= "~" for one in token):
            raise UsageError(
                f"a token of {len(token)} characters was given: {SHORTEST} or more are needed, "
                "letters, digits and signs of ASCII, no blanks; without one a good one is made"
            )
        self._token = token.encode()
        # Not the token itself: who reads a browser's cookies cannot use the programs' interface.
        self._session = hmac.new(self._token, b"padim-edge session", hashlib.sha256).hexdigest()
        self._clock = clock
        self._failed: OrderedDict[str, list[float]] = OrderedDict()

    def try_token(self, shown: str, address: str) -> bool | None:
        """Whether it is the token; None where it is not, and too many from there were not.

        The right one always passes: behind a proxy all have one address, and who guesses there must
        not keep the others out. It is too long to be guessed at any pace.

        Args:
            shown: by a client.
            address: the client's.
        """
        if hmac.compare_digest(shown.encode("utf-8", "replace"), self._token):
            return True
        now, place = self._clock(), _place(address)
        failed = [then for then in self._failed.get(place, ()) if now - then < PAUSE]
        if len(failed) >= TRIES:
            return None
        self._failed[place] = [*failed, now]
        self._failed.move_to_end(place)
        while len(self._failed) > REMEMBERED:
            self._failed.popitem(last=False)
        return False

    def has_session(self, cookies: str, port: int) -> bool:
        """Whether a header of cookies holds that of a login here."""
        own = cookie_name(port)
        # Others' cookies of this machine come along, in whatever spelling.
        held = (one.strip().partition("=") for one in cookies.split(";"))
        return any(
            name == own
            and hmac.compare_digest(value.encode("utf-8", "replace"), self._session.encode())
            for name, _, value in held
        )

    def cookie(self, port: int, secure: bool) -> str:
        """What makes a browser come back as one that may."""
        return (
            f"{cookie_name(port)}={self._session}; Path=/; Max-Age={STAYS}; HttpOnly; "
            f"SameSite=Strict{'; Secure' if secure else ''}"
        )


def cookie_name(port: int) -> str:
    """Cookies are of a machine, whatever the port: two servers there must not share one."""
    return f"padim_edge_{port}"


def _place(address: str) -> str:
    """An address; of IPv6 the network of 64 bits, of which one client has them all."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
