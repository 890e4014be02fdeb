"""Passwords that stand in no address: a command line can be read by every user of a machine."""

from __future__ import annotations

import os
from pathlib import Path

from padim_edge.live.addresses import Address

PASSWORD = "password_from"
"""The option."""


def password(address: Address, given: str = PASSWORD) -> str | None:
    """The password of an address, or what its option ``password_from`` points to.

    Raises:
        UsageError: there are both, or there is nothing where it points to.
    """
    if given not in address.options:
        return address.password
    if address.password is not None:
        raise address.refused(f"a password and {given}: give one of them")
    return secret(address, given, address.options[given])


def secret(address: Address, option: str, where: str) -> str:
    """What stands in ``env:NAME`` or ``file:PATH``.

    Raises:
        UsageError: nothing does.
    """
    kind, _, name = where.partition(":")
    if kind == "env":
        found = os.environ.get(name)
        if not found:
            raise address.refused(f"{option}={where}: there is no such environment variable")
        return found
    if kind == "file":
        try:
            found = Path(name).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise address.refused(f"{option}={where}: it cannot be read ({error})") from error
        if not found:
            raise address.refused(f"{option}={where}: the file is empty")
        return found
    # Not what was given: it may be the secret itself.
    raise address.refused(f"{option}: env:NAME or file:PATH is needed")
