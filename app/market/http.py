"""One bounded GET for both upstreams: time-outs, a size limit, a total deadline, and JSON that may be anything."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from app.errors import UpstreamError, UpstreamTimeoutError

MOST_BYTES = 50 * 1024 * 1024
PIECE_BYTES = 65_536

Parse = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds: for a connection, between two pieces of a reply, and for all of it."""

    connect: float = 3.05
    read: float = 10.0
    total: float = 15.0


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Reply:
    """An upstream's answer. `body` is the parsed JSON, or None if it was none: then `excerpt` shows its beginning."""

    status: int
    headers: Mapping[str, str]
    body: Any
    excerpt: str


def get(
    session: requests.Session,
    source: str,
    url: str,
    params: Mapping[str, str],
    patience: Patience = PATIENCE,
    parse: Parse = json.loads,
) -> Reply:
    """GET `url`. Raises UpstreamError (naming `source`) when no whole answer comes, UpstreamTimeoutError if late.

    `parse` makes JSON of the content, or raises ValueError.
    """
    deadline = time.monotonic() + patience.total
    timeout = (patience.connect, patience.read)
    try:
        with session.get(url, params=dict(params), timeout=timeout, stream=True, allow_redirects=False) as response:
            content = _read(response, deadline, source)
            return Reply(response.status_code, response.headers, *_parsed(content, parse))
    except (requests.RequestException, HTTPError) as error:
        if _is_late(error):
            raise UpstreamTimeoutError(source, f"no answer within {patience.read:g} s") from error
        raise UpstreamError(source, f"no connection or a broken one ({type(error).__name__})") from error


def _is_late(error: Exception) -> bool:
    """Whether time ran out. requests speaks before the body, urllib3 while it is read."""
    return isinstance(error, requests.Timeout | ReadTimeoutError)


def _read(response: requests.Response, deadline: float, source: str) -> bytes:
    pieces = bytearray()
    # iter_content() would wait for whole pieces, and a reply that drips in would never see the deadline.
    while piece := response.raw.read1(PIECE_BYTES, decode_content=True):
        pieces += piece
        if len(pieces) > MOST_BYTES:
            raise UpstreamError(source, f"a reply of more than {MOST_BYTES} bytes")
        if time.monotonic() > deadline:
            raise UpstreamTimeoutError(source, "a reply that dripped in too slowly")
    return bytes(pieces)


def _parsed(content: bytes, parse: Parse) -> tuple[Any, str]:
    try:
        return parse(content), ""
    except (ValueError, RecursionError):
        return None, content[:200].decode(errors="replace")
