"""Which web pages may call this service from a browser: those of CORS_ORIGINS, by default none."""

from collections.abc import Awaitable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

SENT_HEADERS = ["Authorization", "Content-Type", "If-None-Match", "X-API-Key", "X-Request-ID"]
READ_HEADERS = [
    *("Age", "ETag", "Link", "Retry-After"),
    *("X-Caps-Stale", "X-Request-ID", "X-Snapshot-Stale", "X-Total-Count"),
]


class Cors:
    """ASGI middleware: Starlette's CORSMiddleware, made when the first request tells the settings; else nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._chosen: ASGIApp | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the call on."""
        if self._chosen is None:
            if scope["type"] != "http":
                return self._app(scope, receive, send)
            self._chosen = self._choose(scope["state"]["services"].settings.cors_origins)
        return self._chosen(scope, receive, send)

    def _choose(self, origins: tuple[str, ...]) -> ASGIApp:
        if not origins:
            return self._app
        return CORSMiddleware(
            self._app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=SENT_HEADERS,
            expose_headers=READ_HEADERS,
        )
