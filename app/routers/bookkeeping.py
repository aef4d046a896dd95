"""What is noted of every request: an id, which its log lines and its answer carry, how long it took, how it ended."""

import logging
import re
import secrets
from itertools import count
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import ACCESS_LOGGER, request_id
from app.metrics import Metrics

access = logging.getLogger(ACCESS_LOGGER)

HEADER = b"x-request-id"
WELL_FORMED = re.compile(rb"[A-Za-z0-9._+/=:-]{1,128}")
"""What a caller or a proxy may call its request: nothing that could be markup, an address or another log line."""
UNMATCHED = "(unmatched)"


class RequestIds:
    """Gives out ids: the caller's own if it is well-formed, else a new one, told apart from other processes' by chance.

    Counting on from a random beginning takes a quarter of the time of a random id each.
    """

    def __init__(self) -> None:
        self._ours = secrets.token_hex(6).encode()
        self._numbers = count(1)

    def of(self, given: bytes | None) -> bytes:
        """The id of a request that came with this in its X-Request-ID."""
        if given is not None and WELL_FORMED.fullmatch(given):
            return given
        return b"%b-%d" % (self._ours, next(self._numbers))


class Bookkeeping:
    """ASGI middleware around all that `market_fast_path.py` leaves."""

    def __init__(self, app: ASGIApp, metrics: Metrics, ids: RequestIds) -> None:
        self._app = app
        self._metrics = metrics
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, and note what comes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        identifier = self._ids.of(dict(scope["headers"]).get(HEADER))
        request_id.set(identifier.decode())
        status = 500  # what is answered in the end if an error comes through here

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, identifier)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            note(self._metrics, scope["method"], route_template(scope), status, perf_counter() - started)


def is_logged() -> bool:
    """Whether there is an access log."""
    return access.isEnabledFor(logging.INFO)


def note(metrics: Metrics, method: str, route: str, status: int, seconds: float) -> None:
    """Count and time a request that has been answered, and log it if ACCESS_LOG asks for that."""
    metrics.requests.note(method, route, status, seconds)
    if is_logged():
        access.info("%s %s: %d in %.1f ms", method, route, status, seconds * 1000)


def route_template(scope: Scope) -> str:
    """The route as it was written, without a slash at its end; never what a caller made up."""
    route = scope.get("route")
    return UNMATCHED if route is None else route.path.rstrip("/") or "/"
