"""The snapshot for callers who want all of it: answered from prepared bytes, before any routing.

It does for the common request what `routers/market.py` does for every request; docs/decisions/market-data.md says why.
"""

from collections.abc import Awaitable
from time import perf_counter

from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.api_key import key_holds
from app.logs import request_id
from app.market.wire import answer
from app.metrics import Metrics
from app.routers.bookkeeping import HEADER, RequestIds, is_logged, note
from app.services import Services

PATH = "/api/market/aggregated_data"
PATHS = {PATH, f"{PATH}/"}


class MarketFastPath:
    """ASGI middleware around all others: whatever is not the common case, and every error, is left to the route."""

    def __init__(self, app: ASGIApp, metrics: Metrics, ids: RequestIds) -> None:
        self._app = app
        self._metrics = metrics
        self._ids = ids

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer, or pass the call on."""
        if scope.get("path") in PATHS and scope["method"] == "GET" and not scope["query_string"]:
            return self._answer(scope, receive, send)
        return self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        services: Services = scope["state"]["services"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        snapshots = services.market.snapshots
        snapshot = None
        # A page of another origin needs the headers of cors.py, which lies further in.
        if b"origin" not in headers and key_holds(headers.get(b"x-api-key"), services.settings.crypto_api_key):
            snapshot = snapshots.latest()
        if snapshot is None:
            await self._app(scope, receive, send)
            return
        reply = answer(
            snapshot,
            age=snapshots.age(snapshot),
            lifetime=snapshots.lifetime_seconds,
            accept_encoding=headers.get(b"accept-encoding", b""),
            if_none_match=headers.get(b"if-none-match", b""),
        )
        described = reply.headers
        # An id costs a tenth of such an answer: only for those who will look for it, the caller or the access log.
        if HEADER in headers or is_logged():
            identifier = self._ids.of(headers.get(HEADER))
            request_id.set(identifier.decode())
            described = [*described, (HEADER, identifier)]
        await send({"type": "http.response.start", "status": reply.status, "headers": described})
        await send({"type": "http.response.body", "body": reply.body})
        note(self._metrics, "GET", PATH, reply.status, perf_counter() - started)
