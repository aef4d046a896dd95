"""One bounded GET for both upstreams: time-outs, a size limit, a total deadline, and JSON that may be anything."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests

from app.errors import UpstreamError

CONNECT_SECONDS = 3.05
READ_SECONDS = 10.0
"""Silence allowed between two pieces of a reply."""
TOTAL_SECONDS = 15.0
"""A reply that drips in for longer is given up."""
MOST_BYTES = 50 * 1024 * 1024
PIECE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Reply:
    """An upstream's answer. `body` is the parsed JSON, or None where it was none: then `excerpt` shows its beginning."""

    status: int
    headers: Mapping[str, str]
    body: Any
    excerpt: str


def get(session: requests.Session, source: str, url: str, params: Mapping[str, str]) -> Reply:
    """GET `url`. Raises UpstreamError (naming `source`) when no whole answer arrives in time."""
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        with session.get(
            url, params=dict(params), timeout=(CONNECT_SECONDS, READ_SECONDS), stream=True, allow_redirects=False
        ) as response:
            content = _read(response, deadline, source)
            return Reply(response.status_code, response.headers, *_parse(content))
    except requests.Timeout as error:
        raise UpstreamError(source, f"no answer within {READ_SECONDS:g} s") from error
    except requests.RequestException as error:
        raise UpstreamError(source, f"no connection or a broken one ({type(error).__name__})") from error


def _read(response: requests.Response, deadline: float, source: str) -> bytes:
    pieces = bytearray()
    for piece in response.iter_content(PIECE_BYTES):
        pieces += piece
        if len(pieces) > MOST_BYTES:
            raise UpstreamError(source, f"a reply of more than {MOST_BYTES} bytes")
        if time.monotonic() > deadline:
            raise UpstreamError(source, f"a reply that took more than {TOTAL_SECONDS:g} s")
    return bytes(pieces)


def _parse(content: bytes) -> tuple[Any, str]:
    try:
        return json.loads(content), ""
    except (ValueError, RecursionError):
        return None, content[:200].decode(errors="replace")
