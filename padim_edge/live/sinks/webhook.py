"""Events to a web receiver, signed after the Standard Webhooks specification.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from padim_edge.errors import MissingDependencyError, UsageError, first_line
from padim_edge.live.addresses import Address, display, number, whole
from padim_edge.live.event import Event
from padim_edge.live.sink import RefusedError, SinkError
from padim_edge.live.sinks.secrets import PASSWORD, secret

try:
    import urllib3
except ModuleNotFoundError as error:
    raise MissingDependencyError("a webhook as a sink", "urllib3", "live") from error

_SECRET = "secret_from"

_DRAINED = 65536
"""Bytes of an answer that are read, so that its connection can be used again: what it says does not
matter, and it may be endless."""

_SAID = 200
"""Characters of what it says that are repeated."""

_PASSING = frozenset((401, 403, 404, 407, 408, 421, 423, 425, 429))
"""Of the answers 4xx those that are about the receiver, the way or the moment: it is tried again.
All others say that this request will never do."""


class WebhookSink:
    """``https://host/path#batch=10&secret_from=env:NAME``: a POST of JSON for each event, or many.

    The query of the URL is the receiver's; our options are in the fragment, which is not sent.
    """

    is_state = False
    wants_pictures = False

    def __init__(self, address: Address) -> None:
        self.address = str(address)
        options = address.fragment
        secure = ("ca", "cert", "key") if address.scheme == "https" else ()
        address.check_options(("batch", "timeout", _SECRET, PASSWORD, *secure), options)
        if not address.host:
            raise address.refused(f"name a receiver, like {address.scheme}://host/hook")
        for name in (PASSWORD, _SECRET):
            if name in address.options:
                raise address.refused(f"what follows after ? is sent to it: write #{name}=...")
        self._batch = address.option("batch", whole(0, 1000), 0, options)
        timeout = address.option("timeout", number(), 10.0, options)
        self._key = _key(address, options[_SECRET]) if _SECRET in options else None
        word = address.password
        if PASSWORD in options:
            word = secret(address, PASSWORD, options[PASSWORD])
        self._headers = {"Content-Type": "application/json", "User-Agent": "padim-edge"}
        if address.user:
            self._headers |= urllib3.make_headers(basic_auth=f"{address.user}:{word or ''}")
        parts = urlsplit(address.given)
        self._url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
        certificates: dict[str, Any] = {
            "ca_certs": options.get("ca"),
            "cert_file": options.get("cert"),
            "key_file": options.get("key"),
        }
        self._pool = urllib3.PoolManager(
            num_pools=1,
            timeout=urllib3.Timeout(total=timeout),
            retries=False,  # the delivery's matter, which knows how to wait
            **{name: file for name, file in certificates.items() if file},
        )

    def open(self) -> None:
        """Nothing: the first request connects."""

    def send(self, events: Sequence[Event]) -> None:
        """Post them; one by one, or so many in a list."""
        if not self._batch:
            for number, event in enumerate(events):
                self._post(event.record, event.id, number)
            return
        for start in range(0, len(events), self._batch):
            group = events[start : start + self._batch]
            try:
                self._post([event.record for event in group], group[-1].id, start)
            except RefusedError:
                if len(group) == 1:
                    raise
                for number, event in enumerate(group, start):  # which one is it?
                    self._post([event.record], event.id, number)

    def _post(self, content: object, name: str, delivered: int) -> None:
        body = json.dumps(content, allow_nan=False).encode()
        headers = {**self._headers, "webhook-id": name}
        if self._key is not None:
            headers |= signature(self._key, name, int(time.time()), body)
        try:
            answer = self._pool.request(
                "POST", self._url, body=body, headers=headers, preload_content=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise SinkError(f"{self.address}: {first_line(error)}", delivered=delivered) from error
        try:
            if (answer.length_remaining or 0) <= _DRAINED:
                answer.read(_DRAINED, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError):
            pass  # it has said already what counts
        finally:
            answer.close()
            answer.release_conn()
        status = answer.status
        if 200 <= status < 300:
            return
        words = f"{self.address} answers {status} {(answer.reason or '')[:_SAID]}".strip()
        if 300 <= status < 400:
            # Where it leads may be anybody's: neither events nor signatures go there unasked.
            place = display(answer.headers.get("Location", "elsewhere")[:_SAID])
            raise SinkError(f"{words}: it leads to {place}; name that", delivered=delivered)
        if 400 <= status < 500 and status not in _PASSING:
            raise RefusedError(words, delivered=delivered)
        wait = _seconds(answer.headers.get("Retry-After"))
        raise SinkError(words, delivered=delivered, retry_after=wait)

    def close(self) -> None:
        """Let go of connections."""
        self._pool.clear()


def signature(key: bytes, name: str, seconds: int, body: bytes) -> dict[str, str]:
    """The headers by which a receiver can tell that it was us, and now.

    Args:
        key: the shared secret.
        name: ``webhook-id``.
        seconds: since 1970.
        body: of the request.
    """
    signed = b".".join((name.encode(), str(seconds).encode(), body))
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _key(address: Address, where: str) -> bytes:
    """The shared secret; one that begins with whsec_ is written in base64."""
    text = secret(address, _SECRET, where)
    if not text.startswith("whsec_"):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise UsageError(
            f"{address}: {_SECRET}={where}: after whsec_ there must be base64"
        ) from error


def _seconds(header: str | None) -> float:
    """What Retry-After asks for: seconds or a date; 0 if it does not, or nobody can tell."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
