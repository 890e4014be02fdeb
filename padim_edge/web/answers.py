"""Answers in one line of JSON, errors among them, for every server of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
except ImportError as error:
    raise MissingDependencyError("a server", "starlette", "serve") from error


MISTAKE = "this server made a mistake, and wrote down which"
"""What a client is told of it."""


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON.

    Raises:
        ValueError: it holds a number that JSON has not.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(text + "\n", status, headers, "application/json")


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """``{"error": message}``."""
    return answer({"error": message}, status, headers)


async def _ours(_: Request, error: Exception) -> Response:
    return refusal(400 if isinstance(error, UsageError) else 422, str(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = error.detail
    if error.status_code == 404:
        said = "there is nothing here"
    elif error.status_code == 405:
        said = f"{request.method} makes no sense here"
    return refusal(error.status_code, said, error.headers)


async def _mistake(_: Request, __: Exception) -> Response:
    return refusal(500, MISTAKE)


HANDLERS: dict[Any, Any] = {PadimEdgeError: _ours, HTTPException: _http, Exception: _mistake}
"""For ``Starlette(exception_handlers=...)``: a UsageError is 400, others of ours are 422."""
